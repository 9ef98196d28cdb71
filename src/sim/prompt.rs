//! `/prompt`, `/queue`, `/history`, `/interrupt`, `/free`: what starts, shows and stops prompts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::extract::{OriginalUri, Path, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::Core;
use super::queue::Item;
use super::reply::{Answer, Query, Refusal, bad, empty, object, ok_json};
use super::trace::Mark;
use super::validate::{error, plain, refusal, validate};
use crate::comfy::lenient::truthy;

/// Keys of `extra_data` that never show.
const SECRETS: [&str; 2] = ["auth_token_comfy_org", "api_key_comfy_org"];

/// A JSON body; upstream raises on anything else.
pub(super) fn json_body(body: &Bytes) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Refusal::Crash),
    }
}

/// An optional whole number of the query; upstream raises on anything else.
fn whole(query: &Query, name: &str) -> Result<Option<i64>, Refusal> {
    query.get(name).map(|text| text.trim().parse().map_err(|_| Refusal::Crash)).transpose()
}

/// `GET /prompt`.
pub(super) async fn info(State(core): State<Arc<Core>>) -> Response {
    ok_json(&core.board.lock().info())
}

/// `POST /prompt`.
pub(super) async fn post(State(core): State<Arc<Core>>, body: Bytes) -> Answer {
    let arrived = Instant::now();
    core.log("got prompt\n");
    let mut body = json_body(&body)?;
    let number = number(&core, &body)?;
    let Some(prompt) = body.remove("prompt") else {
        let text = "No prompt provided";
        return Err(refused(refusal(error("no_prompt", text, text, json!({})), Map::new())));
    };
    let id = body.get("prompt_id").map_or_else(|| uuid::Uuid::new_v4().to_string(), plain);
    let Value::Object(mut prompt) = prompt else { return Err(Refusal::Crash) };
    if prompt.values().any(|node| !node.is_object()) {
        return Err(Refusal::Crash);
    }
    let targets = targets(&body)?;
    let exists =
        |name: &str| core.files.annotated(name, "input").is_some_and(|path| path.is_file());
    let valid = validate(&core.nodes, &mut prompt, targets.as_deref(), &exists).map_err(refused)?;
    let item = Item {
        number: number.clone(),
        id: id.clone(),
        prompt,
        extra_data: extra_data(&mut body)?,
        outputs: valid.outputs,
    };
    core.trace.note(Mark::Posted, &id, arrived);
    if !core.put(item) {
        return Err(Refusal::Crash);
    }
    Ok(ok_json(&json!({"prompt_id": id, "number": number, "node_errors": valid.node_errors})))
}

fn refused(body: Value) -> Refusal {
    Refusal::Json(StatusCode::BAD_REQUEST, body)
}

/// The prompt's number: the client's as a float, or the counter's, which counts even when the
/// prompt is refused later.
fn number(core: &Core, body: &Map<String, Value>) -> Result<Value, Refusal> {
    if let Some(given) = body.get("number") {
        let number = match given {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            Value::Bool(on) => Some(f64::from(u8::from(*on))),
            _ => None,
        };
        return number.filter(|n| n.is_finite()).map(Value::from).ok_or(Refusal::Crash);
    }
    let mut board = core.board.lock();
    let number = board.counter;
    board.counter += 1;
    let front = body.get("front").is_some_and(truthy);
    Ok(if front { -number } else { number }.into())
}

fn targets(body: &Map<String, Value>) -> Result<Option<Vec<String>>, Refusal> {
    match body.get("partial_execution_targets") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(ids)) => Ok(Some(ids.iter().map(plain).collect())),
        Some(_) => Err(Refusal::Crash),
    }
}

fn extra_data(body: &mut Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    let mut extra = match body.remove("extra_data") {
        None => Map::new(),
        Some(Value::Object(extra)) => extra,
        Some(_) => return Err(Refusal::Crash),
    };
    if let Some(client) = body.remove("client_id") {
        extra.insert("client_id".to_owned(), client);
    }
    for secret in SECRETS {
        extra.shift_remove(secret);
    }
    extra.insert("create_time".to_owned(), super::now_ms().into());
    Ok(extra)
}

