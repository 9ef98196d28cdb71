//! ComfyUI's routes that the gateway answers from its own knowledge: prompts, queue, history, jobs,
//! interrupts; and what goes to every server. Each is there with and without `/api`, except for the jobs, which are declared with
//! it.

mod history;
mod jobs;
pub(super) mod limits;
mod logs;
pub(super) mod prompt;
mod queue;
mod stop;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, patch, post};
use bytes::Bytes;

use super::Pool;

/// The routes.
pub(super) fn router(pool: &Arc<Pool>) -> Router {
    let bare = || {
        Router::new()
            .route("/prompt", get(queue::count).post(prompt::post))
            .route("/queue", get(queue::list).post(stop::queue))
            .route("/history", get(history::list).post(history::change))
            .route("/history/{id}", get(history::one))
            .route("/interrupt", post(stop::interrupt))
            .route("/free", post(stop::everywhere))
            .route("/manager/{*rest}", any(stop::everywhere))
            .route("/customnode/{*rest}", any(stop::everywhere))
            .route("/v2/{*rest}", any(stop::everywhere))
    };
    let jobs = || {
        Router::new()
            .route("/jobs", get(jobs::list))
            .route("/jobs/cancel", post(stop::cancel_many))
            .route("/jobs/{id}", get(jobs::one))
            .route("/jobs/{id}/cancel", post(stop::cancel_one))
    };
    bare()
        .route("/internal/logs/subscribe", patch(logs::subscribe))
        .nest("/api", bare().merge(jobs()))
        .nest("/api/api", jobs())
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(pool))
}

/// JSON that is text already, as ComfyUI sends it.
fn json(text: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, "application/json; charset=utf-8")], text.into()).into_response()
}

/// What ComfyUI answers to a body that it cannot make sense of.
fn server_error() -> Response {
    let text = "500 Internal Server Error\n\nServer got itself in trouble";
    (
        axum::http::StatusCode::INTERNAL_SERVER_ERROR,
        [(CONTENT_TYPE, "text/plain; charset=utf-8")],
        text,
    )
        .into_response()
}

/// `[a,b,c]` of texts that are JSON.
fn list_of(items: impl Iterator<Item = Bytes>) -> Vec<u8> {
    let mut text = vec![b'['];
    for (n, item) in items.enumerate() {
        if n > 0 {
            text.push(b',');
        }
        text.extend_from_slice(&item);
    }
    text.push(b']');
    text
}
