//! WebSockets through a real gateway: what passes, what lives, what stalls.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::echo::Echo;
use crate::support::socket::{self, Socket, close_code};
use crate::support::{Gateway, PATIENCE, Setup, client, eventually};

async fn gateway_of(echo: &Echo) -> Gateway {
    let impatient = json!({"limits": {"keepalive_timeout": "1s", "header_timeout": "1s"},
        "health_check": {"push": false}});
    Setup::new(&[echo.url()]).with(impatient).start().await
}

async fn open(gateway: &Gateway) -> Socket {
    socket::open(gateway.data, "/ws?clientId=one", &[]).await.unwrap().0
}

async fn assert_echoes(socket: &mut Socket, message: Message) {
    socket.send(message.clone()).await.unwrap();
    let answer = timeout(PATIENCE, socket.next()).await.expect("an echo").unwrap().unwrap();
    assert_eq!(answer, message);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_socket_outlives_every_timeout_of_http() {
    let echo = Echo::start().await;
    let gateway = gateway_of(&echo).await;
    let mut socket = open(&gateway).await;
    // Three times what an idle connection of HTTP is allowed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_echoes(&mut socket, Message::text("still here")).await;
    socket.send(Message::Ping(vec![1, 2].into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong(vec![1, 2].into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_size_pass_unchanged() {
    let echo = Echo::start().await;
    let gateway = gateway_of(&echo).await;
    let mut socket = open(&gateway).await;
    for size in [0, 1, 125, 126, 65_535, 65_536, 3 << 20] {
        let payload: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        assert_echoes(&mut socket, Message::binary(payload)).await;
        assert_echoes(&mut socket, Message::text("ü".repeat(size / 2))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subprotocols_and_close_codes_pass_both_ways() {
    let echo = Echo::start().await;
    let gateway = gateway_of(&echo).await;
    let offer = [("sec-websocket-protocol", "unknown, other")];
    let (mut socket, response) = socket::open(gateway.data, "/ws", &offer).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "other");
    assert_eq!(socket::backend(&response), "comfy-1");

    let frame = CloseFrame { code: 4001.into(), reason: "bye".into() };
    socket.close(Some(frame)).await.unwrap();
    assert_eq!(close_code(&mut socket, PATIENCE).await, 4001);
    let told = || echo.witness.closes.lock().clone();
    eventually("the backend hears of it", PATIENCE, async || !told().is_empty()).await;
    assert_eq!(told(), [(4001, "bye".to_owned())]);

    let mut socket = open(&gateway).await;
    socket.send(Message::text("close 4002 go away")).await.unwrap();
    let closed = socket.next().await.unwrap().unwrap();
    let frame = CloseFrame { code: 4002.into(), reason: "go away".into() };
    assert_eq!(closed, Message::Close(Some(frame)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_stalls_only_itself() {
    let echo = Echo::start().await;
    let gateway = gateway_of(&echo).await;
    let before = gateway.memory_kib("VmRSS");
    let mut lazy = open(&gateway).await;
    lazy.send(Message::text("flood")).await.unwrap();
    let flooded = || echo.witness.flooded.load(Relaxed);
    eventually("the flood is on", PATIENCE, async || flooded() > 0).await;

    let mut other = open(&gateway).await;
    for n in 0..50 {
        assert_echoes(&mut other, Message::text(format!("message {n}"))).await;
        assert_eq!(gateway.get(client(n), "/prompt").await.status, 200);
    }
    // Once the kernel's buffers are full nothing moves any more.
    let mut last = 0;
    eventually("the flood has stopped", PATIENCE, async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        std::mem::replace(&mut last, flooded()) == flooded()
    })
    .await;
    let grown = gateway.memory_kib("VmHWM") - before;
    assert!(grown < 20 << 10, "{grown} KiB more for {} bytes", flooded());

    // It can go on where it stopped.
    for _ in 0..200 {
        let message = timeout(PATIENCE, lazy.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(message.len(), crate::support::echo::PIECE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backends_refusal_of_a_handshake_is_passed_on() {
    let echo = Echo::start().await;
    let gateway = gateway_of(&echo).await;
    let old_version = [("sec-websocket-version", "8")];
    let refused = socket::open(gateway.data, "/ws", &old_version).await.unwrap_err();
    assert!(refused.to_string().contains("400"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_sees_a_handshake_from_its_own_address() {
    let echo = Echo::start().await;
    let gateway = gateway_of(&echo).await;
    let host = gateway.data.to_string();
    let origin = format!("http://{host}");
    let headers = [
        ("host", host.as_str()),
        ("origin", &origin),
        ("x-forwarded-for", "10.9.8.7"),
        ("sec-websocket-extensions", "permessage-deflate"),
    ];
    socket::open(gateway.data, "/ws", &headers).await.unwrap();
    let seen = echo.witness.handshakes.lock()[0].clone();
    let backend = echo.url().strip_prefix("http://").unwrap();
    assert_eq!(seen["host"], backend);
    assert!(!seen.contains_key("origin"), "{seen:?}");
    assert_eq!(seen["x-forwarded-for"], "10.9.8.7, 127.0.0.1");
    assert_eq!(seen["x-forwarded-host"], host.as_str());
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert!(seen.contains_key("x-request-id"));
    assert_eq!(seen["sec-websocket-extensions"], "permessage-deflate");

    let foreign = [("host", host.as_str()), ("origin", "http://evil.example")];
    let refused = socket::open(gateway.data, "/ws", &foreign).await.unwrap_err();
    assert!(refused.to_string().contains("403"), "{refused}");
    assert_eq!(echo.witness.handshakes.lock().len(), 1);
}
