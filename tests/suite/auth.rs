//! Who may come in, over real connections: keys, logins, an identity proxy that is asked; what is
//! closed; and that nothing of it reaches a backend.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod ending;
mod forward;
mod login;
mod routes;

use std::path::Path;

use comfygate::auth::{key, password};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::support::http::{get, head};
use crate::support::process::run;
use crate::support::{Fake, Reply, Setup, exchange, farm, socket};

/// A key and how the configuration has it.
struct Made {
    key: String,
    entry: Value,
}

fn made(name: &str, more: &Value) -> Made {
    let key = key::new();
    let hash = key::show_hash(&key::hash(key.as_bytes()));
    let mut entry = json!({"name": name, "hash": hash});
    let more = more.as_object().cloned().unwrap_or_default();
    entry.as_object_mut().unwrap().extend(more);
    Made { key, entry }
}

/// A user whose password is `hunter2`.
fn user(name: &str) -> Value {
    json!({"name": name, "password_hash": password::hash("hunter2").unwrap()})
}

/// A gateway before a fake, which it asks nothing of its own but its queue.
fn before(fake: &Fake) -> Setup {
    Setup::new(&[fake.url()]).with(json!({"health_check": {"push": false}}))
}

/// The status of a WebSocket's handshake.
async fn handshake(address: std::net::SocketAddr, headers: &[(&str, &str)]) -> u16 {
    match socket::open(address, "/ws?clientId=a", headers).await {
        Ok((_, response)) => response.status().as_u16(),
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
    }
}

async fn ask(address: std::net::SocketAddr, line: (&str, &str), headers: &[(&str, &str)]) -> Reply {
    let headers = [headers, &[("Content-Length", "0")]].concat();
    exchange(address, head(line.0, line.1, &headers).as_bytes()).await
}

#[tokio::test]
async fn nothing_comes_in_without_a_key_that_holds_over_http_and_websockets() {
    let fake = Fake::replying("{}").await;
    let plain = made("plain", &json!({}));
    let old = made("old", &json!({"expires": "2026-01-01", "rights": ["admin"]}));
    let keys = json!({"auth": {"keys": [plain.entry, old.entry]}});
    let gateway = before(&fake).with(keys).start().await;
    let (bearer, expired) = (format!("Bearer {}", plain.key), format!("bearer {}", old.key));
    let wrong = format!("Bearer {}", key::new());
    let almost = format!("{}A", &plain.key[..plain.key.len() - 1]);
    let almost = if almost == plain.key { format!("{}B", &plain.key[..45]) } else { almost };
    let outside: [&[(&str, &str)]; 6] = [
        &[],
        &[("Authorization", &wrong)],
        &[("X-API-Key", &almost)],
        &[("Authorization", &expired)],
        &[("Authorization", &bearer), ("X-API-Key", &almost)],
        &[("Cookie", "comfygate_login=1.AAAAAAAA.AAAA")],
    ];
    let lines = [
        ("GET", "/"),
        ("GET", "/view?filename=a.png"),
        ("POST", "/prompt"),
        ("POST", "/api/upload/image"),
        ("DELETE", "/userdata/a"),
        ("OPTIONS", "/prompt"),
        ("GET", "/internal/logs"),
        ("POST", "/free"),
        ("GET", "/lb/session"),
        ("GET", "/nowhere"),
    ];
    for headers in outside {
        for line in lines {
            let reply = ask(gateway.data, line, headers).await;
            reply.assert_refusal(401, "unauthorized");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"), "{line:?}");
        }
        assert_eq!(handshake(gateway.data, headers).await, 401, "{headers:?}");
    }
    assert_eq!(fake.seen().len(), 0, "{:?}", fake.seen());

    for headers in [&[("Authorization", bearer.as_str())], &[("X-API-Key", plain.key.as_str())]] {
        assert_eq!(ask(gateway.data, ("GET", "/queue"), headers).await.status, 200);
        ask(gateway.data, ("POST", "/free"), headers).await.assert_refusal(403, "forbidden");
    }
    let healthz = exchange(gateway.admin, &get("/healthz", &[])).await;
    assert_eq!(healthz.status, 200, "the admin port has its own guard");
    let caller = ask(gateway.data, ("GET", "/lb/session"), &[("X-API-Key", &plain.key)]).await;
    assert_eq!(caller.json()["caller"], "plain");
}

