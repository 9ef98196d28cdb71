//! How a prompt ended, as `GET /history/{id}` tells it.
//!
//! The reply holds the prompt, its outputs and its messages; only the status is looked at, the
//! rest is skipped as it is read.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::lenient;

/// Characters of an error's text that are kept.
pub const MAX_ERROR: usize = 2000;

/// What history says of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// It is not there: unknown, or not ended yet.
    Absent,
    /// It succeeded.
    Completed {
        /// Seconds it ran, by the server's clock.
        run_seconds: Option<f64>,
    },
    /// A node raised.
    Failed {
        /// Which, and what it said.
        error: String,
    },
    /// Somebody interrupted it.
    Interrupted,
}

#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    status_str: Option<String>,
    #[serde(default)]
    messages: Vec<Message>,
}

/// An event's name and its data; anything else in the list is passed over.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Event(String, Data),
    #[allow(dead_code, reason = "only there to take what is of no interest")]
    Other(IgnoredAny),
}

#[derive(Deserialize, Default)]
struct Data {
    #[serde(default)]
    timestamp: Option<f64>,
    #[serde(default)]
    node_type: Option<String>,
    #[serde(default)]
    exception_message: Option<String>,
}

/// Reads a reply; `None` when it is no history.
pub fn read(id: &str, body: &[u8]) -> Option<Entry> {
    let mut records: HashMap<String, Record> = lenient::from_slice(body).ok()?;
    let Some(record) = records.remove(id) else { return Some(Entry::Absent) };
    // Versions before the status was kept: what is in history has ended, and failures were not.
    let Some(status) = record.status else { return Some(Entry::Completed { run_seconds: None }) };
    Some(judge(&status))
}

fn judge(status: &Status) -> Entry {
    let events = || {
        status.messages.iter().filter_map(|message| match message {
            Message::Event(name, data) => Some((name.as_str(), data)),
            Message::Other(_) => None,
        })
    };
    let found = |wanted: &str| events().rfind(|(name, _)| *name == wanted);
    if found("execution_interrupted").is_some() {
        return Entry::Interrupted;
    }
    if let Some((_, data)) = found("execution_error") {
        return Entry::Failed { error: error_text(data) };
    }
    if status.status_str.as_deref() == Some("error") {
        return Entry::Failed { error: "the backend reports an error without a message".into() };
    }
    let time = |event: Option<(&str, &Data)>| event.and_then(|(_, data)| data.timestamp);
    let run = time(found("execution_success")).zip(time(found("execution_start")));
    let run_seconds = run.map(|(end, start)| (end - start) / 1000.0);
    Entry::Completed { run_seconds: run_seconds.filter(|run| run.is_finite() && *run >= 0.0) }
}

fn error_text(data: &Data) -> String {
    let message = data.exception_message.as_deref().unwrap_or("a node failed").trim();
    let text = match &data.node_type {
        Some(node) => format!("{node}: {message}"),
        None => message.to_owned(),
    };
    text.chars().take(MAX_ERROR).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn entry(status: &Value) -> Option<Entry> {
        let body = json!({"a": {"prompt": [1, "a", {}, {}, []], "outputs": {}, "status": status}});
        read("a", body.to_string().as_bytes())
    }

    #[test]
    fn each_end_is_told_apart() {
        let success = json!({"status_str": "success", "completed": true, "messages": [
            ["execution_start", {"prompt_id": "a", "timestamp": 1_700_000_001_000_u64}],
            ["execution_success", {"prompt_id": "a", "timestamp": 1_700_000_003_500_u64}]]});
        assert_eq!(entry(&success), Some(Entry::Completed { run_seconds: Some(2.5) }));
        let failed = json!({"status_str": "error", "messages": [["execution_error",
            {"node_type": "KSampler", "exception_message": "out of memory\n", "timestamp": 1}]]});
        assert_eq!(entry(&failed), Some(Entry::Failed { error: "KSampler: out of memory".into() }));
        let stopped = json!({"status_str": "error", "messages": [["execution_interrupted", {}]]});
        assert_eq!(entry(&stopped), Some(Entry::Interrupted));
        assert_eq!(entry(&Value::Null), Some(Entry::Completed { run_seconds: None }));
        assert_eq!(read("a", b"{}"), Some(Entry::Absent));
    }

    #[test]
    fn messages_of_later_versions_do_no_harm() {
        let status = json!({"status_str": "success", "more": 1, "messages": [7, ["x"], null,
            ["execution_start", "text"], ["execution_success", {"timestamp": "late"}]]});
        assert_eq!(entry(&status), Some(Entry::Completed { run_seconds: None }));
    }

    #[test]
    fn a_prompt_with_nan_is_read_and_a_page_is_not() {
        let body = br#"{"a": {"prompt": [NaN], "status": {"status_str": "error"}}}"#;
        assert!(matches!(read("a", body), Some(Entry::Failed { .. })));
        assert_eq!(read("a", b"<html>"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read("a", &bytes);
        }
    }
}
