//! The router against its document, and hostile calls against the router.

use axum::body::{Body, to_bytes};
use axum::http::HeaderMap;
use serde_json::Value;
use tower::ServiceExt;

use super::*;
use crate::config::{self, Config};
use crate::fleet::Fleet;
use crate::identity::session::SigningKey;
use crate::pace::Learnt;
use crate::probe::Prober;

/// Addresses that are no API of operators and stand in no document; `/` is axum's word for the fallback.
const NO_API: [&str; 5] = ["/", "/metrics", "/lb/session", "/lb/login", "/lb/logout"];
const VERBS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

async fn routers(admin: &str) -> (Router, Router) {
    let text = format!("backends: [{{name: a, url: 'http://127.0.0.1:9'}}]\nadmin: {{{admin}}}");
    let config: Config = config::parse(&text).unwrap();
    let fleet = Arc::new(Fleet::new());
    let prober = Prober::new(Arc::clone(&fleet), config.health_check.clone()).unwrap();
    let key = SigningKey::from_bytes(&[7; 32]);
    let gateway = Arc::new(Gateway::new(config, fleet, prober, key));
    let operator = Operator::start(Arc::clone(&gateway), None, |_| Learnt::default()).await;
    let admin = Admin::start(&gateway, &operator);
    (router(&admin), data_port_router(&admin))
}

struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

async fn call(router: &Router, verb: &str, path: &str, body: impl Into<Body>) -> Reply {
    let request = Request::builder().method(verb.to_uppercase().as_str()).uri(path);
    let request = request.body(body.into()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 10 << 20).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Reply { status: parts.status.as_u16(), headers: parts.headers, body }
}

async fn refusal(router: &Router, verb: &str, path: &str, body: impl Into<Body>) -> (u16, String) {
    let body = body.into();
    let shown = format!("{verb} {path}");
    let reply = call(router, verb, path, body).await;
    let kind = reply.body["error"]["type"].as_str();
    assert!(
        kind.is_some() && reply.body["node_errors"].is_object(),
        "{shown}: {} {}",
        reply.status,
        reply.body
    );
    (reply.status, kind.unwrap_or_default().to_owned())
}

/// The addresses that axum has routes for.
fn routed(router: &Router) -> Vec<String> {
    let shown = format!("{router:?}");
    let quoted = shown.split('"').skip(1).step_by(2);
    let mut found: Vec<String> =
        quoted.filter(|text| text.starts_with('/')).map(str::to_owned).collect();
    found.sort();
    found.dedup();
    // The fallback's other half.
    let page =
        |path: &str| ["/dashboard/", "/assets/", "/login"].iter().any(|p| path.starts_with(p));
    found.retain(|path| {
        !path.contains("__private") && !NO_API.contains(&path.as_str()) && !page(path)
    });
    found
}

#[tokio::test]
async fn routes_and_document_agree_on_both_ports() {
    let (admin, _) = routers("").await;
    let (_, data) = routers("token: 'a-long-admin-token-of-tests'").await;
    let document = call(&admin, "get", "/lb/openapi.json", "").await.body;
    let mut documented: Vec<String> =
        document["paths"].as_object().unwrap().keys().cloned().collect();
    documented.sort();
    assert_eq!(routed(&admin), documented);
    documented.retain(|path| path.starts_with("/lb/"));
    assert_eq!(routed(&data), documented);
}

#[tokio::test]
async fn every_other_verb_is_405_with_those_that_are_allowed() {
    let (admin, _) = routers("").await;
    let document = call(&admin, "get", "/lb/openapi.json", "").await.body;
    for (path, item) in document["paths"].as_object().unwrap() {
        let address = path.replace("{name}", "nobody").replace("{strategy}", "none");
        let address = address.replace("{task_type}", "none").replace("{id}", "none");
        assert!(!address.contains('{'), "name a value for the parameters of {path}");
        for verb in VERBS.iter().filter(|verb| item.get(**verb).is_none()) {
            let reply = call(&admin, verb, &address, "").await;
            assert_eq!(reply.status, 405, "{verb} {path}");
            assert_eq!(reply.body["error"]["type"], "method_not_allowed");
            let allowed = reply.headers["allow"].to_str().unwrap().to_lowercase();
            let mut allowed: Vec<&str> =
                allowed.split(',').filter(|verb| *verb != "head").collect();
            allowed.sort_unstable();
            let mut documented: Vec<&str> =
                VERBS.iter().copied().filter(|verb| item.get(*verb).is_some()).collect();
            documented.sort_unstable();
            assert_eq!(allowed, documented, "{path}");
        }
    }
}

