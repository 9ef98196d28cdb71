//! HTTP/2 by a client as people have one: all that goes over HTTP/1.1 goes over it, too.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use comfygate::sim::image_of_seed;
use futures_util::future::join_all;
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Version};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::{https, quiet};
use crate::support::tls::{Authority, GATE, Hand, client};
use crate::support::{Act, Embedded, Fake, PATIENCE, Setup, eventually, farm, socket};

/// A gateway and a client that speaks HTTP/2 to it.
struct Visit {
    gateway: Embedded,
    http: Client,
    base: String,
    address: SocketAddr,
}

impl Visit {
    async fn to(setup: Setup, more: Value) -> Self {
        let authority = Authority::new("one");
        let gateway = https(setup, &authority, &more).embed().await;
        let address: SocketAddr = gateway.data.strip_prefix("http://").unwrap().parse().unwrap();
        let http = client(&authority, address).build().unwrap();
        Self { gateway, http, base: format!("https://{GATE}:{}", address.port()), address }
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let reply = self.http.get(format!("{}{path}", self.base)).send().await.unwrap();
        assert_eq!(reply.version(), Version::HTTP_2, "{path}");
        reply
    }

    async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> reqwest::Response {
        let url = format!("{}{path}", self.base);
        let reply = self.http.post(url).json(&body).send().await.unwrap();
        assert_eq!(reply.version(), Version::HTTP_2, "{path}");
        reply
    }
}

fn painting(image: &str) -> Value {
    json!({"prompt": {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "h2"}},
    }})
}

/// Uploads a picture, has it painted, and looks at the result, all over one connection.
async fn paints(visit: &Visit) {
    let picture = image_of_seed(7);
    let part = Part::bytes(picture.clone()).file_name("mine.png");
    let upload = visit.http.post(format!("{}/upload/image", visit.base));
    let reply = upload.multipart(Form::new().part("image", part)).send().await.unwrap();
    assert_eq!((reply.status().as_u16(), reply.version()), (200, Version::HTTP_2));

    let reply = visit.post("/api/prompt", painting("mine.png")).await;
    assert_eq!(reply.status(), 200);
    let id = reply.json::<Value>().await.unwrap()["prompt_id"].as_str().unwrap().to_owned();
    let mut image = Value::Null;
    eventually("it is painted", PATIENCE, async || {
        let entry = visit.json(&format!("/history/{id}")).await;
        image = entry[&id]["outputs"]["2"]["images"][0].clone();
        image.is_object()
    })
    .await;
    let name = image["filename"].as_str().unwrap();
    let seen = visit.get(&format!("/api/view?filename={name}&type=output")).await;
    assert_eq!(seen.bytes().await.unwrap(), picture);
    let refused = visit.post("/prompt", json!({"prompt": {}})).await;
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["type"], "prompt_no_outputs");
}

