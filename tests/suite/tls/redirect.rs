//! From http to https, and staying there.

use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::{https, quiet};
use crate::support::http::{exchange, get, head, read_reply};
use crate::support::tls::{Authority, GATE, Hand, client};
use crate::support::{Fake, Gateway};

const HSTS: &str = "strict-transport-security";

async fn redirecting(names: &[&str]) -> (Gateway, std::net::SocketAddr, Fake) {
    let fake = Fake::replying("{}").await;
    let more = json!({"redirect_port": 0, "hsts": "1d"});
    let setup = https(quiet(&fake.url()), &Authority::new("one"), &more);
    let gateway = setup.with(json!({"server": {"public_names": names}})).start().await;
    let line = gateway.until_logged("sending ").await;
    let address = line.split("sending ").nth(1).unwrap().split(' ').next().unwrap();
    (gateway, address.parse().unwrap(), fake)
}

#[tokio::test(flavor = "multi_thread")]
async fn http_is_sent_to_https_with_method_and_address() {
    let (gateway, plain, fake) = redirecting(&[]).await;
    let port = gateway.data.port();
    for (method, status) in [("GET", 301), ("HEAD", 301), ("POST", 308), ("DELETE", 308)] {
        let request = head(method, "/api/view?a=b", &[("Host", GATE)]);
        let reply = exchange(plain, request.as_bytes()).await;
        assert_eq!(reply.status, status, "{method}");
        let expected = format!("https://{GATE}:{port}/api/view?a=b");
        assert_eq!(reply.header("location"), Some(expected.as_str()), "{method}");
        assert_eq!(reply.header("connection"), Some("close"));
        assert_eq!(reply.header(HSTS), None, "over http it says nothing (RFC 6797, 7.2)");
    }
    for host in ["a@b", "a/b", ""] {
        exchange(plain, &get("/", &[("Host", host)])).await.assert_refusal(400, "bad_request");
    }
    exchange(plain, b"nonsense\r\n\r\n").await.assert_refusal(400, "bad_request");
    assert!(fake.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_public_names_are_sent_anywhere_when_they_are_known() {
    let (_gateway, plain, _fake) = redirecting(&[GATE, "other.example:8443"]).await;
    for (host, location) in
        [(GATE, "https://gate.example/"), ("other.example:80", "https://other.example:8443/")]
    {
        let reply = exchange(plain, &get("/", &[("Host", host)])).await;
        assert_eq!(reply.header("location"), Some(location));
    }
    let reply = exchange(plain, &get("/", &[("Host", "evil.example")])).await;
    reply.assert_refusal(400, "bad_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_told_to_stay_when_that_is_wanted() {
    let fake = Fake::replying("{}").await;
    for (hsts, told) in [(json!("1h"), Some("max-age=3600")), (json!(0), None)] {
        let authority = Authority::new("one");
        let setup = https(quiet(&fake.url()), &authority, &json!({"hsts": hsts}));
        let gateway = setup.start().await;
        let hand = Hand::trusting().speaking(&["http/1.1"]);
        let mut stream = hand.shake(gateway.data, GATE).await.unwrap();
        stream.write_all(&get("/x", &[])).await.unwrap();
        let reply = read_reply(&mut stream).await.unwrap();
        assert_eq!((reply.status, reply.header(HSTS)), (200, told));
        let http2 = client(&authority, gateway.data).build().unwrap();
        for path in ["x", "lb/session", "lb/nothing"] {
            let url = format!("https://{GATE}:{}/{path}", gateway.data.port());
            let reply = http2.get(url).send().await.unwrap();
            assert_eq!(reply.version(), reqwest::Version::HTTP_2);
            let found = reply.headers().get(HSTS).map(|value| value.to_str().unwrap());
            assert_eq!(found, told, "{path}");
        }
    }
}
