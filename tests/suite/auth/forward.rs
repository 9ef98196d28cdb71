//! Somebody else who is asked about requests.

use serde_json::json;

use super::{ask, before, handshake, made};
use crate::support::{Act, Fake, Setup, farm};

/// An identity proxy that knows two people by their cookie.
async fn identity_proxy() -> Fake {
    Fake::start(|request| {
        let no_body = "Content-Length: 0\r\n\r\n";
        Act::Raw(match request.header("cookie") {
            "who=anna" => format!("HTTP/1.1 200 OK\r\nRemote-User: anna\r\n{no_body}"),
            "who=root" => format!(
                "HTTP/1.1 202 Accepted\r\nRemote-User: root\r\nSet-Cookie: renewed=1; Path=/\r\n{no_body}"
            ),
            "who=nameless" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            "who=two" => {
                format!("HTTP/1.1 200 OK\r\nRemote-User: a\r\nRemote-User: b\r\n{no_body}")
            }
            "who=banned" => "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\
                 Content-Length: 3\r\n\r\nno!"
                .to_owned(),
            "who=broken" => format!("HTTP/1.1 500 Oh\r\n{no_body}"),
            "who=lost" => format!("HTTP/1.1 404 Not Found\r\n{no_body}"),
            "who=reset" => return Act::Reset,
            _ => format!(
                "HTTP/1.1 302 Found\r\nLocation: https://auth.example/?rd=x\r\n\
                 Set-Cookie: state=1\r\nX-Inner: secret\r\n{no_body}"
            ),
        })
    })
    .await
}

#[tokio::test]
async fn its_word_decides_and_its_silence_closes() {
    let (proxy, backend) = (identity_proxy().await, Fake::replying("{}").await);
    let asked = json!({"auth": {"forward": {"url": format!("{}/check", proxy.url()), "cache": 0},
        "admins": ["root"]}});
    let gateway = before(&backend).with(asked).start().await;
    let by = async |who: &str, line: (&str, &str)| {
        let cookie = format!("who={who}");
        ask(gateway.data, line, &[("Cookie", &cookie), ("Sec-Fetch-Site", "same-origin")]).await
    };
    let session = ("GET", "/lb/session");
    assert_eq!(by("anna", session).await.json()["caller"], "anna");
    assert_eq!(by("root", session).await.json()["caller"], "root");
    assert_eq!(by("nameless", session).await.json()["caller"], "127.0.0.1");
    assert_eq!(by("root", ("GET", "/queue")).await.header("set-cookie"), Some("renewed=1; Path=/"));
    assert_eq!(by("anna", ("POST", "/free")).await.status, 403);
    assert_eq!(by("root", ("POST", "/free")).await.status, 200);

    let away = by("nobody", ("GET", "/")).await;
    assert_eq!((away.status, away.header("location")), (302, Some("https://auth.example/?rd=x")));
    assert_eq!((away.header("set-cookie"), away.header("x-inner")), (Some("state=1"), None));
    let banned = by("banned", ("GET", "/queue")).await;
    assert_eq!((banned.status, banned.text().as_str()), (403, "no!"));
    for who in ["broken", "lost", "reset", "two"] {
        by(who, ("GET", "/queue")).await.assert_refusal(503, "no_backend");
    }
    for (who, status) in [("anna", 200), ("banned", 403), ("nobody", 302), ("broken", 503)] {
        let cookie = format!("who={who}");
        // The fake backend speaks no WebSocket: its 200 shows that it was reached.
        assert_eq!(handshake(gateway.data, &[("Cookie", &cookie)]).await, status, "{who}");
    }
    let reached = backend.seen();
    assert!(
        reached
            .iter()
            .all(|request| { ["who=anna", "who=root"].contains(&request.header("cookie")) })
    );
}

#[tokio::test]
async fn it_is_told_what_is_asked_for_and_not_asked_twice_for_a_moment() {
    let (proxy, backend) = (identity_proxy().await, Fake::replying("{}").await);
    let ci = made("ci", &json!({}));
    let asked = json!({"auth": {"keys": [ci.entry], "forward": {"url": format!("{}/check", proxy.url()),
        "cache": "1h", "headers": {"X-Shared": "s3cret"}}}});
    let gateway = before(&backend).with(asked).start().await;
    let anna = [
        ("Cookie", "who=anna"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-For", "192.0.2.66, 10.0.0.9"),
        ("X-Forwarded-Host", "art.example"),
        ("X-Forwarded-Uri", "/forged"),
        ("Remote-User", "root"),
    ];
    for _ in 0..3 {
        assert_eq!(ask(gateway.data, ("POST", "/api/queue?a=b"), &anna).await.status, 200);
    }
    let question = proxy.only();
    assert_eq!(question.line(), "GET /check HTTP/1.1");
    for (name, value) in [
        ("x-forwarded-method", "POST"),
        ("x-forwarded-uri", "/api/queue?a=b"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "art.example"),
        ("x-forwarded-for", "192.0.2.66, 10.0.0.9, 127.0.0.1"),
        // What stands before the client's own address is its own word.
        ("x-real-ip", "10.0.0.9"),
        ("x-original-url", "https://art.example/api/queue?a=b"),
        ("x-shared", "s3cret"),
        ("cookie", "who=anna"),
        ("content-length", ""),
    ] {
        assert_eq!(question.header(name), value, "{name}");
    }
    // Something else of the same person, the same of another, and what no cache is for.
    ask(gateway.data, ("GET", "/api/queue?a=b"), &anna).await;
    ask(gateway.data, ("POST", "/api/queue?a=b"), &[("Cookie", "who=root")]).await;
    ask(gateway.data, ("POST", "/api/queue?a=b"), &[("Cookie", "who=root")]).await;
    assert_eq!(proxy.seen().len(), 4);
    // Keys of ours are nobody else's business.
    let key = [("X-API-Key", ci.key.as_str())];
    assert_eq!(ask(gateway.data, ("GET", "/queue"), &key).await.status, 200);
    let wrong = [("Authorization", "Bearer cg_wrong")];
    assert_eq!(ask(gateway.data, ("GET", "/queue"), &wrong).await.status, 401);
    assert_eq!(proxy.seen().len(), 4);
}

#[tokio::test]
async fn one_that_is_slow_is_not_waited_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let farm = farm(1).await;
    let asked = json!({"auth": {"forward": {"url": url, "timeout": "100ms"}}});
    let gateway = Setup::of(&farm).with(asked).start().await;
    ask(gateway.data, ("GET", "/queue"), &[]).await.assert_refusal(503, "no_backend");
    // Nor is one that is gone.
    drop(listener);
    ask(gateway.data, ("GET", "/queue"), &[]).await.assert_refusal(503, "no_backend");
}
