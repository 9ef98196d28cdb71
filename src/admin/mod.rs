//! The admin plane: what operators and monitors ask a gateway.
//!
//! | verb and path | reply |
//! |---|---|
//! | `GET /healthz` | 200: the process lives |
//! | `GET /readyz` | 200: the first check is done and a backend is healthy; else 503 |
//! | `GET /lb/stats` | totals |
//! | `GET /lb/backends` | every backend |
//! | `GET /lb/backends/{name}` | one backend |
//! | `GET /lb/log`, `POST /lb/log {"verbose": true}` | verbose logging |
//! | `/api/v1/ai_analysis/…` | the service registry, see [`crate::registry::api`] |
//!
//! With `admin.token` everything but the first two wants `Authorization: Bearer`. The data port
//! serves `/lb/*` too, and never without a token.

pub mod endpoint_policy;
pub mod views;

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::gateway::Gateway;
use crate::logging;
use crate::registry;
use crate::rejection::{Kind, Rejection};
use views::{BackendView, Backends, Stats};

/// The admin port's router.
pub fn router(gateway: &Arc<Gateway>) -> Router {
    let guarded = endpoints(gateway)
        .layer(middleware::from_fn_with_state((Arc::clone(gateway), Port::Admin), authorise));
    Router::new()
        .route("/healthz", get(|| async { Json(Health { status: "ok" }) }))
        .route("/readyz", get(readyz))
        .with_state(Arc::clone(gateway))
        .merge(guarded)
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
}

/// The data port's router.
pub fn data_port_router(gateway: &Arc<Gateway>) -> Router {
    endpoints(gateway)
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state((Arc::clone(gateway), Port::Data), authorise))
}

fn endpoints(gateway: &Arc<Gateway>) -> Router {
    Router::new()
        .route("/lb/stats", get(stats))
        .route("/lb/backends", get(backends))
        .route("/lb/backends/{name}", get(backend))
        .route("/lb/log", get(log_state).post(set_log))
        .merge(registry::api::routes(gateway))
        .with_state(Arc::clone(gateway))
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// Which port a request came in by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Admin,
    Data,
}

async fn authorise(
    State((gateway, port)): State<(Arc<Gateway>, Port)>,
    request: Request,
    next: Next,
) -> Response {
    let config = gateway.config.load_full();
    let Some(token) = &config.admin.token else {
        return match port {
            Port::Admin => next.run(request).await,
            Port::Data => not_found().await.into_response(),
        };
    };
    let shown = request.headers().get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let valid = shown.is_some_and(|shown| shown.ct_eq(token.reveal().as_bytes()).into());
    if valid {
        next.run(request).await
    } else {
        let message = "a valid admin token is needed";
        Rejection::new(Kind::Unauthorized, message)
            .cure("send Authorization: Bearer TOKEN, the token being admin.token")
            .into_response()
    }
}

async fn readyz(State(gateway): State<Arc<Gateway>>) -> Response {
    let view = gateway.fleet.view();
    let healthy = view.backends.iter().any(|b| b.live.standing().is_healthy());
    if !gateway.prober.all_known() {
        return Rejection::new(Kind::NoBackend, "the first health check is not done yet")
            .retry_after(1)
            .into_response();
    }
    if !healthy {
        return Rejection::new(Kind::NoBackend, "no backend is healthy")
            .retry_after(1)
            .into_response();
    }
    Json(Health { status: "ready" }).into_response()
}

async fn stats(State(gateway): State<Arc<Gateway>>) -> Json<Stats> {
    Json(Stats::of(&gateway))
}

async fn backends(State(gateway): State<Arc<Gateway>>) -> Json<Backends> {
    Json(Backends::of(&gateway))
}

async fn backend(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<BackendView>, Rejection> {
    let view = gateway.fleet.view();
    let backend = view.named(&name).ok_or_else(|| {
        Rejection::new(Kind::NotFound, "there is no backend of this name")
            .cure("GET /lb/backends lists them")
    })?;
    Ok(Json(BackendView::of(&gateway, backend)))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogState {
    verbose: bool,
}

async fn log_state() -> Json<LogState> {
    Json(LogState { verbose: logging::is_verbose() })
}

async fn set_log(
    wanted: Result<Json<LogState>, JsonRejection>,
) -> Result<Json<LogState>, Rejection> {
    let Json(wanted) = wanted.map_err(|error| {
        Rejection::new(Kind::InvalidValue, error.body_text()).cure(r#"send {"verbose": true}"#)
    })?;
    logging::set_verbose(wanted.verbose);
    Ok(log_state().await)
}

async fn not_found() -> Rejection {
    Rejection::new(Kind::NotFound, "there is nothing at this address")
}

async fn wrong_method(method: Method) -> Rejection {
    Rejection::new(Kind::MethodNotAllowed, format!("{method} is not served at this address"))
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status().as_u16());
        let mut response =
            (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), self.body()).into_response();
        for (name, value) in self.headers() {
            if let Ok(value) = value.parse() {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}
