//! Whatever stops prompts: deletes and clears of the queue, interrupts, cancels of jobs.
//!
//! `POST /queue` touches what waits, an interrupt by id what waits or runs, one without an id only
//! the caller's own running prompts: ComfyUI would stop whoever runs.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{OriginalUri, Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Pool;
use super::super::core::{Input, JobView};
use super::super::job::JobId;
use super::super::merged::fetch::reachable;
use super::super::merged::{Message, broadcast};
use super::super::visit::Visit;
use super::queue::runs;
use super::{json as reply, server_error};
use crate::comfy::lenient::{self, truthy};

/// `POST /queue`.
pub(super) async fn queue(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
    body: Bytes,
) -> Response {
    let Ok(Value::Object(asked)) = lenient::from_slice::<Value>(&body) else {
        return server_error();
    };
    let waiting: Vec<JobView> = pool.shown_to(&visit).filter(|view| !runs(view)).collect();
    if asked.get("clear").is_some_and(truthy) {
        for view in &waiting {
            pool.tell(Input::Cancel(view.job.id));
        }
    }
    if let Some(ids) = asked.get("delete") {
        let Some(ids) = ids.as_array() else { return server_error() };
        let ids: HashSet<&str> = ids.iter().filter_map(Value::as_str).collect();
        for view in waiting.iter().filter(|view| ids.contains(&*view.job.prompt_id)) {
            pool.tell(Input::Cancel(view.job.id));
        }
    }
    StatusCode::OK.into_response()
}

/// `POST /interrupt`.
pub(super) async fn interrupt(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
    body: Bytes,
) -> Response {
    #[derive(Deserialize, Default)]
    struct Asked {
        #[serde(default)]
        prompt_id: Value,
    }
    // As ComfyUI: what is no JSON means no id.
    let asked: Asked = lenient::from_slice(&body).unwrap_or_default();
    if truthy(&asked.prompt_id) {
        if let Some(id) = asked.prompt_id.as_str().and_then(|id| pool.touchable(&visit, id)) {
            pool.tell(Input::Cancel(id));
        }
    } else {
        let own = pool.core.lock().of(visit.key);
        for view in own.iter().filter(|view| runs(view)) {
            pool.tell(Input::Interrupt(view.job.id));
        }
    }
    StatusCode::OK.into_response()
}

/// `POST /free` and installs: to every server.
pub(super) async fn everywhere(
    State(pool): State<Arc<Pool>>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let message = Message { method, path, headers, body };
    let backends = reachable(&pool.fleet.view());
    broadcast(&pool.fetcher, &backends, message).await
}

/// `POST /api/jobs/{id}/cancel`.
pub(super) async fn cancel_one(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
    Path(id): Path<String>,
) -> Response {
    let found = pool.touchable(&visit, &id);
    if let Some(id) = found {
        pool.tell(Input::Cancel(id));
    } else if !pool.has_ended(&visit, &id) {
        let text = json!({"error": "Job not found"}).to_string();
        return (StatusCode::NOT_FOUND, reply(text)).into_response();
    }
    reply(json!({"cancelled": found.is_some()}).to_string())
}

/// `POST /api/jobs/cancel`.
pub(super) async fn cancel_many(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
    body: Bytes,
) -> Response {
    let asked: Value = lenient::from_slice(&body).unwrap_or_default();
    let Some(ids) = asked["job_ids"].as_array().or_else(|| asked["prompt_ids"].as_array()) else {
        let text = json!({"error": "job_ids must be a list of ids"}).to_string();
        return (StatusCode::BAD_REQUEST, reply(text)).into_response();
    };
    let found = ids.iter().filter_map(Value::as_str).filter_map(|id| pool.touchable(&visit, id));
    let found: Vec<JobId> = found.collect();
    for id in &found {
        pool.tell(Input::Cancel(*id));
    }
    reply(json!({"cancelled": found.len()}).to_string())
}

impl Pool {
    /// An open job that a caller may stop.
    fn touchable(&self, visit: &Visit, prompt_id: &str) -> Option<JobId> {
        let core = self.core.lock();
        let id = core.find(prompt_id)?;
        let own = || core.get(id).is_some_and(|view| view.job.owner.key == visit.key);
        (!self.is_isolated() || own()).then_some(id)
    }
}
