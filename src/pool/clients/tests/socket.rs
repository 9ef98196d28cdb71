//! Whole sockets over a pipe, with a client of the usual kind at the other end.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::*;
use crate::pool::clients::socket::{Ended, PAGE_SILENT};
use crate::pool::clients::{ClientInfo, Hub, SocketEnd, mint_sid, response_head, serve};
use crate::relay::StopReason;

struct Client {
    socket: WebSocketStream<DuplexStream>,
    served: JoinHandle<SocketEnd>,
    stop: Option<oneshot::Sender<StopReason>>,
}

fn hub() -> Arc<Hub> {
    Hub::new(ClientEvents::Auto, || json!({"max_upload_size": 7}))
}

fn info(sid: &str) -> ClientInfo {
    ClientInfo {
        sid: Some(sid.to_owned()),
        key: key(1),
        caller: "10.0.0.1".into(),
        has_origin: true,
        max_inbound: 4 << 20,
    }
}

impl Client {
    async fn open(hub: &Arc<Hub>, info: ClientInfo) -> Self {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (stop, stopped) = oneshot::channel();
        let hub = Arc::clone(hub);
        let served = tokio::spawn(async move {
            let stop = async { stopped.await.unwrap_or(StopReason::GatewayShutdown) };
            serve(far, &hub, info, stop).await
        });
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let socket = WebSocketStream::from_raw_socket(near, Role::Client, Some(config)).await;
        Self { socket, served, stop: Some(stop) }
    }

    /// Opens one and reads its greeting.
    async fn greeted(hub: &Arc<Hub>, sid: &str) -> Self {
        let mut client = Self::open(hub, info(sid)).await;
        let greeting = client.json().await;
        assert_eq!(greeting["data"]["sid"], *sid);
        client
    }

    /// The next message that is no ping.
    async fn next(&mut self) -> Option<Message> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Ping(_))) => {}
                Some(Ok(message)) => return Some(message),
                _ => return None,
            }
        }
    }

    async fn frame(&mut self) -> Frame {
        match self.next().await.unwrap() {
            Message::Text(line) => text(line.as_str()),
            Message::Binary(bytes) => Frame { binary: true, bytes },
            other => panic!("{other:?}"),
        }
    }

    async fn json(&mut self) -> Value {
        serde_json::from_slice(&self.frame().await.bytes).unwrap()
    }

    /// Nothing comes for a while in which everything that was on its way would have come.
    async fn is_quiet(&mut self) -> bool {
        timeout(Duration::from_millis(10), self.next()).await.is_err()
    }

    /// Breaks the connection and waits until the gateway has seen it.
    async fn break_off(self) -> SocketEnd {
        drop(self.socket);
        self.served.await.unwrap()
    }

    async fn close(mut self) -> SocketEnd {
        self.socket.close(None).await.unwrap();
        while self.next().await.is_some() {}
        self.served.await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_is_greeted_gets_its_frames_and_every_status() {
    let hub = hub();
    hub.status(5);
    let mut client = Client::open(&hub, info("A")).await;
    let greeting = json!({
        "type": "status",
        "data": {"status": {"exec_info": {"queue_remaining": 5}}, "sid": "A"},
    });
    assert_eq!(client.json().await, greeting);
    for n in [6, 6] {
        hub.status(n);
    }
    let status =
        json!({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 6}}}});
    assert_eq!([client.json().await, client.json().await], [status.clone(), status]);
    let big = preview(1, 2, 0, 5 << 20);
    hub.deliver(plain(1, Meaning::Start, "ü"));
    hub.deliver(big.clone());
    assert_eq!(client.frame().await, plain(1, Meaning::Start, "ü").frame);
    assert_eq!(client.frame().await, big.frame, "in fragments, and whole again");
    let end = client.close().await;
    assert_eq!((end.ended, end.messages), (Ended::ByClient(1005), 5));
    assert!(!hub.is_live("A"));
}

#[tokio::test(start_paused = true)]
async fn an_empty_or_missing_client_id_is_minted() {
    let hub = hub();
    for sid in [None, Some(String::new())] {
        let mut client = Client::open(&hub, ClientInfo { sid, ..info("") }).await;
        let sid = client.json().await["data"]["sid"].as_str().unwrap().to_owned();
        assert!(sid.len() == 32 && sid.bytes().all(|b| b.is_ascii_hexdigit()), "{sid}");
        assert!(hub.is_live(&sid));
    }
    assert_ne!(mint_sid(), mint_sid());
}

