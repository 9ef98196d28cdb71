//! `PATCH /internal/logs/subscribe`: the terminal of a client's home.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::Value;

use super::super::Pool;
use super::super::visit::Visit;
use super::server_error;
use crate::comfy::lenient::{self, truthy};

/// `PATCH /internal/logs/subscribe`. Of a `clientId` that is not there, or not the caller's,
/// nothing comes, as with ComfyUI.
pub(super) async fn subscribe(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
    body: Bytes,
) -> Response {
    let asked = lenient::from_slice::<Value>(&body).unwrap_or_default();
    let (Some(sid), Some(enabled)) = (asked["clientId"].as_str(), asked.get("enabled")) else {
        return server_error();
    };
    pool.subscribe(sid, visit.key, truthy(enabled)).await;
    StatusCode::OK.into_response()
}
