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
//! | `GET /lb/openapi.json` | all of this, for machines |
//! | `/api/v1/ai_analysis/…` | the service registry, see [`crate::registry::api`] |
//!
//! and the endpoints of [`backends`] and [`doctor`]. With `admin.token` everything but the first
//! two wants `Authorization: Bearer`. The data port serves `/lb/*` too, and never without a token.
//!
//! **To add an endpoint**, write its handler with a `#[utoipa::path(…)]` attribute that names verb,
//! path, parameters, body and every status that is its own, and name the handler in a `routes!` of
//! the module's `routes()`, an [`OpenApiRouter`]; handlers of one path stand in one `routes!`. That
//! routes it and writes it into the `document`, which adds what holds of all of them (401, 403;
//! with parameters or a body 400, 408, 413). A new module's `routes()` gets a line in `endpoints`.
//! Take input by `asked`, refuse with [`Rejection`]. Only what is no API, such as pages, is
//! routed without an attribute, and then named in `NO_API` of the tests.

pub mod backends;
pub mod doctor;
pub mod endpoint_policy;
pub mod session;
mod tasks;
pub mod views;

pub(crate) mod asked;
pub(crate) mod document;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::comfy::origin;
use crate::config::Secret;
use crate::gateway::Gateway;
use crate::logging;
use crate::metrics;
use crate::operator::{Actor, Operator, audit};
use crate::registry;
use crate::rejection::{Kind, Rejection};
use asked::{InBody, MAX_BODY};
use document::Refusal;
use views::Stats;

/// What the endpoints work on.
pub struct Admin {
    gateway: Arc<Gateway>,
    operator: Arc<Operator>,
    /// The OpenAPI document of this port.
    document: Bytes,
}

/// The admin port's router.
pub fn router(gateway: &Arc<Gateway>, operator: &Arc<Operator>) -> Router {
    router_of(Port::Admin, gateway, operator)
}

/// The data port's router.
pub fn data_port_router(gateway: &Arc<Gateway>, operator: &Arc<Operator>) -> Router {
    router_of(Port::Data, gateway, operator)
}

fn router_of(port: Port, gateway: &Arc<Gateway>, operator: &Arc<Operator>) -> Router {
    let mut guarded = endpoints(gateway);
    let mut open = OpenApiRouter::new();
    if port == Port::Admin {
        guarded = guarded.merge(registry::api::routes().with_state(Arc::clone(gateway)));
        guarded = guarded.merge(metrics::routes(gateway).with_state(()).into());
        open = open.routes(routes!(healthz)).routes(routes!(readyz));
    }
    let (guarded, mut document) = guarded.split_for_parts();
    document::guard(&mut document);
    let (open, more) = open.split_for_parts();
    document.merge(more);
    let admin = Arc::new(Admin {
        gateway: Arc::clone(gateway),
        operator: Arc::clone(operator),
        document: document::written(&document),
    });
    let guard = middleware::from_fn_with_state((Arc::clone(&admin), port), authorise);
    let guarded = guarded.fallback(not_found).method_not_allowed_fallback(wrong_method);
    let router = open
        .method_not_allowed_fallback(wrong_method)
        .merge(guarded.layer(guard))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(admin);
    match port {
        Port::Admin => router,
        Port::Data => router.merge(session::routes(gateway)),
    }
}

/// The endpoints of both ports.
fn endpoints(gateway: &Arc<Gateway>) -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::with_openapi(document::frame())
        .routes(routes!(stats))
        .routes(routes!(log_state, set_log))
        .routes(routes!(openapi))
        .merge(backends::routes())
        .merge(doctor::routes())
        .merge(tasks::routes().with_state(Arc::clone(gateway)))
}

/// Who calls an endpoint.
pub(crate) struct Caller {
    address: Option<IpAddr>,
    with_token: bool,
}

impl Caller {
    /// The caller as the audit log names it.
    pub(crate) fn actor(&self) -> Actor {
        Actor {
            who: if self.with_token { "token" } else { "no token" },
            from: self.address.map_or_else(|| "unknown".to_owned(), |a| a.to_string()),
        }
    }
}

