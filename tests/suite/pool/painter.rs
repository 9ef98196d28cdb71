//! A client of ComfyUI as API clients are: posts prompts, listens to its socket, fetches results.

use std::collections::BTreeMap;
use std::sync::Arc;

use comfygate::sim::image_of_seed;
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{PATIENCE, eventually, socket};

/// One message that a client got.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    Event { name: String, data: Value },
    Binary(Vec<u8>),
}

impl Heard {
    /// The prompt that an event names.
    pub(crate) fn prompt(&self) -> Option<&str> {
        match self {
            Self::Event { data, .. } => data["prompt_id"].as_str(),
            Self::Binary(_) => None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Event { name, .. } => name,
            Self::Binary(_) => "binary",
        }
    }
}

/// A client with a socket of its own.
pub(crate) struct Painter {
    pub(crate) http: reqwest::Client,
    pub(crate) base: String,
    pub(crate) id: String,
    heard: Arc<Mutex<Vec<Heard>>>,
    changed: watch::Receiver<usize>,
    listening: JoinHandle<()>,
}

/// A prompt that takes its seconds and saves the picture of its seed.
pub(crate) fn paced(seed: u64, seconds: f64) -> Value {
    let paced = json!({"class_type": "PacedImage", "inputs":
        {"seconds": seconds, "steps": 2, "seed": seed, "fail_at": -1, "preview": true}});
    let save = json!({"class_type": "SaveImage", "inputs":
        {"images": ["1", 0], "filename_prefix": "ComfyUI"}});
    json!({"1": paced, "2": save})
}

fn headers_of(pairs: &[(&str, &str)]) -> reqwest::header::HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (name.parse::<reqwest::header::HeaderName>().unwrap(), value.parse().unwrap())
    };
    pairs.iter().map(pair).collect()
}

impl Painter {
    /// Connects as a client id at an address (`http://host:port`).
    pub(crate) async fn connect(base: &str, id: &str) -> Self {
        Self::connect_with(base, id, false).await
    }

    /// The same, announcing `supports_preview_metadata` first when asked for.
    pub(crate) async fn connect_with(base: &str, id: &str, flags: bool) -> Self {
        Self::open(base, id, flags, &[]).await
    }

    /// The same with these headers on everything.
    pub(crate) async fn open(base: &str, id: &str, flags: bool, headers: &[(&str, &str)]) -> Self {
        let address = base.trim_start_matches("http://").parse().unwrap();
        let target = format!("/ws?clientId={id}");
        let (mut socket, _) = socket::open(address, &target, headers).await.unwrap();
        if flags {
            let features =
                json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}});
            socket.send(Message::text(features.to_string())).await.unwrap();
        }
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (sender, changed) = watch::channel(0);
        let log = Arc::clone(&heard);
        let listening = tokio::spawn(async move {
            while let Some(Ok(message)) = socket.next().await {
                let one = match message {
                    Message::Text(text) => {
                        let event: Value = serde_json::from_str(text.as_str()).unwrap();
                        let name = event["type"].as_str().unwrap().to_owned();
                        Heard::Event { name, data: event["data"].clone() }
                    }
                    Message::Binary(bytes) => Heard::Binary(bytes.to_vec()),
                    _ => continue,
                };
                log.lock().push(one);
                sender.send_modify(|count| *count += 1);
            }
        });
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
        let http = http.default_headers(headers_of(headers)).build().unwrap();
        let painter =
            Self { http, base: base.to_owned(), id: id.to_owned(), heard, changed, listening };
        painter.until(|heard| heard.iter().any(|one| one.name() == "status")).await;
        painter
    }

    /// Everything heard so far.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().clone()
    }

    /// The events of one prompt, in order, `status` left out.
    pub(crate) fn events_of(&self, prompt: &str) -> Vec<Heard> {
        self.heard().into_iter().filter(|one| one.prompt() == Some(prompt)).collect()
    }

    /// Waits until what was heard satisfies a condition.
    pub(crate) async fn until(&self, condition: impl Fn(&[Heard]) -> bool) {
        let mut changed = self.changed.clone();
        let waited = tokio::time::timeout(PATIENCE, async {
            while !condition(&self.heard.lock()) {
                if changed.changed().await.is_err() {
                    // The socket has ended: what has come is all there will be.
                    assert!(
                        condition(&self.heard.lock()),
                        "the socket ended before: {:?}",
                        self.names()
                    );
                    return;
                }
            }
        });
        assert!(waited.await.is_ok(), "not heard in time; heard: {:?}", self.names());
    }

    fn names(&self) -> Vec<String> {
        self.heard.lock().iter().map(|one| one.name().to_owned()).collect()
    }

    /// Waits for the last word on a prompt.
    pub(crate) async fn finished(&self, prompt: &str) {
        self.until(|heard| {
            let last = |one: &Heard| match one {
                Heard::Event { name, data } => {
                    name == "executing" && data["node"].is_null() && data["prompt_id"] == prompt
                }
                Heard::Binary(_) => false,
            };
            heard.iter().any(last)
        })
        .await;
    }

    /// Posts JSON.
    pub(crate) async fn send(&self, path: &str, body: &Value) -> (u16, Value) {
        let reply = self.http.post(format!("{}{path}", self.base)).json(body).send().await.unwrap();
        let status = reply.status().as_u16();
        let text = reply.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Fetches JSON.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let reply = self.http.get(format!("{}{path}", self.base)).send().await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
        reply.json().await.unwrap()
    }

    /// Posts a prompt that must be accepted, and returns its id.
    pub(crate) async fn paint(&self, prompt: Value) -> String {
        let body = json!({"prompt": prompt, "client_id": self.id});
        let (status, reply) = self.send("/prompt", &body).await;
        assert_eq!(status, 200, "{reply}");
        assert_eq!(reply["node_errors"], json!({}), "{reply}");
        reply["prompt_id"].as_str().unwrap().to_owned()
    }

    /// A prompt's entry once it is in history.
    pub(crate) async fn entry(&self, prompt: &str) -> Value {
        let path = format!("/history/{prompt}");
        let mut entry = Value::Null;
        eventually("the prompt is in history", PATIENCE, async || {
            entry = self.get(&path).await[prompt].clone();
            !entry.is_null()
        })
        .await;
        entry
    }

    /// Fetches a file as its `{filename, subfolder, type}` names it.
    pub(crate) async fn view(&self, file: &Value) -> (u16, Vec<u8>) {
        let query: BTreeMap<_, _> = ["filename", "subfolder", "type"]
            .into_iter()
            .map(|name| (name, file[name].as_str().unwrap()))
            .collect();
        let reply =
            self.http.get(format!("{}/view", self.base)).query(&query).send().await.unwrap();
        (reply.status().as_u16(), reply.bytes().await.unwrap().to_vec())
    }

    /// Whether a prompt's saved picture, fetched as history names it, is that of its seed.
    pub(crate) async fn has_picture(&self, prompt: &str, seed: u64) -> bool {
        let entry = self.entry(prompt).await;
        let (status, bytes) = self.view(&entry["outputs"]["2"]["images"][0]).await;
        status == 200 && bytes == image_of_seed(seed)
    }
}

impl Drop for Painter {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
