//! HTTP/2 frame by frame, as no decent client would send them: what is malformed or could be read in
//! two ways never reaches a backend.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::{https, quiet};
use crate::support::tls::{Authority, GATE, Hand};
use crate::support::{Embedded, Fake, PATIENCE, Setup, eventually, farm};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

struct Frame {
    kind: u8,
    stream: u32,
    payload: Bytes,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_uint(payload.len() as u64, 3);
    frame.put_slice(&[kind, flags]);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame.freeze()
}

/// Lines as HPACK literals, whatever they are.
fn block(lines: &[(&str, &str)]) -> Bytes {
    let mut block = BytesMut::new();
    let text = |block: &mut BytesMut, text: &str| {
        assert!(text.len() < 127);
        block.put_u8(text.len() as u8);
        block.put_slice(text.as_bytes());
    };
    for (name, value) in lines {
        block.put_u8(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block.freeze()
}

/// A connection of HTTP/2 by hand.
struct Wire {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Wire {
    async fn to(gateway: &Embedded) -> Self {
        Self::at(gateway.data.strip_prefix("http://").unwrap().parse().unwrap()).await
    }

    async fn at(address: SocketAddr) -> Self {
        let mut stream = Hand::trusting().speaking(&["h2"]).shake(address, GATE).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
        Self { stream, buffer: BytesMut::new() }
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The next frame; `None` when the gateway has hung up.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if self.buffer.len() >= 9 {
                let length = self.buffer.get(..3)?.iter().fold(0, |n, &b| n << 8 | usize::from(b));
                if self.buffer.len() >= 9 + length {
                    let mut head = self.buffer.split_to(9);
                    head.advance(3);
                    let kind = head.get_u8();
                    head.advance(1);
                    let stream = head.get_u32();
                    return Some(Frame {
                        kind,
                        stream,
                        payload: self.buffer.split_to(length).freeze(),
                    });
                }
            }
            if self.stream.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// What becomes of the request on stream 1.
    async fn outcome(&mut self) -> Outcome {
        let waiting = async {
            loop {
                match self.next().await {
                    None => return Outcome::Refused,
                    Some(Frame { kind: GOAWAY, .. }) => return Outcome::Refused,
                    Some(Frame { kind: RST_STREAM, stream: 1, .. }) => return Outcome::Refused,
                    Some(Frame { kind: HEADERS, stream: 1, payload }) => {
                        return Outcome::of(&payload);
                    }
                    Some(_) => {}
                }
            }
        };
        timeout(PATIENCE, waiting).await.expect("an outcome")
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Ok,
    /// An error's status, or the end of the stream or of the connection.
    Refused,
}

impl Outcome {
    /// The status stands first, and 200 has an index of its own.
    fn of(block: &[u8]) -> Self {
        if block.first() == Some(&0x88) { Self::Ok } else { Self::Refused }
    }
}

async fn gateway(fake: &Fake) -> Embedded {
    https(quiet(&fake.url()), &Authority::new("one"), &json!({})).embed().await
}

const PLAIN: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", GATE), (":path", "/x")];

/// The plain request, one of whose lines is replaced.
fn but(name: &str, value: &'static str) -> Vec<(&'static str, &'static str)> {
    PLAIN.iter().map(|&(n, v)| if n == name { (n, value) } else { (n, v) }).collect()
}

fn without(name: &str) -> Vec<(&'static str, &'static str)> {
    PLAIN.into_iter().filter(|(known, _)| *known != name).collect()
}

fn and(lines: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    PLAIN.iter().chain(lines).copied().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn games_with_pseudo_headers_and_framing_reach_no_backend() {
    let fake = Fake::replying("{}").await;
    let gateway = gateway(&fake).await;
    let games = [
        without(":path"),
        without(":method"),
        without(":scheme"),
        without(":authority"),
        but(":path", ""),
        but(":path", "x"),
        but(":path", "/x HTTP/1.1\r\nhost: evil\r\n\r\nGET /y"),
        but(":path", "/x\ry"),
        but(":path", "/x\ny"),
        but(":path", "/x\0y"),
        but(":path", "/x y"),
        but(":path", "/x\u{7f}"),
        but(":path", "http://evil.example/x"),
        but(":method", "G ET"),
        but(":method", "GET / HTTP/1.1\r\nhost: evil\r\n\r\nGET"),
        but(":method", "CONNECT"),
        but(":method", ""),
        but(":scheme", "http"),
        but(":scheme", "ftp"),
        but(":authority", "user@gate.example"),
        but(":authority", "gate.example\r\nx: y"),
        but(":authority", "gate.example/x"),
        but(":authority", ""),
        and(&[("host", "evil.example")]),
        and(&[("host", GATE), ("host", GATE)]),
        and(&[(":path", "/y")]),
        and(&[(":method", "POST")]),
        and(&[(":authority", "evil.example")]),
        and(&[(":status", "200")]),
        and(&[(":nonsense", "x")]),
        and(&[("x", "y"), (":path", "/y")]),
        and(&[("X-Upper", "x")]),
        and(&[("", "x")]),
        and(&[("x y", "z")]),
        and(&[("x:", "y")]),
        and(&[("x\r\ny", "z")]),
        and(&[("x", "y\r\nz: a")]),
        and(&[("x", "y\nz")]),
        and(&[("x", "y\rz")]),
        and(&[("x", "y\0")]),
        and(&[("x", "y\u{7f}")]),
        and(&[("connection", "close")]),
        and(&[("keep-alive", "timeout=5")]),
        and(&[("proxy-connection", "close")]),
        and(&[("transfer-encoding", "chunked")]),
        and(&[("upgrade", "websocket")]),
        and(&[("te", "gzip")]),
        and(&[("content-length", "5")]),
        and(&[("content-length", "x")]),
        and(&[("content-length", "0"), ("content-length", "1")]),
        and(&[("content-length", "+0")]),
        [&PLAIN[..], &[(":protocol", "websocket")]].concat(),
        [&but(":method", "CONNECT")[..], &[(":protocol", "websocket")]].concat(),
    ];
    for game in &games {
        let mut wire = Wire::to(&gateway).await;
        wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(game))).await.unwrap();
        assert_eq!(wire.outcome().await, Outcome::Refused, "{game:?}");
    }
    // A body longer and one shorter than was said.
    for (said, body) in [("1", &b"toolong"[..]), ("9", b"short")] {
        let mut wire = Wire::to(&gateway).await;
        let lines = [&but(":method", "POST")[..], &[("content-length", said)]].concat();
        let sent =
            [frame(HEADERS, END_HEADERS, 1, &block(&lines)), frame(DATA, END_STREAM, 1, body)];
        wire.send(&sent.concat()).await.unwrap();
        assert_eq!(wire.outcome().await, Outcome::Refused, "{said}");
    }
    let seen = fake.seen();
    let whole: Vec<_> = seen.iter().filter(|request| !request.line().starts_with("POST")).collect();
    assert!(whole.is_empty(), "{whole:?}");
    let lied = seen.iter().find(|request| request.body.len() > 5);
    assert!(lied.is_none(), "{lied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_and_its_variants_reach_the_backend_as_one() {
    let fake = Fake::replying("{}").await;
    let gateway = gateway(&fake).await;
    let variants = [
        PLAIN.to_vec(),
        and(&[("host", "GATE.example")]),
        [&without(":authority")[..], &[("host", GATE)]].concat(),
        and(&[("cookie", "a=1"), ("te", "trailers"), ("cookie", "b=2")]),
        and(&[("content-length", "0")]),
    ];
    for (n, variant) in variants.iter().enumerate() {
        let mut wire = Wire::to(&gateway).await;
        wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(variant))).await.unwrap();
        assert_eq!(wire.outcome().await, Outcome::Ok, "{variant:?}");
        let seen = fake.seen();
        assert_eq!(seen.len(), n + 1, "{seen:?}");
        let request = &seen[n];
        assert_eq!(request.line(), "GET /x HTTP/1.1");
        assert!(request.header("x-forwarded-host").eq_ignore_ascii_case(GATE), "{request:?}");
        let crumbs = variant.iter().any(|(name, _)| *name == "cookie");
        assert_eq!(request.all("cookie"), if crumbs { vec!["a=1; b=2"] } else { vec![] });
    }
    // A body in pieces and with trailers, which end here.
    let mut wire = Wire::to(&gateway).await;
    let post = block(&but(":method", "POST"));
    let sent = [
        frame(HEADERS, END_HEADERS, 1, &post),
        frame(DATA, 0, 1, b"one "),
        frame(DATA, 0, 1, b"two"),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-trailer", "y")])),
    ];
    wire.send(&sent.concat()).await.unwrap();
    assert_eq!(wire.outcome().await, Outcome::Ok);
    let last = fake.seen().pop().unwrap();
    assert_eq!(last.header("transfer-encoding"), "chunked");
    let body = String::from_utf8(last.body).unwrap();
    assert!(body.contains("one ") && body.contains("two") && !body.contains("x-trailer"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_bound_what_a_client_may_do() {
    let fake = Fake::replying("{}").await;
    let gateway = gateway(&fake).await;
    let mut wire = Wire::to(&gateway).await;
    let mut payload = loop {
        let frame = wire.next().await.unwrap();
        if frame.kind == SETTINGS && !frame.payload.is_empty() {
            break frame.payload;
        }
    };
    let mut settings = std::collections::BTreeMap::new();
    while payload.has_remaining() {
        settings.insert(payload.get_u16(), payload.get_u32());
    }
    assert_eq!(settings.get(&3), Some(&100), "requests at once: {settings:?}");
    assert_eq!(settings.get(&6), Some(&65536), "limits.header_bytes: {settings:?}");
    assert_eq!(settings.get(&8), None, "no extended CONNECT: {settings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_end_that_are_taken_back_end_the_connection() {
    let fake = Fake::start(|_| crate::support::Act::Reply("{}")).await;
    let gateway = gateway(&fake).await;
    let mut wire = Wire::to(&gateway).await;
    let lines = block(&PLAIN);
    let flood = async {
        for n in 0..20_000_u32 {
            let stream = 2 * n + 1;
            let both = [
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &lines),
                frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()),
            ];
            if wire.send(&both.concat()).await.is_err() {
                return;
            }
        }
        while wire.next().await.is_some_and(|frame| frame.kind != GOAWAY) {}
    };
    timeout(PATIENCE, flood).await.expect("the gateway hangs up");
    assert!(fake.seen().len() < 1000, "{} reached the backend", fake.seen().len());
    // Somebody else is served as ever.
    let mut other = Wire::to(&gateway).await;
    other.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &lines)).await.unwrap();
    assert_eq!(other.outcome().await, Outcome::Ok);
}

/// What a client sends before it has heard that the gateway ends must not be lost (RFC 9113, 6.8).
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_crosses_the_gateways_farewell_is_answered() {
    let farm = farm(1).await;
    let authority = Authority::new("one");
    let mut gateway = https(Setup::of(&farm), &authority, &json!({})).start().await;
    let mut wire = Wire::at(gateway.data).await;
    farm[0].faults().latency(Duration::from_secs(2));
    let before = farm[0].requests_seen();
    let lines = block(&but(":path", "/system_stats"));
    let ask = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &lines);
    wire.send(&ask(1)).await.unwrap();
    eventually("it is under way", PATIENCE, async || {
        farm[0].requests()[before as usize..].iter().any(|(_, path)| path == "/system_stats")
    })
    .await;
    gateway.signal("TERM").await;
    gateway.until_logged("stopping").await;
    wire.send(&ask(3)).await.unwrap();
    let mut answered = Vec::new();
    while answered.len() < 2 {
        let frame = timeout(PATIENCE, wire.next()).await.unwrap().expect("both answers");
        if frame.kind == HEADERS {
            assert_eq!(Outcome::of(&frame.payload), Outcome::Ok, "stream {}", frame.stream);
            answered.push(frame.stream);
        }
    }
    drop(wire);
    assert_eq!(gateway.ended().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_end_ends_the_connection() {
    let fake = Fake::replying("{}").await;
    let gateway = gateway(&fake).await;
    let mut wire = Wire::to(&gateway).await;
    wire.send(&frame(HEADERS, 0, 1, &block(&PLAIN))).await.unwrap();
    let line = block(&[("x", &"y".repeat(100))]).repeat(100);
    let mut sent = 0;
    let flood = async {
        while wire.send(&frame(CONTINUATION, 0, 1, &line)).await.is_ok() {
            sent += line.len();
            // Enough for a gateway that keeps it all.
            assert!(sent < 64 << 20, "it takes everything");
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    };
    timeout(PATIENCE, flood).await.expect("the gateway hangs up");
    assert!(fake.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_not_spoken_without_tls() {
    let fake = Fake::replying("{}").await;
    let gateway = quiet(&fake.url()).embed().await;
    let address = gateway.data.strip_prefix("http://").unwrap();
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&PLAIN));
    tcp.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, b""), &head].concat()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, tcp.read_to_end(&mut answer)).await.expect("it ends");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    assert!(fake.seen().is_empty());
}
