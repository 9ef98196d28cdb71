//! What becomes of bodies, each rule by its name.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::backend::BackendId;
use crate::identity::ClientKey;
use crate::pool::job::{Job, JobId, Owner};

const ID: &str = "cb0c2d14-b2dc-448b-9bd7-8975f8b25aea";
const OTHER: &str = "8ece8653-7f59-41ff-8b24-7342db00141f";

fn submission(body: &str) -> Submission {
    match parse(body.as_bytes()) {
        Parsed::Job(submission) => *submission,
        other => panic!("{body}: {other:?}"),
    }
}

fn refused(body: &str) -> Rejection {
    match parse(body.as_bytes()) {
        Parsed::Refused(refused) => refused,
        other => panic!("{body}: {other:?}"),
    }
}

pub(super) fn value(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

pub(super) fn job(body: &str, number: f64) -> Job {
    let submission = submission(body);
    Job {
        id: JobId(1),
        prompt_id: ID.into(),
        owner: Owner {
            key: ClientKey::of_address([127, 0, 0, 1].into()),
            caller: "me".into(),
            client_id: submission.client_id.clone(),
        },
        number,
        priority: 0,
        needs: Arc::new(submission.needs),
        kind: submission.kind,
        zone: None,
        once: submission.wishes.once,
        created_ms: 1_795_193_886_109,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

pub(super) fn is_output(class_type: &str) -> bool {
    class_type == "SaveImage"
}

#[test]
fn what_every_server_refuses_is_left_to_it() {
    for body in [
        "",
        "{",
        "[]",
        "\"prompt\"",
        "null",
        "{}",
        r#"{"prompt": []}"#,
        r#"{"prompt": null}"#,
        r#"{"prompt": {}, "extra_data": null}"#,
        r#"{"prompt": {}} x"#,
        r#"{"prompt": {},}"#,
        r#"{"prompt": {}, "number": 01}"#,
        "{\"prompt\": {}, \"a\": \"\n\"}",
    ] {
        assert_eq!(parse(body.as_bytes()), Parsed::Hopeless, "{body}");
    }
    assert_eq!(parse(b"{\"prompt\": {}, \"client_id\": \"\xff\"}"), Parsed::Hopeless);
}

#[test]
fn a_prompt_id_must_be_a_canonical_uuid() {
    for body in [r#"{"prompt": {}}"#, r#"{"prompt": {}, "prompt_id": null}"#] {
        assert_eq!(submission(body).prompt_id, None, "{body}");
    }
    let given = format!(r#"{{"prompt": {{}}, "prompt_id": "\u0063{}"}}"#, &ID[1..]);
    assert_eq!(submission(&given).prompt_id.as_deref(), Some(ID));
    let upper = ID.to_uppercase();
    let plain = ID.replace('-', "");
    for id in ["\"\"", "5", "[]", "\"x\"", &format!("\"{upper}\""), &format!("\"{plain}\"")] {
        let refused = refused(&format!(r#"{{"prompt": {{}}, "prompt_id": {id}}}"#));
        assert_eq!(refused.kind, rejection::Kind::InvalidPromptId, "{id}");
    }
}

#[test]
fn a_number_must_be_finite() {
    for number in ["NaN", "Infinity", "1e999", "null", "{}", "\"soon\""] {
        let refused = refused(&format!(r#"{{"prompt": {{}}, "number": {number}}}"#));
        assert_eq!(refused.kind, rejection::Kind::InvalidValue, "{number}");
        assert!(refused.message.contains("number"), "{number}");
    }
    assert_eq!(submission(r#"{"prompt": {}, "number": "-2"}"#).number, Some(-2.0));
}

#[test]
fn the_client_id_is_taken_as_comfyui_takes_it() {
    for (rest, expected) in [
        ("", None),
        (r#", "client_id": null"#, None),
        (r#", "client_id": "A\u00fc""#, Some("Aü")),
        (r#", "client_id": ["a", 1]"#, Some(r#"["a", 1]"#)),
        (r#", "extra_data": {"client_id": "inner"}"#, Some("inner")),
        (r#", "extra_data": {"client_id": "inner"}, "client_id": null"#, None),
    ] {
        let body = format!(r#"{{"prompt": {{}}{rest}}}"#);
        assert_eq!(submission(&body).client_id.as_deref(), expected, "{body}");
    }
    let long = format!(r#"{{"prompt": {{}}, "client_id": "{}"}}"#, "ü".repeat(9_000));
    assert!(submission(&long).client_id.unwrap().len() <= MAX_CLIENT_ID);
}

#[test]
fn front_is_what_python_calls_true() {
    for (front, expected) in [
        ("true", true),
        ("1", true),
        ("\"false\"", true),
        ("[0]", true),
        ("NaN", true),
        ("false", false),
        ("0.0", false),
        ("null", false),
        ("\"\"", false),
        ("[ ]", false),
        ("{}", false),
    ] {
        let body = format!(r#"{{"prompt": {{}}, "front": {front}}}"#);
        assert_eq!(submission(&body).front, expected, "{front}");
    }
}

#[test]
fn numbers_count_on_with_every_prompt_that_brings_none() {
    let counter = Counter::default();
    let number = |rest: &str| {
        submission(&format!(r#"{{"prompt": {{}}{rest}}}"#)).number(&counter).to_string()
    };
    assert_eq!(number(""), "0");
    assert_eq!(number(r#", "number": 7"#), "7.0");
    assert_eq!(number(r#", "front": true"#), "-1");
    assert_eq!(number(r#", "front": true, "number": -5.5"#), "-5.5");
    assert_eq!(number(""), "2");
}

#[test]
fn wishes_and_needs_are_read_on_the_way() {
    let submission = submission(
        r#"{"extra_data": {"comfygate": {"retry": "never", "priority": 3, "task_type": "video"}},
            "prompt": {"1": {"class_type": "A", "inputs": {"m": "a.sft", "x": NaN}}}}"#,
    );
    assert_eq!((submission.wishes.once, submission.wishes.priority), (true, 3));
    assert_eq!(submission.needs.task_type.as_deref(), Some("video"));
    assert_eq!(submission.needs.nodes, ["A".into()].into());
    assert_eq!(submission.needs.models, ["a.sft".into()].into());
    assert_eq!(submission.needs.only_on, None::<BackendId>);
    assert!(submission.kind.is_some());
    let refused = refused(r#"{"prompt": {}, "extra_data": {"comfygate": {"retry": 1}}}"#);
    assert_eq!(refused.kind, rejection::Kind::InvalidValue);
}

#[test]
fn a_prompt_of_ten_thousand_nodes_and_a_long_text_is_read() {
    let text = "a \\n cat ".repeat(100_000);
    let nodes: Vec<String> = (0..10_000)
        .map(|n| format!(r#""{n}": {{"class_type": "T{}", "inputs": {{"x": ["{n}", 0]}}}}"#, n % 7))
        .collect();
    let body = format!(
        r#"{{"prompt": {{"t": {{"class_type": "T", "inputs": {{"text": "{text}"}}}}, {}}}}}"#,
        nodes.join(",")
    );
    let submission = submission(&body);
    assert_eq!(submission.needs.nodes.len(), 8);
    assert!(submission.kind.unwrap().label.starts_with("10001 nodes"));
    assert!(render(&Bytes::from(body.clone()), "s", 1.0, ID).len() > body.len());
}

#[test]
fn too_deep_a_body_is_refused_before_it_can_harm_a_reader() {
    let body = |levels| {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        format!(r#"{{"prompt": {{"1": {{"class_type": "A", "inputs": {open}1{close}}}}}}}"#)
    };
    assert_eq!(refused(&body(layout::LEVELS + 1)).kind, rejection::Kind::BadRequest);
    let item = queue_item(&job(&body(layout::LEVELS), 0.0), b"", &is_output);
    let queue = format!(
        r#"{{"queue_running": [{}], "queue_pending": []}}"#,
        String::from_utf8_lossy(&item)
    );
    let mut counter = crate::comfy::queue_count::QueueCount::default();
    assert_eq!(counter.feed(queue.as_bytes()), Ok(()));
    assert!(scan::Json::of(queue.as_bytes()).is_some());
}

#[test]
fn a_backend_gets_the_same_text_under_the_gateways_ids() {
    let body = br#" { "front" : true , "number":5,"prompt": { "1" : NaN },
        "extra_data": {"client_id" : "A", "comfygate": {}}, "client_id":"A"}"#;
    let Parsed::Job(submission) = parse(body) else { panic!("no job") };
    let rendered = submission.render(body, "s\"1", -2.5, ID);
    let expected = format!(
        r#" {{"prompt_id": "{ID}",   "number":-2.5,"prompt": {{ "1" : NaN }},
        "extra_data": {{"client_id" : "s\"1", "comfygate": {{}}}}, "client_id":"s\"1"}}"#
    );
    assert_eq!(String::from_utf8_lossy(&rendered), expected);
    assert_eq!(render(&Bytes::from_static(body), "s\"1", -2.5, ID), rendered);
}

#[test]
fn front_goes_from_every_place() {
    for body in [
        r#"{"front":1,"prompt":{}}"#,
        r#"{"prompt":{},"front":1}"#,
        r#"{"prompt":{} , "front":1 , "x":2}"#,
        r#"{"number":1,"front":1}"#,
    ] {
        let rendered = value(&render(&Bytes::from(body), "s", LAST, ID));
        assert_eq!(rendered.get("front"), None, "{body}");
        assert_eq!(rendered["number"], json!(LAST), "{body}");
    }
}

#[test]
fn the_clients_reply_is_the_backends_with_the_clients_ids() {
    let theirs = format!(
        r#"{{"prompt_id": "{OTHER}", "number": 1.7976931348623157e+308, "node_errors": {{"3": {{}}}}, "more": [NaN]}}"#
    );
    let ours = reply(theirs.as_bytes(), ID, Number::Counted(4));
    let expected = format!(
        r#"{{"prompt_id": "{ID}", "number": 4, "node_errors": {{"3": {{}}}}, "more": [NaN]}}"#
    );
    assert_eq!(ours, expected);
    assert!(reply(b"{}", ID, Number::Given(4.0)).ends_with(b"\"number\": 4.0}"));
    let fresh = json!({"node_errors": {}, "prompt_id": ID, "number": 0});
    assert_eq!(value(&reply(b"<html>", ID, Number::Counted(0))), fresh);
    assert_eq!(remote_id(theirs.as_bytes(), ID).as_deref(), Some(OTHER));
    assert_eq!(remote_id(theirs.as_bytes(), OTHER), None);
    assert_eq!(remote_id(b"[]", OTHER), None);
}

#[test]
fn equal_bodies_have_equal_fingerprints() {
    assert_eq!(fingerprint(b"{}"), fingerprint(b"{}"));
    assert_ne!(fingerprint(b"{}"), fingerprint(b"{ }"));
}

#[test]
fn secrets_go_and_nothing_else() {
    let body = Bytes::from(
        r#"{"extra_data": {"api_key_comfy_org": "k0"}, "prompt": {"1": {"api_key_comfy_org": "no secret"}},
        "extra_data": {"auth_token_comfy_org": "k1", "a": [NaN], "\u0061pi_key_comfy_org" : "k2"}}"#,
    );
    let kept = secrets_removed(&body);
    let text = String::from_utf8_lossy(&kept);
    assert!(!text.contains("k0") && !text.contains("k1") && !text.contains("k2"), "{text}");
    assert!(text.contains(r#""a": [NaN]"#) && text.contains("no secret"), "{text}");
    let clean = Bytes::from_static(br#"{"extra_data" : {} , "prompt":{}}"#);
    assert_eq!(secrets_removed(&clean), clean);
}

#[test]
fn a_queued_job_is_listed_as_comfyui_lists_it() {
    let job = job(
        r#"{"client_id": "A", "prompt": {"1": {"class_type":"P"}, "2": {"class_type": "SaveImage"}},
            "extra_data": {"api_key_comfy_org": "secret", "client_id": "old", "z": NaN}}"#,
        3.0,
    );
    let item = queue_item(&job, b"{}", &is_output);
    let expected = format!(
        r#"[3, "{ID}", {{"1": {{"class_type":"P"}}, "2": {{"class_type": "SaveImage"}}}}, {{"client_id": "A", "z": NaN, "create_time": 1795193886109}}, ["2"]]"#
    );
    assert_eq!(item, expected);
}

#[test]
fn only_the_wanted_and_valid_outputs_are_listed() {
    let nodes = r#""1": {"class_type": "SaveImage"}, "2": {"class_type": "SaveImage"}, "3": {"class_type": "SaveImage"}"#;
    let partly = job(
        &format!(
            r#"{{"prompt": {{{nodes}}}, "partial_execution_targets": ["1", "3", "9"], "number": 3}}"#
        ),
        3.0,
    );
    let reply = br#"{"node_errors": {"3": {"dependent_outputs": ["3"]}}}"#;
    let item = value(&queue_item(&partly, reply, &is_output));
    assert_eq!((&item[4], &item[0]), (&json!(["1"]), &json!(3.0)));
    assert_eq!(item[3], json!({"create_time": 1_795_193_886_109_u64}));
    let all = job(&format!(r#"{{"prompt": {{{nodes}}}}}"#), 3.0);
    assert_eq!(value(&queue_item(&all, b"", &is_output))[4], json!(["1", "2", "3"]));
}

pub(super) fn adoption<'a>(job: &'a Job, mark: &'a dyn Fn(&mut Value)) -> Adoption<'a> {
    let is_output = &is_output;
    Adoption { job, reply: b"{}", remote_id: OTHER, is_output, rewritten: false, mark }
}

/// Marks as the files of the farm are marked.
fn mark(value: &mut Value) {
    if value.get("filename").is_some() {
        value["subfolder"] = json!("mark");
    }
}

pub(super) fn their_entry() -> String {
    json!({
        "prompt": [1e300, OTHER, {"1": {"class_type": "SaveImage", "inputs": {"n": 5.0}}},
            {"client_id": "gateway", "create_time": 1, "api_key_comfy_org": "x"}, ["1"]],
        "outputs": {"1": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}],
            "text": ["filename"], "animated": [true]}},
        "status": {"status_str": "success", "completed": true, "messages": [
            ["execution_start", {"prompt_id": OTHER, "timestamp": 1000}],
            ["execution_success", {"prompt_id": OTHER, "timestamp": 2500}]]},
        "meta": {"1": {"node_id": "1"}}, "later": 1,
    })
    .to_string()
}

#[test]
fn a_history_entry_becomes_the_clients_own() {
    let job = job(
        r#"{"prompt": {"1": {"class_type": "SaveImage", "inputs": {"n": 5}}}, "client_id": "A"}"#,
        7.0,
    );
    let entry = value(&adopt(their_entry().as_bytes(), &adoption(&job, &mark)).unwrap());
    let (prompt, extra) = (
        &entry["prompt"][2]["1"]["inputs"],
        json!({"client_id": "A", "create_time": job.created_ms}),
    );
    assert_eq!((&entry["prompt"][0], &entry["prompt"][1]), (&json!(7), &json!(ID)));
    assert_eq!((prompt, &entry["prompt"][3]), (&json!({"n": 5.0}), &extra));
    assert_eq!(entry["prompt"][4], json!(["1"]));
    assert_eq!(entry["outputs"]["1"]["images"][0]["subfolder"], "mark");
    assert_eq!(entry["outputs"]["1"]["animated"], json!([true]));
    assert_eq!(entry["status"]["messages"][1][1], json!({"prompt_id": ID, "timestamp": 2500}));
    assert_eq!((&entry["later"], entry.to_string().contains(OTHER)), (&json!(1), false));
    let rewritten = Adoption { rewritten: true, ..adoption(&job, &mark) };
    let entry = value(&adopt(their_entry().as_bytes(), &rewritten).unwrap());
    assert_eq!(entry["prompt"][2]["1"]["inputs"], json!({"n": 5}));
}

#[test]
fn what_is_no_file_stays_as_it_was_written() {
    let job = job(r#"{"prompt": {}}"#, 0.0);
    let theirs =
        r#"{"outputs": {"1": {"x": [NaN, {"filename" : "f", "deep": {"filename": "g"}}]}}}"#;
    let entry = adopt(theirs.as_bytes(), &adoption(&job, &mark)).unwrap();
    let text = String::from_utf8_lossy(&entry);
    assert!(text.starts_with(r#"{"outputs": {"1": {"x": [NaN, {"filename":"f","#), "{text}");
    assert!(text.contains(r#""prompt": [0, "#), "{text}");
    let unmarked = adopt(theirs.as_bytes(), &adoption(&job, &|_| ())).unwrap();
    assert!(unmarked.starts_with(&theirs.as_bytes()[..theirs.len() - 1]));
    for odd in ["", "[]", "3", "{"] {
        assert_eq!(adopt(odd.as_bytes(), &adoption(&job, &mark)), None, "{odd}");
    }
}

#[test]
fn a_job_that_no_server_knows_the_end_of_has_an_entry_too() {
    let job = job(r#"{"prompt": {}}"#, 0.0);
    let entry = failed_entry(&job, b"", &is_output, "three servers \"died\"", 5);
    let ending = Ending::of(&entry);
    assert!(matches!(ending.outcome, crate::pool::core::Outcome::Failed { error }
        if error == ": three servers \"died\""));
    assert_eq!(value(&entry)["prompt"][1], ID);
}

/// A body's other members, which must come through untouched.
fn others() -> impl Strategy<Value = BTreeMap<String, Value>> {
    let leaf = prop_oneof![any::<i64>().prop_map(Value::from), ".{0,6}".prop_map(Value::from)];
    let value = leaf.prop_recursive(3, 12, 3, |inner| {
        prop::collection::btree_map(".{0,4}", inner, 0..3)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    });
    prop::collection::btree_map("x.{0,5}", value, 0..4)
}

proptest! {
    #[test]
    fn what_is_rendered_differs_only_where_it_must(
        mut members in others(), order in any::<u64>(), pretty in any::<bool>(),
        sid in ".{0,9}", eighths in any::<i32>(), inner in any::<bool>(),
    ) {
        // Where the other parser rounds as well.
        let number = f64::from(eighths) / 8.0;
        let extra = if inner { json!({"client_id": "A", "k": 1}) } else { json!({"k": [1]}) };
        let known = [("prompt", json!({"1": {"class_type": "A"}})), ("front", json!(true)),
            ("client_id", json!("A")), ("prompt_id", json!(OTHER)), ("number", json!(4)), ("extra_data", extra)];
        for (at, (name, value)) in known.into_iter().enumerate() {
            if at == 0 || order & (1 << at) != 0 {
                members.insert(name.to_owned(), value);
            }
        }
        let mut list: Vec<_> = members.into_iter().collect();
        let turn = (order >> 8) as usize % list.len();
        list.rotate_left(turn);
        let body = Value::Object(list.into_iter().collect::<Map<_, _>>());
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) };
        let text = text.unwrap();
        let mut expected = body;
        let object = expected.as_object_mut().unwrap();
        object.shift_remove("front");
        object.insert("client_id".into(), json!(sid));
        object.insert("prompt_id".into(), json!(ID));
        object.insert("number".into(), json!(number));
        if let Some(id) = object.get_mut("extra_data").and_then(|extra| extra.get_mut("client_id")) {
            *id = json!(sid);
        }
        let rendered = submission(&text).render(text.as_bytes(), &sid, number, ID);
        prop_assert_eq!(value(&rendered), expected);
        prop_assert_eq!(render(&Bytes::from(text), &sid, number, ID), rendered);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let body = Bytes::from(bytes);
        let _ = render(&body, "s", 1.0, ID);
        let _ = secrets_removed(&body);
        let _ = reply(&body, ID, Number::Counted(1));
        let mut job = job(r#"{"prompt": {}}"#, 0.0);
        let _ = adopt(&body, &adoption(&job, &mark));
        let _ = jobs::Summary::of(&job).ended(&body);
        job.body = body;
        let _ = queue_item(&job, b"", &is_output);
        let _ = jobs::Summary::of(&job);
    }

    #[test]
    fn bodies_of_odd_shapes_never_panic(
        text in r#"(\{|\}|\[|\]|,|:|1|"prompt"|"extra_data"|"client_id"|"front"|"filename"|NaN){0,24}"#,
    ) {
        let body = Bytes::from(text);
        let _ = parse(&body);
        let _ = render(&body, "s", 1.0, ID);
        let _ = secrets_removed(&body);
        let job = job(r#"{"prompt": {}}"#, 0.0);
        let _ = adopt(&body, &adoption(&job, &mark));
    }

    #[test]
    fn whatever_can_be_queued_can_be_rendered_and_listed(
        text in r#"\{"prompt": ?\{("1": ?\{("class_type": ?"A")?\})?\}(, ?"(front|client_id|number|prompt_id|extra_data)": ?(1|\{("client_id": ?1)?\}|"2"))*\}"#,
    ) {
        if let Parsed::Job(submission) = parse(text.as_bytes()) {
            let rendered = value(&submission.render(text.as_bytes(), "s", 1.0, ID));
            prop_assert_eq!(&rendered["client_id"], "s");
            prop_assert!(rendered["extra_data"]["client_id"].is_null() || rendered["extra_data"]["client_id"] == "s");
            let item = value(&queue_item(&job(&text, 1.0), b"", &is_output));
            prop_assert_eq!(&item[1], ID);
        }
    }
}
