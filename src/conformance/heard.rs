//! What one listener heard, in the form in which it is compared: its `status` frames as one
//! sequence, everything else in order per prompt, what belongs to no prompt apart.
//!
//! A binary preview of type 1 bears no prompt id; it belongs to the prompt of the frame before it.

use serde_json::Value;

use super::binary;
use super::normalise::Names;
use super::recording::Frame;

/// Types that ComfyUI itself sends. Others come from custom nodes and are no part of the contract,
/// unless they speak of a prompt of ours.
const CORE_TYPES: [&str; 12] = [
    "status",
    "execution_start",
    "execution_success",
    "execution_cached",
    "executing",
    "executed",
    "progress",
    "progress_state",
    "execution_error",
    "execution_interrupted",
    "feature_flags",
    "logs",
];

/// Frames of one listener, normalised and sorted into their groups.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Every `status`, in order.
    pub(super) statuses: Vec<Value>,
    /// Whether the frame that names the listener's sid came first, or where else.
    pub(super) greeting_at: Option<usize>,
    /// Frames of the connection itself, such as `feature_flags`.
    pub(super) connection: Vec<Value>,
    /// Frames by prompt, in the order in which the prompts were first heard of.
    pub(super) prompts: Vec<(String, Vec<Value>)>,
}

impl Heard {
    pub(super) fn new(frames: &[Frame], names: &Names) -> Self {
        let mut heard = Self::default();
        let mut homeless = Vec::new();
        let mut current: Option<String> = None;
        for (index, frame) in frames.iter().enumerate() {
            let value = names.apply(&content(frame));
            match frame.kind() {
                Some("status") => {
                    if value.pointer("/data/sid").is_some() && heard.greeting_at.is_none() {
                        heard.greeting_at = Some(index);
                    }
                    heard.statuses.push(value);
                }
                Some("feature_flags") => heard.connection.push(value),
                Some(kind) if is_foreign(kind, &value) => {}
                _ => {
                    current = prompt_of(&value).or(current);
                    match &current {
                        Some(prompt) => {
                            let own = heard.prompt(prompt);
                            own.append(&mut homeless);
                            own.push(value);
                        }
                        None => homeless.push(value),
                    }
                }
            }
        }
        heard.connection.extend(homeless);
        heard
    }

    fn prompt(&mut self, name: &str) -> &mut Vec<Value> {
        let index = self.prompts.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.prompts.push((name.to_owned(), Vec::new()));
            self.prompts.len() - 1
        });
        &mut self.prompts[index].1
    }

    /// The `status` frames without immediate repetitions: which moment a repeated value is read at
    /// is a race on a real server too.
    pub(super) fn transitions(&self) -> Vec<&Value> {
        let mut distinct: Vec<&Value> = self.statuses.iter().collect();
        distinct.dedup();
        distinct
    }
}

fn content(frame: &Frame) -> Value {
    match (&frame.text, &frame.binary_base64) {
        (Some(text), _) => text.clone(),
        (None, Some(base64)) => binary::describe(base64),
        (None, None) => Value::Null,
    }
}

fn is_foreign(kind: &str, value: &Value) -> bool {
    !CORE_TYPES.contains(&kind) && !value.to_string().contains("<prompt ")
}

fn prompt_of(value: &Value) -> Option<String> {
    let place = ["/data/prompt_id", "/metadata/prompt_id"];
    place.iter().find_map(|place| value.pointer(place)?.as_str()).map(str::to_owned)
}

/// A frame in a few words, for a message.
pub(super) fn label(frame: &Value) -> String {
    if let Some(id) = frame.get("binary") {
        return format!("binary {id}");
    }
    let kind = frame.get("type").and_then(Value::as_str).unwrap_or("a frame without type");
    let data = frame.get("data");
    let detail = match kind {
        "status" => data.and_then(|d| d.pointer("/status/exec_info/queue_remaining")),
        "executing" | "executed" => data.and_then(|d| d.get("node")),
        "progress" => data.and_then(|d| d.get("value")),
        _ => None,
    };
    detail.map_or_else(|| kind.to_owned(), |detail| format!("{kind} {detail}"))
}
