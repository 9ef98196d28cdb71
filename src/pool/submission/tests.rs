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

fn value(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

fn job(body: &str, number: f64) -> Job {
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

fn is_output(class_type: &str) -> bool {
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
fn too_deep_a_body_is_refused() {
    let body = format!(r#"{{"prompt": {}}}"#, "[".repeat(scan::MAX_NESTING + 1));
    assert_eq!(refused(&body).kind, rejection::Kind::BadRequest);
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

fn adoption<'a>(job: &'a Job, mark: &'a dyn Fn(&mut Value)) -> Adoption<'a> {
    let is_output = &is_output;
    Adoption { job, reply: b"{}", remote_id: OTHER, is_output, rewritten: false, mark }
}

/// Marks as the files of the farm are marked.
fn mark(value: &mut Value) {
    if value.get("filename").is_some() {
        value["subfolder"] = json!("mark");
    }
}

fn their_entry() -> String {
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

mod jobs_listing {
    use super::super::jobs::*;
    use super::*;

    fn ended(id: &str, created: u64, entry: &Value) -> Summary {
        let mut job = job(r#"{"prompt": {}}"#, 1.0);
        job.prompt_id = id.into();
        job.created_ms = created;
        Summary::of(&job).ended(entry.to_string().as_bytes())
    }

    fn read(query: &str, summaries: &[Summary]) -> Value {
        let rows = summaries.iter().map(|summary| Row { summary, running: false });
        value(&list(&Query::read(query).unwrap(), rows))
    }

    fn ids(reply: &Value) -> Vec<&str> {
        reply["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect()
    }

    fn recorded() -> Value {
        json!({
            "outputs": {"2": {"images": [{"filename": "t.png", "subfolder": "", "type": "temp"},
                {"filename": "rec.png", "subfolder": "", "type": "output"}]}},
            "status": {"status_str": "success", "messages": [
                ["execution_start", {"timestamp": 1_795_193_886_109_u64}],
                ["execution_success", {"timestamp": 1_795_193_886_619_u64}]]},
        })
    }

    #[test]
    fn an_ended_job_shows_as_recorded() {
        let summary = ended("a", 1_795_193_886_109, &recorded());
        let expected = r#"{"jobs": [{"id": "a", "status": "completed", "priority": 1, "create_time": 1795193886109, "execution_start_time": 1795193886109, "execution_end_time": 1795193886619, "outputs_count": 2, "preview_output": {"filename":"rec.png","subfolder":"","type":"output", "nodeId": "2", "mediaType": "images"}}], "pagination": {"offset": 0, "limit": null, "total": 1, "has_more": false}}"#;
        let rows = [Row { summary: &summary, running: false }];
        assert_eq!(list(&Query::read("").unwrap(), rows), expected);
        let kept: Summary =
            serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
        assert_eq!(kept, summary);
    }

    #[test]
    fn a_single_job_comes_with_outputs_and_workflow() {
        let job = job(r#"{"prompt": {"1": {"class_type": "SaveImage"}}, "client_id": "A"}"#, 2.0);
        let entry = adopt(their_entry().as_bytes(), &adoption(&job, &|_| ())).unwrap();
        let summary = Summary::of(&job).ended(&entry);
        let shown = value(&one(&Row { summary: &summary, running: false }, Some(&entry)));
        assert_eq!(shown["outputs"]["1"]["images"][0]["filename"], "a.png");
        assert_eq!(shown["execution_status"]["completed"], true);
        assert_eq!(shown["workflow"]["extra_data"]["client_id"], "A");
        assert_eq!(shown["workflow"]["prompt"]["1"]["inputs"], json!({"n": 5.0}));
        let waiting = Summary::of(&job);
        let shown = value(&one(&Row { summary: &waiting, running: true }, None));
        assert_eq!((&shown["status"], shown.get("outputs")), (&json!("in_progress"), None));
    }

    #[test]
    fn lists_are_filtered_sorted_and_paged() {
        let run = |ms: u64| {
            json!({"status": {"status_str": if ms == 3 { "error" } else { "success" }, "messages": [
                ["execution_start", {"timestamp": 1000}],
                ["execution_success", {"timestamp": 1000 + ms}]]}})
        };
        let jobs = [ended("a", 1, &run(7)), ended("b", 3, &run(3)), ended("c", 2, &run(9))];
        assert_eq!(ids(&read("", &jobs)), ["b", "c", "a"]);
        assert_eq!(ids(&read("sort_order=ASC", &jobs)), ["a", "c", "b"]);
        assert_eq!(ids(&read("sort_by=execution_duration", &jobs)), ["c", "a", "b"]);
        assert_eq!(ids(&read("status=failed,%20Pending,", &jobs)), ["b"]);
        let page = read("limit=1&offset=1", &jobs);
        assert_eq!(ids(&page), ["c"]);
        assert_eq!(
            page["pagination"],
            json!({"offset": 1, "limit": 1, "total": 3, "has_more": true})
        );
        assert_eq!(read("limit=5&offset=9", &jobs)["pagination"]["has_more"], false);
        assert_eq!(ids(&read("offset=-4", &jobs)).len(), 3);
    }

    #[test]
    fn a_workflow_is_found_by_its_id() {
        let of = |info: &str| {
            Summary::of(&job(
                &format!(r#"{{"prompt": {{}}, "extra_data": {{"extra_pnginfo": {info}}}}}"#),
                0.0,
            ))
        };
        let jobs = [
            of(r#"{"workflow": {"id": "w\u0031"}}"#),
            of("null"),
            of(r#"{"workflow": null}"#),
            of(r#"{"workflow": {"id": null}}"#),
            of(r#"{"workflow": {"id": 5}}"#),
        ];
        assert_eq!(read("workflow_id=w1", &jobs)["pagination"]["total"], 1);
        assert_eq!(read("workflow_id=5", &jobs)["pagination"]["total"], 0);
        assert_eq!(read("", &jobs)["jobs"][4]["workflow_id"], 5);
        assert_eq!(read("", &jobs)["jobs"][1].get("workflow_id"), None);
    }

    #[test]
    fn wrong_values_have_comfyuis_words() {
        for (query, words) in [
            (
                "status=x,pending,Y",
                "Invalid status value(s): x, y. Valid values: pending, in_progress, completed, failed",
            ),
            ("sort_by=x", "sort_by must be 'created_at' or 'execution_duration'"),
            ("sort_order=x", "sort_order must be 'asc' or 'desc'"),
            ("limit=0", "limit must be a positive integer"),
            ("limit=1.5", "limit must be an integer"),
            ("offset=", "offset must be an integer"),
        ] {
            assert_eq!(Query::read(query), Err(words.to_owned()));
        }
        assert_eq!(error_body("x"), r#"{"error":"x"}"#);
        assert_eq!(not_found(), r#"{"error":"Job not found"}"#);
    }

    #[test]
    fn what_a_summary_keeps_is_bounded() {
        let entry = json!({"outputs": {"1": {"images":
                [{"filename": "f.png", "type": "output", "workflow": "x".repeat(9_000)}]}},
            "status": {"status_str": "error", "messages": [["execution_error",
                {"node_id": "1", "exception_message": "x".repeat(9_000), "timestamp": 5}]]}});
        let job = Row { summary: &ended("a", 1, &entry), running: false };
        let shown = value(&one(&job, None));
        assert!(shown.to_string().len() < 2_000);
        assert_eq!(
            (&shown["execution_error"]["node_id"], &shown["status"]),
            (&json!("1"), &json!("failed"))
        );
        assert_eq!(shown["preview_output"]["filename"], "f.png");
        assert_eq!(shown["execution_end_time"], 5);
    }

    #[test]
    fn a_list_of_flags_is_no_output() {
        let entry = json!({"outputs": {"1": {"animated": [true], "text": ["a"], "3d": [{"filename":
            "X.GLB", "type": "temp"}], "latents": [{"filename": "l.latent"}]}, "2": 5}});
        let summary = ended("a", 1, &entry);
        let ended = summary.ended.unwrap();
        assert_eq!(ended.outputs, 2);
        assert!(ended.preview.unwrap().contains("X.GLB"));
    }
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
