//! Zones and task types, with a real gateway in front of simulated servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeSet;

use comfygate::sim::Sim;
use serde_json::{Value, json};

use crate::support::{Gateway, Setup, farm};

/// Two zones by network or by header.
fn zones() -> Value {
    let zones = json!({"eu": ["10.1.0.0/16"], "us": ["10.2.0.0/16"]});
    json!({"zone_header": "X-Zone", "zones": zones, "zone_spill": 2})
}

/// A gateway in front of the servers, each with its own words.
async fn gateway(sims: &[Sim], words: &[Value], scheduler: Value) -> Gateway {
    let backends: Value = sims
        .iter()
        .zip(words)
        .enumerate()
        .map(|(n, (sim, words))| {
            let mut backend = words.clone();
            backend["name"] = format!("comfy-{n}").into();
            backend["url"] = sim.url().into();
            backend
        })
        .collect();
    let gateway = Setup::plain(json!({
        "health_check": {"interval": "50ms", "push": false},
        "scheduler": scheduler,
        "backends": backends,
    }))
    .start()
    .await;
    gateway.until("/lb/backends", |answer| all(answer, |backend| backend["state"] == "up")).await;
    gateway
}

fn all(answer: &Value, right: impl Fn(&Value) -> bool) -> bool {
    answer["backends"].as_array().unwrap().iter().all(right)
}

/// Where a client of this address goes, with a header more or less; the status and the backend.
async fn goes(gateway: &Gateway, address: &str, header: Option<(&str, &str)>) -> (u16, String) {
    visit(gateway, address, "/prompt", header).await
}

async fn visit(
    gateway: &Gateway,
    address: &str,
    path: &str,
    header: Option<(&str, &str)>,
) -> (u16, String) {
    let mut request = gateway.http.get(format!("http://{}{path}", gateway.data));
    request = request.header("x-forwarded-for", address).header("accept", "text/html");
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let reply = request.send().await.unwrap();
    let backend = reply.headers().get("x-comfygate-backend");
    let backend = backend.map_or(String::new(), |name| name.to_str().unwrap().to_owned());
    (reply.status().as_u16(), backend)
}

fn eu_and_us() -> [Value; 2] {
    ["eu", "us"].map(|zone| json!({"labels": {"zone": zone}}))
}

#[tokio::test]
async fn clients_stay_in_their_zone_until_it_is_fuller_by_more_than_the_spill() {
    let sims = farm(2).await;
    let gateway = gateway(&sims, &eu_and_us(), zones()).await;
    for n in 1..20 {
        assert_eq!(goes(&gateway, &format!("10.1.0.{n}"), None).await.1, "comfy-0");
        assert_eq!(goes(&gateway, &format!("10.2.0.{n}"), None).await.1, "comfy-1");
    }
    let elsewhere: BTreeSet<_> = futures_util::future::join_all(
        (1..40).map(|n| goes_owned(&gateway, format!("10.3.0.{n}"))),
    )
    .await
    .into_iter()
    .collect();
    assert_eq!(elsewhere.len(), 2, "no zone, no preference");

    let queue = |total: u64| move |answer: &Value| answer["backends"][0]["queue"]["total"] == total;
    sims[0].faults().phantom_queue(1, 1);
    gateway.until("/lb/backends", queue(2)).await;
    assert_eq!(goes(&gateway, "10.1.1.1", None).await.1, "comfy-0", "two more are allowed");
    sims[0].faults().phantom_queue(1, 2);
    gateway.until("/lb/backends", queue(3)).await;
    assert_eq!(goes(&gateway, "10.1.1.2", None).await.1, "comfy-1", "three more are not");
    assert_eq!(goes(&gateway, "10.1.1.1", None).await.1, "comfy-0", "who is placed stays");
}

async fn goes_owned(gateway: &Gateway, address: String) -> String {
    goes(gateway, &address, None).await.1
}

#[tokio::test]
async fn a_trusted_proxy_names_the_zone_and_a_zone_without_backends_is_none() {
    let sims = farm(2).await;
    let gateway = gateway(&sims, &eu_and_us(), zones()).await;
    for n in 1..10 {
        let us = goes(&gateway, &format!("10.1.0.{n}"), Some(("x-zone", "us"))).await;
        assert_eq!(us.1, "comfy-1", "the header beats the network");
    }
    assert_eq!(goes(&gateway, "10.1.9.9", Some(("x-zone", "mars"))).await.0, 200);
}

