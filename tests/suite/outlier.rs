//! Backends whose probes are fine and whose requests fail: who is taken out, for how long, and who
//! never is. And how long a backend may take, and how much it may hold.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::http::{self, read_reply};
use crate::support::socket::{self, close_code};
use crate::support::{
    Act, Fake, Fault, FaultProxy, Gateway, PATIENCE, Setup, client, client_of, eventually, farm,
    long_prompt,
};

/// Ejections that a test can wait for, and no sockets of the gateway's own.
fn quick() -> Value {
    json!({
        "health_check": {"push": false},
        "outlier": {"interval": "50ms", "base_ejection_time": "1s", "max_ejection_time": "3s"},
    })
}

/// Ejections that outlast the test.
fn for_long() -> Value {
    json!({
        "health_check": {"push": false},
        "outlier": {"base_ejection_time": "600s", "max_ejection_time": "600s"},
    })
}

/// One whose probes are fine while every request is reset.
async fn resetting() -> Fake {
    Fake::start(|_| Act::Reset).await
}

/// Has a client belong to a backend.
async fn place(gateway: &Gateway, client: &str, backend: &str) {
    let reply = gateway.post(client, "/lb/session", &json!({"backend": backend})).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

async fn ejections(gateway: &Gateway, backend: &str) -> u64 {
    gateway.backend(backend).await["ejections"].as_u64().unwrap()
}

/// Has five clients, from this one on, meet a backend that resets everything.
async fn fail(gateway: &Gateway, from: usize) {
    for n in from..from + 5 {
        place(gateway, &client(n), "comfy-1").await;
        let reply = gateway.get(client(n), "/queue").await;
        assert_eq!((reply.status, reply.backend()), (200, "comfy-2"), "it is retried");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_fails_its_requests_is_ejected_and_left_alone() {
    let fakes = [resetting().await, Fake::replying("second").await];
    let gateway = Setup::new(&[fakes[0].url(), fakes[1].url()]).with(for_long()).start().await;
    gateway.until_state("comfy-1", "up").await;
    fail(&gateway, 0).await;
    let ejected = gateway.backend("comfy-1").await;
    assert_eq!((&ejected["state"], &ejected["healthy"]), (&json!("ejected"), &json!(false)));
    assert_eq!((&ejected["ejections"], &ejected["takes_jobs"]), (&json!(1), &json!(false)));
    assert_eq!(ejected["last_error"], "5 failures in a row, last: connection lost");
    assert!(ejected["ejected_until"].is_string(), "{ejected}");
    gateway.until_logged("backend comfy-1 is ejected for 600 s: 5 failures in a row").await;
    let metrics = gateway.admin("/metrics").await.text();
    for line in [
        r#"comfygate_backend_state{backend="comfy-1",state="ejected"} 1"#,
        r#"comfygate_backend_ejections_total{backend="comfy-1"} 1"#,
        r#"comfygate_backend_up{backend="comfy-1"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    for n in 100..120 {
        assert_eq!(gateway.get(client(n), "/queue").await.backend(), "comfy-2");
    }
    assert_eq!(fakes[0].seen().len(), 5, "it is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejected_backend_comes_back_and_is_out_for_longer_the_next_time() {
    let fakes = [resetting().await, Fake::replying("second").await];
    let keys = json!({
        "health_check": {"push": false},
        "outlier": {"interval": "50ms", "base_ejection_time": "2s", "max_ejection_time": "3s"},
    });
    let gateway = Setup::new(&[fakes[0].url(), fakes[1].url()]).with(keys).start().await;
    gateway.until_state("comfy-1", "up").await;
    let start = Instant::now();
    fail(&gateway, 0).await;
    gateway.until_logged("backend comfy-1 is ejected for 2 s").await;
    gateway.until_logged("backend comfy-1 is back from ejection: its time is over").await;
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    gateway.until_state("comfy-1", "up").await;
    assert!(gateway.backend("comfy-1").await["ejected_until"].is_null());
    fail(&gateway, 100).await;
    gateway.until("/lb/backends/comfy-1", |b| b["ejections"] == 2).await;
    gateway.until_state("comfy-1", "up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_an_ejected_backend_move_and_their_sockets_close() {
    let farm = farm(2).await;
    let line = FaultProxy::to(farm[0].addr()).await;
    let gateway = Setup::new(&[line.url(), farm[1].url()]).with(for_long()).start().await;
    let someone = client_of(&gateway, "comfy-1").await;
    let headers = [("x-forwarded-for", someone.as_str())];
    let (mut socket, _) = socket::open(gateway.data, "/ws", &headers).await.unwrap();
    // Prompts have connections of their own; the probes keep the one they have.
    line.set(Fault::Reset(10), Fault::None);
    for _ in 0..5 {
        gateway
            .post(&someone, "/prompt", &long_prompt())
            .await
            .assert_refusal(502, "upstream_failed");
    }
    assert_eq!(close_code(&mut socket, PATIENCE).await, 1012);
    assert_eq!(gateway.backend("comfy-1").await["state"], "ejected");
    let reply = gateway.post(&someone, "/prompt", &long_prompt()).await;
    assert_eq!((reply.status, reply.backend()), (200, "comfy-2"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_custom_nodes_and_errors_of_the_application_eject_nobody() {
    let broken = || {
        Fake::start(|request| match request.target() {
            "/impact/busy" => Act::Raw("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".to_owned()),
            "/impact/crash" => Act::Reset,
            "/prompt" => {
                Act::Raw("HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}".to_owned())
            }
            _ => Act::Raw("HTTP/1.1 500 Error\r\nContent-Length: 0\r\n\r\n".to_owned()),
        })
    };
    let fakes = [broken().await, broken().await];
    let urls = [fakes[0].url(), fakes[1].url()];
    let gateway = Setup::new(&urls).with(quick()).start().await;
    place(&gateway, &client(1), "comfy-1").await;
    for _ in 0..12 {
        for (path, status) in
            [("/impact/crash", 502), ("/impact/busy", 503), ("/queue", 500), ("/prompt", 400)]
        {
            let reply = gateway.post(client(1), path, &json!({})).await;
            assert_eq!(reply.status, status, "{path}");
        }
    }
    for path in ["/impact/crash", "/impact/busy", "/queue"] {
        for _ in 0..12 {
            gateway.post(client(1), path, &json!({})).await;
        }
    }
    assert_eq!(ejections(&gateway, "comfy-1").await, 0);
    assert_eq!(gateway.backend("comfy-1").await["state"], "up");

    let strict = json!({"outlier": {"consecutive_5xx": 5}});
    let gateway = Setup::new(&urls).with(quick()).with(strict).start().await;
    place(&gateway, &client(1), "comfy-1").await;
    for _ in 0..5 {
        assert_eq!(gateway.backend("comfy-1").await["state"], "up");
        gateway.post(client(1), "/queue", &json!({})).await;
    }
    assert_eq!(ejections(&gateway, "comfy-1").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_half_of_the_farm_is_ejected_and_nobody_is_when_nobody_else_is_left() {
    let fakes = [resetting().await, resetting().await, resetting().await];
    let farm = farm(1).await;
    let mut urls: Vec<_> = fakes.iter().map(Fake::url).collect();
    urls.push(farm[0].url());
    let gateway = Setup::new(&urls).with(for_long()).start().await;
    for n in 0..60 {
        let backend = format!("comfy-{}", n % 3 + 1);
        gateway.post(client(n), "/lb/session", &json!({"backend": backend})).await;
        gateway.get(client(n), "/queue").await;
    }
    let ejected = async || {
        let list = gateway.admin("/lb/backends").await.json();
        let list = list["backends"].as_array().unwrap().clone();
        list.iter().filter(|backend| backend["state"] == "ejected").count()
    };
    assert_eq!(ejected().await, 2, "of four");

    // The sound one is disabled and so is the third: better doubtful servers than none.
    for name in ["comfy-4", "comfy-1", "comfy-2", "comfy-3"] {
        if gateway.backend(name).await["state"] == "up" {
            let path = format!("/lb/backends/{name}/disable");
            gateway.call(reqwest::Method::POST, &path, &Value::Null).await;
        }
    }
    eventually("the ejected ones are back", PATIENCE, async || ejected().await == 0).await;
    gateway.until_logged("is back from ejection: no other backend is left").await;
    assert_eq!(gateway.admin("/readyz").await.status, 200);
}

/// A client that keeps its body to itself would be silence of the backend, to who looks only there.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_have_a_backend_ejected() {
    let farm = farm(2).await;
    let hasty = json!({"timeouts": {"read": "200ms", "transfer": "200ms"}});
    let gateway = Setup::of(&farm).with(quick()).with(hasty).start().await;
    let someone = client_of(&gateway, "comfy-1").await;
    for path in ["/prompt", "/upload/image"] {
        for _ in 0..6 {
            let headers = [
                ("x-forwarded-for", someone.as_str()),
                ("Content-Type", "multipart/form-data; boundary=x"),
                ("Content-Length", "100"),
            ];
            let mut stream = tokio::net::TcpStream::connect(gateway.data).await.unwrap();
            let head = http::head("POST", path, &headers);
            stream.write_all(format!("{head}half").as_bytes()).await.unwrap();
            let reply = read_reply(&mut stream).await.unwrap();
            reply.assert_refusal(504, "upstream_timeout");
        }
    }
    assert_eq!(ejections(&gateway, "comfy-1").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_request_has_its_time_and_websockets_have_no_end() {
    let farm = farm(1).await;
    let limits = json!({
        "timeouts": {"read": "300ms", "transfer": "3s"},
        "health_check": {"interval": 60.0},
    });
    let gateway = Setup::of(&farm).with(limits).start().await;
    let (mut socket, _) = socket::open(gateway.data, "/ws", &[]).await.unwrap();
    farm[0].faults().latency(Duration::from_millis(900));
    let start = Instant::now();
    gateway.get(client(1), "/queue").await.assert_refusal(504, "upstream_timeout");
    let reply = gateway.post(client(1), "/api/prompt", &long_prompt()).await;
    reply.assert_refusal(504, "upstream_timeout");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(gateway.get(client(1), "/view?filename=none.png").await.status, 404);
    // It has been idle for longer than any request may be, and lives.
    farm[0].faults().latency(Duration::ZERO);
    gateway.post(client(1), "/prompt", &long_prompt()).await;
    let heard = tokio::time::timeout(PATIENCE, futures_util::StreamExt::next(&mut socket)).await;
    assert!(heard.unwrap().unwrap().is_ok());
}

/// Two simulators that may hold three requests each.
async fn narrow(farm: &[comfygate::sim::Sim]) -> Gateway {
    let one = |n: usize| json!({"name": format!("comfy-{}", n + 1), "url": farm[n].url(), "max_connections": 3});
    let patient = json!({"health_check": {"interval": 60.0, "push": false}});
    Setup::bare(json!({"backends": [one(0), one(1)]})).with(patient).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_holds_all_it_may_refuses_at_once_and_newcomers_go_elsewhere() {
    let farm = farm(2).await;
    let gateway = narrow(&farm).await;
    let someone = client_of(&gateway, "comfy-1").await;
    farm[0].faults().hang(true);
    let held = async |count: u64| {
        eventually("the backend holds them", PATIENCE, async || {
            gateway.backend("comfy-1").await["connections"] == count
        })
        .await;
    };
    let waiting = futures_util::future::join_all(
        (0..3).map(|_| async { gateway.get(&someone, "/queue").await.status }),
    );
    let crowded = async {
        held(3).await;
        let start = Instant::now();
        let reply = gateway.get(&someone, "/queue").await;
        reply.assert_refusal(503, "no_backend");
        assert_eq!(reply.header("retry-after"), Some("1"));
        let headers = [("x-forwarded-for", someone.as_str())];
        let refused = socket::open(gateway.data, "/ws", &headers).await.unwrap_err();
        assert!(refused.to_string().contains("503"), "{refused}");
        assert!(start.elapsed() < Duration::from_secs(1), "at once");
        for n in 1000..1010 {
            assert_eq!(gateway.get(client(n), "/queue").await.backend(), "comfy-2");
        }
        farm[0].faults().hang(false);
    };
    let (answers, ()) = tokio::join!(waiting, crowded);
    assert_eq!(answers, [200; 3]);
    held(0).await;

    // Sockets count too, for as long as they are open.
    let headers = [("x-forwarded-for", someone.as_str())];
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(socket::open(gateway.data, "/ws", &headers).await.unwrap());
    }
    gateway.get(&someone, "/queue").await.assert_refusal(503, "no_backend");
    drop(sockets);
    held(0).await;
    assert_eq!(gateway.get(&someone, "/queue").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_pool_mode_an_ejected_backend_gets_no_new_prompts_and_ends_what_it_runs() {
    let farm = farm(2).await;
    let line = FaultProxy::to(farm[0].addr()).await;
    let keys = json!({
        "mode": "pool",
        "outlier": {"interval": "50ms", "base_ejection_time": "60s"},
        "queue": {"retry_interval": "50ms", "max_retries": 100},
    });
    let gateway = Setup::new(&[line.url(), farm[1].url()]).with(keys).start().await;
    for n in 1..=2 {
        gateway.until(&format!("/lb/backends/comfy-{n}"), |b| b["takes_jobs"] == true).await;
    }
    // One runs on each server, and goes on while others fail.
    let mut ids = Vec::new();
    for seed in 0..2 {
        ids.push(posted(&gateway, &paced(seed, 5.0)).await);
    }
    let running = |list: &Value| list["total"] == 2;
    gateway.until("/lb/tasks?state=running", running).await;
    line.set(Fault::Reset(10), Fault::None);
    for seed in 10..30 {
        ids.push(posted(&gateway, &paced(seed, 0.1)).await);
    }
    gateway.until("/lb/backends/comfy-1", |b| b["ejections"].as_u64() > Some(0)).await;
    let completed = |list: &Value| list["total"] == 22;
    gateway.until("/lb/tasks?state=completed&limit=1", completed).await;
    let first = gateway.admin(&format!("/lb/tasks/{}", ids[0])).await.json();
    let second = gateway.admin(&format!("/lb/tasks/{}", ids[1])).await.json();
    assert_eq!((&first["attempts"], &second["attempts"]), (&json!(1), &json!(1)));
    assert_ne!(first["backend"], second["backend"]);
    assert_eq!(gateway.backend("comfy-1").await["state"], "ejected");
}

fn paced(seed: u64, seconds: f64) -> Value {
    let mut prompt = long_prompt();
    prompt["prompt"]["1"]["inputs"]["seconds"] = json!(seconds);
    prompt["prompt"]["1"]["inputs"]["seed"] = json!(seed);
    prompt
}

/// Posts until it is taken; the prompt's id.
async fn posted(gateway: &Gateway, prompt: &Value) -> String {
    let mut prompt = prompt.clone();
    prompt["prompt_id"] = json!(uuid::Uuid::new_v4().to_string());
    let mut id = String::new();
    eventually("the prompt is taken", PATIENCE, async || {
        let reply = gateway.post(client(1), "/prompt", &prompt).await;
        if reply.status == 200 {
            reply.json()["prompt_id"].as_str().unwrap().clone_into(&mut id);
        }
        reply.status == 200
    })
    .await;
    id
}
