//! People who log in by the page, and out.

use std::net::SocketAddr;

use serde_json::json;

use super::{ask, handshake, user};
use crate::support::http::head;
use crate::support::{Reply, Setup, exchange, farm};

async fn post_form(address: SocketAddr, path: &str, form: &str, more: &[(&str, &str)]) -> Reply {
    let length = form.len().to_string();
    let headers = [
        &[
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", length.as_str()),
            ("Origin", "http://gate.example"),
        ],
        more,
    ]
    .concat();
    exchange(address, (head("POST", path, &headers) + form).as_bytes()).await
}

/// Logs in and gives the cookie as a request shows it.
pub(super) async fn log_in(address: SocketAddr, name: &str, password: &str) -> String {
    let form = format!("user={name}&password={password}&next=/view");
    let reply = post_form(address, "/lb/login", &form, &[]).await;
    assert_eq!((reply.status, reply.header("location")), (303, Some("/view")), "{}", reply.text());
    let cookie = reply.header("set-cookie").unwrap();
    assert!(cookie.contains("; HttpOnly; SameSite=Lax"), "{cookie}");
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_person_is_sent_to_the_page_logs_in_works_and_logs_out() {
    let farm = farm(1).await;
    let users = json!({"auth": {"users": [user("anna")]}});
    let gateway = Setup::of(&farm).with(users).start().await;
    let address = gateway.data;
    let html = [("Accept", "text/html")];
    let away = exchange(address, head("GET", "/?a=b", &html).as_bytes()).await;
    assert_eq!((away.status, away.header("location")), (302, Some("/lb/login?next=/%3Fa%3Db")));
    let page = ask(address, ("GET", "/lb/login?next=/%3Fa%3Db"), &html).await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains(r#"name="next" value="/?a=b""#), "{}", page.text());
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));

    let wrong = post_form(address, "/lb/login", "user=anna&password=x&next=/", &[]).await;
    assert_eq!((wrong.status, wrong.header("set-cookie")), (401, None));
    let cookie = log_in(address, "anna", "hunter2").await;
    let shown = [("Cookie", cookie.as_str())];
    assert_eq!(ask(address, ("GET", "/lb/session"), &shown).await.json()["caller"], "anna");
    assert_eq!(handshake(address, &shown).await, 101);
    assert!(ask(address, ("GET", "/lb/login"), &shown).await.text().contains("logged in as"));

    let out = post_form(address, "/lb/logout", "", &shown).await;
    assert_eq!(out.status, 303);
    assert!(out.header("set-cookie").unwrap().starts_with("comfygate_login=; Path=/; Max-Age=0"));
    assert_eq!(ask(address, ("GET", "/queue"), &shown).await.status, 401, "a kept cookie is over");
    assert_eq!(handshake(address, &shown).await, 401);
}

#[tokio::test]
async fn the_form_of_another_site_logs_nobody_in_and_forged_cookies_are_none() {
    let farm = farm(1).await;
    let users = json!({"auth": {"users": [user("anna")]}});
    let setup = Setup::of(&farm).with(users);
    let gateway = setup.start().await;
    let form = "user=anna&password=hunter2";
    let length = form.len().to_string();
    let evil = [("Content-Length", length.as_str()), ("Origin", "http://evil.example")];
    let reply = exchange(gateway.data, (head("POST", "/lb/login", &evil) + form).as_bytes()).await;
    reply.assert_refusal(403, "forbidden");

    let cookie = log_in(gateway.data, "anna", "hunter2").await;
    let (_, tag) = cookie.rsplit_once('.').unwrap();
    let longer = format!("{cookie}AAAA");
    for forged in [
        longer.as_str(),
        &cookie[..cookie.len() - 4],
        &format!("comfygate_login=1.AAAAAAAAAAAAAAAAAAAAAGFubmE.{tag}"),
    ] {
        let reply = ask(gateway.data, ("GET", "/queue"), &[("Cookie", forged)]).await;
        assert_eq!(reply.status, 401, "{forged}");
    }
    // Another gateway's signature.
    let other = Setup::of(&farm).with(json!({"auth": {"users": [user("anna")]}}));
    let other = other.start().await;
    let reply = ask(other.data, ("GET", "/queue"), &[("Cookie", &cookie)]).await;
    assert_eq!(reply.status, 401);
    // The same after a restart.
    let gateway = gateway.kill_and_restart().await;
    let reply = ask(gateway.data, ("GET", "/queue"), &[("Cookie", &cookie)]).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn ten_wrong_passwords_of_an_address_are_enough() {
    let farm = farm(1).await;
    let users = json!({"auth": {"login": "basic", "users": [user("anna")]}});
    let gateway = Setup::of(&farm).with(users).start().await;
    let tell = async |client: &str, basic: &str| {
        let headers =
            [("X-Forwarded-For", client), ("Authorization", basic), ("Accept", "text/html")];
        ask(gateway.data, ("GET", "/queue"), &headers).await
    };
    let (right, wrong) = ("Basic YW5uYTpodW50ZXIy", "Basic YW5uYTpub25lLTAwMQ==");
    let reply = tell("10.0.0.1", wrong).await;
    let challenge = r#"Basic realm="comfygate", charset="UTF-8""#;
    assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some(challenge)));
    for _ in 1..10 {
        assert_eq!(tell("10.0.0.1", wrong).await.status, 401);
    }
    // Every 6 seconds one more is looked at, so a slow machine may have to show some more.
    let mut told = tell("10.0.0.1", right).await;
    for _ in 0..50 {
        if told.status == 429 {
            break;
        }
        tell("10.0.0.1", wrong).await;
        told = tell("10.0.0.1", right).await;
    }
    told.assert_refusal(429, "rate_limited");
    let elsewhere = tell("10.0.0.2", right).await;
    assert_eq!(elsewhere.status, 200);
    let cookie = elsewhere.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(handshake(gateway.data, &[("Cookie", &cookie)]).await, 101);
}

#[tokio::test]
async fn behind_tls_the_cookie_says_so() {
    let farm = farm(1).await;
    let users = json!({"auth": {"users": [user("anna")]}});
    let gateway = Setup::of(&farm).with(users).start().await;
    let form = "user=anna&password=hunter2";
    let reply = post_form(gateway.data, "/lb/login", form, &[("X-Forwarded-Proto", "https")]).await;
    let cookie = reply.header("set-cookie").unwrap();
    assert!(cookie.ends_with("; Secure"), "{cookie}");
}