#[tokio::test]
async fn what_lets_a_caller_in_reaches_no_backend() {
    let fake = Fake::replying("{}").await;
    let ci = made("ci", &json!({}));
    let backend =
        json!({"name": "a", "url": fake.url(), "headers": {"Authorization": "Basic own"}});
    let keys = json!({"backends": [backend], "auth": {"keys": [ci.entry], "users": [user("anna")]},
        "server": {"trusted_proxies": []}, "health_check": {"push": false}});
    let gateway = Setup::bare(keys).start().await;
    let cookie = login::log_in(gateway.data, "anna", "hunter2").await;
    let both = format!("a=b; {cookie}; comfygate_session=x; c=d");
    let bearer = format!("Bearer {}", ci.key);
    for headers in [
        &[("Authorization", bearer.as_str()), ("comfy-user", "root"), ("Remote-User", "root")][..],
        &[("X-API-Key", &ci.key), ("Proxy-Authorization", "Basic x")],
        &[("Cookie", &both), ("comfy-user", "root")],
        &[("Cookie", &cookie), ("Authorization", "Basic YW5uYTpodW50ZXIy")],
    ] {
        for upgrade in [false, true] {
            let handshake = [
                ("Connection", "Upgrade"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ];
            let more = if upgrade { &handshake[..] } else { &[] };
            exchange(gateway.data, &get("/ws", &[headers, more].concat())).await;
            let seen = fake.seen().pop().unwrap();
            assert_eq!(seen.all("authorization"), ["Basic own"], "{seen:?}");
            for gone in ["x-api-key", "proxy-authorization", "comfy-user"] {
                assert!(seen.all(gone).is_empty(), "{gone}: {seen:?}");
            }
            let everything = format!("{seen:?}");
            assert!(!everything.contains("comfygate_") && !everything.contains(&ci.key));
            if headers[0].1 == both {
                assert_eq!(seen.header("cookie"), "a=b; c=d");
            }
        }
    }
    assert_eq!(fake.seen().len(), 8);
}

#[tokio::test]
async fn without_auth_a_backends_own_credentials_pass() {
    let fake = Fake::replying("{}").await;
    let gateway = before(&fake).start().await;
    let theirs = [("Authorization", "Bearer theirs"), ("comfy-user", "anna")];
    ask(gateway.data, ("GET", "/settings"), &theirs).await;
    let seen = fake.only();
    assert_eq!(
        (seen.header("authorization"), seen.header("comfy-user")),
        ("Bearer theirs", "anna")
    );
}

#[tokio::test]
async fn a_key_in_an_address_is_refused_and_does_not_stand_in_the_log() {
    let fake = Fake::replying("{}").await;
    let ci = made("ci", &json!({}));
    let setup = before(&fake).with(json!({"auth": {"keys": [ci.entry]}}));
    let log = setup.directory().join("access.log");
    let gateway = setup.with(json!({"log": {"access": log}})).start().await;
    let target = format!("/ws?clientId=a&token={}", ci.key);
    let reply = ask(gateway.data, ("GET", &target), &[("X-API-Key", &ci.key)]).await;
    reply.assert_refusal(400, "bad_request");
    let written = async || std::fs::read_to_string(&log).unwrap_or_default();
    crate::support::eventually("the line", crate::support::PATIENCE, async || {
        written().await.contains("token=cg_MASKED")
    })
    .await;
    assert!(!written().await.contains(&ci.key) && fake.seen().is_empty());
}

#[tokio::test]
async fn a_key_beyond_its_rate_is_told_when_to_come_again() {
    let farm = farm(1).await;
    let slow = made("slow", &json!({"rate": "2/h"}));
    let fast = made("fast", &json!({}));
    let keys = json!({"auth": {"keys": [slow.entry, fast.entry]}});
    let gateway = Setup::of(&farm).with(keys).start().await;
    let ask = async |key: &str| ask(gateway.data, ("GET", "/queue"), &[("X-API-Key", key)]).await;
    assert_eq!([ask(&slow.key).await.status, ask(&slow.key).await.status], [200, 200]);
    let reply = ask(&slow.key).await;
    reply.assert_refusal(429, "rate_limited");
    let wait: u32 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1700..=1800).contains(&wait), "{wait}");
    assert_eq!(handshake(gateway.data, &[("X-API-Key", &slow.key)]).await, 429);
    assert_eq!(ask(&fast.key).await.status, 200);
}

