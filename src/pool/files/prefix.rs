//! The reserved prefix: outputs of backend NAME appear under the subfolder `@NAME`.
//!
//! Two backends both write `ComfyUI_00001_.png`. [`mark`] puts the name of the one that wrote a
//! file into every object that names one; [`split`] and [`in_query`] take it off again.
//!
//! Pure. Only objects whose three fields are strings are touched, and files of type `input` never:
//! a client's own subfolder may begin with `@`.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use crate::comfy::paths::split_annotation;

/// What the reserved subfolders begin with.
pub const PREFIX: char = '@';
/// Bytes of a backend's name at most.
const MAX_NAME: usize = 64;

/// A subfolder as clients see it.
pub fn join(backend: &str, subfolder: &str) -> String {
    match subfolder {
        "" => format!("{PREFIX}{backend}"),
        subfolder => format!("{PREFIX}{backend}/{subfolder}"),
    }
}

/// The backend's name and its own subfolder, when there is a prefix.
pub fn split(subfolder: &str) -> Option<(&str, &str)> {
    let marked = subfolder.strip_prefix(PREFIX)?;
    let (name, rest) = marked.split_once('/').unwrap_or((marked, ""));
    let fits = (1..=MAX_NAME).contains(&name.len());
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    (fits && is_name).then(|| (name, rest.trim_start_matches('/')))
}

/// Puts the prefix into every object of the form `{filename, subfolder, type}` with type `output`
/// or `temp`, anywhere in a value. Call it once per value: a prefix that is there gets another.
pub fn mark(value: &mut Value, backend: &str) {
    let mut left = vec![value];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(items) => left.extend(items),
            Value::Object(object) => {
                mark_object(object, backend);
                left.extend(object.values_mut());
            }
            _ => {}
        }
    }
}

/// Marks what a history entry, or an item of `/api/jobs`, says of files, and leaves alone the
/// prompt that it carries: that is its client's text.
pub fn mark_entry(entry: &mut Value, backend: &str) {
    for part in ["outputs", "meta", "preview_output"] {
        if let Some(part) = entry.get_mut(part) {
            mark(part, backend);
        }
    }
}

fn mark_object(object: &mut Map<String, Value>, backend: &str) {
    let is_text = |name| object.get(name).is_some_and(Value::is_string);
    let made = matches!(object.get("type").and_then(Value::as_str), Some("output" | "temp"));
    if !made || !is_text("filename") {
        return;
    }
    if let Some(Value::String(subfolder)) = object.get_mut("subfolder") {
        *subfolder = join(backend, subfolder);
    }
}

/// The backend that a request's query names by a `subfolder` or `filename` with the prefix, and
/// the target with the prefix taken off; every other byte of it stays as it was.
pub fn in_query(target: &str) -> Option<(String, String)> {
    let (_, query) = target.split_once('?')?;
    // ` [output]` behind a file's name beats the type.
    let name = value(query, "filename").unwrap_or_default();
    let folder = split_annotation(&name).1.map(Cow::Borrowed).or_else(|| value(query, "type"));
    if folder.as_deref() == Some("input") {
        return None;
    }
    ["subfolder", "filename"].into_iter().find_map(|name| unmarked(target, query, name))
}

fn unmarked(target: &str, query: &str, name: &str) -> Option<(String, String)> {
    let raw = raw_value(query, name)?;
    let text = decoded(raw);
    let (backend, rest) = split(&text)?;
    if name == "filename" && rest.is_empty() {
        return None;
    }
    let cut = raw_length(raw, text.len() - rest.len())?;
    let start = raw.as_ptr() as usize - target.as_ptr() as usize;
    let changed = [&target[..start], &target[start + cut..]].concat();
    Some((backend.to_owned(), changed))
}

fn value<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    raw_value(query, name).map(decoded)
}

/// The first value of a name, as it stands in the query.
fn raw_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then_some(value)
    })
}

fn decoded(raw: &str) -> Cow<'_, str> {
    if raw.contains('+') {
        let spaced = raw.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(raw).decode_utf8_lossy()
}

