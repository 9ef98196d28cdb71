//! The service registry, with a real gateway in front of small inference servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, OriginalUri, State};
use axum::http::HeaderMap;
use axum::{Json, Router};
use comfygate::sim::{Sim, SimConfig};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::support::{Gateway, Setup};

/// A gateway whose farm is one server that nobody listens at: services need none.
async fn gateway_with(keys: Value) -> Gateway {
    Setup::plain(json!({"backends": ["http://127.0.0.1:9"]})).with(keys).start().await
}

const REGISTER: &str = "/api/v1/ai_analysis/register";
const SERVICES: &str = "/api/v1/ai_analysis/services";

/// A server that answers every request with what it got.
struct Inference {
    address: SocketAddr,
    served: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Inference {
    fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap())
    }

    fn start_at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener: TcpListener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(AtomicU64::new(0));
        let app = Router::new()
            .fallback(infer)
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&served));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, served, task }
    }

    fn endpoint(&self) -> String {
        format!("http://{}/infer", self.address)
    }

    fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    /// Closes the listener; the gateway keeps no connections to services.
    async fn stop(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

async fn infer(
    State(served): State<Arc<AtomicU64>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Json<Value> {
    served.fetch_add(1, Relaxed);
    Json(
        json!({"uri": uri.to_string(), "bytes": body.len(), "host": headers["host"].to_str().unwrap(),
        "for": headers["x-forwarded-for"].to_str().unwrap()}),
    )
}

fn registration(endpoint: &str, task_type: &str) -> Value {
    json!({"service_id": "yolo11x", "name": "YOLOv11x人头检测", "task_types": [task_type],
        "endpoint": endpoint, "version": "1.0.0"})
}

async fn post(gateway: &Gateway, path: &str, body: &Value) -> (StatusCode, Value) {
    let request =
        gateway.http.post(format!("http://{}{path}", gateway.admin)).body(body.to_string());
    let reply = request.send().await.unwrap();
    (reply.status(), reply.json().await.unwrap())
}

async fn register(gateway: &Gateway, endpoint: &str, task_type: &str) -> Value {
    let (status, service) = post(gateway, REGISTER, &registration(endpoint, task_type)).await;
    assert!(status.is_success(), "{status} {service}");
    service
}

async fn call(gateway: &Gateway, task_type: &str) -> reqwest::Response {
    let url = format!("http://{}/infer/{task_type}", gateway.data);
    gateway.http.post(url).body("picture").send().await.unwrap()
}

fn backend_of(reply: &reqwest::Response) -> &str {
    reply.headers()["x-comfygate-backend"].to_str().unwrap()
}

/// The commands of the seed as they are printed, host and port aside.
#[tokio::test]
async fn the_seeds_curl_calls_work_as_printed() {
    let gateway = gateway_with(json!({})).await;
    for port in [7901, 7902, 7902] {
        let body = format!(
            r#"{{
    "service_id": "yolo11x",
    "name": "YOLOv11x人头检测",
    "task_types": ["人数统计"],
    "endpoint": "http://172.17.0.2:{port}/infer",
    "version": "1.0.0"
  }}"#
        );
        let url = format!("http://{}{REGISTER}", gateway.admin);
        let out = Command::new("curl")
            .args(["-sS", "-f", "-X", "POST", &url, "-d", &body])
            .output()
            .await;
        assert!(out.unwrap().status.success(), "port {port}");
    }
    let url = format!("http://{}{SERVICES}", gateway.admin);
    let out = Command::new("curl").args(["-sS", "-f", &url]).output().await.unwrap();
    let listed: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(listed["total"], 2, "{listed:#}");
    for (n, port) in [7901, 7902].into_iter().enumerate() {
        let service = &listed["services"][n];
        assert_eq!(service["service_id"], "yolo11x");
        assert_eq!(service["name"], "YOLOv11x人头检测");
        assert_eq!(service["endpoint"], format!("http://172.17.0.2:{port}/infer"));
        assert_eq!(service["task_types"], json!(["人数统计"]));
        assert_eq!(service["call_count"], 0);
    }
}

