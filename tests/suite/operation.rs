//! Running a gateway: bad starts, reloads, ends, TLS, memory, logs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use comfygate::sim::Sim;
use futures_util::StreamExt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::echo::{Echo, PIECE};
use crate::support::http::{get, head, read_head, read_reply};
use crate::support::process::run;
use crate::support::socket::{self, close_code};
use crate::support::{
    Ended, Gateway, PATIENCE, Setup, client, client_of, eventually, exchange, farm, is_full,
};

fn in_repo(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).display().to_string()
}

/// One line, with these words in it, and exit code 2.
fn assert_refused(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert_eq!(ended.stderr.trim().lines().count(), 1, "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} in {}", ended.stderr);
    }
}

fn two_backends() -> Setup {
    Setup::new(&["http://127.0.0.1:1", "http://127.0.0.1:2"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_succeed_ends_in_one_line_and_code_2() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let backend =
        |name: &str, port: u16| json!({"name": name, "url": format!("http://127.0.0.1:{port}")});
    let pem = in_repo("tests/fixtures/tls/server.pem");
    let key = in_repo("tests/fixtures/tls/server.key");
    let other = in_repo("tests/fixtures/tls/other.key");
    let cases: [(Value, &[&str]); 9] = [
        (json!({"server": {"port": port}}), &["server.port", &port.to_string(), "in use"]),
        (json!({"admin": {"listen": format!("127.0.0.1:{port}")}}), &["admin.listen", "in use"]),
        (json!({"server": {"tls": {"cert": "/no/such.pem", "key": key}}}), &["/no/such.pem"]),
        (json!({"server": {"tls": {"cert": pem, "key": pem}}}), &["server.tls.key"]),
        (json!({"server": {"tls": {"cert": pem, "key": other}}}), &["server.tls"]),
        (json!({"backends": []}), &["backends"]),
        (json!({"backends": [backend("a", 1), backend("a", 2)]}), &["name", "a"]),
        (json!({"backends": [backend("a", 1), backend("b", 1)]}), &["127.0.0.1:1"]),
        (json!({"admin": {"listen": "0.0.0.0:0"}}), &["admin", "token"]),
    ];
    for (keys, words) in cases {
        assert_refused(&two_backends().with(keys).run().await, words);
    }
    let empty = tempfile::tempdir().unwrap();
    assert_refused(&run(&["-c", "missing.yaml"], empty.path()).await, &["missing.yaml"]);
    let nothing = run(&[], empty.path()).await;
    assert_refused(&nothing, &["backends"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_tells_by_its_exit_code() {
    let farm = farm(1).await;
    let gateway = Setup::of(&farm).start().await;
    let admin = format!("http://{}", gateway.admin);
    let here = Path::new(".");
    let check = async || run(&["healthcheck", "--admin", &admin], here).await.code;
    assert_eq!(check().await, Some(0));
    farm[0].faults().refuse(true).await;
    gateway.until_state("comfy-1", "down").await;
    assert_eq!(check().await, Some(1));
    gateway.kill().await;
    assert_eq!(check().await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_what_operators_want_to_know() {
    let farm = farm(2).await;
    let gateway = Setup::of(&farm).start().await;
    for line in ["Loaded 2 servers", "available servers: 2/2, best: comfy-1 (queue: 0)"] {
        assert!(gateway.until_logged(line).await.contains("[LoadBalancer] "));
    }
    farm[0].faults().phantom_queue(1, 2);
    gateway.until_logged("switch: comfy-1 → comfy-2 (shorter queue)").await;
    farm[0].faults().refuse(true).await;
    gateway.until_logged("backend comfy-1 is down: ").await;
    gateway.until_logged("available servers: 1/2, best: comfy-2 (queue: 0)").await;
    farm[0].faults().refuse(false).await;
    gateway.until_logged("backend comfy-1 is up").await;

    gateway.get(client(3), "/system_stats").await;
    let verbose = r#"{"verbose": true}"#;
    let length = verbose.len().to_string();
    let post = [("Host", "localhost"), ("Content-Length", length.as_str())];
    let post = head("POST", "/lb/log", &post) + verbose;
    assert_eq!(exchange(gateway.admin, post.as_bytes()).await.status, 200);
    gateway.get(client(4), "/prompt").await;
    let line = gateway.until_logged("GET /prompt → http://127.0.0.1:").await;
    assert!(line.ends_with(&format!("[client: {}]", client(4))), "{line}");
    assert!(!gateway.has_logged("/system_stats"), "quiet by default");
}

#[tokio::test(flavor = "multi_thread")]
async fn lb_on_the_data_port_wants_a_token() {
    let farm = farm(1).await;
    let open = Setup::of(&farm).start().await;
    open.raw(&get("/lb/backends", &[])).await.assert_refusal(404, "not_found");

    let token = json!({"admin": {"token": "a-token-of-sufficient-length"}});
    let gateway = Setup::of(&farm).with(token).start().await;
    gateway.raw(&get("/lb/stats", &[])).await.assert_refusal(401, "unauthorized");
    let bare =
        async |path: &str| exchange(gateway.admin, &get(path, &[("Host", "localhost")])).await;
    bare("/lb/stats").await.assert_refusal(401, "unauthorized");
    assert_eq!(bare("/healthz").await.status, 200);
    assert_eq!(bare("/readyz").await.status, 200);
    let shown = [("Authorization", "Bearer a-token-of-sufficient-length")];
    assert_eq!(gateway.raw(&get("/lb/stats", &shown)).await.json()["mode"], "sticky");
    assert!(farm[0].requests().iter().all(|(_, path)| !path.starts_with("/lb")));
}

fn backends(sims: &[&Sim]) -> Value {
    let backend =
        |(n, sim): (usize, &&Sim)| json!({"name": format!("comfy-{}", n + 1), "url": sim.url()});
    json!({"backends": sims.iter().enumerate().map(backend).collect::<Vec<_>>()})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_farm_and_drops_no_connection() {
    let farm = farm(3).await;
    let setup = Setup::bare(backends(&[&farm[0], &farm[1]]));
    let gateway = setup.start().await;
    let (one, two) = (client_of(&gateway, "comfy-1").await, client_of(&gateway, "comfy-2").await);
    let headers = [("x-forwarded-for", one.as_str())];
    let (mut kept, _) = socket::open(gateway.data, "/ws", &headers).await.unwrap();
    let headers = [("x-forwarded-for", two.as_str())];
    let (mut lost, _) = socket::open(gateway.data, "/ws", &headers).await.unwrap();
    let mut connection = TcpStream::connect(gateway.data).await.unwrap();
    connection.write_all(&get("/prompt", &[])).await.unwrap();
    read_reply(&mut connection).await.unwrap();

    // One more backend.
    let grown = setup.clone().with(backends(&[&farm[0], &farm[1], &farm[2]]));
    grown.write();
    gateway.signal("HUP").await;
    gateway.until_state("comfy-3", "up").await;
    client_of(&gateway, "comfy-3").await;
    assert_eq!(gateway.get(&one, "/prompt").await.backend(), "comfy-1");
    assert_eq!(gateway.get(&two, "/prompt").await.backend(), "comfy-2");

    // A file that does not load: everything stays.
    std::fs::write(setup.file(), "backends: [http://a:1]\nscheduler: {strategy: fastest}").unwrap();
    gateway.signal("HUP").await;
    gateway.until_logged("reload refused, the running configuration stays").await;
    gateway.until_logged("scheduler.strategy = fastest (line 2)").await;
    assert_eq!(gateway.admin("/lb/backends").await.json()["total"], 3);

    // One backend less: its clients move, its sockets close.
    setup.clone().with(backends(&[&farm[0]])).write();
    gateway.signal("HUP").await;
    assert_eq!(close_code(&mut lost, PATIENCE).await, 1012);
    eventually("one is left", PATIENCE, async || {
        gateway.admin("/lb/backends").await.json()["total"] == 1
    })
    .await;
    assert_eq!(gateway.get(&two, "/prompt").await.backend(), "comfy-1");

    // What was open before the first reload still is.
    farm[0].faults().phantom_queue(1, 0);
    let heard =
        async { while !kept.next().await.unwrap().unwrap().to_string().contains("status") {} };
    tokio::time::timeout(PATIENCE, heard).await.expect("the socket lives");
    connection.write_all(&get("/prompt", &[])).await.unwrap();
    assert_eq!(read_reply(&mut connection).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_can_disable_a_backend_and_enable_it_again() {
    let farm = farm(2).await;
    let setup = Setup::of(&farm);
    let gateway = setup.start().await;
    let someone = client_of(&gateway, "comfy-1").await;
    let headers = [("x-forwarded-for", someone.as_str())];
    let (mut lost, _) = socket::open(gateway.data, "/ws", &headers).await.unwrap();
    let with = |enabled: bool| {
        json!({"backends": [
            {"name": "comfy-1", "url": farm[0].url(), "enabled": enabled},
            {"name": "comfy-2", "url": farm[1].url()},
        ]})
    };
    setup.clone().with(with(false)).write();
    gateway.signal("HUP").await;
    assert_eq!(close_code(&mut lost, PATIENCE).await, 1012);
    gateway.until_state("comfy-1", "disabled").await;
    assert_eq!(gateway.get(&someone, "/prompt").await.backend(), "comfy-2");
    setup.clone().with(with(true)).write();
    gateway.signal("HUP").await;
    gateway.until_state("comfy-1", "up").await;
    assert_eq!(gateway.get(&someone, "/prompt").await.backend(), "comfy-2", "it stays");
    client_of(&gateway, "comfy-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_gateway_ends_at_once() {
    let farm = farm(2).await;
    let gateway = Setup::of(&farm).start().await;
    // An idle connection is nothing to wait for.
    let mut idle = TcpStream::connect(gateway.data).await.unwrap();
    idle.write_all(&get("/prompt", &[])).await.unwrap();
    read_reply(&mut idle).await.unwrap();
    let (code, took) = gateway.terminate().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ending_gateway_lets_requests_finish_and_takes_no_new_ones() {
    let farm = farm(1).await;
    let mut gateway = Setup::of(&farm).start().await;
    farm[0].faults().latency(Duration::from_millis(1500));
    let mut slow = TcpStream::connect(gateway.data).await.unwrap();
    let before = farm[0].requests_seen();
    slow.write_all(&get("/system_stats", &[])).await.unwrap();
    eventually("it is under way", PATIENCE, async || {
        farm[0].requests()[before as usize..].iter().any(|(_, path)| path == "/system_stats")
    })
    .await;
    gateway.signal("TERM").await;
    eventually("nobody listens", PATIENCE, async || {
        TcpStream::connect(gateway.data).await.is_err()
    })
    .await;
    let reply = read_reply(&mut slow).await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("connection"), Some("close"), "the client must go elsewhere next");
    let (code, took) = gateway.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_have_until_the_shutdown_timeout_and_then_a_close_frame() {
    let farm = farm(1).await;
    let timeout = json!({"server": {"shutdown_timeout": "1.5s"}});
    let mut gateway = Setup::of(&farm).with(timeout).start().await;
    let (mut socket, _) = socket::open(gateway.data, "/ws", &[]).await.unwrap();
    let (mut leaving, _) = socket::open(gateway.data, "/ws", &[]).await.unwrap();
    let start = Instant::now();
    gateway.signal("TERM").await;
    gateway.until_logged("stopping: waiting up to 1.5 s").await;
    leaving.close(None).await.unwrap();
    assert_eq!(close_code(&mut socket, PATIENCE).await, 1001);
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1400) && took < Duration::from_secs(3), "{took:?}");
    let (code, took) = gateway.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_waiting() {
    let farm = farm(1).await;
    let mut gateway = Setup::of(&farm).start().await;
    let (_socket, _) = socket::open(gateway.data, "/ws", &[]).await.unwrap();
    gateway.signal("TERM").await;
    gateway.until_logged("stopping: waiting up to 30 s").await;
    gateway.signal("INT").await;
    let (code, took) = gateway.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

/// A TLS connection that believes the fixture's certificate and no other.
async fn tls(gateway: &Gateway) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pem = in_repo("tests/fixtures/tls/server.pem");
    let pinned = Pinned(CertificateDer::from_pem_file(pem).unwrap(), Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    let tcp = TcpStream::connect(gateway.data).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// Self-signed certificates are no end entities to webpki, so this compares.
#[derive(Debug)]
struct Pinned(CertificateDer<'static>, Arc<CryptoProvider>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        assert_eq!(*shown, self.0, "another certificate");
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.1.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.1.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_carries_requests_and_sockets() {
    let farm = farm(1).await;
    let keys = json!({
        "server": {"tls": {"cert": in_repo("tests/fixtures/tls/server.pem"),
            "key": in_repo("tests/fixtures/tls/server.key")}},
        "session": {"affinity": "cookie"},
    });
    let gateway = Setup::of(&farm).with(keys).start().await;
    let mut stream = tls(&gateway).await;
    for _ in 0..2 {
        stream.write_all(&get("/", &[("Accept", "text/html")])).await.unwrap();
        let reply = read_reply(&mut stream).await.unwrap();
        assert_eq!((reply.status, reply.backend()), (200, "comfy-1"));
        assert!(reply.header("set-cookie").unwrap().ends_with("; Secure"));
    }
    let (mut socket, _) = socket::open_on(tls(&gateway).await, "/ws", &[]).await.unwrap();
    let first = socket.next().await.unwrap().unwrap();
    assert!(first.to_string().contains("status"), "{first}");

    // Who speaks plain HTTP there disturbs nobody.
    let mut plain = TcpStream::connect(gateway.data).await.unwrap();
    plain.write_all(&get("/", &[])).await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, plain.read_to_end(&mut rest)).await.unwrap();
    assert!(!rest.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&rest));
    drop(socket);
    assert_eq!(gateway.terminate().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways_in_flat_memory() {
    let size = if is_full() { 2 << 30 } else { 192 << 20 };
    let pieces = size / PIECE;
    let echo = Echo::start().await;
    let keys = json!({"limits": {"body_size": "3GiB"}, "health_check": {"push": false}});
    let gateway = Setup::new(&[echo.url()]).with(keys).start().await;
    gateway.get(client(1), "/prompt").await;
    let before = gateway.memory_kib("VmRSS");

    let length = (pieces * PIECE).to_string();
    let mut stream = TcpStream::connect(gateway.data).await.unwrap();
    stream
        .write_all(head("POST", "/upload", &[("Content-Length", &length)]).as_bytes())
        .await
        .unwrap();
    let piece = vec![7; PIECE];
    for _ in 0..pieces {
        stream.write_all(&piece).await.unwrap();
    }
    assert_eq!(read_reply(&mut stream).await.unwrap().text(), length);

    stream
        .write_all(&get(&format!("/download/{pieces}"), &[("Connection", "close")]))
        .await
        .unwrap();
    assert_eq!(read_head(&mut stream).await.unwrap().0, 200);
    let mut read = 0;
    let mut buffer = vec![0; PIECE];
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            count => read += count,
        }
    }
    assert!(read >= pieces * PIECE, "{read} bytes, the framing included");
    let grown = gateway.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 50 << 10, "{grown} KiB more");
}
