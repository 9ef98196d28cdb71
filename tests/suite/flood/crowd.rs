//! Many at once, all of them within the limits: idle connections, idle WebSockets, busy clients,
//! uploads, and a backend that drips.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{ask, connect, percentile};
use crate::support::http::{self, read_reply, read_until};
use crate::support::socket::{self, Socket};
use crate::support::{Gateway, PATIENCE, Setup, SimProcess, eventually, is_full};

struct Scale {
    idle: usize,
    sockets: usize,
    busy: usize,
    uploads: usize,
    dripped_on: usize,
    long: Duration,
    memory_mib: u64,
}

fn scale() -> Scale {
    if is_full() {
        let long = Duration::from_secs(30);
        Scale {
            idle: 5000,
            sockets: 2000,
            busy: 200,
            uploads: 50,
            dripped_on: 100,
            long,
            memory_mib: 300,
        }
    } else {
        let long = Duration::from_secs(4);
        Scale {
            idle: 250,
            sockets: 100,
            busy: 10,
            uploads: 3,
            dripped_on: 10,
            long,
            memory_mib: 150,
        }
    }
}

/// The address of the `n`th of a group, a hundred to each.
fn address(group: u8, n: usize) -> [u8; 4] {
    [127, group, (n / 100) as u8, 1]
}

/// A backend that answers polls at once and everything else a byte at a time.
async fn dripper() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(drip(stream));
        }
    });
    (url, task)
}

async fn drip(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let head = read_until(&mut stream, b"\r\n\r\n").await?;
        if head.contains("user-agent: comfygate/") || head.contains("User-Agent: comfygate/") {
            let queue = r#"{"queue_running": [], "queue_pending": []}"#;
            let reply =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{queue}", queue.len());
            stream.write_all(reply.as_bytes()).await?;
            continue;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").await?;
        loop {
            stream.write_all(b"x").await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn idle(gateway: &Gateway, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for n in 0..count {
        all.push(connect(gateway.data, address(1, n)).await.unwrap());
    }
    all
}

async fn sockets(gateway: &Gateway, count: usize) -> Vec<Socket> {
    let mut all = Vec::new();
    for n in 0..count {
        let stream = connect(gateway.data, address(2, n)).await.unwrap();
        let target = format!("/@sim/ws?clientId=idle-{n}");
        let (socket, _) = socket::open_on(stream, &target, &[]).await.expect("a WebSocket");
        all.push(socket);
    }
    all
}

/// Uploads again and again; how many there were.
async fn upload(gateway: &Gateway, n: usize, long: Duration) -> usize {
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"flood-{n}.png\"\r\n\r\n{}\r\n\
         --b\r\nContent-Disposition: form-data; name=\"overwrite\"\r\n\r\ntrue\r\n--b--\r\n",
        "x".repeat(2 << 20)
    );
    let length = form.len().to_string();
    let headers =
        [("Content-Type", "multipart/form-data; boundary=b"), ("Content-Length", &length)];
    let request = http::head("POST", "/@sim/upload/image", &headers) + &form;
    let (start, mut count) = (Instant::now(), 0);
    let mut stream = connect(gateway.data, address(4, n)).await.unwrap();
    while start.elapsed() < long {
        let written = stream.write_all(request.as_bytes()).await;
        let reply = read_reply(&mut stream).await;
        let reply = reply.unwrap_or_else(|error| panic!("no answer: {error}, {written:?}"));
        assert_eq!(reply.status, 200, "{}", reply.text());
        count += 1;
        if reply.header("connection") == Some("close") {
            stream = connect(gateway.data, address(4, n)).await.unwrap();
        }
    }
    count
}

/// Takes what drips; how many bytes came.
async fn be_dripped_on(gateway: &Gateway, n: usize, long: Duration, bytes: &AtomicUsize) {
    let mut stream = connect(gateway.data, address(5, n)).await.unwrap();
    stream.write_all(&http::get("/@drip/view", &[])).await.unwrap();
    let mut buffer = [0; 1024];
    let taking = async {
        loop {
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "what drips was cut");
            bytes.fetch_add(length, Relaxed);
        }
    };
    let _ = tokio::time::timeout(long, taking).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_within_the_limits_is_served_in_bounded_memory_and_leaves_nothing() {
    let scale = scale();
    let sim = SimProcess::start().await;
    let (drip, _dripping) = dripper().await;
    let backends = json!([{"name": "sim", "url": sim.url(), "max_queue": 1000}, {"name": "drip", "url": drip}]);
    let keys = json!({
        "backends": backends,
        "server": {"trusted_proxies": []},
        "session": {"affinity": "tab"},
        "limits": {"keepalive_timeout": "10m"},
        "health_check": {"push": false},
    });
    let gateway = Setup::bare(keys).start().await;
    gateway.until_state("sim", "up").await;
    gateway.until_state("drip", "up").await;
    let before = gateway.descriptors();
    let empty = gateway.memory_kib("VmRSS") >> 10;

    let idle = idle(&gateway, scale.idle).await;
    let sockets = sockets(&gateway, scale.sockets).await;
    let waiting = gateway.memory_kib("VmRSS") >> 10;
    let dripped = AtomicUsize::new(0);
    let pause = Duration::from_millis(20);
    let busy = (0..scale.busy)
        .map(|n| ask(gateway.data, address(3, 20 * n), "/@sim/queue", pause, scale.long));
    let uploads = (0..scale.uploads).map(|n| upload(&gateway, n, scale.long));
    let drips = (0..scale.dripped_on).map(|n| be_dripped_on(&gateway, n, scale.long, &dripped));
    let (times, uploaded, _) = tokio::join!(join_all(busy), join_all(uploads), join_all(drips));

    let mut times: Vec<_> = times.into_iter().flatten().collect();
    let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
    let peak = gateway.memory_kib("VmHWM") >> 10;
    println!(
        "{} idle, {} WebSockets: {empty} → {waiting} MiB; {} answers, p50 {p50:?}, p99 {p99:?}, \
         {} uploads, {} bytes dripped; peak {peak} MiB, {} descriptors over {before}",
        idle.len(),
        sockets.len(),
        times.len(),
        uploaded.iter().sum::<usize>(),
        dripped.load(Relaxed),
        gateway.descriptors() - before,
    );
    assert!(peak < scale.memory_mib, "{peak} MiB");
    assert!(uploaded.iter().all(|count| *count > 0), "{uploaded:?}");
    assert!(dripped.load(Relaxed) > scale.dripped_on * scale.long.as_secs() as usize);
    for stream in &idle {
        // Still open: nothing to be read, and no end.
        assert!(
            stream.try_read(&mut [0; 1]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
        );
    }
    assert_eq!(sim.sockets().await as usize, scale.sockets, "every WebSocket is open");
    let reasons = [
        "rate_limited",
        "overloaded",
        "connections",
        "client_connections",
        "connection_rate",
        "slow_reader",
        "timeout",
    ];
    for reason in reasons {
        let name = format!("comfygate_rejections_total{{reason=\"{reason}\"}}");
        assert_eq!(gateway.count(&name).await, 0, "{reason}");
    }

    drop((idle, sockets));
    // Kept-alive connections to backends stay for half a minute.
    let spare = if is_full() { 20 } else { 100 };
    eventually("the descriptors are back", 2 * PATIENCE, async || {
        gateway.descriptors() <= before + spare
    })
    .await;
    println!(
        "descriptors: {before} before, {} after; {} MiB",
        gateway.descriptors(),
        gateway.memory_kib("VmRSS") >> 10
    );
}
