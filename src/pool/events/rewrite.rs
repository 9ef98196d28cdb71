//! Changing a message on its way: where its files are, and which prompt it names. What needs no
//! change stays as it is, byte for byte, and of an `executed` only `data.output` is written anew.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::binary;
use crate::comfy::lenient;
use crate::pool::frame::Frame;

/// A larger `executed` is passed on as it is: the document made of it would take many times its
/// size. Real ones have some hundred bytes per file.
const MAX_OUTPUT: usize = 16 << 20;
/// The key without which there is no file in a message. Python writes it thus.
const FILENAME: &str = "\"filename\"";

/// Hands the `data.output` of an `executed` to `mark`; `None` when nothing came of it.
pub(super) fn outputs(frame: &Frame, mark: &dyn Fn(&mut Value)) -> Option<Frame> {
    let text = std::str::from_utf8(&frame.bytes).ok()?;
    if text.len() > MAX_OUTPUT || !text.contains(FILENAME) {
        return None;
    }
    let changed = match output_of(text) {
        Some(output) => spliced(text, output, mark)?,
        None => rebuilt(text, mark)?,
    };
    Some(Frame { binary: false, bytes: Bytes::from(changed) })
}

/// The text of `data.output`, if the message is JSON in the strict sense.
fn output_of(text: &str) -> Option<&str> {
    #[derive(Deserialize)]
    struct Executed<'a> {
        #[serde(borrow)]
        data: Data<'a>,
    }
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        output: &'a RawValue,
    }
    let executed: Executed<'_> = serde_json::from_str(text).ok()?;
    Some(executed.data.output.get())
}

/// The message with another text where `output`, a part of it, stood.
fn spliced(text: &str, output: &str, mark: &dyn Fn(&mut Value)) -> Option<String> {
    let before: Value = serde_json::from_str(output).ok()?;
    let mut after = before.clone();
    mark(&mut after);
    if after == before {
        return None;
    }
    let start = output.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    let (head, tail) = (text.get(..start)?, text.get(start + output.len()..)?);
    Some(format!("{head}{after}{tail}"))
}

/// The message written anew: it has numbers that JSON lacks, or a key twice.
fn rebuilt(text: &str, mark: &dyn Fn(&mut Value)) -> Option<String> {
    let mut whole: Value = lenient::from_slice(text.as_bytes()).ok()?;
    let output = whole.get_mut("data")?.get_mut("output")?;
    let before = output.clone();
    mark(output);
    (*output != before).then(|| whole.to_string())
}

/// Puts the id that the owner knows in place of the one that the backend minted, wherever that
/// stands as a whole text; `None` when it stands nowhere.
pub(super) fn prompt_id(frame: &Frame, theirs: &str, ours: &str) -> Option<Frame> {
    let bytes = if frame.binary {
        let (_, rest) = binary::split_id(&frame.bytes)?;
        let (metadata, image) = binary::split_metadata(rest)?;
        binary::with_metadata(replaced(metadata, theirs, ours)?.as_bytes(), image)?
    } else {
        replaced(&frame.bytes, theirs, ours)?.into_bytes()
    };
    Some(Frame { binary: frame.binary, bytes: Bytes::from(bytes) })
}

fn replaced(json: &[u8], theirs: &str, ours: &str) -> Option<String> {
    let json = std::str::from_utf8(json).ok()?;
    let quoted = |id: &str| serde_json::to_string(id).ok();
    let (theirs, ours) = (quoted(theirs)?, quoted(ours)?);
    json.contains(&theirs).then(|| json.replace(&theirs, &ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Frame {
        Frame { binary: false, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    /// A stand-in for the real mark.
    fn mark(value: &mut Value) {
        match value {
            Value::Object(map) if map.contains_key("filename") => {
                map.insert("subfolder".to_owned(), "@a".into());
            }
            Value::Object(map) => map.values_mut().for_each(mark),
            Value::Array(list) => list.iter_mut().for_each(mark),
            _ => {}
        }
    }

    #[test]
    fn only_the_output_of_an_executed_is_written_anew() {
        let frame = text(
            r#"{"type": "executed",  "data": {"output": {"images": [{"filename": "a.png", "subfolder": ""}], "n": 1.0}, "x": 1e2}}"#,
        );
        let after = outputs(&frame, &mark).unwrap();
        assert_eq!(
            std::str::from_utf8(&after.bytes).unwrap(),
            r#"{"type": "executed",  "data": {"output": {"images":[{"filename":"a.png","subfolder":"@a"}],"n":1.0}, "x": 1e2}}"#
        );
        assert_eq!(outputs(&after, &mark), None);
    }

    #[test]
    fn an_output_with_a_number_that_json_lacks_is_marked_too() {
        let frame = text(
            r#"{"type": "executed", "data": {"output": {"a": NaN, "b": {"filename": "a", "subfolder": ""}}}}"#,
        );
        let after = outputs(&frame, &mark).unwrap();
        let after: Value = serde_json::from_slice(&after.bytes).unwrap();
        assert_eq!(after["data"]["output"]["b"]["subfolder"], "@a");
    }

    #[test]
    fn the_backends_id_is_replaced_in_text_and_in_metadata() {
        let frame = text(r#"{"data": {"prompt_id": "T", "nodes": {"1": {"prompt_id": "T"}}}}"#);
        let after = prompt_id(&frame, "T", "ours").unwrap();
        assert_eq!(
            &after.bytes[..],
            br#"{"data": {"prompt_id": "ours", "nodes": {"1": {"prompt_id": "ours"}}}}"#
        );
        let whole = binary::with_metadata(br#"{"prompt_id": "T"}"#, b"\"T\"").unwrap();
        let frame = Frame { binary: true, bytes: whole.into() };
        let after = prompt_id(&frame, "T", "ours").unwrap();
        let wanted = binary::with_metadata(br#"{"prompt_id": "ours"}"#, b"\"T\"").unwrap();
        assert_eq!(&after.bytes[..], &wanted[..]);
        assert_eq!(prompt_id(&frame, "U", "ours"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200), binary in any::<bool>(),
        ) {
            let frame = Frame { binary, bytes: bytes.into() };
            let _ = outputs(&frame, &mark);
            let _ = prompt_id(&frame, "1", "2");
        }

        #[test]
        fn mangled_outputs_never_panic(
            middle in r#"[\[\]{}":,\\NaIfnty0-9. -]{0,40}"#,
        ) {
            let frame = text(&format!("{{\"data\": {{\"output\": {middle} {FILENAME}: 1}}}}"));
            let _ = outputs(&frame, &mark);
        }
    }
}