#[tokio::test]
async fn a_new_backends_schema_has_the_keys_of_the_configuration() {
    let (admin, _) = routers("").await;
    let document = call(&admin, "get", "/lb/openapi.json", "").await.body;
    let schema = &document["components"]["schemas"]["NewBackend"];
    assert_eq!(schema["additionalProperties"], false, "{schema}");
    let mut documented: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
    let known = config::known_keys();
    let mut known: Vec<_> = known
        .iter()
        .filter_map(|key| key.strip_prefix("backends[].")?.split('.').next())
        .map(str::to_owned)
        .collect();
    known.sort();
    known.dedup();
    documented.sort();
    assert_eq!(documented, known.iter().collect::<Vec<_>>(), "{:?}", config::known_keys());
}

#[tokio::test]
async fn the_documented_strategies_are_all_there_are() {
    let (admin, _) = routers("").await;
    let document = call(&admin, "get", "/lb/openapi.json", "").await.body;
    let parameters = &document["paths"]["/lb/scheduler/strategy/{strategy}"]["post"]["parameters"];
    let names: Vec<&str> = config::Strategy::NAMES.iter().map(|(name, _)| *name).collect();
    let pattern = format!("^({})$", names.join("|"));
    assert_eq!(parameters[0]["schema"]["pattern"], pattern.as_str(), "{parameters}");
}

