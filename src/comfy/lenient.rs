//! JSON as Python writes it: `NaN`, `Infinity` and `-Infinity` may stand where a number belongs.
//!
//! [`from_slice`] reads what is JSON as it is, and only a text that is not is read a second time
//! with those words as `null`.

use serde::de::DeserializeOwned;
use serde_json::Value;

const WORDS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];

/// Reads a value, bare `NaN` and infinities as `null`.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, serde_json::Error> {
    let first = serde_json::from_slice(text);
    match first {
        Err(error) if error.is_syntax() => {
            let cleaned = without_words(text);
            cleaned.map_or(Err(error), |cleaned| serde_json::from_slice(&cleaned))
        }
        other => other,
    }
}

/// What Python takes for true: `bool(value)`.
pub fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// The text with the words replaced; `None` when it has none.
fn without_words(text: &[u8]) -> Option<Vec<u8>> {
    let mut cleaned = Vec::with_capacity(text.len());
    let (mut at, mut in_string, mut found) = (0, false, false);
    while at < text.len() {
        let byte = text[at];
        if in_string && byte == b'\\' {
            let end = (at + 2).min(text.len());
            cleaned.extend_from_slice(&text[at..end]);
            at = end;
            continue;
        }
        if byte == b'"' {
            in_string = !in_string;
        }
        let word = WORDS.iter().find(|word| !in_string && text[at..].starts_with(word));
        if let Some(word) = word {
            cleaned.extend_from_slice(b"null");
            at += word.len();
            found = true;
        } else {
            cleaned.push(byte);
            at += 1;
        }
    }
    found.then_some(cleaned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn pythons_numbers_are_null_and_strings_stay() {
        let text = br#"{"a": [NaN, -Infinity, 1], "b": "NaN \" NaN", "c": Infinity}"#;
        let read: Value = from_slice(text).unwrap();
        assert_eq!(read, json!({"a": [null, null, 1], "b": "NaN \" NaN", "c": null}));
        assert!(from_slice::<Value>(br#"{"a": nan}"#).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = from_slice::<Value>(&bytes);
        }

        #[test]
        fn mangled_json_never_panics(text in r#"[\[\]{}":,\\NaInfty0-9. -]{0,80}"#) {
            let _ = from_slice::<Value>(text.as_bytes());
        }
    }
}
