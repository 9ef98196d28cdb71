//! What passes through: paths, headers and bodies, as a backend and as a client see them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use comfygate::sim::{Sim, SimConfig};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::http::{get, head, read_head, read_reply};
use crate::support::{Act, Fake, Gateway, Request, Setup, client};

async fn gateway_of(fake: &Fake) -> Gateway {
    Setup::new(&[fake.url()]).with(json!({"health_check": {"push": false}})).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_arrive_byte_for_byte() {
    let fake = Fake::replying("ok").await;
    let gateway = gateway_of(&fake).await;
    let targets = [
        "/userdata/workflows%2Fa%20b.json?overwrite=true&x=%2F&y=a+b",
        "//double//slash/",
        "/view?filename=%E4%BD%A0%2f..%2F.png&&=&a",
        "/@not/a/tab",
        "/%40comfy-1/x",
        "/x;y=1|{}?q={[1]}|^`\\",
        "/ü?ü",
        "/?",
    ];
    for target in targets {
        assert_eq!(gateway.raw(&get(target, &[])).await.status, 200, "{target}");
    }
    let seen = fake.seen();
    assert_eq!(seen.iter().map(Request::target).collect::<Vec<_>>(), targets);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_hears_who_asks_and_nothing_that_was_for_us() {
    let fake = Fake::replying("ok").await;
    let gateway = gateway_of(&fake).await;
    let sent = [
        ("Host", "gate.example:8100"),
        ("Origin", "http://gate.example:8100"),
        ("Sec-Fetch-Site", "same-origin"),
        ("X-Forwarded-For", "1.2.3.4, 10.9.8.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "public.example"),
        ("X-Real-IP", "6.6.6.6"),
        ("Forwarded", "for=6.6.6.6"),
        ("X-Request-Id", "mine"),
        ("Comfy-User-Proxy", "admin"),
        ("X-Comfygate-Backend", "other"),
        ("Connection", "keep-alive, X-Private"),
        ("X-Private", "hop"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("Comfy-User", "kept"),
        ("Cookie", "a=1; b=2"),
    ];
    let reply = gateway.raw(&get("/prompt", &sent)).await;
    assert_eq!(reply.backend(), "comfy-1");
    let seen = fake.only();
    assert_eq!(seen.header("host"), fake.url().strip_prefix("http://").unwrap());
    assert_eq!(seen.header("x-forwarded-for"), "1.2.3.4, 10.9.8.7, 127.0.0.1");
    assert_eq!(seen.header("x-forwarded-proto"), "https");
    assert_eq!(seen.header("x-forwarded-host"), "public.example");
    assert_eq!(seen.header("comfy-user"), "kept");
    assert_eq!(seen.header("cookie"), "a=1; b=2");
    let id = seen.header("x-request-id");
    assert!(id.len() >= 16 && id != "mine", "{id}");
    let gone = ["origin", "sec-fetch-site", "x-real-ip", "forwarded", "comfy-user-proxy"];
    let hop_by_hop = ["x-private", "keep-alive", "proxy-connection", "te", "x-comfygate-backend"];
    for name in gone.iter().chain(&hop_by_hop) {
        assert_eq!(seen.header(name), "", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_strangers_are_not_believed() {
    let fake = Fake::replying("ok").await;
    let gateway = Setup::new(&[fake.url()])
        .with(json!({"server": {"trusted_proxies": []}, "health_check": {"push": false}}))
        .start()
        .await;
    let sent = [
        ("Host", "gate.example"),
        ("X-Forwarded-For", "10.9.8.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
    ];
    gateway.raw(&get("/prompt", &sent)).await;
    let seen = fake.only();
    assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(seen.header("x-forwarded-proto"), "http");
    assert_eq!(seen.header("x-forwarded-host"), "gate.example");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_may_have_a_base_path_and_headers_of_its_own() {
    let fake = Fake::replying("ok").await;
    let backend = json!({"name": "far", "url": format!("{}/base", fake.url()),
        "headers": {"Authorization": "Bearer secret"}});
    let gateway =
        Setup::bare(json!({"backends": [backend], "health_check": {"push": false}})).start().await;
    gateway.until_state("far", "up").await;
    let sent = [("Authorization", "Bearer theirs")];
    assert_eq!(gateway.raw(&get("/userdata/a%2Fb?x=1", &sent)).await.backend(), "far");
    let seen = fake.only();
    assert_eq!(seen.target(), "/base/userdata/a%2Fb?x=1");
    assert_eq!(seen.header("authorization"), "Bearer secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_names_its_backend_and_loses_what_was_for_us() {
    let fake = Fake::start(|_| {
        Act::Raw(
            "HTTP/1.1 418 Tea\r\nX-Comfygate-Backend: liar\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
             Keep-Alive: timeout=1\r\nX-Kept: a\r\nX-Kept: b\r\nContent-Length: 3\r\n\r\ntea"
                .to_owned(),
        )
    });
    let fake = fake.await;
    let gateway = gateway_of(&fake).await;
    let reply = gateway.raw(&get("/", &[])).await;
    assert_eq!((reply.status, reply.text().as_str()), (418, "tea"));
    assert_eq!(reply.all("x-comfygate-backend"), ["comfy-1"]);
    assert_eq!(reply.all("x-kept"), ["a", "b"]);
    assert_eq!((reply.header("x-hop"), reply.header("keep-alive")), (None, None));
    assert_eq!(reply.all("connection"), ["keep-alive"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_header_can_be_switched_off() {
    let fake = Fake::replying("ok").await;
    let quiet = json!({"server": {"backend_header": false}, "health_check": {"push": false}});
    let gateway = Setup::new(&[fake.url()]).with(quiet).start().await;
    assert_eq!(gateway.raw(&get("/", &[])).await.header("x-comfygate-backend"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_on_one_connection_may_come_all_at_once() {
    let fake = Fake::replying("ok").await;
    let gateway = gateway_of(&fake).await;
    let sized = head("POST", "/b", &[("Content-Length", "5")]) + "12345";
    let chunked = head("POST", "/c", &[("Transfer-Encoding", "chunked")]) + "3\r\nabc\r\n0\r\n\r\n";
    let all = [get("/a", &[]), sized.into_bytes(), get("/d", &[]), chunked.into_bytes()].concat();
    let mut stream = TcpStream::connect(gateway.data).await.unwrap();
    stream.write_all(&all).await.unwrap();
    for _ in 0..4 {
        assert_eq!(read_reply(&mut stream).await.unwrap().text(), "ok");
    }
    // The connection can be used on after a body in chunks.
    stream.write_all(&get("/e", &[])).await.unwrap();
    assert_eq!(read_reply(&mut stream).await.unwrap().text(), "ok");
    let seen = fake.seen();
    let targets: Vec<_> = seen.iter().map(Request::target).collect();
    assert_eq!(targets, ["/a", "/b", "/d", "/c", "/e"]);
    assert_eq!(seen[1].body, b"12345");
    assert!(String::from_utf8_lossy(&seen[3].body).contains("abc"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_waits_to_be_asked_for_is_asked_for() {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let gateway = Setup::of(std::slice::from_ref(&sim)).start().await;
    let body = r#"{"prompt": {}}"#;
    let length = body.len().to_string();
    let expecting = [("Content-Length", length.as_str()), ("Expect", "100-continue")];
    let mut stream = TcpStream::connect(gateway.data).await.unwrap();
    stream.write_all(head("POST", "/prompt", &expecting).as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stream).await.unwrap().0, 100);
    stream.write_all(body.as_bytes()).await.unwrap();
    let reply = read_reply(&mut stream).await.unwrap();
    assert_eq!((reply.status, reply.backend()), (400, "comfy-1"), "{}", reply.text());
}

/// The interim answer must not be taken for the backend's verdict.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_waits_to_be_asked_for_is_a_task_all_the_same() {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let gateway = Setup::of(std::slice::from_ref(&sim)).start().await;
    let body = crate::support::long_prompt().to_string();
    let length = body.len().to_string();
    let expecting = [("Content-Length", length.as_str()), ("Expect", "100-continue")];
    let mut stream = TcpStream::connect(gateway.data).await.unwrap();
    stream.write_all(head("POST", "/prompt", &expecting).as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stream).await.unwrap().0, 100);
    stream.write_all(body.as_bytes()).await.unwrap();
    let reply = read_reply(&mut stream).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let tasks = gateway.admin("/lb/tasks").await.json();
    assert_eq!(tasks["tasks"][0]["task_id"], reply.json()["prompt_id"], "{tasks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_way_of_a_prompt_works_through_the_gateway() {
    let config = SimConfig { speed: 1000.0, ..SimConfig::default() };
    let sim = Sim::start(config).await.unwrap();
    let gateway = Setup::of(std::slice::from_ref(&sim)).start().await;
    let someone = client(1);
    let reply = gateway.post(&someone, "/prompt", &crate::support::long_prompt()).await;
    let id = reply.json()["prompt_id"].as_str().unwrap().to_owned();
    let path = format!("/history/{id}");
    let mut image = None;
    crate::support::eventually("the prompt is done", crate::support::PATIENCE, async || {
        let entry = gateway.get(&someone, &path).await.json();
        let images = &entry[&id]["outputs"]["2"]["images"];
        image = images[0]["filename"].as_str().map(str::to_owned);
        image.is_some()
    })
    .await;
    let view = format!("/view?filename={}&type=output", image.unwrap());
    let whole = gateway.get(&someone, &view).await;
    assert!(whole.body.starts_with(b"\x89PNG"), "{}", whole.text());

    let part = gateway.raw(&get(&view, &[("Range", "bytes=1-3")])).await;
    assert_eq!((part.status, part.text().as_str()), (206, "PNG"));
    let tag = whole.header("etag").unwrap().to_owned();
    let unchanged = gateway.raw(&get(&view, &[("If-None-Match", &tag)])).await;
    assert_eq!(unchanged.status, 304);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_site_may_not_use_the_farm_through_a_visitor() {
    let fake = Fake::replying("ok").await;
    let names = json!({"server": {"public_names": ["art.example"]},
        "health_check": {"push": false}});
    let gateway = Setup::new(&[fake.url()]).with(names).start().await;
    let ask = async |headers: &[(&str, &str)]| gateway.raw(&get("/prompt", headers)).await;
    for headers in [
        &[("Origin", "http://evil.example")][..],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "cross-site"), ("Origin", "null")],
        &[("Origin", "http://gate.example.evil")],
    ] {
        ask(headers).await.assert_refusal(403, "forbidden");
    }
    assert!(fake.seen().is_empty());
    for headers in [
        &[("Origin", "http://gate.example")][..],
        &[("Origin", "https://art.example")],
        &[("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")],
    ] {
        assert_eq!(ask(headers).await.status, 200, "{headers:?}");
    }
}