#[tokio::test]
async fn hostile_backends_are_refused_with_what_is_wrong() {
    let (admin, _) = routers("").await;
    let add = |body: String| refusal(&admin, "post", "/lb/backends", body);
    let name =
        |name: &str| serde_json::json!({"name": name, "url": "http://127.0.0.1:1"}).to_string();
    for hostile in
        ["a/b", "a b", &"x".repeat(300), "<b>x</b>", "", ".", "..", "a\nb", "名", "a\u{0}"]
    {
        assert_eq!(add(name(hostile)).await, (400, "invalid_value".into()), "{hostile:?}");
    }
    for rest in [
        r#""host":"127.0.0.1","port":0"#,
        r#""host":"127.0.0.1","port":65536"#,
        r#""host":"127.0.0.1","port":-1"#,
        r#""host":"127.0.0.1","port":"x""#,
        r#""host":"127.0.0.1""#,
        r#""url":"ftp://127.0.0.1""#,
        r#""url":"http://u:p@127.0.0.1""#,
        r#""url":"http://127.0.0.1:2","colour":1"#,
        r#""url":"http://127.0.0.1:2","weight":0"#,
        r#""url":["a"]"#,
        r#""url":"http://169.254.169.254""#,
        r#""host":"fe80::1","port":80"#,
        r#""host":"::ffff:169.254.1.1","port":80"#,
        r#""url":"http://0.0.0.0:8188""#,
        r#""url":"http://no-such-host.invalid:8188""#,
        r#""url":"http://127.0.0.1:2","headers":{"X-A":{"file":"/etc/hostname"}}"#,
        r#""url":"http://127.0.0.1:2","headers":{"X-A":{"env":"PATH"}}"#,
        r#""url":"http://127.0.0.1:2","headers":{"<<":[{"X-A":{"file":"/etc/hostname"}}]}"#,
        r#""url":"http://127.0.0.1:2","<<":{"headers":{"X-A":{"file":"/etc/hostname"}}}"#,
        r#""url":"http://127.0.0.1:2","headers":{"Host":"x"}"#,
        r#""url":"http://127.0.0.1:2","headers":[1]"#,
        r#""url":"http://127.0.0.1:2","labels":7"#,
        r#""url":"http://127.0.0.1:2","task_types":"x""#,
        r#""host":"127.0.0.1","port":"8188""#,
        r#""url":"http://127.0.0.1:2","enabled":"true""#,
    ] {
        let body = format!(r#"{{"name":"b",{rest}}}"#);
        assert_eq!(add(body).await, (400, "invalid_value".into()), "{rest}");
    }
    for body in [
        "",
        "{",
        "[]",
        "null",
        "1",
        "\"x\"",
        r#"{"name":1,"url":"http://127.0.0.1:2"}"#,
        &"[".repeat(10_000),
    ] {
        assert_eq!(add(body.to_owned()).await, (400, "invalid_value".into()), "{body:.20}");
    }
    assert_eq!(add(" ".repeat(MAX_BODY + 1)).await, (413, "body_too_large".into()));
    assert_eq!(call(&admin, "get", "/lb/backends", "").await.body["total"], 1);
}

#[tokio::test]
async fn hostile_addresses_are_refused_in_our_own_shape() {
    let (admin, _) = routers("").await;
    let not_found = (404, "not_found".to_owned());
    for path in ["/lb/backends/%FF%FE", "/lb/scheduler/strategy/%C0"] {
        let verb = if path.contains("strategy") { "post" } else { "get" };
        assert_eq!(refusal(&admin, verb, path, "").await, (400, "bad_request".into()), "{path}");
    }
    for path in [
        "/lb/backends/a%2Fb",
        "/lb/backends/%3Cb%3E",
        "/lb/backends/a/b/c",
        "/lb",
        "/lb/",
        "/lb/backends/",
        "/nothing",
        "/lb/backends/%00",
    ] {
        assert_eq!(refusal(&admin, "get", path, "").await, not_found, "{path}");
    }
    let long = format!("/lb/backends/{}", "x".repeat(5000));
    assert_eq!(refusal(&admin, "delete", &long, "").await, not_found);
    for query in ["drain=perhaps", "drian=true", "drain=true&drain=true"] {
        let path = format!("/lb/backends/a?{query}");
        assert_eq!(refusal(&admin, "delete", &path, "").await, (400, "invalid_value".into()));
    }
    let strategy = refusal(&admin, "post", "/lb/scheduler/strategy/fastest", "").await;
    assert_eq!(strategy, (400, "invalid_value".into()));
}

#[tokio::test]
async fn a_body_is_json_whatever_its_type_says() {
    let (admin, _) = routers("").await;
    for kind in ["application/json", "application/x-www-form-urlencoded", "text/plain", "nonsense"]
    {
        let request = Request::post("/lb/log").header("content-type", kind);
        let request = request.body(Body::from(r#"{"verbose": false}"#)).unwrap();
        assert_eq!(admin.clone().oneshot(request).await.unwrap().status(), 200, "{kind}");
    }
    let body = r#"{"verbose": false, "more": 1}"#;
    assert_eq!(refusal(&admin, "post", "/lb/log", body).await, (400, "invalid_value".into()));
}

#[tokio::test]
async fn pages_of_other_sites_may_change_nothing() {
    let (admin, _) = routers("").await;
    for (name, value) in
        [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")]
    {
        for (path, body) in [
            ("/lb/log", r#"{"verbose": false}"#),
            ("/lb/health-check", ""),
            ("/api/v1/ai_analysis/register", "{}"),
        ] {
            let request = Request::post(path).header("host", "127.0.0.1:8101").header(name, value);
            let request = request.header("content-type", "text/plain").body(Body::from(body));
            let response = admin.clone().oneshot(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), 403, "{path} {name}: {value}");
        }
    }
    let own = Request::post("/lb/log").header("host", "127.0.0.1:8101");
    let own =
        own.header("origin", "http://127.0.0.1:8101").body(Body::from(r#"{"verbose": false}"#));
    assert_eq!(admin.clone().oneshot(own.unwrap()).await.unwrap().status(), 200);
}

#[tokio::test]
async fn without_the_token_nothing_is_told_but_health() {
    let (admin, data) = routers("token: 'a-long-admin-token-of-tests'").await;
    let unauthorized = (401, "unauthorized".to_owned());
    for router in [&admin, &data] {
        for (verb, path) in [
            ("get", "/lb/stats"),
            ("put", "/lb/stats"),
            ("get", "/lb/nothing"),
            ("delete", "/lb/backends/a"),
            ("get", "/lb/openapi.json"),
        ] {
            assert_eq!(refusal(router, verb, path, "").await, unauthorized, "{verb} {path}");
        }
        for shown in [
            "Bearer wrong",
            "Bearer ",
            "Bearer",
            "Basic a-long-admin-token-of-tests",
            "Bearer a-long-admin-token-of-test",
            "Bearer a-long-admin-token-of-testsx",
        ] {
            let request = Request::get("/lb/stats").header("authorization", shown);
            let reply = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(reply.status(), 401, "{shown}");
            assert_eq!(reply.headers()["www-authenticate"], "Bearer");
        }
        let right =
            Request::get("/lb/stats").header("authorization", "bearer a-long-admin-token-of-tests");
        let reply = router.clone().oneshot(right.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(reply.status(), 200);
    }
    assert_eq!(call(&admin, "get", "/healthz", "").await.status, 200);
    assert_eq!(call(&admin, "get", "/readyz", "").await.status, 503);
    let (_, data) = routers("").await;
    assert_eq!(refusal(&data, "get", "/lb/stats", "").await, (404, "not_found".into()));
}