/// `GET /queue`.
pub(super) async fn queue(State(core): State<Arc<Core>>) -> Response {
    if let Some(faulty) = core.fault.queue().response() {
        return faulty;
    }
    let (running, pending) = core.board.lock().lists();
    ok_json(&json!({"queue_running": running, "queue_pending": pending}))
}

/// `POST /queue`: `clear`, `delete`.
pub(super) async fn change_queue(State(core): State<Arc<Core>>, body: Bytes) -> Answer {
    let body = json_body(&body)?;
    let mut board = core.board.lock();
    if body.get("clear").is_some_and(truthy) {
        board.pending.clear();
        core.publish_status(&board);
    }
    for id in ids_to_delete(&body)? {
        let last = board.pending.items().len() == 1;
        if board.pending.remove(&id) {
            if last {
                // Upstream wipes a queue of one, which publishes, and publishes again.
                core.publish_status(&board);
            }
            core.publish_status(&board);
        }
    }
    Ok(empty(StatusCode::OK))
}

fn ids_to_delete(body: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    match body.get("delete") {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) => {
            Ok(ids.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        }
        Some(Value::String(text)) => Ok(text.chars().map(String::from).collect()),
        Some(_) => Err(Refusal::Crash),
    }
}

/// `GET /history`.
pub(super) async fn history(
    State(core): State<Arc<Core>>,
    OriginalUri(uri): OriginalUri,
) -> Answer {
    let query = Query::of(&uri);
    let max_items = whole(&query, "max_items")?;
    let offset = whole(&query, "offset")?.unwrap_or(-1);
    let page = core.board.lock().history.page(max_items, offset);
    let entries = page.iter().map(|entry| (entry.item.id.clone(), entry.to_json()));
    Ok(ok_json(&Value::Object(entries.collect())))
}

/// `GET /history/{prompt_id}`.
pub(super) async fn history_item(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
) -> Response {
    let entry = core.board.lock().history.get(&id).cloned();
    let found = entry.map(|entry| json!({id: entry.to_json()}));
    ok_json(&found.unwrap_or_else(|| json!({})))
}

/// `POST /history`: `clear`, `delete`.
pub(super) async fn change_history(State(core): State<Arc<Core>>, body: Bytes) -> Answer {
    let body = json_body(&body)?;
    let mut board = core.board.lock();
    if body.get("clear").is_some_and(truthy) {
        board.history.clear();
    }
    for id in ids_to_delete(&body)? {
        board.history.remove(&id);
    }
    Ok(empty(StatusCode::OK))
}

/// `POST /interrupt`: with a `prompt_id` only that one, else whatever runs.
pub(super) async fn interrupt(State(core): State<Arc<Core>>, body: Bytes) -> Response {
    let body = object(serde_json::from_slice(&body).unwrap_or_default());
    let wanted = body.get("prompt_id").filter(|id| truthy(id));
    let board = core.board.lock();
    let running = board.running.as_ref().map(|item| item.id.as_str());
    if wanted.is_none_or(|id| id.as_str().is_some() && id.as_str() == running) {
        core.interrupt(true);
    }
    empty(StatusCode::OK)
}

/// `POST /free`.
pub(super) async fn free(State(core): State<Arc<Core>>, body: Bytes) -> Answer {
    if json_body(&body)?.get("free_memory").is_some_and(truthy) {
        core.free_memory.store(true, Ordering::Relaxed);
        core.wake.notify_one();
    }
    Ok(empty(StatusCode::OK))
}

/// A whole number for the jobs' paging, with the error upstream gives.
pub(super) fn paging(query: &Query, name: &str) -> Result<Option<i64>, Refusal> {
    let number = query.get(name).map(|text| text.trim().parse::<i64>());
    number.transpose().map_err(|_| bad(&format!("{name} must be an integer")))
}
