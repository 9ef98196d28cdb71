//! How a prompt ended, as its history entry tells it.
//!
//! The entry is a backend's word: nothing in it is taken to be there or to be of a type.

use super::scan::Json;
use crate::comfy::history::MAX_ERROR;
use crate::pool::core::Outcome;

/// What an entry says of the end.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether ComfyUI calls it an error; an interrupted prompt is one, too.
    pub is_error: bool,
    /// Milliseconds since 1970 when it began.
    pub start: Option<f64>,
    /// Milliseconds since 1970 when it ended.
    pub end: Option<f64>,
}

impl Ending {
    /// Reads a history entry.
    pub fn of(entry: &[u8]) -> Self {
        Told::of(Json(entry)).ending
    }

    /// Seconds that it ran.
    pub fn run_seconds(&self) -> Option<f64> {
        let run = (self.end? - self.start?) / 1000.0;
        (run.is_finite() && run >= 0.0).then_some(run)
    }
}

/// The end with the data of the error, for those that show it.
pub(super) struct Told<'a> {
    pub(super) ending: Ending,
    pub(super) error: Option<Json<'a>>,
}

impl<'a> Told<'a> {
    pub(super) fn of(entry: Json<'a>) -> Self {
        let status = entry.get("status");
        let word = status.and_then(|status| status.get("status_str")).and_then(Json::text);
        let is_error = word.as_deref() == Some("error");
        let (mut start, mut end, mut error, mut interrupted) = (None, None, None, false);
        each_message(status, |name, data| {
            let time = || data.get("timestamp").and_then(Json::number).filter(|t| t.is_finite());
            match name {
                "execution_start" => start = time(),
                "execution_success" | "execution_error" | "execution_interrupted" => {
                    end = time();
                    interrupted |= name == "execution_interrupted";
                    if name == "execution_error" {
                        error = Some(data);
                    }
                }
                _ => {}
            }
        });
        let outcome = match error {
            _ if interrupted => Outcome::Cancelled,
            Some(data) => Outcome::Failed { error: error_text(data) },
            None if is_error => {
                let error = "the backend reports an error without a message".to_owned();
                Outcome::Failed { error }
            }
            // Versions before the status was kept: what is in history has ended.
            None => Outcome::Completed,
        };
        Self { ending: Ending { outcome, is_error, start, end }, error }
    }
}

fn each_message<'a>(status: Option<Json<'a>>, mut each: impl FnMut(&str, Json<'a>)) {
    if let Some(messages) = status.and_then(|status| status.get("messages")) {
        messages.each_item(|message| {
            let name = message.item(0).and_then(Json::text);
            if let (Some(name), Some(data)) = (name, message.item(1).filter(|d| d.is_object())) {
                each(&name, data);
            }
        });
    }
}

fn error_text(data: Json<'_>) -> String {
    let text = |name| data.get(name).and_then(Json::text);
    let message = text("exception_message").unwrap_or("a node failed".into());
    let text = match text("node_type") {
        Some(node) => format!("{node}: {}", message.trim()),
        None => message.trim().to_owned(),
    };
    text.chars().take(MAX_ERROR).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn ending(status: &Value) -> Ending {
        Ending::of(json!({"prompt": [], "status": status}).to_string().as_bytes())
    }

    #[test]
    fn each_end_is_told_apart() {
        let success = ending(&json!({"status_str": "success", "messages": [
            ["execution_start", {"timestamp": 1_700_000_001_000_u64}],
            ["execution_success", {"timestamp": 1_700_000_003_500_u64}]]}));
        assert_eq!((&success.outcome, success.run_seconds()), (&Outcome::Completed, Some(2.5)));
        let failed = ending(&json!({"status_str": "error", "messages": [["execution_error",
            {"node_type": "KSampler", "exception_message": "out of memory\n", "timestamp": 1}]]}));
        assert_eq!(failed.outcome, Outcome::Failed { error: "KSampler: out of memory".into() });
        let stopped = ending(&json!({"status_str": "error", "messages":
            [["execution_interrupted", {}]]}));
        assert_eq!((stopped.outcome, stopped.is_error), (Outcome::Cancelled, true));
        assert_eq!(ending(&Value::Null).outcome, Outcome::Completed);
    }

    #[test]
    fn an_error_counts_though_the_status_reads_success() {
        let stale =
            ending(&json!({"status_str": "success", "messages": [["execution_error", {}]]}));
        assert_eq!(stale.outcome, Outcome::Failed { error: "a node failed".into() });
        assert!(!stale.is_error);
    }

    #[test]
    fn messages_of_later_versions_and_lone_surrogates_do_no_harm() {
        let entry = br#"{"prompt": [NaN], "status": {"status_str": "error", "messages": [7, ["x"],
            null, ["execution_start", "text"], ["execution_error", {"exception_message": "\ud800!",
            "timestamp": "late"}]]}}"#;
        let ending = Ending::of(entry);
        assert_eq!(ending.outcome, Outcome::Failed { error: "\u{fffd}!".into() });
        assert_eq!(ending.run_seconds(), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Ending::of(&bytes);
        }
    }
}
