//! What was recorded from a real ComfyUI 0.8.0, and the form in which a run against any server is
//! written down, so that both can be compared.
//!
//! The files lie beside this one, unchanged as recorded, and are compiled in: `scenarios()` for the
//! WebSocket ones, `exchanges()` for request and response pairs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The scenarios, in the order in which they were recorded.
const SCENARIOS: [&str; 10] = [
    include_str!("recorded-0.8.0/ws_run_ok.json"),
    include_str!("recorded-0.8.0/ws_run_ok_flags.json"),
    include_str!("recorded-0.8.0/ws_run_no_client_id.json"),
    include_str!("recorded-0.8.0/ws_run_error.json"),
    include_str!("recorded-0.8.0/ws_run_cached.json"),
    include_str!("recorded-0.8.0/ws_two_queued.json"),
    include_str!("recorded-0.8.0/ws_interrupt_running.json"),
    include_str!("recorded-0.8.0/ws_delete_pending.json"),
    include_str!("recorded-0.8.0/ws_front_and_number.json"),
    include_str!("recorded-0.8.0/ws_reconnect_while_running.json"),
];

const EXCHANGES: &str = include_str!("recorded-0.8.0/http.json");
const PAGE_LOAD: &str = include_str!("recorded-0.8.0/page_load.json");

/// The listener that came back after its socket was closed; its frames stand in `extra`.
pub const RECONNECTED: &str = "reconnected";

/// One WebSocket scenario: what was posted and what everybody heard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scenario {
    /// Its name, such as `run_ok`.
    pub scenario: String,
    /// The prompts, in order.
    pub posts: Vec<Post>,
    /// What else was done and answered: queue listings, status codes, the frames after a reconnect.
    #[serde(default)]
    pub extra: Value,
    /// Every frame, by listener.
    pub frames: BTreeMap<String, Vec<Frame>>,
    /// `GET /history/{id}` afterwards, by prompt.
    pub history: BTreeMap<String, Value>,
    /// Why a run did not come to its end; never set in a recording.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
    /// How many servers stand behind the gateway in pool mode that ran it; 0 where it was one
    /// server, as in every recording.
    #[serde(default, skip_serializing_if = "is_alone")]
    pub farm: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_alone(farm: &usize) -> bool {
    *farm == 0
}

/// A run of a scenario, in the form of its recording.
pub type Transcript = Scenario;

/// One `POST /prompt` with its reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Post {
    /// Milliseconds since the scenario began.
    pub t_ms: u64,
    /// The body sent.
    pub request: Value,
    /// The reply's status.
    pub status: u16,
    /// The reply's body.
    pub body: Value,
}

/// One message of a WebSocket: text or binary.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Frame {
    /// Milliseconds since the scenario began.
    pub t_ms: u64,
    /// A text message's JSON, or its text where that is not JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Value>,
    /// A binary message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary_base64: Option<String>,
}

/// One HTTP request with its response.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exchange {
    /// Its name, such as `queue_idle`.
    pub name: String,
    /// What was asked.
    pub request: Request,
    /// What was answered.
    pub response: Response,
}

/// A recorded request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// GET, POST, OPTIONS.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// A JSON body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// Fields of a multipart form (its file was not recorded).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Map<String, Value>>,
    /// Headers of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
}

/// A response; bodies that are neither JSON nor text stand as `{base64_head, length}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Value,
}

/// One request of a cold load of the stock page.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PageRequest {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
}

#[derive(Deserialize)]
struct PageLoad {
    requests: Vec<PageRequest>,
}

/// The recorded scenarios, in order.
pub fn scenarios() -> serde_json::Result<Vec<Scenario>> {
    SCENARIOS.iter().map(|text| serde_json::from_str(text)).collect()
}

/// The recorded HTTP exchanges, in order.
pub fn exchanges() -> serde_json::Result<Vec<Exchange>> {
    serde_json::from_str(EXCHANGES)
}

/// The recorded page load's requests, in order.
pub(crate) fn page_requests() -> serde_json::Result<Vec<PageRequest>> {
    serde_json::from_str::<PageLoad>(PAGE_LOAD).map(|page| page.requests)
}

impl Scenario {
    /// Everybody who listened, with the frames heard; a listener that came back is one of its own.
    pub fn listeners(&self) -> BTreeMap<String, Vec<Frame>> {
        let mut all = self.frames.clone();
        if let Some(frames) = self.extra.get("reconnected_frames")
            && let Ok(frames) = serde_json::from_value(frames.clone())
        {
            all.insert(RECONNECTED.to_owned(), frames);
        }
        all
    }
}

impl Frame {
    /// The `type` of a JSON message.
    pub fn kind(&self) -> Option<&str> {
        self.text.as_ref()?.get("type")?.as_str()
    }

    /// The `data` of a JSON message.
    pub fn data(&self) -> Option<&Value> {
        self.text.as_ref()?.get("data")
    }

    /// Whether this is the `executing` with no node that ends every prompt.
    pub fn is_end(&self) -> bool {
        self.kind() == Some("executing")
            && self.data().and_then(|data| data.get("node")).is_some_and(Value::is_null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recordings_parse_and_are_complete() {
        let scenarios = scenarios().unwrap();
        assert_eq!(scenarios.len(), 10);
        assert!(scenarios.iter().all(|s| !s.posts.is_empty() && !s.frames.is_empty()));
        assert_eq!(exchanges().unwrap().len(), 49);
        assert!(page_requests().unwrap().len() > 50);
    }

    #[test]
    fn a_float_stays_a_float_through_the_recording() {
        let run = &scenarios().unwrap()[0];
        let state = run.frames["owner"].iter().find(|f| f.kind() == Some("progress_state"));
        let value = &state.unwrap().data().unwrap()["nodes"]["1"]["value"];
        assert!(value.is_f64());
        assert_ne!(*value, Value::from(0));
    }
}
