//! What one client, and all together, may have: the limits, and that nobody below them notices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod arrival;

use std::time::{Duration, Instant};

use futures_util::SinkExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::echo::Echo;
use crate::support::http::{self, read_reply};
use crate::support::socket::{self, close_code};
use crate::support::{Act, Fake, Gateway, PATIENCE, Setup, client, eventually, farm, long_prompt};

/// A gateway with these limits.
async fn with_limits(url: &str, limits: Value) -> Gateway {
    let keys = json!({"limits": limits, "health_check": {"push": false}});
    let gateway = Setup::new(&[url]).with(keys).start().await;
    gateway.until_state("comfy-1", "up").await;
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_too_fast_is_told_when_to_come_back() {
    let fake = Fake::replying("{}").await;
    let limits = json!({"per_client": {"requests_per_second": 1}});
    let gateway = with_limits(&fake.url(), limits).await;
    let flood = async |prefix: &str| {
        let replies = (1..80).map(|n| gateway.get(prefix.replace('N', &n.to_string()), "/queue"));
        join_all(replies).await.into_iter().find(|reply| reply.status != 200).expect("a refusal")
    };
    let refused = flood("203.0.113.1").await;
    refused.assert_refusal(429, "rate_limited");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(gateway.get("203.0.113.2", "/queue").await.status, 200, "another client");
    // IPv6 counts by its /64.
    flood("2001:db8::N").await.assert_refusal(429, "rate_limited");
    assert_eq!(gateway.get("2001:db8:0:1::1", "/queue").await.status, 200);
    assert!(gateway.metric("comfygate_rejections_total{reason=\"rate_limited\"}").await >= 2.0);
    eventually("it may come back", PATIENCE, async || {
        gateway.get("203.0.113.1", "/queue").await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_defaults_let_a_page_of_65_requests_through_for_many_at_one_address() {
    let fake = Fake::replying("{}").await;
    let gateway = with_limits(&fake.url(), json!({})).await;
    let page = async || {
        let requests = (0..65).map(|_| gateway.get("203.0.113.1", "/queue"));
        join_all(requests).await.iter().filter(|reply| reply.status == 200).count()
    };
    let served: usize = join_all((0..4).map(|_| page())).await.iter().sum();
    assert_eq!(served, 260);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_so_many_websockets_and_frames_so_long() {
    let echo = Echo::start().await;
    let limits = json!({"websocket_frame": "1KiB", "per_client": {"websockets": 2}});
    let gateway = with_limits(echo.url(), limits).await;
    let headers = [("x-forwarded-for", "203.0.113.1")];
    let open = async || socket::open(gateway.data, "/ws", &headers).await;
    let (first, mut second) = (open().await.unwrap().0, open().await.unwrap().0);
    let refused = open().await.unwrap_err();
    assert!(refused.to_string().contains("429"), "{refused}");
    let other = [("x-forwarded-for", "203.0.113.2")];
    socket::open(gateway.data, "/ws", &other).await.unwrap();
    drop(first);
    eventually("its place is free again", PATIENCE, async || open().await.is_ok()).await;

    second.send(Message::binary(vec![1; 1024])).await.unwrap();
    second.send(Message::binary(vec![1; 1025])).await.unwrap();
    assert_eq!(close_code(&mut second, PATIENCE).await, 1009);
}

/// An upload that has come to the backend, and of which the last byte is still to come.
async fn half_upload(gateway: &Gateway, fake: &Fake, client: &str) -> TcpStream {
    let headers = [("x-forwarded-for", client), ("Content-Length", "2")];
    let head = http::head("POST", "/upload/image", &headers) + "a";
    let before = fake.begun();
    let mut stream = TcpStream::connect(gateway.data).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    eventually("it has begun", PATIENCE, async || fake.begun() > before).await;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_uploads_are_under_way_at_once() {
    let fake = Fake::replying("{}").await;
    let patient = json!({"body_timeout": "5m", "uploads": 3, "per_client": {"uploads": 2}});
    let gateway = with_limits(&fake.url(), patient).await;
    let upload = async |client: &str| {
        let headers = [("x-forwarded-for", client), ("Content-Length", "1")];
        gateway.raw((http::head("POST", "/upload/image", &headers) + "a").as_bytes()).await
    };
    let mut held = vec![
        half_upload(&gateway, &fake, "203.0.113.1").await,
        half_upload(&gateway, &fake, "203.0.113.1").await,
    ];
    upload("203.0.113.1").await.assert_refusal(429, "rate_limited");
    assert_eq!(upload("203.0.113.2").await.status, 200);
    held.push(half_upload(&gateway, &fake, "203.0.113.2").await);
    let refused = upload("203.0.113.3").await;
    refused.assert_refusal(503, "overloaded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    for stream in &mut held {
        stream.write_all(b"b").await.unwrap();
        assert_eq!(read_reply(stream).await.unwrap().status, 200, "who was let in ends well");
    }
    eventually("there is room again", PATIENCE, async || upload("203.0.113.1").await.status == 200)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_as_long_as_their_route_allows() {
    let fake = Fake::replying("{}").await;
    let limits = json!({"body_size": 3000, "prompt_size": 2000, "control_size": 1000});
    let gateway = with_limits(&fake.url(), limits).await;
    for (path, limit, key) in [
        ("/upload/image", 3000, "limits.body_size"),
        ("/api/userdata/a", 3000, "limits.body_size"),
        ("/prompt", 2000, "limits.prompt_size"),
        ("/api/queue", 1000, "limits.control_size"),
    ] {
        let send = async |length: usize, chunked: bool| {
            let body = "x".repeat(length);
            let size = length.to_string();
            let (header, body) = if chunked {
                (("Transfer-Encoding", "chunked"), format!("{length:x}\r\n{body}\r\n0\r\n\r\n"))
            } else {
                (("Content-Length", size.as_str()), body)
            };
            gateway.raw((http::head("POST", path, &[header]) + &body).as_bytes()).await
        };
        for chunked in [false, true] {
            assert_eq!(send(limit, chunked).await.status, 200, "{path}");
            let refused = send(limit + 1, chunked).await;
            refused.assert_refusal(413, "body_too_large");
            assert!(refused.text().contains(key), "{}", refused.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_after_so_many_requests() {
    let fake = Fake::replying("{}").await;
    let gateway = with_limits(&fake.url(), json!({"requests_per_connection": 3})).await;
    let mut stream = TcpStream::connect(gateway.data).await.unwrap();
    for nth in 1..=3 {
        stream.write_all(&http::get("/queue", &[])).await.unwrap();
        let reply = read_reply(&mut stream).await.unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("connection") == Some("close"), nth == 3, "{nth}");
    }
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_take_its_answer_is_cut_and_who_takes_it_slowly_is_not() {
    let echo = Echo::start().await;
    let limits = json!({"write_timeout": "4s", "write_rate": "1KiB"});
    let gateway = with_limits(echo.url(), limits).await;
    // 64 MiB: more than any socket buffers.
    let request = http::get("/download/1024", &[]);
    let begin = async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(gateway.data).await.unwrap();
        stream.write_all(&request).await.unwrap();
        stream
    };
    let (mut stalled, mut slow) = (begin().await, begin().await);
    let slowly = async {
        let (mut buffer, mut taken) = (vec![0; 64 << 10], 0);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(8) || taken < 100_000 {
            taken += slow.read(&mut buffer).await.expect("a slow reader is served");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let cut = async {
        let reason = "comfygate_rejections_total{reason=\"slow_reader\"}";
        eventually("the other is cut", PATIENCE, async || gateway.count(reason).await == 1).await;
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stalled.read_to_end(&mut rest)).await.expect("its end");
        assert!(rest.len() < 60 << 20, "{}", rest.len());
    };
    tokio::join!(slowly, cut);
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_take_so_much_memory_and_no_more() {
    let farm = farm(1).await;
    let keys = json!({"mode": "pool", "limits": {"prompt_memory": "1MiB"}});
    let gateway = Setup::of(&farm).with(keys).start().await;
    gateway.until_state("comfy-1", "up").await;
    let mut large = long_prompt();
    large["extra_data"] = json!({"padding": "x".repeat(1 << 20)});
    let refused = gateway.post(client(1), "/prompt", &large).await;
    refused.assert_refusal(503, "overloaded");
    assert_eq!(refused.header("retry-after"), Some("30"));
    assert!(refused.text().contains("limits.prompt_memory"), "{}", refused.text());
    let reply = gateway.post(client(1), "/prompt", &long_prompt()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_while_another_is_served_waits_for_its_turn() {
    let slow = Fake::start(|request| {
        if request.target() == "/slow" {
            std::thread::sleep(Duration::from_millis(300));
            return Act::Reply("slow");
        }
        Act::Reply("{}")
    });
    let slow = slow.await;
    let gateway = with_limits(&slow.url(), json!({})).await;
    let mut stream = TcpStream::connect(gateway.data).await.unwrap();
    stream.write_all(&http::get("/slow", &[])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.write_all(&http::get("/queue", &[])).await.unwrap();
    assert_eq!(read_reply(&mut stream).await.unwrap().text(), "slow");
    assert_eq!(read_reply(&mut stream).await.unwrap().text(), "{}");
}
