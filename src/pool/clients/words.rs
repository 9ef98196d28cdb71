//! The few messages that the gateway itself says to clients, written as `ComfyUI` writes them, and
//! the one that it reads.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::pool::frame::{Frame, Meaning};

/// A text frame.
fn text(line: String) -> Frame {
    Frame { binary: false, bytes: Bytes::from(line) }
}

/// `status`, to everybody.
pub(super) fn status(queue_remaining: u64) -> Frame {
    text(format!(
        r#"{{"type": "status", "data": {{"status": {{"exec_info": {{"queue_remaining": {queue_remaining}}}}}}}}}"#
    ))
}

/// The `status` that greets a socket and names its `sid`.
pub(super) fn greeting(queue_remaining: u64, sid: &str) -> Frame {
    let sid = Value::from(sid);
    text(format!(
        r#"{{"type": "status", "data": {{"status": {{"exec_info": {{"queue_remaining": {queue_remaining}}}}}, "sid": {sid}}}}}"#
    ))
}

/// What a new socket gets when a prompt of its is running: an `executing` that holds only the
/// display node's id. Made of the last `executing` that came from the backend.
pub(super) fn running(executing: &Frame) -> Option<Frame> {
    #[derive(Deserialize)]
    struct Message {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        node: Option<Value>,
        display_node: Option<Value>,
    }
    let Message { data } = serde_json::from_slice(&executing.bytes).ok()?;
    let node = data.display_node.or(data.node)?;
    Some(text(format!(r#"{{"type": "executing", "data": {{"node": {node}}}}}"#)))
}

/// The answer to a client's flags.
pub(super) fn features(features: &Value) -> Frame {
    text(format!(r#"{{"type": "feature_flags", "data": {features}}}"#))
}

/// The first message of a client, which alone may carry flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// Not an object in JSON: the next one is the first.
    NotJson,
    /// Something else than flags.
    Other,
    /// Flags.
    Flags {
        /// `supports_preview_metadata` is exactly true.
        metadata: bool,
    },
}

/// Reads a client's text.
pub(super) fn first(line: &str) -> First {
    // Values stay as they were written: as objects, 4 MiB of brackets would fill a hundred times that.
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow, default, rename = "type")]
        kind: Option<&'a RawValue>,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Flags<'a> {
        #[serde(borrow, default)]
        supports_preview_metadata: Option<&'a RawValue>,
    }
    let Ok(message) = serde_json::from_str::<Message<'_>>(line) else { return First::NotJson };
    if message.kind.map(RawValue::get) != Some(r#""feature_flags""#) {
        return First::Other;
    }
    let flags = message.data.and_then(|data| serde_json::from_str::<Flags<'_>>(data.get()).ok());
    let metadata = flags.and_then(|flags| flags.supports_preview_metadata);
    First::Flags { metadata: metadata.map(RawValue::get) == Some("true") }
}

/// Whether `ComfyUI` would send this frame to all when its prompt has no `client_id`; it keeps the
/// others for itself. Custom nodes send to the `client_id`, so without one to all.
pub(super) fn is_broadcast(meaning: Meaning, frame: &Frame) -> bool {
    #[derive(Deserialize)]
    struct Message {
        #[serde(rename = "type")]
        kind: String,
    }
    let kind = || serde_json::from_slice::<Message>(&frame.bytes).map(|message| message.kind);
    match meaning {
        Meaning::Progress | Meaning::ProgressState | Meaning::Preview => true,
        Meaning::Start | Meaning::Cached | Meaning::Executing | Meaning::Output | Meaning::End => {
            false
        }
        Meaning::Terminal => kind().is_ok_and(|kind| kind == "execution_interrupted"),
        Meaning::Other => frame.binary || kind().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value(frame: &Frame) -> Value {
        assert!(!frame.binary);
        serde_json::from_slice(&frame.bytes).unwrap()
    }

    #[test]
    fn messages_are_as_recorded() {
        let exec = json!({"exec_info": {"queue_remaining": 3}});
        assert_eq!(value(&status(3)), json!({"type": "status", "data": {"status": exec}}));
        let greeted = json!({"type": "status", "data": {"status": exec, "sid": "a\"b"}});
        assert_eq!(value(&greeting(3, "a\"b")), greeted);
        let flags = json!({"supports_preview_metadata": true});
        let answer = json!({"type": "feature_flags", "data": flags});
        assert_eq!(value(&features(&flags)), answer);
    }

    #[test]
    fn a_running_node_is_told_by_its_display_id() {
        let frame = |data: Value| text(json!({"type": "executing", "data": data}).to_string());
        let told = |data| running(&frame(data)).map(|frame| value(&frame));
        let short = |node: &str| Some(json!({"type": "executing", "data": {"node": node}}));
        assert_eq!(told(json!({"node": "5:1", "display_node": "5"})), short("5"));
        assert_eq!(told(json!({"node": "5"})), short("5"));
        assert_eq!(told(json!({"node": null, "prompt_id": "p"})), None);
        assert_eq!(running(&text("{".to_owned())), None);
    }

    #[test]
    fn flags_count_only_in_an_object_of_that_type() {
        let flags = |data: &str| first(&format!(r#"{{"type":"feature_flags","data":{data}}}"#));
        let announced = |metadata| First::Flags { metadata };
        assert_eq!(flags(r#"{"supports_preview_metadata":true}"#), announced(true));
        for other in [r#"{"supports_preview_metadata":1}"#, "{}", "null", "[1]", "3"] {
            assert_eq!(flags(other), announced(false));
        }
        assert_eq!(first(r#"{"type":"feature_flags"}"#), announced(false));
        assert_eq!(first(r#"{"type":"ping"}"#), First::Other);
        assert_eq!(first("{}"), First::Other);
        for none in ["", "[]x", "hello", "3", "\"a\""] {
            assert_eq!(first(none), First::NotJson, "{none}");
        }
    }

    #[test]
    fn without_client_id_only_what_comfyui_broadcasts_is_for_all() {
        let named = |kind: &str| text(json!({"type": kind, "data": {}}).to_string());
        assert!(is_broadcast(Meaning::Progress, &named("progress")));
        assert!(is_broadcast(Meaning::Terminal, &named("execution_interrupted")));
        assert!(is_broadcast(Meaning::Other, &named("my-node")));
        assert!(!is_broadcast(Meaning::Cached, &named("execution_cached")));
        assert!(!is_broadcast(Meaning::Terminal, &named("execution_success")));
        assert!(!is_broadcast(Meaning::Terminal, &named("execution_error")));
        assert!(!is_broadcast(Meaning::Output, &named("executed")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes: Vec<u8>, binary: bool) {
            let frame = Frame { binary, bytes: Bytes::from(bytes) };
            let _ = running(&frame);
            let _ = is_broadcast(Meaning::Other, &frame);
            let _ = is_broadcast(Meaning::Terminal, &frame);
            let _ = first(&String::from_utf8_lossy(&frame.bytes));
        }
    }
}