#[tokio::test]
async fn requests_go_to_the_fewest_calls_at_the_path_that_was_registered() {
    let gateway = gateway_with(json!({})).await;
    let (one, two) = (Inference::start(), Inference::start());
    let first = register(&gateway, &one.endpoint(), "人数统计").await;
    register(&gateway, &format!("http://{}/v2/run/", two.address), "人数统计").await;
    assert_eq!(first["instance"], "yolo11x:1");
    // reqwest percent-encodes, as the standard wants it.
    let mut bodies = Vec::new();
    for n in 0..6 {
        let reply = call(&gateway, &format!("人数统计?n={n}")).await;
        assert_eq!(reply.status(), 200);
        assert_eq!(backend_of(&reply), format!("yolo11x:{}", n % 2 + 1));
        bodies.push(reply.json::<Value>().await.unwrap());
    }
    assert_eq!(bodies[0]["uri"], "/infer?n=0");
    assert_eq!(bodies[1]["uri"], "/v2/run/?n=1");
    assert_eq!(bodies[0]["host"], one.address.to_string());
    assert_eq!(bodies[0]["for"], "127.0.0.1");
    assert_eq!((one.served(), two.served()), (3, 3));
    let url = format!("http://{}{SERVICES}/stats/人数统计", gateway.admin);
    let stats: Value = gateway.http.get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!((&stats["total"], &stats["call_count"]), (&json!(2), &json!(6)), "{stats:#}");
    assert_eq!(stats["healthy"], 2);

    // Bytes as they are typed into a shell, not encoded, mean the same.
    let url = format!("http://{}/infer/人数统计", gateway.data);
    let out = Command::new("curl").args(["-sS", "-f", "-d", "x", &url]).output().await.unwrap();
    assert!(out.status.success(), "{out:?}");
    assert_eq!(one.served() + two.served(), 7);
}

#[tokio::test]
async fn large_bodies_stream_through_and_too_large_ones_do_not() {
    let gateway = gateway_with(json!({"limits": {"body_size": "5MB"}})).await;
    let server = Inference::start();
    register(&gateway, &server.endpoint(), "blob").await;
    let url = format!("http://{}/infer/blob", gateway.data);
    let send = |size: usize| gateway.http.post(&url).body(vec![b'x'; size]).send();
    let reply: Value = send(4_000_000).await.unwrap().json().await.unwrap();
    assert_eq!(reply["bytes"], 4_000_000);
    assert_eq!(send(6_000_000).await.unwrap().status(), 413);
    assert_eq!(server.served(), 1);
}

