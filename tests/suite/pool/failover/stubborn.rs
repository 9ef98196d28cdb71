//! A client that does not give up: it connects again under its id, and posts again what was not
//! answered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::super::painter::Painter;
use crate::support::{PATIENCE, eventually, socket};

/// What came, and on which of its connections.
type Heard = Arc<Mutex<Vec<(usize, Value)>>>;

/// A client under one id.
pub(crate) struct Stubborn {
    http: reqwest::Client,
    base: String,
    pub(crate) id: String,
    heard: Heard,
    listening: JoinHandle<()>,
}

/// Connects again and again.
async fn listen(base: String, id: String, flags: bool, heard: Heard) {
    let address = base.trim_start_matches("http://").parse().unwrap();
    for connection in 0.. {
        if let Ok((mut socket, _)) = socket::open(address, &format!("/ws?clientId={id}"), &[]).await
        {
            if flags {
                let data = json!({"supports_preview_metadata": true});
                let flags = json!({"type": "feature_flags", "data": data}).to_string();
                let _ = futures_util::SinkExt::send(&mut socket, Message::text(flags)).await;
            }
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = message {
                    let event = serde_json::from_str(text.as_str()).unwrap();
                    heard.lock().push((connection, event));
                }
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

impl Stubborn {
    pub(crate) fn connect(base: &str, id: &str) -> Self {
        Self::connect_with(base, id, false)
    }

    pub(crate) fn connect_with(base: &str, id: &str, flags: bool) -> Self {
        let heard = Heard::default();
        let listening = listen(base.to_owned(), id.to_owned(), flags, Arc::clone(&heard));
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let listening = tokio::spawn(listening);
        Self { http, base: base.to_owned(), id: id.to_owned(), heard, listening }
    }

    /// Posts a prompt until it is accepted.
    pub(crate) async fn paint(&self, prompt: Value) -> String {
        self.paint_with(prompt, json!({})).await
    }

    /// The same with `extra_data`.
    pub(crate) async fn paint_with(&self, prompt: Value, extra: Value) -> String {
        let id = Uuid::new_v4().to_string();
        let body = json!({"prompt": prompt, "client_id": self.id, "prompt_id": id,
            "extra_data": extra});
        eventually("the prompt is accepted", PATIENCE, async || {
            let sent = self.http.post(format!("{}/prompt", self.base)).json(&body).send().await;
            match sent {
                Ok(reply) if reply.status() == 200 => true,
                Ok(reply) if matches!(reply.status().as_u16(), 429 | 502 | 503 | 504) => {
                    sleep(Duration::from_millis(100)).await;
                    false
                }
                Ok(reply) => panic!("{}: {:?}", reply.status(), reply.text().await),
                Err(_) => {
                    sleep(Duration::from_millis(100)).await;
                    false
                }
            }
        })
        .await;
        id
    }

    /// Fetches JSON; nothing when the gateway is away.
    pub(crate) async fn get(&self, path: &str) -> Option<Value> {
        let reply = self.http.get(format!("{}{path}", self.base)).send().await.ok()?;
        reply.json().await.ok()
    }

    /// What came about a prompt, in order: its connection, type and data.
    pub(crate) fn events(&self, prompt: &str) -> Vec<(usize, String, Value)> {
        let heard = self.heard.lock();
        let about = heard.iter().filter(|(_, event)| event["data"]["prompt_id"] == prompt);
        let parts = about.map(|(connection, event)| {
            (*connection, event["type"].as_str().unwrap().to_owned(), event["data"].clone())
        });
        parts.collect()
    }

    /// The words on a prompt's end.
    pub(crate) fn last_words(&self, prompt: &str) -> Vec<(usize, String, Value)> {
        let ends = |name: &str, data: &Value| match name {
            "execution_success" | "execution_error" | "execution_interrupted" => true,
            "executing" => data["node"].is_null(),
            _ => false,
        };
        self.events(prompt).into_iter().filter(|(_, name, data)| ends(name, data)).collect()
    }

    /// Waits until a prompt's last word has come.
    pub(crate) async fn finished(&self, prompt: &str) {
        self.finished_within(prompt, PATIENCE).await;
    }

    pub(crate) async fn finished_within(&self, prompt: &str, limit: Duration) {
        let ended = || self.last_words(prompt).iter().any(|(_, name, _)| name == "executing");
        eventually(&format!("{prompt} has ended"), limit, async || {
            sleep(Duration::from_millis(5)).await;
            ended()
        })
        .await;
    }

    /// What history says of a prompt.
    pub(crate) async fn entry(&self, prompt: &str) -> Value {
        let mut entry = Value::Null;
        eventually("the prompt is in history", PATIENCE, async || {
            let found = self.get(&format!("/history/{prompt}")).await;
            entry = found.map_or(Value::Null, |found| found[prompt].clone());
            !entry.is_null()
        })
        .await;
        entry
    }

    /// Its words on how a prompt ended: exactly one of each, or the same again on another
    /// connection.
    pub(crate) fn assert_told_once(&self, prompt: &str) {
        let words = self.last_words(prompt);
        for (at, (connection, name, data)) in words.iter().enumerate() {
            for (other, its_name, its_data) in &words[..at] {
                let both_end = name == "executing" && its_name == "executing";
                let both_tell = name != "executing" && its_name != "executing";
                if both_end || both_tell {
                    assert_ne!(connection, other, "{prompt} was told twice: {words:#?}");
                    assert_eq!((name, data), (its_name, its_data), "{prompt}");
                }
            }
        }
        assert!(words.iter().any(|(_, name, _)| name != "executing"), "{prompt}: {words:?}");
    }

    /// Waits until a prompt has succeeded as it should have: told, in history, and with the picture
    /// of its seed.
    pub(crate) async fn succeeded(&self, prompt: &str, seed: u64) {
        self.finished(prompt).await;
        let words = self.last_words(prompt);
        let success = words.iter().any(|(_, name, _)| name == "execution_success");
        assert!(success, "{words:#?}, {:#}", self.entry(prompt).await["status"]);
        self.assert_told_once(prompt);
        assert!(self.has_picture(prompt, seed).await, "{prompt}");
    }

    /// Whether its picture is the right one, once its server is there to show it.
    pub(crate) async fn has_picture(&self, prompt: &str, seed: u64) -> bool {
        let entry = self.entry(prompt).await;
        assert_eq!(entry["status"]["status_str"], "success", "{entry:#}");
        let file = &entry["outputs"]["2"]["images"][0];
        let query =
            ["filename", "subfolder", "type"].map(|name| (name, file[name].as_str().unwrap()));
        let mut right = false;
        eventually("the picture is served", PATIENCE, async || {
            let sent = self.http.get(format!("{}/view", self.base)).query(&query).send().await;
            let Ok(reply) = sent else { return false };
            if reply.status() != 200 {
                sleep(Duration::from_millis(50)).await;
                return false;
            }
            let Ok(bytes) = reply.bytes().await else { return false };
            right = bytes == comfygate::sim::image_of_seed(seed);
            true
        })
        .await;
        right
    }

    /// A client as the other tests have it, for this one's address.
    pub(crate) async fn painter(&self, id: &str) -> Painter {
        Painter::connect(&self.base, id).await
    }
}

impl Drop for Stubborn {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
