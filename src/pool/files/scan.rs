//! Finds strings in a prompt's JSON by where they stand, so that some can be replaced and every
//! other byte stays as the client sent it: numbers that no parser here can hold, `NaN`, spaces.
//!
//! Not a parser: it believes that what stands between brackets is JSON, and finds nothing in what
//! is not. Its time is linear in the text, its memory in the depth, which is at most [`MAX_DEPTH`].

use std::borrow::Cow;
use std::ops::Range;

/// Where something stands in the text.
pub type Span = Range<usize>;

/// Brackets within brackets; Python refuses about as many.
pub const MAX_DEPTH: usize = 1000;

/// A string and where it stands, its quotes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<'a> {
    /// Where it stands.
    pub span: Span,
    /// What it says.
    pub text: Cow<'a, str>,
}

/// An object that names a file.
#[derive(Debug, Default)]
pub struct FileObject<'a> {
    /// Its `filename`.
    pub filename: Option<Text<'a>>,
    /// Its `subfolder`.
    pub subfolder: Option<Text<'a>>,
    /// Its `type`.
    pub folder: Option<Text<'a>>,
}

/// What is found in the inputs of a prompt's nodes.
#[derive(Debug)]
pub enum Found<'a> {
    /// A string that is a value.
    Text(Text<'a>),
    /// An object with a `filename`. Its strings are found by themselves too, before it.
    Object(FileObject<'a>),
}

/// Calls `found` for each string and each file in the inputs of the nodes of a POST's body.
pub fn inputs<'a>(body: &'a [u8], mut found: impl FnMut(Found<'a>)) {
    let whole = 0..body.len();
    let mut prompt = None;
    // Of keys that stand twice, Python takes the last.
    members(body, whole, |key, value| {
        if key == "prompt" {
            prompt = Some(value);
        }
    });
    members(body, prompt.unwrap_or(0..0), |_, node| {
        members(body, node, |key, value| {
            if key == "inputs" {
                values(body, value, &mut found);
            }
        });
    });
}

/// Puts other strings in place of some. The spans must not overlap.
pub fn replace(body: &[u8], mut edits: Vec<(Span, String)>) -> Vec<u8> {
    edits.sort_by_key(|(span, _)| span.start);
    let mut out = Vec::with_capacity(body.len() + 64 * edits.len());
    let mut at = 0;
    for (span, text) in edits {
        if let Some(before) = body.get(at..span.start) {
            out.extend_from_slice(before);
            out.extend_from_slice(serde_json::Value::String(text).to_string().as_bytes());
            at = span.end;
        }
    }
    out.extend_from_slice(body.get(at..).unwrap_or_default());
    out
}

/// Calls `each` with every key and the value's place in the object that stands at `span`.
fn members<'a>(text: &'a [u8], span: Span, mut each: impl FnMut(Cow<'a, str>, Span)) {
    let mut at = skip_space(text, span.start);
    if at >= span.end || text[at] != b'{' {
        return;
    }
    at += 1;
    loop {
        at = skip_space(text, at);
        let Some(key) = string(text, at) else { return };
        at = skip_space(text, key.end);
        if text.get(at) != Some(&b':') {
            return;
        }
        let start = skip_space(text, at + 1);
        let Some(end) = value_end(text, start) else { return };
        if let Some(key) = decode(text, &key) {
            each(key, start..end);
        }
        at = skip_space(text, end);
        if text.get(at) != Some(&b',') {
            return;
        }
        at += 1;
    }
}

/// What is open while the values of inputs are walked through.
enum Open<'a> {
    Array,
    Object { key: Option<Cow<'a, str>>, file: FileObject<'a> },
}

/// Walks through a value, however deep.
fn values<'a>(text: &'a [u8], span: Span, found: &mut impl FnMut(Found<'a>)) {
    let mut open: Vec<Open<'a>> = Vec::new();
    let mut at = span.start;
    while at < span.end {
        match text[at] {
            b'"' => {
                let Some(span) = string(text, at) else { return };
                at = span.end;
                take(text, span, &mut open, found);
                continue;
            }
            b'[' => open.push(Open::Array),
            b'{' => open.push(Open::Object { key: None, file: FileObject::default() }),
            b']' | b'}' => {
                if let Some(Open::Object { file, .. }) = open.pop()
                    && file.filename.is_some()
                {
                    found(Found::Object(file));
                }
            }
            b',' => {
                if let Some(Open::Object { key, .. }) = open.last_mut() {
                    *key = None;
                }
            }
            _ => {}
        }
        if open.len() > MAX_DEPTH {
            return;
        }
        at += 1;
    }
}

