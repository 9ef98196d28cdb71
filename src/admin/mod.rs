//! The admin plane: what operators and monitors ask a gateway.
//!
//! | verb and path | reply |
//! |---|---|
//! | `GET /healthz` | 200: the process lives |
//! | `GET /readyz` | 200: the first check is done and a backend is healthy; else 503 |
//! | `GET /metrics` | for Prometheus ([`metrics`]) |
//! | `GET /lb/stats` | totals |
//! | `GET /lb/tasks?state=&limit=&offset=` | prompts that passed, the newest first |
//! | `GET /lb/tasks/{id}`, `DELETE /lb/tasks/{id}` | one of them; its cancellation |
//! | `GET /lb/session`, `POST /lb/session {"backend": "NAME"}` | the caller; data port, no token |
//! | `GET /lb/log`, `POST /lb/log {"verbose": true}` | verbose logging |
//! | `/api/v1/ai_analysis/…` | the service registry, see [`crate::registry::api`] |
//!
//! and the endpoints of [`backends`]. With `admin.token` everything but the first two wants
//! `Authorization: Bearer`. The data port serves `/lb/*` too, and never without a token.

pub mod backends;
pub mod endpoint_policy;
pub mod session;
mod tasks;
pub mod views;

use std::sync::Arc;

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::gateway::Gateway;
use crate::logging;
use crate::metrics;
use crate::operator::{Actor, Operator};
use crate::registry;
use crate::rejection::{Kind, Rejection};
use views::Stats;

/// What the endpoints work on.
pub struct Admin {
    gateway: Arc<Gateway>,
    operator: Arc<Operator>,
}

/// The admin port's router.
pub fn router(gateway: &Arc<Gateway>, operator: &Arc<Operator>) -> Router {
    let admin = Arc::new(Admin { gateway: Arc::clone(gateway), operator: Arc::clone(operator) });
    let guard = middleware::from_fn_with_state((Arc::clone(&admin), Port::Admin), authorise);
    let guarded = endpoints(gateway)
        .merge(metrics::routes(gateway).with_state(()))
        .fallback(not_found)
        .layer(guard);
    Router::new()
        .route("/healthz", get(|| async { Json(Health { status: "ok" }) }))
        .route("/readyz", get(readyz))
        .merge(guarded)
        .method_not_allowed_fallback(wrong_method)
        .with_state(admin)
}

/// The data port's router.
pub fn data_port_router(gateway: &Arc<Gateway>, operator: &Arc<Operator>) -> Router {
    let admin = Arc::new(Admin { gateway: Arc::clone(gateway), operator: Arc::clone(operator) });
    let guard = middleware::from_fn_with_state((Arc::clone(&admin), Port::Data), authorise);
    endpoints(gateway)
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(guard)
        .with_state(admin)
        .merge(session::routes(gateway))
}

fn endpoints(gateway: &Arc<Gateway>) -> Router<Arc<Admin>> {
    Router::new()
        .route("/lb/stats", get(stats))
        .route("/lb/log", get(log_state).post(set_log))
        .merge(backends::routes())
        .merge(tasks::routes().with_state(Arc::clone(gateway)))
        .merge(registry::api::routes(gateway).with_state(Arc::clone(gateway)))
}

/// Who calls an endpoint.
pub(crate) struct Caller {
    address: Option<SocketAddr>,
    with_token: bool,
}

impl Caller {
    /// The caller as the audit log names it.
    pub(crate) fn actor(&self) -> Actor {
        Actor {
            who: if self.with_token { "token" } else { "no token" },
            from: self.address.map_or_else(|| "unknown".to_owned(), |a| a.ip().to_string()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self {
            address: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
            with_token: parts.headers.contains_key(header::AUTHORIZATION),
        })
    }
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
    State((admin, port)): State<(Arc<Admin>, Port)>,
    request: Request,
    next: Next,
) -> Response {
    let config = admin.gateway.config.load_full();
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

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let gateway = &admin.gateway;
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

async fn stats(State(admin): State<Arc<Admin>>) -> Json<Stats> {
    Json(Stats::of(&admin.gateway))
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
    let Json(wanted) = wanted.map_err(backends::bad_json)?;
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
        response.extensions_mut().insert(self.kind);
        for (name, value) in self.headers() {
            if let Ok(value) = value.parse() {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}