#[tokio::test]
async fn a_zone_that_is_down_is_left() {
    let mut sims = farm(2).await;
    let gateway = gateway(&sims, &eu_and_us(), zones()).await;
    sims.remove(0).kill().await;
    gateway.until("/lb/backends", |answer| answer["backends"][0]["state"] == "down").await;
    assert_eq!(goes(&gateway, "10.1.0.1", None).await, (200, "comfy-1".into()));
}

fn types() -> [Value; 3] {
    let lists = [json!(["video", "image"]), json!(["image"]), json!(["audio"])];
    lists.map(|types| json!({"task_types": types}))
}

#[tokio::test]
async fn marked_requests_go_where_such_work_is_done_and_take_their_client_along() {
    let sims = farm(3).await;
    let gateway = gateway(&sims, &types(), json!({})).await;
    let mark = |task_type: &'static str| Some(("x-comfygate-task-type", task_type));
    for n in 1..15 {
        let address = format!("10.1.0.{n}");
        assert_eq!(goes(&gateway, &address, mark("video")).await.1, "comfy-0");
        assert_eq!(goes(&gateway, &address, None).await.1, "comfy-0", "it lives there now");
        assert_eq!(goes(&gateway, &address, mark("image")).await.1, "comfy-0", "no need to move");
        assert_eq!(goes(&gateway, &address, mark("audio")).await.1, "comfy-2");
        assert_eq!(goes(&gateway, &address, None).await.1, "comfy-2");
    }
}

#[tokio::test]
async fn work_that_nobody_does_is_a_clear_503() {
    let mut sims = farm(3).await;
    let gateway = gateway(&sims, &types(), json!({})).await;
    let ask = |task_type: &'static str| {
        let request = gateway.http.get(format!("http://{}/prompt", gateway.data));
        request.header("x-comfygate-task-type", task_type).send()
    };
    let reply = ask("smell").await.unwrap();
    assert_eq!(reply.status(), 503);
    assert!(reply.headers().contains_key("retry-after"));
    let error: Value = reply.json().await.unwrap();
    assert_eq!(error["error"]["type"], "no_backend");
    assert!(error["error"]["message"].as_str().unwrap().contains("\"smell\""), "{error}");
    let details = error["error"]["details"].as_str().unwrap();
    assert!(details.contains("audio, image, video"), "{error}");

    sims.remove(0).kill().await;
    gateway.until("/lb/backends", |answer| answer["backends"][0]["state"] == "down").await;
    let error: Value = ask("video").await.unwrap().json().await.unwrap();
    assert_eq!(error["error"]["details"], "", "it is only down: {error}");
    assert_eq!(goes(&gateway, "10.1.0.1", None).await.0, 200, "other work goes on");
    let long: &'static str = Box::leak("x".repeat(129).into_boxed_str());
    assert_eq!(ask(long).await.unwrap().status(), 400);
}

#[tokio::test]
async fn opening_the_page_with_a_task_type_marks_the_client_until_it_is_taken_off() {
    let mut sims = farm(3).await;
    let words = ["video", "image", "video"].map(|kind| json!({"task_types": [kind]}));
    let gateway = gateway(&sims, &words, json!({})).await;
    let client = "10.1.0.1";
    let (_, home) = visit(&gateway, client, "/?task_type=video", None).await;
    assert!(home == "comfy-0" || home == "comfy-2", "{home}");
    assert_eq!(goes(&gateway, client, None).await.1, home);
    let (home, other) = if home == "comfy-0" { (0, 2) } else { (2, 0) };
    sims.remove(home).kill().await;
    gateway.until("/lb/backends", |answer| answer["backends"][home]["state"] == "down").await;
    // Moved without a word, it is still a client for videos.
    assert_eq!(goes(&gateway, client, None).await.1, format!("comfy-{other}"));
    sims.remove(usize::from(home == 0)).kill().await;
    gateway.until("/lb/backends", |answer| answer["backends"][other]["state"] == "down").await;
    assert_eq!(goes(&gateway, client, None).await.0, 503);
    assert_eq!(visit(&gateway, client, "/?task_type=", None).await, (200, "comfy-1".into()));
    assert_eq!(goes(&gateway, client, None).await.1, "comfy-1");
}

#[tokio::test]
async fn a_backend_that_lists_nothing_does_anything() {
    let sims = farm(2).await;
    let gateway = gateway(&sims, &[json!({"task_types": ["image"]}), json!({})], json!({})).await;
    for n in 1..10 {
        let marked = Some(("x-comfygate-task-type", "video"));
        assert_eq!(goes(&gateway, &format!("10.1.0.{n}"), marked).await.1, "comfy-1");
    }
}