#[tokio::test]
async fn the_command_makes_a_key_and_a_line_that_lets_it_in() {
    let farm = farm(1).await;
    let ended = run(&["key", "new", "ci \"x\""], Path::new("/")).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (key, line) = ended.stdout.trim_end().split_once('\n').unwrap();
    assert!(key.starts_with("cg_") && !line.contains(key) && !ended.stderr.contains(key));
    let list: Value = serde_yaml::from_str(line).unwrap();
    let gateway = Setup::of(&farm).with(json!({"auth": {"keys": list}})).start().await;
    let reply = ask(gateway.data, ("GET", "/lb/session"), &[("X-API-Key", key)]).await;
    assert_eq!(reply.json()["caller"], "ci \"x\"");
    assert_eq!(ask(gateway.data, ("GET", "/lb/session"), &[]).await.status, 401);
    let empty = run(&["key", "password", "anna"], Path::new("/")).await;
    assert_eq!(empty.code, Some(2), "nothing on the standard input: {empty:?}");
}

#[tokio::test]
async fn a_gateway_open_to_all_says_so_in_one_line() {
    const WARNING: &str = "can use the farm: ComfyUI has no login of its own";
    let farm = farm(1).await;
    let ci = made("ci", &json!({}));
    let anywhere = json!({"server": {"host": "0.0.0.0"}});
    let open = Setup::of(&farm).with(anywhere.clone());
    let closed = open.clone().with(json!({"auth": {"keys": [ci.entry]}}));
    let local = Setup::of(&farm);
    for (setup, warns) in [(open, true), (closed, false), (local, false)] {
        let gateway = setup.start().await;
        assert_eq!(gateway.has_logged(WARNING), warns);
    }
}

#[tokio::test]
async fn in_pool_mode_keys_are_callers_who_see_what_is_theirs() {
    let farm = farm(1).await;
    let (anna, ben) = (made("anna", &json!({})), made("ben", &json!({})));
    let keys = json!({"mode": "pool", "pool": {"isolation": "user"},
        "auth": {"keys": [anna.entry, ben.entry]}});
    let gateway = Setup::of(&farm).with(keys).embed().await;
    gateway.takes_jobs_on(1).await;
    let call = |path: &str, key: &str| {
        gateway.http.get(format!("{}{path}", gateway.data)).header("X-API-Key", key)
    };
    let posted = gateway
        .http
        .post(format!("{}/prompt", gateway.data))
        .header("X-API-Key", &anna.key)
        .json(&crate::support::long_prompt())
        .send()
        .await
        .unwrap();
    assert_eq!(posted.status(), 200);
    let seen = async |key: &str| -> usize {
        let queue: Value = call("/queue", key).send().await.unwrap().json().await.unwrap();
        ["queue_running", "queue_pending"]
            .map(|list| queue[list].as_array().unwrap().len())
            .iter()
            .sum()
    };
    assert_eq!((seen(&anna.key).await, seen(&ben.key).await), (1, 0));
    let tasks = format!("{}/lb/tasks", gateway.admin);
    let tasks: Value = gateway.http.get(tasks).send().await.unwrap().json().await.unwrap();
    assert_eq!(tasks["tasks"][0]["caller"], "anna");
    let nobody = gateway.http.get(format!("{}/queue", gateway.data)).send().await.unwrap();
    assert_eq!(nobody.status(), 401);
}
