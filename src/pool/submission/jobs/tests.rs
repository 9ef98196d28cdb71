//! Lists of jobs, each rule by its name.

use serde_json::{Value, json};

use super::super::adopt;
use super::super::tests::{adoption, job, their_entry, value};
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
    let kept: Summary = serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
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
    assert_eq!(page["pagination"], json!({"offset": 1, "limit": 1, "total": 3, "has_more": true}));
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
