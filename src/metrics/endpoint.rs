//! Where the metrics are asked for, and how the gateway's own endpoints on the data port are
//! counted.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::scrape;
use crate::gateway::Gateway;
use crate::rejection::Kind;

/// `GET /metrics`.
pub fn routes(gateway: &Arc<Gateway>) -> Router {
    Router::new().route("/metrics", get(page)).with_state(Arc::clone(gateway))
}

async fn page(State(gateway): State<Arc<Gateway>>) -> Response {
    match scrape::page(&gateway) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        // Only a family without a name or a sample does that.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Has the requests that a router answers on the data port counted with the others.
pub fn count_local(router: Router, gateway: &Arc<Gateway>) -> Router {
    router.layer(middleware::from_fn_with_state(Arc::clone(gateway), count))
}

async fn count(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let response = next.run(request).await;
    let code = response.status().as_u16();
    gateway.metrics.front.answered(method.as_str(), code, started.elapsed());
    if let Some(kind) = response.extensions().get::<Kind>() {
        gateway.metrics.rejected(*kind);
    }
    response
}
