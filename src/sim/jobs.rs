//! `/api/jobs`: pending, running and finished prompts in one list.

use std::cmp::Ordering;
use std::sync::Arc;

use axum::extract::{OriginalUri, Path, State};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::Core;
use super::prompt::paging;
use super::queue::{Board, Finished, Item};
use super::reply::{Answer, Query, Refusal, bad, ok_json};

const STATUSES: [&str; 4] = ["pending", "in_progress", "completed", "failed"];

/// `GET /api/jobs`.
pub(super) async fn list(State(core): State<Arc<Core>>, OriginalUri(uri): OriginalUri) -> Answer {
    let query = Query::of(&uri);
    let wanted = wanted_statuses(&query)?;
    let sort_by = choice(&query, "sort_by", ["created_at", "execution_duration"])?;
    let sort_order = choice(&query, "sort_order", ["desc", "asc"])?;
    let limit = paging(&query, "limit")?;
    if limit.is_some_and(|limit| limit <= 0) {
        return Err(bad("limit must be a positive integer"));
    }
    let offset = paging(&query, "offset")?.unwrap_or_default().max(0);

    let mut jobs = all(&core.board.lock(), &wanted)?;
    if let Some(workflow) = query.get("workflow_id").filter(|id| !id.is_empty()) {
        jobs.retain(|job| job["workflow_id"] == workflow);
    }
    jobs.sort_by(|a, b| {
        let order = sort_key(a, &sort_by).total_cmp(&sort_key(b, &sort_by));
        if sort_order == "desc" { order.reverse() } else { order }
    });
    let total = jobs.len();
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let take = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let jobs: Vec<Value> = jobs.into_iter().skip(skip).take(take).collect();
    let has_more = skip.saturating_add(jobs.len()) < total;
    Ok(ok_json(&json!({
        "jobs": jobs,
        "pagination": {"offset": offset, "limit": limit, "total": total, "has_more": has_more},
    })))
}

