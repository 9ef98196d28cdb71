//! `/api/jobs`: what waits, runs and has ended, in one list.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::super::Pool;
use super::super::submission::jobs::{self, Query, Row, Summary};
use super::super::visit::Visit;
use super::json;
use super::queue::runs;

/// `GET /api/jobs`.
pub(super) async fn list(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = match Query::read(query.as_deref().unwrap_or_default()) {
        Ok(query) => query,
        Err(message) => {
            return (StatusCode::BAD_REQUEST, json(jobs::error_body(&message))).into_response();
        }
    };
    let open: Vec<_> =
        pool.shown_to(&visit).map(|view| (Summary::of(&view.job), runs(&view))).collect();
    let ended: Vec<Summary> = pool
        .ended_of(&visit)
        .iter()
        .filter_map(|job| serde_json::from_slice(&job.summary).ok())
        .collect();
    let rows = open.iter().map(|(summary, running)| Row { summary, running: *running });
    let rows = rows.chain(ended.iter().map(|summary| Row { summary, running: false }));
    json(jobs::list(&query, rows))
}

/// `GET /api/jobs/{id}`.
pub(super) async fn one(State(pool): State<Arc<Pool>>, Path(id): Path<String>) -> Response {
    let view = {
        let core = pool.core.lock();
        core.find(&id).and_then(|id| core.get(id))
    };
    if let Some(view) = view {
        let summary = Summary::of(&view.job);
        return json(jobs::one(&Row { summary: &summary, running: runs(&view) }, None));
    }
    let Some(job) = pool.journal.find(&id).filter(|job| job.entry_len > 0) else {
        return (StatusCode::NOT_FOUND, json(jobs::not_found())).into_response();
    };
    let entry = pool.journal.entry(job.id).await;
    let summary = serde_json::from_slice::<Summary>(&job.summary).ok();
    match (summary, entry) {
        (Some(summary), Some(entry)) => {
            json(jobs::one(&Row { summary: &summary, running: false }, Some(&entry)))
        }
        _ => (StatusCode::NOT_FOUND, json(jobs::not_found())).into_response(),
    }
}