#[tokio::test(start_paused = true)]
async fn flags_are_answered_once_and_only_if_they_come_first() {
    let hub = hub();
    let flags =
        || Message::text(r#"{"type":"feature_flags","data":{"supports_preview_metadata":true}}"#);
    let mut client = Client::greeted(&hub, "A").await;
    client.socket.send(Message::text("not json")).await.unwrap();
    client.socket.send(flags()).await.unwrap();
    let answer = json!({"type": "feature_flags", "data": {"max_upload_size": 7}});
    assert_eq!(client.json().await, answer);
    assert!(hub.flags("A"));
    client.socket.send(flags()).await.unwrap();
    assert!(client.is_quiet().await);

    let mut other = Client::greeted(&hub, "B").await;
    other.socket.send(Message::text("{}")).await.unwrap();
    other.socket.send(flags()).await.unwrap();
    assert!(other.is_quiet().await);
    assert!(!hub.flags("B"));
}

#[tokio::test(start_paused = true)]
async fn a_replaced_socket_stays_open_and_silent() {
    let hub = hub();
    let mut old = Client::greeted(&hub, "A").await;
    let mut new = Client::greeted(&hub, "A").await;
    hub.deliver(plain(1, Meaning::Start, "s"));
    hub.status(3);
    assert_eq!(new.json().await["type"], "status");
    assert_eq!(new.frame().await, plain(1, Meaning::Start, "s").frame);
    assert!(old.is_quiet().await && !old.served.is_finished());
    assert_eq!(old.close().await.ended, Ended::ByClient(1005));
    hub.deliver(plain(1, Meaning::Output, "o"));
    assert_eq!(new.frame().await, plain(1, Meaning::Output, "o").frame);
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_comes_after_a_broken_connection_and_not_after_a_close() {
    let hub = hub();
    let missed = [Meaning::Start, Meaning::Output, Meaning::Terminal, Meaning::End];
    let missed = missed.map(|meaning| plain(1, meaning, "x"));
    let client = Client::greeted(&hub, "A").await;
    for delivery in &missed[..2] {
        hub.deliver(delivery.clone());
    }
    tokio::task::yield_now().await;
    assert_eq!(client.break_off().await.ended, Ended::Gone);
    for delivery in &missed[2..] {
        hub.deliver(delivery.clone());
    }
    let mut client = Client::greeted(&hub, "A").await;
    for delivery in &missed {
        assert_eq!(client.frame().await, delivery.frame);
    }
    // An answer to a ping confirms them.
    assert!(timeout(Duration::from_secs(2), client.next()).await.is_err());
    client.break_off().await;
    let mut client = Client::greeted(&hub, "A").await;
    assert!(client.is_quiet().await);

    assert_eq!(client.close().await.ended, Ended::ByClient(1005));
    for delivery in &missed {
        hub.deliver(delivery.clone());
    }
    let mut client = Client::greeted(&hub, "A").await;
    assert!(client.is_quiet().await);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_holds_up_nobody_and_is_cut() {
    let hub = hub();
    let slow = Client::greeted(&hub, "A").await;
    let mut quick = Client::greeted(&hub, "B").await;
    let image = sized(1, Meaning::Output, "o", 1 << 20);
    for _ in 0..20 {
        hub.deliver(image.clone());
        let other = Delivery { owner: owner(Some("B")), ..plain(2, Meaning::Other, "x") };
        hub.deliver(other.clone());
        assert_eq!(quick.frame().await, other.frame);
    }
    // The quick one has to be read, or its pongs fail.
    let reads = tokio::spawn(async move { while quick.next().await.is_some() {} });
    let end = slow.served.await.unwrap();
    assert_eq!(end.ended, Ended::Standing);
    assert!(!hub.is_live("A") && hub.is_live("B"));
    reads.abort();
    let mut back = Client::greeted(&hub, "A").await;
    assert_eq!(back.frame().await, image.frame, "it gets what it did not read");
}

#[tokio::test(start_paused = true)]
async fn a_page_that_answers_no_ping_is_gone_and_one_that_does_stays() {
    let hub = hub();
    let mute = Client::greeted(&hub, "A").await;
    let mut alive = Client::greeted(&hub, "B").await;
    let stays = timeout(10 * PAGE_SILENT, alive.next());
    let (end, stays) = tokio::join!(mute.served, stays);
    assert_eq!(end.unwrap().ended, Ended::Silent);
    assert!(stays.is_err() && hub.is_live("B"));
}

#[tokio::test(start_paused = true)]
async fn a_program_may_be_busy_with_other_things_for_long() {
    let hub = hub();
    let mut client = Client::open(&hub, ClientInfo { has_origin: false, ..info("A") }).await;
    client.json().await;
    tokio::time::sleep(10 * PAGE_SILENT).await;
    hub.deliver(plain(1, Meaning::Start, "s"));
    assert_eq!(client.frame().await, plain(1, Meaning::Start, "s").frame);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_gateway_is_told() {
    let hub = hub();
    let mut client = Client::greeted(&hub, "A").await;
    client.stop.take().unwrap().send(StopReason::GatewayShutdown).unwrap();
    let Some(Message::Close(Some(close))) = client.next().await else { panic!("no Close") };
    assert_eq!(u16::from(close.code), 1001);
    while client.next().await.is_some() {}
    assert_eq!(client.served.await.unwrap().ended, Ended::Stopped(StopReason::GatewayShutdown));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_long_ends_the_socket() {
    let hub = hub();
    let mut client = Client::greeted(&hub, "A").await;
    let message = Message::binary(vec![0; (4 << 20) + 1]);
    let _ = client.socket.send(message).await;
    let end = client.served.await.unwrap();
    assert_eq!(end.ended, Ended::Refused(1009));
}

#[tokio::test]
async fn an_idle_socket_is_small() {
    let (_near, far) = tokio::io::duplex(64);
    let hub = hub();
    let socket = serve(far, &hub, info("A"), std::future::pending());
    assert!(size_of_val(&socket) < 8 << 10, "{}", size_of_val(&socket));
}

#[test]
fn the_101_accepts_the_key() {
    let head = response_head("dGhlIHNhbXBsZSBub25jZQ==");
    let head = std::str::from_utf8(&head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
    assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    assert!(head.ends_with("\r\n\r\n"));
}
