//! Bad lines on either side of the gateway: whom they hurt, what is repeated, and what never is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::echo::Echo;
use crate::support::http::{self, read_head, try_exchange};
use crate::support::{
    Fake, Fault, FaultProxy, Gateway, PATIENCE, Setup, client, client_of, eventually, farm,
    long_prompt, socket,
};

/// A text that is known whole or not.
const BODY: &str = "0123456789abcdefghijklmnopqrstuvwxyz";

/// A gateway that judges by neither probes nor outliers what a test breaks on purpose.
fn patient() -> Value {
    json!({
        "health_check": {"interval": 60.0, "push": false},
        "outlier": {"consecutive_gateway_failure": 0},
    })
}

/// Two servers, the first behind a line that can be broken.
async fn broken_line() -> ([Fake; 2], FaultProxy, Gateway) {
    let fakes = [Fake::replying(BODY).await, Fake::replying(BODY).await];
    let line = FaultProxy::to(fakes[0].url()[7..].parse().unwrap()).await;
    let gateway = Setup::new(&[line.url(), fakes[1].url()]).with(patient()).start().await;
    (fakes, line, gateway)
}

async fn place(gateway: &Gateway, client: &str, backend: &str) {
    let reply = gateway.post(client, "/lb/session", &json!({"backend": backend})).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// Places where a connection may break: in the head, at its end, in the body, and behind it.
const PLACES: [u64; 9] = [0, 1, 9, 17, 37, 38, 39, 50, 74];

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_anywhere_is_repeated_or_seen_to_be_cut() {
    let (_fakes, line, gateway) = broken_line().await;
    let (mut whole, mut cut, mut elsewhere) = (0, 0, 0);
    let faults: [fn(u64) -> (Fault, Fault); 4] = [
        |at| (Fault::None, Fault::Reset(at)),
        |at| (Fault::None, Fault::Cut(at)),
        |at| (Fault::None, Fault::FinBack(at)),
        |at| (Fault::FinBack(at), Fault::None),
    ];
    for (n, (fault, at)) in faults.into_iter().flat_map(|f| PLACES.map(|at| (f, at))).enumerate() {
        let someone = client(n);
        place(&gateway, &someone, "comfy-1").await;
        line.plan(move |_| fault(at));
        // No connection from before.
        line.reset_all();
        let request = http::get("/queue", &[("x-forwarded-for", &someone)]);
        match try_exchange(gateway.data, &request).await {
            Ok(reply) => {
                assert_eq!((reply.status, reply.text().as_str()), (200, BODY), "{:?}", fault(at));
                whole += 1;
                elsewhere += usize::from(reply.backend() == "comfy-2");
            }
            Err(_) => cut += 1,
        }
        line.heal();
    }
    assert_eq!(whole + cut, 36);
    assert!(elsewhere >= 10 && whole > elsewhere, "{whole} whole, {elsewhere} of them elsewhere");
    assert!((2..=6).contains(&cut), "{cut} cut: only what broke within its body may be");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_on_a_line_that_breaks_anywhere_arrives_at_most_once() {
    let (fakes, line, gateway) = broken_line().await;
    let prompts = || {
        let all = fakes.iter().flat_map(Fake::seen);
        all.filter(|request| request.line().starts_with("POST /prompt")).count()
    };
    let mut accepted = 0;
    let faults: [fn(u64) -> (Fault, Fault); 5] = [
        |at| (Fault::Reset(at * 9), Fault::None),
        |at| (Fault::Cut(at * 9), Fault::None),
        |at| (Fault::FinBack(at * 9), Fault::None),
        |at| (Fault::None, Fault::Reset(at)),
        |at| (Fault::None, Fault::Cut(at)),
    ];
    for (n, (fault, at)) in faults.into_iter().flat_map(|f| PLACES.map(|at| (f, at))).enumerate() {
        place(&gateway, &client(n), "comfy-1").await;
        line.plan(move |_| fault(at));
        let before = prompts();
        let mut request = http::post("/prompt", &long_prompt());
        let name = format!("X-Forwarded-For: {}\r\n", client(n));
        let line_end = request.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
        request.splice(line_end..line_end, name.bytes());
        let reply = try_exchange(gateway.data, &request).await;
        let arrived = prompts() - before;
        assert!(arrived <= 1, "{arrived} times with {:?}", fault(at));
        if let Ok(reply) = reply {
            assert!([200, 502].contains(&reply.status), "{}: {}", reply.status, reply.text());
            if reply.status == 200 {
                assert_eq!(arrived, 1, "{:?}", fault(at));
                accepted += 1;
            }
        }
        line.heal();
    }
    assert!(accepted > 0, "some lines break too late to matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_lives_through_drip_on_both_sides() {
    let echo = Echo::start().await;
    let upstream = FaultProxy::to(echo.url()[7..].parse().unwrap()).await;
    let gateway = Setup::new(&[upstream.url()]).with(patient()).start().await;
    let downstream = FaultProxy::to(gateway.data).await;
    let drip = Fault::Drip(3, Duration::from_millis(1));
    upstream.set(drip, drip);
    // In smaller pieces the client takes a handshake for an attack.
    downstream.set(drip, Fault::Drip(20, Duration::from_millis(1)));
    let (mut socket, _) = socket::open(downstream.address, "/ws", &[]).await.unwrap();
    let mut random = StdRng::seed_from_u64(5);
    for size in [0, 1, 125, 126, 700] {
        let bytes: Vec<u8> = (0..size).map(|_| random.random()).collect();
        socket.send(Message::binary(bytes.clone())).await.unwrap();
        let back = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(back, Message::binary(bytes), "{size}");
    }
    socket.close(None).await.unwrap();
    let closed = async { while socket.next().await.is_some_and(|message| message.is_ok()) {} };
    timeout(PATIENCE, closed).await.expect("the close passes, too");
}

/// Asks `count` times; the longest time it took.
async fn longest(gateway: &Gateway, client: &str, path: &str, count: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..count {
        let start = Instant::now();
        assert_eq!(gateway.get(client, path).await.status, 200);
        longest = longest.max(start.elapsed());
    }
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_slowly_or_not_at_all_delay_nobody_else() {
    for mode in ["sticky", "pool"] {
        let farm = farm(1).await;
        let gateway = Setup::of(&farm).with(json!({"mode": mode})).start().await;
        farm[0].faults().large_file("long.bin", 200 << 20).unwrap();
        let slow_line = FaultProxy::to(gateway.data).await;
        slow_line.plan(|n| {
            let slow = if n % 2 == 0 {
                Fault::Silent(5000)
            } else {
                Fault::Drip(100, Duration::from_millis(5))
            };
            (Fault::None, slow)
        });
        let request = http::get("/view?filename=long.bin&type=output", &[]);
        let mut readers = Vec::new();
        for _ in 0..10 {
            let mut stream = TcpStream::connect(slow_line.address).await.unwrap();
            stream.write_all(&request).await.unwrap();
            let (status, _) = timeout(PATIENCE, read_head(&mut stream)).await.unwrap().unwrap();
            assert_eq!(status, 200);
            readers.push(stream);
        }
        let took = longest(&gateway, &client(1), "/queue", 50).await;
        assert!(took < Duration::from_secs(2), "{mode}: {took:?}");
        let memory = gateway.memory_kib("VmRSS") >> 10;
        assert!(memory < 150, "{mode}: {memory} MiB for what ten do not read");
        drop(readers);
        slow_line.reset_all();
        eventually("their connections end", PATIENCE, async || {
            gateway.backend("comfy-1").await["connections"] == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_goes_silent_hurts_only_those_who_need_it() {
    let farm = farm(2).await;
    let line = FaultProxy::to(farm[0].addr()).await;
    let short = json!({"timeouts": {"read": "500ms"}});
    let gateway =
        Setup::new(&[line.url(), farm[1].url()]).with(patient()).with(short).start().await;
    let (hers, his) = (client_of(&gateway, "comfy-1").await, client_of(&gateway, "comfy-2").await);
    line.set(Fault::None, Fault::Silent(0));
    line.reset_all();
    let hurt = join_all((0..20).map(|_| gateway.get(&hers, "/queue")));
    let (hurt, took) = tokio::join!(hurt, longest(&gateway, &his, "/queue", 50));
    for reply in hurt {
        reply.assert_refusal(504, "upstream_timeout");
    }
    assert!(took < Duration::from_millis(1500), "{took:?}");
    line.heal();
    line.reset_all();
    assert_eq!(gateway.get(&hers, "/queue").await.backend(), "comfy-1", "and is herself again");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_pool_mode_a_silent_backend_delays_no_answer_of_the_others() {
    let farm = farm(2).await;
    let line = FaultProxy::to(farm[0].addr()).await;
    let keys = json!({
        "mode": "pool",
        "health_check": {"interval": 0.3, "timeout": 0.5, "unhealthy_threshold": 2},
        "pool": {"declared_dead_after": "1s"},
    });
    let gateway = Setup::new(&[line.url(), farm[1].url()]).with(keys).start().await;
    for n in 1..=2 {
        gateway.until(&format!("/lb/backends/comfy-{n}"), |b| b["takes_jobs"] == true).await;
    }
    line.set(Fault::None, Fault::Silent(0));
    line.reset_all();
    let took = longest(&gateway, &client(1), "/queue", 50).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let mut prompt = long_prompt();
    prompt["prompt"]["1"]["inputs"]["seconds"] = json!(0.1);
    for seed in 0..5 {
        prompt["prompt"]["1"]["inputs"]["seed"] = json!(seed);
        assert_eq!(gateway.post(client(1), "/prompt", &prompt).await.status, 200);
    }
    gateway.until("/lb/tasks?state=completed", |list| list["total"] == 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_pool_mode_every_prompt_ends_though_a_line_breaks_all_the_time() {
    let farm = farm(2).await;
    let line = FaultProxy::to(farm[0].addr()).await;
    let keys = json!({
        "mode": "pool",
        "health_check": {"interval": 0.3},
        "queue": {"retry_interval": "50ms", "max_retries": 100},
        "outlier": {"interval": "50ms", "base_ejection_time": "100ms"},
    });
    let gateway = Setup::new(&[line.url(), farm[1].url()]).with(keys).start().await;
    for n in 1..=2 {
        gateway.until(&format!("/lb/backends/comfy-{n}"), |b| b["takes_jobs"] == true).await;
    }
    line.plan(drawn(23, 3000));
    let all = async {
        for seed in 0..30 {
            let mut prompt = long_prompt();
            prompt["prompt"]["1"]["inputs"]["seconds"] = json!(0.1);
            prompt["prompt"]["1"]["inputs"]["seed"] = json!(seed);
            assert_eq!(gateway.post(client(1), "/prompt", &prompt).await.status, 200, "{seed}");
        }
        gateway.until("/lb/tasks?state=completed", |list| list["total"] == 30).await;
    };
    let breaking = async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            line.reset_all();
        }
    };
    tokio::select! {
        () = all => {}
        () = breaking => {}
    }
    line.heal();
    line.reset_all();
    gateway.until("/lb/backends/comfy-1", |b| b["takes_jobs"] == true).await;
}

/// Faults of both directions, drawn from a seed, that strike within so many bytes.
fn drawn(seed: u64, within: u64) -> impl Fn(usize) -> (Fault, Fault) + Send + 'static {
    move |n: usize| {
        let mut random = StdRng::seed_from_u64(seed + n as u64);
        let mut one = || {
            let at = random.random_range(0..within);
            match random.random_range(0..6) {
                0 => Fault::Reset(at),
                1 => Fault::Cut(at),
                2 => Fault::FinBack(at),
                3 => Fault::Silent(at),
                4 => Fault::Drip(11, Duration::from_millis(1)),
                _ => Fault::None,
            }
        };
        (one(), one())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_broken_connections_is_kept() {
    let (_fakes, upstream, gateway) = broken_line().await;
    let downstream = FaultProxy::to(gateway.data).await;
    let before = gateway.descriptors();
    upstream.plan(drawn(11, 300));
    downstream.plan(drawn(1011, 300));
    let one = async |n: usize| {
        let Ok(mut stream) = TcpStream::connect(downstream.address).await else { return };
        let forwarded = client(n % 50);
        let headers = [("x-forwarded-for", forwarded.as_str())];
        let request = match n % 3 {
            0 => http::get("/queue", &headers),
            1 => http::post("/prompt", &long_prompt()),
            _ => http::head(
                "GET",
                "/ws",
                &[
                    ("Connection", "Upgrade"),
                    ("Upgrade", "websocket"),
                    ("Sec-WebSocket-Version", "13"),
                    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ],
            )
            .into_bytes(),
        };
        let _ = stream.write_all(&request).await;
        let mut sink = Vec::new();
        let read = stream.read_to_end(&mut sink);
        let _ = timeout(Duration::from_millis(300), read).await;
    };
    for round in 0..6 {
        join_all((0..50).map(|n| one(50 * round + n))).await;
    }
    // Lines that are merely silent do not end by themselves.
    downstream.reset_all();
    upstream.reset_all();
    upstream.heal();
    eventually("nothing is open", PATIENCE, async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        gateway.descriptors() <= before + 8 && downstream.open() == 0
    })
    .await;
    for name in ["comfy-1", "comfy-2"] {
        assert_eq!(gateway.backend(name).await["connections"], 0, "{name}");
    }
    assert_eq!(gateway.get(client(1), "/queue").await.status, 200);
}
