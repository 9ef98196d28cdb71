//! The simulated ComfyUI, held against what was recorded from a real one.

// Helpers are not seen as tests by the lint.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod exchanges;
mod faults;
mod files;
mod memory;
mod scenarios;

use std::time::{Duration, Instant};

use comfygate::sim::{Sim, SimConfig};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// How long anything may take before a test says that it does not happen.
const PATIENCE: Duration = Duration::from_secs(20);

async fn fast() -> Sim {
    start(SimConfig { speed: 20.0, ..SimConfig::default() }).await
}

async fn start(config: SimConfig) -> Sim {
    Sim::start(config).await.expect("a free port")
}

/// `PacedImage → SaveImage`, as in the recordings.
fn paced(seconds: f64, steps: u32, seed: u64) -> Value {
    json!({
        "1": {"class_type": "PacedImage", "inputs":
            {"seconds": seconds, "steps": steps, "seed": seed, "fail_at": -1, "preview": true}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "rec"}},
    })
}

async fn get(sim: &Sim, path: &str) -> reqwest::Response {
    reqwest::get(format!("{}{path}", sim.url())).await.expect("a reply")
}

async fn get_json(sim: &Sim, path: &str) -> Value {
    get(sim, path).await.json().await.expect("JSON")
}

async fn post(sim: &Sim, path: &str, body: &Value) -> (u16, Value) {
    let request = reqwest::Client::new().post(format!("{}{path}", sim.url())).json(body);
    let reply = request.send().await.expect("a reply");
    let status = reply.status().as_u16();
    let text = reply.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Posts a prompt that must be taken; its id.
async fn queue(sim: &Sim, body: &Value) -> String {
    let (status, reply) = post(sim, "/prompt", body).await;
    assert_eq!(status, 200, "{reply}");
    reply["prompt_id"].as_str().expect("an id").to_owned()
}

/// Waits until something is so.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until nothing runs and nothing waits.
async fn idle(sim: &Sim) {
    until("the queue is empty", || async {
        get_json(sim, "/prompt").await["exec_info"]["queue_remaining"] == 0
    })
    .await;
}

/// A WebSocket client that writes down what it gets in short words.
struct Ears(WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>);

impl Ears {
    async fn open(sim: &Sim, sid: &str) -> Self {
        let mut ears = Self::silent(sim, sid).await;
        let first = ears.next().await.expect("a greeting");
        assert!(first.starts_with("status:"), "{first}");
        ears
    }

    /// Connects without waiting for the greeting.
    async fn silent(sim: &Sim, sid: &str) -> Self {
        let url = format!("ws://{}/ws?clientId={sid}", sim.addr());
        Self(connect_async(url).await.expect("a socket").0)
    }

    async fn with_flags(sim: &Sim, sid: &str) -> Self {
        let mut ears = Self::open(sim, sid).await;
        let flags = json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}});
        ears.0.send(Message::text(flags.to_string())).await.expect("sent");
        assert_eq!(ears.next().await.as_deref(), Some("feature_flags"));
        ears
    }

    /// The next frame in short; none when the socket has ended.
    async fn next(&mut self) -> Option<String> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a frame");
            match next?.ok()? {
                Message::Text(text) => return Some(short(&serde_json::from_str(&text).unwrap())),
                Message::Binary(bytes) => return Some(format!("binary:{}", bytes[3])),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// Everything up to and with a frame.
    async fn hear_to(&mut self, last: &str) -> Vec<String> {
        let mut heard = Vec::new();
        while heard.last().map(String::as_str) != Some(last) {
            let next = self.next().await;
            heard.push(next.unwrap_or_else(|| panic!("no {last} after {heard:?}")));
        }
        heard
    }
}

/// A frame in short: its type and what tells it from others of that type.
fn short(frame: &Value) -> String {
    let data = &frame["data"];
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match frame["type"].as_str().unwrap_or_default() {
        "status" => format!("status:{}", data["status"]["exec_info"]["queue_remaining"]),
        "execution_cached" => format!("cached:{}", data["nodes"]),
        "executing" => format!("executing:{}", word(&data["node"])),
        "executed" => {
            format!(
                "executed:{}:{}",
                word(&data["node"]),
                word(&data["output"]["images"][0]["type"])
            )
        }
        "progress" => format!("progress:{}/{}", data["value"], data["max"]),
        "progress_state" => {
            let nodes = data["nodes"].as_object().expect("nodes");
            let state = |(id, node): (&String, &Value)| {
                let mark = if node["state"] == "finished" { "." } else { "" };
                format!("{id}={}/{}{mark}", node["value"], node["max"])
            };
            format!("state:{}", nodes.iter().map(state).collect::<Vec<_>>().join(","))
        }
        other => other.to_owned(),
    }
}