/// A router's state by which the gateway can be asked.
pub(crate) trait OfGateway: Sync {
    /// The gateway.
    fn gateway(&self) -> &Gateway;
}

impl OfGateway for Arc<Admin> {
    fn gateway(&self) -> &Gateway {
        &self.gateway
    }
}

impl OfGateway for Arc<Gateway> {
    fn gateway(&self) -> &Gateway {
        self
    }
}

impl<S: OfGateway> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let gateway = state.gateway();
        let peer = parts.extensions.get::<ConnectInfo<std::net::SocketAddr>>();
        let address = peer.map(|peer| gateway.trusted.load().client(peer.0.ip(), &parts.headers));
        let with_token = gateway
            .config
            .load()
            .admin
            .token
            .as_ref()
            .is_some_and(|token| shows(&parts.headers, token));
        Ok(Self { address, with_token })
    }
}

#[derive(Serialize, ToSchema)]
struct Health {
    /// `ok` or `ready`
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
    if is_foreign(&request, &config.server.public_names) {
        return Rejection::new(Kind::Forbidden, "another site may not send requests here")
            .cure("if this is the gateway's own public name, add it to server.public_names")
            .into_response();
    }
    let Some(token) = &config.admin.token else {
        return match port {
            Port::Admin => next.run(request).await,
            Port::Data => not_found().await.into_response(),
        };
    };
    if shows(request.headers(), token) {
        next.run(request).await
    } else {
        let message = "a valid admin token is needed";
        Rejection::new(Kind::Unauthorized, message)
            .cure("send Authorization: Bearer TOKEN, the token being admin.token")
            .into_response()
    }
}

/// Whether another site's page is behind a request: bodies are read whatever their type says, so
/// that a browser would send them from anywhere without asking first. A page without an origin is
/// nobody's here.
fn is_foreign(request: &Request, public_names: &[String]) -> bool {
    let headers = request.headers();
    origin::is_foreign(request.method(), headers, public_names)
        || headers.get(header::ORIGIN).is_some_and(|origin| origin == "null")
}

/// Whether a request shows the token; compared in constant time.
fn shows(headers: &HeaderMap, token: &Secret) -> bool {
    const SCHEME: &[u8] = b"bearer ";
    let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let shown = shown.and_then(|value| value.split_at_checked(SCHEME.len()));
    shown.is_some_and(|(scheme, shown)| {
        scheme.eq_ignore_ascii_case(SCHEME) && shown.ct_eq(token.reveal().as_bytes()).into()
    })
}

/// The process lives
#[utoipa::path(get, path = "/healthz", tag = "health",
    responses((status = 200, description = "It lives", body = Health)))]
async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// The gateway can serve: the first health check is done and a backend is healthy
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "It can", body = Health),
    (status = 503, description = "It cannot yet, or no backend is healthy", body = Refusal)))]
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

/// Totals
#[utoipa::path(get, path = "/lb/stats", tag = "gateway",
    responses((status = 200, description = "The totals now", body = Stats)))]
async fn stats(State(admin): State<Arc<Admin>>) -> Json<Stats> {
    Json(Stats::of(&admin.gateway))
}

/// How much is logged.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LogState {
    /// A line per request
    verbose: bool,
}

/// Whether logging is verbose
#[utoipa::path(get, path = "/lb/log", tag = "gateway",
    responses((status = 200, description = "How much is logged", body = LogState)))]
async fn log_state() -> Json<LogState> {
    Json(LogState { verbose: logging::is_verbose() })
}

/// Switches verbose logging
#[utoipa::path(post, path = "/lb/log", tag = "gateway", request_body = LogState,
    responses((status = 200, description = "How much is logged now", body = LogState)))]
async fn set_log(caller: Caller, InBody(wanted): InBody<LogState>) -> Json<LogState> {
    let before = logging::is_verbose().to_string();
    logging::set_verbose(wanted.verbose);
    audit(&caller.actor(), "log.verbose", &before, &wanted.verbose.to_string());
    log_state().await
}

/// This document
#[utoipa::path(get, path = "/lb/openapi.json", tag = "gateway",
    responses((status = 200, description = "The endpoints of this port", body = Object)))]
async fn openapi(State(admin): State<Arc<Admin>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], admin.document.clone()).into_response()
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
