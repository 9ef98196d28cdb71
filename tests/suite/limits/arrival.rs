//! Connections: how many, how fast, and whose they are when a balancer says so.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::http::{self, Reply, read_reply};
use crate::support::{Fake, Gateway, PATIENCE, Setup, eventually};

/// A gateway that believes nobody, unless these keys say so.
async fn gateway(fake: &Fake, keys: Value) -> Gateway {
    let plain = json!({"server": {"trusted_proxies": []}, "health_check": {"push": false}});
    let gateway = Setup::new(&[fake.url()]).with(plain).with(keys).start().await;
    gateway.until_state("comfy-1", "up").await;
    gateway
}

/// A connection from one of this machine's addresses.
async fn connect(gateway: &Gateway, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((IpAddr::V4(Ipv4Addr::from(from)), 0).into()).unwrap();
    socket.connect(gateway.data).await.unwrap()
}

/// Asks on a connection; `None` when it is closed instead.
async fn ask(stream: &mut TcpStream, before: &[u8]) -> Option<Reply> {
    let request = [before, &http::get("/queue", &[])].concat();
    let exchange = async {
        stream.write_all(&request).await.ok()?;
        read_reply(stream).await.ok()
    };
    timeout(PATIENCE, exchange).await.expect("an answer or an end")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_so_many_connections_and_another_has_its_own() {
    let fake = Fake::replying("{}").await;
    let keys = json!({"limits": {"per_client": {"connections": 2}}});
    let gateway = gateway(&fake, keys).await;
    let (mut first, mut second) =
        (connect(&gateway, [127, 0, 0, 1]).await, connect(&gateway, [127, 0, 0, 1]).await);
    assert!(ask(&mut first, b"").await.is_some() && ask(&mut second, b"").await.is_some());
    assert!(ask(&mut connect(&gateway, [127, 0, 0, 1]).await, b"").await.is_none());
    assert!(ask(&mut connect(&gateway, [127, 0, 0, 2]).await, b"").await.is_some());
    assert_eq!(gateway.count("comfygate_rejections_total{reason=\"client_connections\"}").await, 1);
    gateway.until_logged("limits.per_client.connections is reached").await;
    drop(first);
    eventually("its place is free again", PATIENCE, async || {
        ask(&mut connect(&gateway, [127, 0, 0, 1]).await, b"").await.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_connects_too_fast_waits() {
    let fake = Fake::replying("{}").await;
    let keys = json!({"limits": {"per_client": {"connections_per_second": 1}}});
    let gateway = gateway(&fake, keys).await;
    let mut served = 0;
    for _ in 0..30 {
        served +=
            usize::from(ask(&mut connect(&gateway, [127, 0, 0, 1]).await, b"").await.is_some());
    }
    assert!((10..20).contains(&served), "{served}");
    assert!(gateway.metric("comfygate_rejections_total{reason=\"connection_rate\"}").await > 9.0);
    assert!(ask(&mut connect(&gateway, [127, 0, 0, 2]).await, b"").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_together_have_so_many_connections() {
    let fake = Fake::replying("{}").await;
    let gateway = gateway(&fake, json!({"limits": {"connections": 2}})).await;
    let mut held =
        [connect(&gateway, [127, 0, 0, 1]).await, connect(&gateway, [127, 0, 0, 2]).await];
    for stream in &mut held {
        assert!(ask(stream, b"").await.is_some());
    }
    assert!(ask(&mut connect(&gateway, [127, 0, 0, 3]).await, b"").await.is_none());
    assert_eq!(gateway.count("comfygate_rejections_total{reason=\"connections\"}").await, 1);
}

/// A version 2 header of a client.
fn v2(command: u8, address: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, 0x11, 0, 15]);
    header.extend(address);
    header.extend([10, 0, 0, 1, 1, 2, 3, 4]);
    // A TLV without a value.
    header.extend([4, 0, 0]);
    header
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_says_whose_connection_it_is() {
    let fake = Fake::replying("{}").await;
    let server = json!({"trusted_proxies": ["127.0.0.1"], "proxy_protocol": "on"});
    let gateway = gateway(&fake, json!({"server": server})).await;
    for (header, client) in [
        (b"PROXY TCP4 203.0.113.7 10.0.0.1 5 6\r\n".to_vec(), "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 5 6\r\n".to_vec(), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(0x21, [203, 0, 113, 8]), "203.0.113.8"),
        (v2(0x20, [203, 0, 113, 8]), "127.0.0.1"),
    ] {
        let mut stream = connect(&gateway, [127, 0, 0, 1]).await;
        assert_eq!(ask(&mut stream, &header).await.expect("an answer").status, 200);
        let seen = fake.seen();
        assert_eq!(seen.last().unwrap().header("x-forwarded-for"), client);
    }
    // The client is not believed, though the balancer is.
    let mut stream = connect(&gateway, [127, 0, 0, 1]).await;
    let lie = b"PROXY TCP4 203.0.113.7 10.0.0.1 5 6\r\nGET /queue HTTP/1.1\r\nHost: a\r\n\
        X-Forwarded-For: 192.0.2.1\r\n\r\n";
    stream.write_all(lie).await.unwrap();
    read_reply(&mut stream).await.unwrap();
    assert_eq!(fake.seen().last().unwrap().header("x-forwarded-for"), "203.0.113.7");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sends_no_header_that_counts_is_closed_with_a_line() {
    let fake = Fake::replying("{}").await;
    let keys = json!({
        "server": {"trusted_proxies": ["127.0.0.1"], "proxy_protocol": "v2"},
        "limits": {"header_timeout": "500ms"},
    });
    let gateway = gateway(&fake, keys).await;
    let good = v2(0x21, [203, 0, 113, 8]);
    let bad: [(&[u8], &str); 4] = [
        (b"", "no PROXY header of a version that is expected"),
        (b"PROXY TCP4 203.0.113.7 10.0.0.1 5 6\r\n", "no PROXY header of a version"),
        (&v2(0x22, [203, 0, 113, 8]), "malformed"),
        (&good[..10], "PROXY header"),
    ];
    for (header, _) in bad {
        let mut stream = connect(&gateway, [127, 0, 0, 1]).await;
        assert!(ask(&mut stream, header).await.is_none(), "{}", header.escape_ascii());
    }
    // One that never comes.
    let mut silent = connect(&gateway, [127, 0, 0, 1]).await;
    assert_eq!(timeout(PATIENCE, silent.read(&mut [0; 1])).await.expect("its end").unwrap_or(0), 0);
    let mut stranger = connect(&gateway, [127, 0, 0, 2]).await;
    assert!(ask(&mut stranger, &good).await.is_none());
    assert!(ask(&mut connect(&gateway, [127, 0, 0, 1]).await, &good).await.is_some());
    assert_eq!(gateway.count("comfygate_rejections_total{reason=\"proxy_header\"}").await, 6);
    gateway.until_logged("is closed: it opens with no PROXY header").await;
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_client_hold_behind_a_balancer() {
    let fake = Fake::replying("{}").await;
    let keys = json!({
        "server": {"trusted_proxies": ["127.0.0.1"], "proxy_protocol": "v2"},
        "limits": {"per_client": {"connections": 1}},
    });
    let gateway = gateway(&fake, keys).await;
    let mut held = connect(&gateway, [127, 0, 0, 1]).await;
    assert!(ask(&mut held, &v2(0x21, [203, 0, 113, 8])).await.is_some());
    let mut second = connect(&gateway, [127, 0, 0, 1]).await;
    assert!(ask(&mut second, &v2(0x21, [203, 0, 113, 8])).await.is_none());
    let mut other = connect(&gateway, [127, 0, 0, 1]).await;
    assert!(ask(&mut other, &v2(0x21, [203, 0, 113, 9])).await.is_some());
}
