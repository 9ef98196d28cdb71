//! What `security` and `routes` close, over real connections.

use serde_json::json;

use super::{ask, before, handshake, made};
use crate::support::Fake;

/// Ways of writing one route that a backend, or what stands before it, could read as that route.
fn written(route: &str) -> Vec<String> {
    let hidden: String = route
        .bytes()
        .map(|byte| match byte {
            b'/' => "/".to_owned(),
            byte => format!("%{byte:02x}"),
        })
        .collect();
    vec![
        route.to_owned(),
        format!("/api{route}"),
        format!("{route}/"),
        format!("{route}?a=b"),
        format!("/{route}"),
        format!("/x/..{route}"),
        format!("/.{route}"),
        format!("/api/x/%2e%2e{route}"),
        hidden.clone(),
        hidden.replace('%', "%25"),
        route.to_uppercase(),
        format!("/@comfy-1{route}"),
        format!("/@comfy-1/api{route}"),
        format!("/%40comfy-1{route}"),
        format!("/{}", route[1..].replace('/', "%2F")),
    ]
}

#[tokio::test]
async fn dangerous_routes_are_closed_however_they_are_written() {
    let boss = made("boss", &json!({"rights": ["admin"]}));
    let plain = made("plain", &json!({}));
    let keys = json!({"auth": {"keys": [boss.entry, plain.entry]}});
    for (affinity, auth) in
        [("ip", json!({})), ("tab", json!({})), ("ip", keys.clone()), ("tab", keys)]
    {
        let has_keys = auth != json!({});
        let fake = Fake::replying("{}").await;
        let session = json!({"session": {"affinity": affinity}});
        let gateway = before(&fake).with(session).with(auth).start().await;
        let plain: &[(&str, &str)] = if has_keys { &[("X-API-Key", &plain.key)] } else { &[] };
        for (method, route) in [
            ("GET", "/manager/reboot"),
            ("POST", "/v2/manager/queue/task"),
            ("POST", "/customnode/install/git_url"),
            ("POST", "/snapshot/restore"),
            ("GET", "/internal/logs/raw"),
            ("POST", "/users"),
            ("POST", "/free"),
        ] {
            for target in written(route) {
                let reply = ask(gateway.data, (method, &target), plain).await;
                match reply.status {
                    // Dots in a path are nobody's way of writing.
                    400 => reply.assert_refusal(400, "bad_request"),
                    _ => reply.assert_refusal(403, "forbidden"),
                }
            }
        }
        assert_eq!(fake.seen().len(), 0, "{:?}", fake.seen());
        if has_keys {
            let admin = [("X-API-Key", boss.key.as_str())];
            assert_eq!(ask(gateway.data, ("GET", "/manager/reboot"), &admin).await.status, 200);
            assert_eq!(fake.only().line(), "GET /manager/reboot HTTP/1.1");
        }
    }
}

#[tokio::test]
async fn rules_of_the_owner_close_and_open() {
    let fake = Fake::replying("{}").await;
    let rules = json!({"routes": {
        "deny": ["GET /ws", {"method": "POST", "path": "/upload/**"}],
        "allow": ["POST /free"],
    }});
    let gateway = before(&fake).with(rules).start().await;
    assert_eq!(ask(gateway.data, ("POST", "/api/free"), &[]).await.status, 200);
    assert_eq!(ask(gateway.data, ("POST", "/upload/image"), &[]).await.status, 403);
    assert_eq!(ask(gateway.data, ("POST", "/users"), &[]).await.status, 403);
    assert_eq!(handshake(gateway.data, &[]).await, 403);
    let open = before(&fake).with(json!({"security": "open"})).start().await;
    assert_eq!(ask(open.data, ("POST", "/users"), &[]).await.status, 200);
}
