//! The body of a POST /prompt: what is read of it, and what backends and clients get.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::bytes::{alike, is_json, strict};
use crate::identity::ClientKey;
use crate::pool::job::{Job, JobId, Owner};
use crate::pool::submission::scan::{Json, Malformed, Scanner};
use crate::pool::submission::{
    Number, Parsed, Submission, accepted_id, parse, queue_item, render, reply, secrets_removed,
};

pub(super) const ID: &str = "cb0c2d14-b2dc-448b-9bd7-8975f8b25aea";
const SECRETS: [&str; 2] = ["auth_token_comfy_org", "api_key_comfy_org"];

/// Any text as the body, and as a backend's reply to it.
pub fn prompt(data: &[u8]) {
    scanned(data);
    if let Some(document) = strict(data) {
        spans(data, &document, 3);
    }
    let body = Bytes::copy_from_slice(data);
    let parsed = parse(data);
    if let Parsed::Job(submission) = &parsed {
        job(&body, submission);
    } else {
        let _ = render(&body, "sid", 7.5, ID);
    }
    let kept = secrets_removed(&body);
    assert_eq!(secrets_removed(&kept), kept, "nothing is left to remove");
    if let Some(document) = strict(&kept) {
        assert!(SECRETS.iter().all(|key| document["extra_data"].get(key).is_none()));
    }
    let told = reply(data, ID, Number::Counted(5));
    if std::str::from_utf8(data).is_ok() {
        assert!(is_json(&told), "a reply is JSON");
    }
    assert_eq!(accepted_id(&told).as_deref(), Some(ID));
}

/// The scanner and another one agree on what is JSON.
fn scanned(data: &[u8]) {
    let mut scanner = Scanner::new(data);
    let ours = scanner.value(&mut ()).and_then(|_| scanner.end());
    let theirs = serde_json::from_slice::<IgnoredAny>(data).is_ok();
    let has = |word: &[u8]| data.windows(word.len()).any(|window| window == word);
    match ours {
        Ok(()) => assert!(theirs || has(b"NaN") || has(b"Infinity"), "Python's words alone differ"),
        Err(Malformed::Nesting) => {}
        // Python refuses whole numbers of more digits.
        Err(Malformed::Syntax) => assert!(!theirs || data.len() > 4300),
    }
}

/// Where the scanner finds a part, the parser reads the same.
fn spans(text: &[u8], document: &Value, levels: usize) {
    let Some(json) = Json::of(text) else { return };
    let same = |part: Option<Json<'_>>, value: &Value| {
        let part = part.expect("it is there");
        assert_eq!(strict(part.0).as_ref(), Some(value), "{:?}", String::from_utf8_lossy(part.0));
        if levels > 0 {
            spans(part.0, value, levels - 1);
        }
    };
    match document {
        Value::Object(members) if members.len() < 20 => {
            members.iter().for_each(|(key, value)| same(json.get(key), value));
        }
        Value::Array(items) if items.len() < 20 => {
            items.iter().enumerate().for_each(|(at, value)| same(json.item(at), value));
        }
        Value::String(said) => assert_eq!(json.text().as_deref(), Some(&**said)),
        Value::Number(number) => {
            let near = json.number().zip(number.as_f64());
            assert!(near.is_some_and(|(a, b)| alike(&json!(a), &json!(b)) || a.is_infinite()));
        }
        _ => {}
    }
}

/// A body that can be queued.
fn job(body: &Bytes, submission: &Submission) {
    let sent = submission.render(body, "sid", 7.5, ID);
    assert_eq!(render(body, "sid", 7.5, ID), sent);
    assert!(is_json(&sent), "a backend gets JSON");
    let Parsed::Job(again) = parse(&sent) else { unreachable!("what is sent can be queued") };
    assert_eq!(again.prompt_id.as_deref(), Some(ID));
    assert_eq!((again.client_id.as_deref(), again.number), (Some("sid"), Some(7.5)));
    assert_eq!((&again.needs, &again.kind), (&submission.needs, &submission.kind));
    assert_eq!(again.wishes, submission.wishes);
    let item = queue_item(&job_of(body.clone(), submission), b"", &|class| class.contains("Save"));
    assert!(is_json(&item));
    let item = Json::of(&item).expect("a list");
    assert_eq!(item.item(1).and_then(Json::text).as_deref(), Some(ID));
    let extra_data = item.item(3).expect("its extra data");
    assert!(SECRETS.iter().all(|key| extra_data.get(key).is_none()), "secrets are not shown");
    if let (Some(theirs), Some(ours)) = (strict(body), strict(&sent)) {
        read_alike(&theirs, submission);
        rendered(theirs, &ours);
    }
}

fn read_alike(theirs: &Value, submission: &Submission) {
    assert_eq!(submission.prompt_id.as_deref(), theirs["prompt_id"].as_str());
    if let Some(number) = theirs["number"].as_f64().filter(|number| number.is_finite()) {
        let read = submission.number.expect("a number");
        assert!(alike(&json!(read), &json!(number)) || number.abs() >= 1e308);
    }
    let classes = theirs["prompt"].as_object().map(|nodes| {
        nodes.values().filter_map(|node| node["class_type"].as_str()).collect::<Vec<_>>()
    });
    let short = |name: &&str| name.len() <= 256;
    let nodes = &submission.needs.nodes;
    let classes = classes.unwrap_or_default();
    assert!(nodes.len() > 4000 || classes.iter().filter(|c| short(c)).all(|c| nodes.contains(*c)));
}

/// What is sent differs where it must and nowhere else.
fn rendered(mut theirs: Value, ours: &Value) {
    let Some(members) = theirs.as_object_mut() else { return };
    members.shift_remove("front");
    members.insert("client_id".into(), json!("sid"));
    members.insert("prompt_id".into(), json!(ID));
    members.insert("number".into(), json!(7.5));
    if let Some(id) = members.get_mut("extra_data").and_then(|extra| extra.get_mut("client_id")) {
        *id = json!("sid");
    }
    let mut ours = ours.clone();
    // Of a `front` that stands twice one may stay: the number goes before it.
    ours.as_object_mut().map(|members| members.shift_remove("front"));
    assert_eq!(ours, theirs);
}

pub(super) fn job_of(body: Bytes, submission: &Submission) -> Job {
    Job {
        id: JobId(1),
        prompt_id: ID.into(),
        owner: Owner {
            key: ClientKey::of_address([127, 0, 0, 1].into()),
            caller: "me".into(),
            client_id: submission.client_id.clone(),
        },
        number: submission.number.unwrap_or(3.0),
        priority: submission.wishes.priority,
        needs: Arc::new(submission.needs.clone()),
        kind: submission.kind.clone(),
        zone: None,
        once: submission.wishes.once,
        created_ms: 1_795_193_886_109,
        body,
    }
}