#[tokio::test(flavor = "multi_thread")]
async fn sticky_mode_works_over_http2() {
    let farm = farm(2).await;
    let visit = Visit::to(Setup::of(&farm), json!({})).await;
    paints(&visit).await;
    let session = visit.json("/lb/session").await;
    let home = session["backend"].as_str().unwrap();
    let reply = visit.get("/system_stats").await;
    assert_eq!(reply.headers()["x-comfygate-backend"], home);
    for header in ["connection", "keep-alive", "transfer-encoding"] {
        assert!(!reply.headers().contains_key(header), "{header}");
    }
    let head = visit.http.head(format!("{}/system_stats", visit.base)).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.version()), (200, Version::HTTP_2));
    assert!(head.bytes().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_mode_works_over_http2() {
    let farm = farm(2).await;
    let visit = Visit::to(Setup::of(&farm).with(json!({"mode": "pool"})), json!({})).await;
    visit.gateway.takes_jobs_on(2).await;
    paints(&visit).await;
    let queue = visit.json("/queue").await;
    assert!(queue["queue_running"].is_array(), "{queue}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_says_itself_it_says_over_http2() {
    let fake = Fake::replying("{}").await;
    let tab = json!({"session": {"affinity": "tab"}});
    let visit = Visit::to(quiet(&fake.url()).with(tab), json!({})).await;
    let page = visit.http.get(format!("{}/", visit.base)).header("accept", "text/html");
    let reply = page.send().await.unwrap();
    assert_eq!((reply.status().as_u16(), reply.version()), (302, Version::HTTP_2));
    assert!(reply.headers()["location"].to_str().unwrap().starts_with("/@"));

    let evil = visit.http.post(format!("{}/prompt", visit.base));
    let reply = evil.header("origin", "https://evil.example").body("{}").send().await.unwrap();
    assert_eq!((reply.status().as_u16(), reply.version()), (403, Version::HTTP_2));
    assert_eq!(reply.json::<Value>().await.unwrap()["error"]["type"], "forbidden");

    assert_eq!(visit.get("/lb/nothing").await.status(), 404);
    assert!(fake.seen().is_empty());
    assert_eq!(visit.get("/x").await.status(), 200);
    let request = fake.only();
    assert_eq!(request.line(), "GET /x HTTP/1.1");
    assert_eq!(request.header("x-forwarded-proto"), "https");
    assert_eq!(request.header("x-forwarded-host"), format!("{GATE}:{}", visit.address.port()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_fails_and_bodies_that_are_too_large_are_told() {
    let limits = json!({"limits": {"body_size": 1000, "header_bytes": 4096}});
    let fake = Fake::start(|request| match request.target() {
        "/reset" => Act::Reset,
        "/half" => Act::ResetInBody,
        _ => Act::Reply("{}"),
    })
    .await;
    let visit = Visit::to(quiet(&fake.url()).with(limits), json!({})).await;
    let url = format!("{}/upload/image", visit.base);
    let said = visit.http.post(&url).body(vec![0; 1001]).send().await.unwrap();
    assert_eq!((said.status().as_u16(), said.version()), (413, Version::HTTP_2));
    let pieces = futures_util::stream::iter((0..20).map(|_| Ok::<_, String>(vec![0_u8; 100])));
    let unsaid = visit.http.post(&url).body(reqwest::Body::wrap_stream(pieces)).send().await;
    assert_eq!(unsaid.unwrap().status(), 413);
    let long = visit.http.get(&url).header("x-long", "x".repeat(5000)).send().await.unwrap();
    assert_eq!((long.status().as_u16(), long.version()), (431, Version::HTTP_2));
    assert_eq!(visit.get("/x").await.status(), 200, "the connection stands");

    visit.get("/half").await.bytes().await.expect_err("half an answer is none");
    assert_eq!(visit.get("/x").await.status(), 200, "the connection stands");
    let status = visit.get("/reset").await.status().as_u16();
    assert!([502, 503].contains(&status), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_pass_both_ways_and_none_waits_for_another() {
    let idle = r#"{"queue_running": [], "queue_pending": []}"#;
    let echo = axum::Router::new()
        .route("/echo", axum::routing::post(|body: Bytes| async { body }))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .route("/api/queue", axum::routing::get(move || async move { idle }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, echo).await });
    let visit = Visit::to(quiet(&server), json!({})).await;
    let body: Bytes = (0..8_000_000_u32).map(|n| (n % 251) as u8).collect();
    let url = format!("{}/echo", visit.base);
    let echoed = async || {
        let reply = visit.http.post(&url).body(body.clone()).send().await.unwrap();
        assert!(reply.bytes().await.unwrap() == body, "another body came back");
    };
    tokio::join!(echoed(), echoed(), echoed());

    // One that nobody reads stalls itself, and nothing else.
    let stalled = visit.http.post(&url).body(body.clone()).send().await.unwrap();
    tokio::time::timeout(PATIENCE, echoed()).await.expect("the others go on");
    assert!(stalled.bytes().await.unwrap() == body, "another body came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_may_run_at_once_all_are_answered() {
    let farm = farm(1).await;
    let visit = Visit::to(Setup::of(&farm), json!({})).await;
    let all = join_all((0..400).map(|_| visit.get("/system_stats"))).await;
    assert!(all.iter().all(|reply| reply.status() == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_all_connections_count_against_the_limit_of_connections() {
    let farm = farm(1).await;
    let limit = json!({"limits": {"connections": 3}});
    let visit = Visit::to(Setup::of(&farm).with(limit), json!({})).await;
    farm[0].faults().latency(Duration::from_secs(1));
    let all = join_all((0..20).map(|_| visit.get("/system_stats"))).await;
    let count = |status: u16| all.iter().filter(|reply| reply.status() == status).count();
    assert!(count(200) >= 1, "{all:?}");
    assert_eq!(count(200) + count(429), 20, "{all:?}");
    assert!(count(429) >= 10, "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_come_over_http1_to_the_same_port() {
    let farm = farm(1).await;
    let visit = Visit::to(Setup::of(&farm), json!({})).await;
    let hand = Hand::trusting().speaking(&["http/1.1"]);
    let stream = hand.shake(visit.address, GATE).await.unwrap();
    let (_socket, response) = socket::open_on(stream, "/ws", &[]).await.unwrap();
    assert_eq!(socket::backend(&response), "comfy-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_is_the_clients_choice_and_can_be_switched_off() {
    let fake = Fake::replying("{}").await;
    for (more, offered, agreed) in [
        (json!({}), &["h2", "http/1.1"][..], Some("h2")),
        (json!({}), &["http/1.1"], Some("http/1.1")),
        (json!({}), &[], None),
        (json!({"http2": false}), &["h2", "http/1.1"], Some("http/1.1")),
    ] {
        let visit = Visit::to(quiet(&fake.url()), more).await;
        let hand = Hand::trusting().speaking(offered);
        let stream = hand.shake(visit.address, GATE).await.unwrap();
        let chosen = stream.get_ref().1.alpn_protocol();
        assert_eq!(chosen, agreed.map(str::as_bytes), "{offered:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_requests_is_closed_after_a_while() {
    let fake = Fake::replying("{}").await;
    let idle = json!({"limits": {"keepalive_timeout": "2s"}});
    let visit = Visit::to(quiet(&fake.url()).with(idle), json!({})).await;
    let start = Instant::now();
    // One that says nothing at all, and one that greets and asks for nothing.
    let silent = Hand::trusting().speaking(&["h2"]).shake(visit.address, GATE).await.unwrap();
    let greets = Hand::trusting().speaking(&["h2"]).shake(visit.address, GATE).await.unwrap();
    let (_requests, greeting) = h2::client::handshake(greets).await.unwrap();
    tokio::time::timeout(PATIENCE, greeting).await.expect("it ends").unwrap();
    assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
    let mut silent = silent;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut rest)).await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ending_gateway_says_so_and_finishes_what_was_begun() {
    let farm = farm(1).await;
    let authority = Authority::new("one");
    let mut gateway = https(Setup::of(&farm), &authority, &json!({})).start().await;
    let stream = Hand::trusting().speaking(&["h2"]).shake(gateway.data, GATE).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    farm[0].faults().latency(Duration::from_millis(1500));
    let before = farm[0].requests_seen();
    let request = || {
        let uri = format!("https://{GATE}/system_stats");
        http::Request::get(uri).body(()).unwrap()
    };
    let mut requests = requests.ready().await.unwrap();
    let (reply, _) = requests.send_request(request(), true).unwrap();
    eventually("it is under way", PATIENCE, async || {
        farm[0].requests()[before as usize..].iter().any(|(_, path)| path == "/system_stats")
    })
    .await;
    gateway.signal("TERM").await;
    gateway.until_logged("stopping").await;
    let reply = tokio::time::timeout(PATIENCE, reply).await.unwrap().unwrap();
    assert_eq!(reply.status(), 200);
    let mut body = reply.into_body();
    while let Some(piece) = body.data().await {
        piece.unwrap();
    }
    // GOAWAY without an error: the client knows that nothing was lost.
    tokio::time::timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
    assert!(requests.ready().await.is_err());
    let (code, took) = gateway.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
}