#[tokio::test]
async fn what_no_service_does_is_a_404_that_names_what_there_is() {
    let gateway = gateway_with(json!({})).await;
    register(&gateway, "http://127.0.0.1:9/x", "a/b <c>").await;
    for path in ["nothing", "a", "a%2Fb"] {
        let reply = call(&gateway, path).await;
        assert_eq!(reply.status(), 404, "{path}");
        let error: Value = reply.json().await.unwrap();
        assert_eq!(error["error"]["type"], "not_found");
        assert_eq!(error["error"]["details"], "there are: a/b <c>");
    }
    let missing =
        gateway.http.get(format!("http://{}{SERVICES}/stats/x", gateway.admin)).send().await;
    assert_eq!(missing.unwrap().status(), 404);
    let wrong = gateway.http.get(format!("http://{}/infer/x", gateway.data)).send().await.unwrap();
    assert_eq!(
        (wrong.status().as_u16(), &wrong.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    assert_eq!(call(&gateway, "%FF").await.status(), 400);
}

#[tokio::test]
async fn before_anything_registers_the_path_is_the_farms() {
    let farm = Sim::start(SimConfig::default()).await.unwrap();
    let gateway = gateway_with(json!({"backends": [farm.url()]})).await;
    gateway.until("/lb/backends", |answer| answer["backends"][0]["state"] == "up").await;
    assert_eq!(backend_of(&call(&gateway, "x").await), "comfy-1", "a custom node may serve it");
    let server = Inference::start();
    let service = register(&gateway, &server.endpoint(), "x").await;
    assert_eq!(call(&gateway, "x").await.status(), 200);
    let (status, _) =
        post(&gateway, "/api/v1/ai_analysis/unregister", &json!({"endpoint": service["endpoint"]}))
            .await;
    assert_eq!(status, 200);
    assert_eq!(call(&gateway, "x").await.status(), 404, "the path stays the registry's");
}

#[tokio::test]
async fn a_dead_instance_is_passed_over_and_comes_back() {
    let gateway = gateway_with(json!({})).await;
    let (one, two) = (Inference::start(), Inference::start());
    register(&gateway, &one.endpoint(), "count").await;
    register(&gateway, &two.endpoint(), "count").await;
    let address = one.stop().await;
    for _ in 0..20 {
        let reply = call(&gateway, "count").await;
        assert_eq!((reply.status().as_u16(), backend_of(&reply)), (200, "yolo11x:2"));
    }
    assert_eq!(two.served(), 20);
    let listed = gateway.admin(SERVICES).await.json();
    assert_eq!(listed["services"][0]["healthy"], false, "{listed:#}");

    let address_of_two = two.stop().await;
    let reply = call(&gateway, "count").await;
    assert_eq!(reply.status(), 503);
    assert!(reply.headers().contains_key("retry-after"));
    let error: Value = reply.json().await.unwrap();
    assert_eq!(error["error"]["type"], "no_backend");
    assert!(!error.to_string().contains("127.0.0.1"), "nothing of the network's inside: {error}");

    let (one, _two) = (Inference::start_at(address), Inference::start_at(address_of_two));
    let all_up = |v: &Value| v["services"].as_array().unwrap().iter().all(|s| s["healthy"] == true);
    gateway.until(SERVICES, all_up).await;
    let reply = call(&gateway, "count").await;
    assert_eq!((reply.status().as_u16(), one.served()), (200, 1), "the one with fewer calls");
}

#[tokio::test]
async fn concurrent_requests_are_counted_to_the_request() {
    let gateway = gateway_with(json!({})).await;
    let servers = [Inference::start(), Inference::start(), Inference::start()];
    for server in &servers {
        register(&gateway, &server.endpoint(), "count").await;
    }
    let calls = (0..300).map(|_| async { call(&gateway, "count").await.status() });
    let statuses = futures_util::future::join_all(calls).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    for server in &servers {
        assert_eq!(server.served(), 100);
    }
    let stats = gateway.admin(&format!("{SERVICES}/stats/count")).await.json();
    assert_eq!(stats["call_count"], 300);
}

#[tokio::test]
async fn services_and_their_counts_survive_kill_9() {
    let gateway = gateway_with(json!({})).await;
    let server = Inference::start();
    for _ in 0..3 {
        register(&gateway, &server.endpoint(), "count").await;
        assert_eq!(call(&gateway, "count").await.status(), 200);
    }
    // A registration is written within a second, and the counts so far with it.
    register(&gateway, "http://127.0.0.1:9/x", "other").await;
    let all = |kept: &Value| kept.as_array().is_some_and(|kept| kept.len() == 2);
    gateway.until_stored("services", all).await;
    let gateway = gateway.kill_and_restart().await;
    let listed = gateway.admin(SERVICES).await.json();
    assert_eq!(listed["total"], 2, "{listed:#}");
    assert_eq!(listed["services"][0]["call_count"], 3);
    assert_eq!(listed["services"][0]["name"], "YOLOv11x人头检测");
    assert_eq!(call(&gateway, "count").await.status(), 200);
}

#[tokio::test]
async fn silence_takes_a_service_away_and_heartbeats_keep_it() {
    let gateway = gateway_with(json!({})).await;
    let beat = "/api/v1/ai_analysis/heartbeat";
    for (port, seconds) in [(1, 1), (2, 3600)] {
        let mut wanted = registration(&format!("http://127.0.0.1:{port}/x"), "count");
        wanted["heartbeat_seconds"] = json!(seconds);
        assert_eq!(post(&gateway, REGISTER, &wanted).await.0, 201);
    }
    let kept = json!({"endpoint": "HTTP://127.0.0.1:2/x/"});
    assert_eq!(post(&gateway, beat, &kept).await.0, 200);
    let listed = gateway.until(SERVICES, |listed| listed["total"] == 1).await;
    assert_eq!(listed["services"][0]["heartbeat_seconds"], 3600.0);
    let gone = json!({"endpoint": "http://127.0.0.1:1/x"});
    assert_eq!(post(&gateway, beat, &gone).await.0, 404);
}

#[tokio::test]
async fn bad_registrations_are_refused_with_the_field_that_is_wrong() {
    let gateway = gateway_with(json!({})).await;
    let with = |key: &str, value: Value| {
        let mut wanted = registration("http://127.0.0.1:9/x", "count");
        wanted[key] = value;
        wanted
    };
    let cases = [
        (with("endpoint", json!("http://169.254.169.254/latest")), "link-local"),
        (with("endpoint", json!("http://[::ffff:a9fe:a9fe]/")), "link-local"),
        (with("endpoint", json!("http://0.0.0.0:1/")), "unspecified"),
        (with("endpoint", json!("http://no-such-host.invalid/x")), "does not resolve"),
        (with("endpoint", json!("http://127.0.0.1:70000/x")), "endpoint"),
        (with("name", json!("n".repeat(300))), "name"),
        (with("task_types", json!("count")), "task_types"),
        (with("colour", json!("red")), "colour"),
        (json!("text"), "the body does not fit"),
    ];
    for (body, word) in cases {
        let (status, error) = post(&gateway, REGISTER, &body).await;
        assert_eq!(status, 400, "{body}");
        assert_eq!(error["error"]["type"], "invalid_value");
        let told = error["error"]["message"].as_str().unwrap();
        // serde names the expected type, not the field, of a wrong one.
        assert!(told.contains(word) || told.contains("expected a sequence"), "{body}: {told}");
    }
    assert_eq!(gateway.admin(SERVICES).await.json()["total"], 0);
    let foreign = gateway
        .http
        .post(format!("http://{}{REGISTER}", gateway.admin))
        .header("origin", "https://evil.example")
        .body(registration("http://127.0.0.1:9/x", "count").to_string());
    assert_eq!(foreign.send().await.unwrap().status(), 403);
    let wrong =
        gateway.http.put(format!("http://{}{SERVICES}", gateway.admin)).send().await.unwrap();
    assert_eq!(wrong.status(), 405);
    assert!(wrong.headers()["allow"].to_str().unwrap().contains("GET"));
}

#[tokio::test]
async fn the_token_and_the_allowed_networks_are_in_force() {
    let gateway =
        gateway_with(json!({"admin": {"token": "t0ken", "allow_endpoints": ["10.0.0.0/8"]}})).await;
    let url = format!("http://{}{REGISTER}", gateway.admin);
    let send = |endpoint: &str, token: &str| {
        let request = gateway.http.post(&url).bearer_auth(token);
        request.body(registration(endpoint, "count").to_string()).send()
    };
    assert_eq!(send("http://10.0.0.1:1/x", "wrong").await.unwrap().status(), 401);
    assert_eq!(send("http://127.0.0.1:1/x", "t0ken").await.unwrap().status(), 400);
    assert_eq!(send("http://10.0.0.1:1/x", "t0ken").await.unwrap().status(), 201);
}
