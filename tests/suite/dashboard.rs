//! The dashboard, its events, its logins and what protects them, through a whole gateway.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod people;
mod protection;

use comfygate::sim::{Sim, SimConfig};
use futures_util::StreamExt;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::support::{Embedded, PATIENCE, Setup, eventually, numbered};

/// A gateway in front of `gpu-1`, `gpu-2`, …
async fn gateway(farm: &[&Sim], token: Option<&str>) -> Embedded {
    let setup = Setup::plain(json!({"backends": numbered("gpu", farm)}));
    match token {
        Some(token) => setup.with(json!({"admin": {"token": token}})),
        None => setup,
    }
    .embed()
    .await
}

async fn sim(seed: u64) -> Sim {
    Sim::start(SimConfig { seed, ..SimConfig::default() }).await.unwrap()
}

/// A stream of events as it comes.
struct Events {
    body: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    text: String,
}

impl Events {
    async fn open(client: &Client, gateway: &Embedded) -> Self {
        let reply = client.get(format!("{}/lb/events", gateway.admin)).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(reply.headers()["content-type"], "text/event-stream");
        Self { body: Box::pin(reply.bytes_stream()), text: String::new() }
    }

    /// The next event: name and data. Comments are passed over.
    async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some((event, rest)) = self.text.clone().split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|value| value.trim().to_owned())
                };
                let found = field("event:").zip(field("data:"));
                rest.clone_into(&mut self.text);
                if let Some((name, data)) = found {
                    return (name, serde_json::from_str(&data).unwrap());
                }
                continue;
            }
            let piece = tokio::time::timeout(PATIENCE, self.body.next()).await;
            let piece = piece.expect("an event in time").expect("an open stream").unwrap();
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    async fn until(&mut self, wanted: impl Fn(&str, &Value) -> bool) -> Value {
        loop {
            let (name, data) = self.next().await;
            if wanted(&name, &data) {
                return data;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_tells_everything_first_and_then_what_changes() {
    let (one, two) = (sim(1).await, sim(2).await);
    let gateway = gateway(&[&one, &two], None).await;
    let client = Client::new();
    let mut events = Events::open(&client, &gateway).await;
    for name in ["gpu-1", "gpu-2"] {
        let (kind, backend) = events.next().await;
        assert_eq!((kind.as_str(), backend["name"].as_str()), ("backend", Some(name)));
        let url = format!("{}/lb/backends/{name}", gateway.admin);
        let shown: Value = client.get(url).send().await.unwrap().json().await.unwrap();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&backend), keys(&shown));
    }
    let (kind, stats) = events.next().await;
    assert_eq!((kind.as_str(), &stats["backends"]["total"]), ("stats", &json!(2)));

    two.kill().await;
    let down = events.until(|kind, data| kind == "change" && data["to"] == "down").await;
    assert_eq!((&down["backend"], &down["from"]), (&json!("gpu-2"), &json!("up")));
    events.until(|kind, data| kind == "backend" && data["state"] == "down").await;
    events.until(|kind, data| kind == "stats" && data["backends"]["healthy"] == 1).await;

    let removal = client.delete(format!("{}/lb/backends/gpu-2", gateway.admin)).send();
    assert_eq!(removal.await.unwrap().status(), StatusCode::NO_CONTENT);
    let gone = events.until(|kind, _| kind == "backend_removed").await;
    assert_eq!(gone, json!({"name": "gpu-2"}));

    let prompt = json!({"prompt": {
        "1": {"class_type": "EmptyImage",
            "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }});
    let posted = client.post(format!("{}/prompt", gateway.data)).json(&prompt).send();
    let posted: Value = posted.await.unwrap().json().await.unwrap();
    let done = events.until(|kind, data| kind == "task" && data["state"] == "completed").await;
    assert_eq!(done["task_id"], posted["prompt_id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_listen_and_the_next_is_told_to_come_back() {
    let one = sim(1).await;
    let gateway = gateway(&[&one], None).await;
    let client = Client::new();
    let mut listening = Vec::new();
    for _ in 0..comfygate::admin::events::MAX_CLIENTS {
        listening.push(Events::open(&client, &gateway).await);
    }
    let url = format!("{}/lb/events", gateway.admin);
    for _ in 0..20 {
        let refused = client.get(&url).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key("retry-after"));
        let body: Value = refused.json().await.unwrap();
        assert!(body["error"]["message"].is_string(), "{body}");
    }
    // The rest of the admin plane is there for others.
    assert!(
        client
            .get(format!("{}/lb/stats", gateway.admin))
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
    listening.clear();
    eventually("a seat", PATIENCE, async || {
        client.get(&url).send().await.is_ok_and(|reply| reply.status() == StatusCode::OK)
    })
    .await;
}