/// `GET /api/jobs/{id}`.
pub(super) async fn one(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Answer {
    let board = core.board.lock();
    if let Some(finished) = board.history.get(&id) {
        let mut job = finished_job(finished)?;
        job["outputs"] = Value::Object(finished.outputs.clone());
        job["execution_status"] = finished.status.clone();
        job["workflow"] =
            json!({"prompt": finished.item.prompt, "extra_data": finished.item.extra_data});
        return Ok(ok_json(&job));
    }
    let running = board.running.iter().map(|item| (item, "in_progress"));
    let pending = board.pending.items().iter().map(|item| (item, "pending"));
    match running.chain(pending).find(|(item, _)| item.id == id) {
        Some((item, status)) => Ok(ok_json(&queued_job(item, status)?)),
        None => Err(Refusal::Json(StatusCode::NOT_FOUND, json!({"error": "Job not found"}))),
    }
}

fn wanted_statuses(query: &Query) -> Result<Vec<String>, Refusal> {
    let given = query.get("status").unwrap_or_default();
    if given.is_empty() {
        return Ok(STATUSES.map(str::to_owned).to_vec());
    }
    let wanted: Vec<String> = given
        .split(',')
        .map(|status| status.trim().to_lowercase())
        .filter(|status| !status.is_empty())
        .collect();
    let unknown: Vec<&str> =
        wanted.iter().map(String::as_str).filter(|status| !STATUSES.contains(status)).collect();
    if unknown.is_empty() {
        return Ok(wanted);
    }
    let (unknown, valid) = (unknown.join(", "), STATUSES.join(", "));
    Err(bad(&format!("Invalid status value(s): {unknown}. Valid values: {valid}")))
}

/// One of two words, the first being the default.
fn choice(query: &Query, name: &str, words: [&'static str; 2]) -> Result<String, Refusal> {
    let given = query.get(name).unwrap_or(words[0]).to_lowercase();
    if words.contains(&given.as_str()) {
        return Ok(given);
    }
    let mut sorted = words;
    sorted.sort_unstable();
    Err(bad(&format!("{name} must be '{}' or '{}'", sorted[0], sorted[1])))
}

fn all(board: &Board, wanted: &[String]) -> Result<Vec<Value>, Refusal> {
    let wants = |status: &str| wanted.iter().any(|wanted| wanted == status);
    let mut jobs = Vec::new();
    for item in board.running.iter().filter(|_| wants("in_progress")) {
        jobs.push(queued_job(item, "in_progress")?);
    }
    for item in board.pending.items().iter().filter(|_| wants("pending")) {
        jobs.push(queued_job(item, "pending")?);
    }
    for finished in board.history.iter() {
        if wants(finished_status(finished)) {
            jobs.push(finished_job(finished)?);
        }
    }
    Ok(jobs)
}

fn sort_key(job: &Value, by: &str) -> f64 {
    let time = |name: &str| job[name].as_f64().unwrap_or_default();
    let (start, end) = (time("execution_start_time"), time("execution_end_time"));
    match by {
        "created_at" => time("create_time"),
        _ if start.total_cmp(&0.0) == Ordering::Greater && end > 0.0 => end - start,
        _ => 0.0,
    }
}

fn queued_job(item: &Item, status: &str) -> Result<Value, Refusal> {
    Ok(pruned([
        ("id", json!(item.id)),
        ("status", json!(status)),
        ("priority", item.number.clone()),
        ("create_time", item.extra_data.get("create_time").cloned().unwrap_or_default()),
        ("outputs_count", json!(0)),
        ("workflow_id", workflow_id(item)?),
    ]))
}

fn finished_status(finished: &Finished) -> &'static str {
    if finished.status["status_str"] == "error" { "failed" } else { "completed" }
}

fn finished_job(finished: &Finished) -> Result<Value, Refusal> {
    let item = &finished.item;
    let messages = finished.status["messages"].as_array();
    let message = |names: &[&str]| {
        let mut messages = messages.into_iter().flatten();
        let found = messages.find(|entry| entry[0].as_str().is_some_and(|n| names.contains(&n)));
        found.map(|entry| entry[1].clone()).unwrap_or_default()
    };
    let ends = ["execution_success", "execution_error", "execution_interrupted"];
    let (count, preview) = outputs_summary(&finished.outputs);
    Ok(pruned([
        ("id", json!(item.id)),
        ("status", json!(finished_status(finished))),
        ("priority", item.number.clone()),
        ("create_time", item.extra_data.get("create_time").cloned().unwrap_or_default()),
        ("execution_start_time", message(&["execution_start"])["timestamp"].clone()),
        ("execution_end_time", message(&ends)["timestamp"].clone()),
        ("execution_error", message(&["execution_error"])),
        ("outputs_count", json!(count)),
        ("preview_output", preview),
        ("workflow_id", workflow_id(item)?),
    ]))
}

/// The workflow's id; upstream raises on a null or anything else that is not an object.
fn workflow_id(item: &Item) -> Result<Value, Refusal> {
    let Some(info) = item.extra_data.get("extra_pnginfo") else { return Ok(Value::Null) };
    let info = info.as_object().ok_or(Refusal::Crash)?;
    let Some(workflow) = info.get("workflow") else { return Ok(Value::Null) };
    Ok(workflow.as_object().ok_or(Refusal::Crash)?.get("id").cloned().unwrap_or_default())
}

/// How many files there are, and the one to show: the first output, else the first of any type.
fn outputs_summary(outputs: &Map<String, Value>) -> (usize, Value) {
    let (mut count, mut output, mut other) = (0, None, None);
    for (node, lists) in outputs {
        for (kind, items) in lists.as_object().into_iter().flatten() {
            for item in items.as_array().into_iter().flatten().filter(|item| item.is_object()) {
                count += 1;
                let place = if item["type"] == "output" { &mut output } else { &mut other };
                place.get_or_insert_with(|| {
                    let mut shown = item.clone();
                    shown["nodeId"] = node.as_str().into();
                    shown["mediaType"] = kind.as_str().into();
                    shown
                });
            }
        }
    }
    (count, output.or(other).unwrap_or_default())
}

fn pruned<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
    kept.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
}