/// Takes a string: a key, or a value.
fn take<'a>(text: &'a [u8], span: Span, open: &mut [Open<'a>], found: &mut impl FnMut(Found<'a>)) {
    let Some(said) = decode(text, &span) else { return };
    let string = Text { span, text: said };
    if let Some(Open::Object { key, file }) = open.last_mut() {
        let Some(key) = key else {
            *key = Some(string.text);
            return;
        };
        let field = match &**key {
            "filename" => Some(&mut file.filename),
            "subfolder" => Some(&mut file.subfolder),
            "type" => Some(&mut file.folder),
            _ => None,
        };
        if let Some(field) = field {
            *field = Some(string.clone());
        }
    }
    found(Found::Text(string));
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The string that begins at `at`, with its quotes.
fn string(text: &[u8], at: usize) -> Option<Span> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut end = at + 1;
    loop {
        match text.get(end)? {
            b'\\' => end += 2,
            b'"' => return Some(at..end + 1),
            _ => end += 1,
        }
    }
}

/// Where the value that begins at `at` ends.
fn value_end(text: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    loop {
        match text.get(at)? {
            b'"' => {
                at = string(text, at)?.end;
                if depth == 0 {
                    return Some(at);
                }
                continue;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth == 0 => return Some(at),
            b']' | b'}' if depth == 1 => return Some(at + 1),
            b']' | b'}' => depth -= 1,
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
        at += 1;
    }
}

/// What a string says; `None` when that is no text.
fn decode<'a>(text: &'a [u8], span: &Span) -> Option<Cow<'a, str>> {
    let raw = text.get(span.clone())?;
    let inner = raw.get(1..raw.len().checked_sub(1)?)?;
    if inner.contains(&b'\\') {
        return serde_json::from_slice::<String>(raw).ok().map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(body: &str) -> Vec<String> {
        let mut texts = Vec::new();
        inputs(body.as_bytes(), |found| match found {
            Found::Text(text) => texts.push(text.text.into_owned()),
            Found::Object(file) => texts.push(format!(
                "<{}|{}|{}>",
                file.filename.map(|t| t.text).unwrap_or_default(),
                file.subfolder.map(|t| t.text).unwrap_or_default(),
                file.folder.map(|t| t.text).unwrap_or_default(),
            )),
        });
        texts
    }

    #[test]
    fn strings_are_found_in_inputs_and_nowhere_else() {
        let body = r#" { "client_id": "no", "prompt": {"1": {"class_type": "no", "inputs":
            {"a": "x\u0041\"", "n": NaN, "l": ["4", 0, {"deep": "y"}], "b": true, "c": "z"},
            "_meta": {"title": "no"}}, "2": {"inputs": {}}}, "extra_data": {"inputs": "no"}}"#;
        assert_eq!(texts(body), ["xA\"", "4", "y", "z"]);
        let named = r#"{"prompt":{"1":{"inputs":{"filename":"f"}}}}"#;
        assert_eq!(texts(named), ["f", "<f||>"], "an input may be called so");
    }

    #[test]
    fn an_object_that_names_a_file_is_found_whole() {
        let body = r#"{"prompt":{"1":{"inputs":{"v":{"type":"temp","filename":"a","x":"q",
            "subfolder":"@b"},"w":[{"filename":"c"}]}}}}"#;
        assert_eq!(texts(body), ["temp", "a", "q", "@b", "<a|@b|temp>", "c", "<c||>"]);
    }

    #[test]
    fn the_last_of_two_prompts_counts() {
        let body =
            r#"{"prompt":{"1":{"inputs":{"a":"no"}}},"prompt":{"1":{"inputs":{"a":"yes"}}}}"#;
        assert_eq!(texts(body), ["yes"]);
    }

    #[test]
    fn what_is_not_replaced_stays_byte_for_byte() {
        let body = br#"{"prompt": {"1":{"inputs":{"seed": 1e999, "a" : "old", "b":"\u0041"}}}}"#;
        let mut edits = Vec::new();
        inputs(body, |found| {
            if let Found::Text(text) = found
                && text.text == "old"
            {
                edits.push((text.span, "n\"ew".to_owned()));
            }
        });
        let expected =
            br#"{"prompt": {"1":{"inputs":{"seed": 1e999, "a" : "n\"ew", "b":"\u0041"}}}}"#;
        assert_eq!(replace(body, edits), expected);
    }

    #[test]
    fn a_deep_prompt_takes_linear_time() {
        let deep = "[".repeat(2_000_000);
        assert!(texts(&format!(r#"{{"prompt":{{"1":{{"inputs":{{"a":{deep}"#)).is_empty());
        let closed = "]".repeat(2_000_000);
        let body = format!(r#"{{"prompt":{{"1":{{"inputs":{{"a":{deep}"x"{closed}}}}}}}}}"#);
        assert!(texts(&body).is_empty(), "deeper than Python reads");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            inputs(&bytes, |_| {});
        }

        #[test]
        fn mangled_prompts_never_panic(
            text in r#"(\{"prompt":)?(\{"1":)?(\{"inputs":)?[\[\]{}":,\\u0a]{0,60}"#,
        ) {
            let mut edits = Vec::new();
            inputs(text.as_bytes(), |found| if let Found::Text(text) = found {
                edits.push((text.span, String::new()));
            });
            replace(text.as_bytes(), edits);
        }
    }
}
