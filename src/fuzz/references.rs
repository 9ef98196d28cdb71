//! Files that a prompt names.

use serde_json::Value;

use super::bytes::{is_json, strict};
use crate::pool::files::fuzz::store;
use crate::pool::files::place::{Folder, Place};
use crate::pool::files::references::references as references_in;
use crate::pool::files::scan::{Found, inputs, replace};

/// The body of a prompt: the strings in its inputs, and those that name files.
pub fn references(data: &[u8]) {
    let mut found = Vec::new();
    inputs(data, |one| {
        if let Found::Text(text) = one {
            assert!(data.get(text.span.clone()).is_some_and(|raw| raw.starts_with(b"\"")));
            found.push(text);
        }
    });
    let same = found.iter().map(|text| (text.span.clone(), text.text.clone().into_owned()));
    let rewritten = replace(data, same.collect());
    if let Some(document) = strict(data) {
        assert_eq!(strict(&rewritten), Some(document.clone()), "the same strings, the same prompt");
        compare(&document);
    }
    let Some(store) = store() else { return };
    let Some(place) = Place::new(Folder::Input, "comfygate", "new.png") else { return };
    for reference in references_in(data, &store) {
        for edits in [reference.renamed(&place), reference.nobodys()] {
            if is_json(data) {
                assert!(is_json(&replace(data, edits)), "{reference:?}");
            }
        }
    }
}

/// A document in which no key stands twice: the strings are those that a parser finds.
fn compare(document: &Value) {
    let text = document.to_string();
    let mut found = Vec::new();
    inputs(text.as_bytes(), |one| {
        if let Found::Text(text) = one {
            found.push(text.text.into_owned());
        }
    });
    let mut expected = Vec::new();
    for node in document["prompt"].as_object().into_iter().flat_map(|nodes| nodes.values()) {
        strings(&node["inputs"], &mut expected);
    }
    assert_eq!(found, expected);
}

fn strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, into)),
        Value::Object(members) => members.values().for_each(|value| strings(value, into)),
        _ => {}
    }
}