/// How many bytes of the raw text make `length` decoded ones. The prefix is ASCII.
fn raw_length(raw: &str, length: usize) -> Option<usize> {
    let mut at = 0;
    for _ in 0..length {
        let is_escape = raw.as_bytes().get(at) == Some(&b'%');
        at += if is_escape { 3 } else { 1 };
    }
    raw.is_char_boundary(at).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn made_files_are_marked_wherever_they_are_and_inputs_are_not() {
        let mut value = json!({
            "9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"},
                {"filename": "b.png", "subfolder": "x", "type": "input"}],
                "gifs": [{"filename": "v.mp4", "subfolder": "old", "type": "temp",
                    "fullpath": "/out/old/v.mp4", "format": "video/h264-mp4"}]},
            "text": ["output"], "odd": {"filename": 3, "subfolder": "", "type": "output"},
        });
        mark(&mut value, "gpu-1");
        assert_eq!(value["9"]["images"][0]["subfolder"], "@gpu-1");
        assert_eq!(value["9"]["images"][1]["subfolder"], "x");
        assert_eq!(value["9"]["gifs"][0]["subfolder"], "@gpu-1/old");
        assert_eq!(value["9"]["gifs"][0]["fullpath"], "/out/old/v.mp4");
        assert_eq!(value["odd"]["subfolder"], "");
    }

    #[test]
    fn an_entrys_prompt_stays_its_clients() {
        let file = json!({"filename": "a", "subfolder": "", "type": "output"});
        let mut entry = json!({"prompt": [0, "id", {"1": {"inputs": {"f": file}}}],
            "outputs": {"9": {"images": [file]}}, "preview_output": file});
        mark_entry(&mut entry, "b");
        assert_eq!(entry["prompt"][2]["1"]["inputs"]["f"]["subfolder"], "");
        assert_eq!(entry["outputs"]["9"]["images"][0]["subfolder"], "@b");
        assert_eq!(entry["preview_output"]["subfolder"], "@b");
    }

    #[test]
    fn subfolders_are_split_where_a_name_can_end() {
        assert_eq!(split("@a"), Some(("a", "")));
        assert_eq!(split("@a/x/y"), Some(("a", "x/y")));
        assert_eq!(split("@a//x"), Some(("a", "x")));
        for other in ["", "a", "@", "@/x", "@a b/x", "x/@a"] {
            assert_eq!(split(other), None, "{other}");
        }
    }

    #[test]
    fn a_query_loses_the_prefix_and_nothing_else() {
        for (target, backend, changed) in [
            (
                "/view?filename=a.png&subfolder=@b&type=output",
                "b",
                "/view?filename=a.png&subfolder=&type=output",
            ),
            ("/api/view?subfolder=%40b%2Fx%20y&q=%41", "b", "/api/view?subfolder=x%20y&q=%41"),
            (
                "/vhs/viewvideo?sub%66older=%40%62/x+y&f=1",
                "b",
                "/vhs/viewvideo?sub%66older=x+y&f=1",
            ),
            ("/view?filename=@b/x.png&subfolder=", "b", "/view?filename=x.png&subfolder="),
            ("/view?filename=%40b%2fx/y.png+[temp]", "b", "/view?filename=x/y.png+[temp]"),
            (
                "/view?filename=y.png+[output]&type=input&subfolder=@b",
                "b",
                "/view?filename=y.png+[output]&type=input&subfolder=",
            ),
        ] {
            assert_eq!(
                in_query(target),
                Some((backend.to_owned(), changed.to_owned())),
                "{target}"
            );
        }
    }

    #[test]
    fn a_query_without_the_prefix_is_nobodys() {
        for target in [
            "/view",
            "/view?",
            "/view?filename=@b",
            "/view?filename=a.png&subfolder=x&type=output",
            "/view?filename=a.png&subfolder=@b&type=input",
            "/view?filename=@b/a.png+[input]",
            "/view?filename=a.png+[input]&type=output&subfolder=@b",
            "/view?filename=a&subfolder=%2540b",
            "/view?filename=a&subfolder=x&subfolder=@b",
        ] {
            assert_eq!(in_query(target), None, "{target}");
        }
    }

    proptest! {
        #[test]
        fn what_is_joined_is_split(name in "[A-Za-z0-9._-]{1,64}", sub in "([a-z ü@]{1,5}/){0,3}[a-z@]{0,5}") {
            let joined = join(&name, &sub);
            prop_assert_eq!(split(&joined), Some((name.as_str(), sub.as_str())));
        }

        #[test]
        fn any_target_is_read_without_a_panic(target in "(/[a-z]{0,3})?[?]?(&?(subfolder|filename|type|sub%66older)=[@%0-9a-f/+&=ü]{0,12}){0,4}") {
            if let Some((backend, changed)) = in_query(&target) {
                prop_assert!(changed.len() < target.len());
                prop_assert!(split(&join(&backend, "")).is_some());
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(target in ".{0,60}") {
            let _ = in_query(&target);
        }

        #[test]
        fn a_percent_encoded_prefix_is_found_and_the_rest_stays(
            name in "[A-Za-z0-9._-]{1,20}",
            rest in "[a-z%]{0,8}",
            escape in prop::collection::vec(any::<bool>(), 22),
            before in "[a-e=]{0,6}",
            after in "(&[a-e=+%]{0,6})?",
        ) {
            let prefix: String = format!("@{name}/").bytes().enumerate().map(|(i, b)| {
                if escape[i] { format!("%{b:02x}") } else { char::from(b).to_string() }
            }).collect();
            let target = format!("/view?{before}&subfolder={prefix}x{rest}{after}");
            let expected = format!("/view?{before}&subfolder=x{rest}{after}");
            prop_assert_eq!(in_query(&target), Some((name, expected)));
        }
    }
}
