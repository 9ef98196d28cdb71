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
//! | `GET /lb/events` | what changes, as server-sent events ([`events`]) |
//! | `GET /` and what belongs to it | the [`dashboard`], on the admin port alone |
//! | `GET /lb/openapi.json` | all of this, for machines |
//! | `/api/v1/ai_analysis/…` | the service registry, see [`crate::registry::api`] |
//!
//! and the endpoints of [`backends`] and [`doctor`]. Who may use them is decided by [`guard`]: with
//! `admin.token` everything but the first two wants `Authorization: Bearer` or, in a browser, a
//! login. The data port serves `/lb/*` too, and never without a token.
//!
//! **To add an endpoint**, write its handler with a `#[utoipa::path(…)]` attribute that names verb,
//! path, parameters, body and every status that is its own, and name the handler in a `routes!` of
//! the module's `routes()`, an [`OpenApiRouter`]; handlers of one path stand in one `routes!`. That
//! routes it and writes it into the `document`, which adds what holds of all of them (401, 403;
//! with parameters or a body 400, 408, 413). A new module's `routes()` gets a line in `endpoints`.
//! Take input by `asked`, refuse with [`Rejection`]. Only what is no API, such as pages, is
//! routed without an attribute, and then named in `NO_API` of the tests.

pub mod backends;
pub mod dashboard;
pub mod doctor;
pub mod endpoint_policy;
pub mod events;
pub mod guard;
pub mod history;
pub mod impatient;
pub mod journal;
pub mod logins;
mod serve;
pub mod session;
mod tasks;
pub mod views;
mod watcher;

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
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Json, Router};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::gateway::Gateway;
use crate::logging;
use crate::metrics;
use crate::operator::{Actor, Operator, audit};
use crate::registry;
use crate::rejection::{Kind, Rejection};
use asked::{InBody, MAX_BODY};
use document::Refusal;
use guard::{Access, Port};
pub use serve::serve;
use views::Stats;

/// What the endpoints work on.
pub struct Admin {
    gateway: Arc<Gateway>,
    operator: Arc<Operator>,
    hub: events::Hub,
    history: history::History,
    meter: Mutex<history::Meter>,
    journal: journal::Journal,
    logins: logins::Logins,
}

impl Admin {
    /// The admin plane of a gateway, which it follows from now on. Wants a Tokio runtime.
    pub fn start(gateway: &Arc<Gateway>, operator: &Arc<Operator>) -> Arc<Self> {
        let admin = Arc::new(Self {
            gateway: Arc::clone(gateway),
            operator: Arc::clone(operator),
            hub: events::Hub::default(),
            history: history::History::default(),
            meter: Mutex::default(),
            journal: journal::Journal::default(),
            logins: logins::Logins::default(),
        });
        tokio::spawn(watcher::watch(Arc::downgrade(&admin)));
        tokio::spawn(watcher::watch_tasks(Arc::downgrade(&admin)));
        admin
    }
}

/// The OpenAPI document of a port.
#[derive(Clone)]
struct Written(Bytes);

/// The admin port's router.
pub fn router(admin: &Arc<Admin>) -> Router {
    let gateway = &admin.gateway;
    let guarded = endpoints(gateway)
        .merge(registry::api::routes().with_state(Arc::clone(gateway)))
        .merge(metrics::routes(gateway).with_state(()).into())
        .merge(dashboard::routes().into());
    let open = OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .merge(dashboard::open_routes().into());
    router_of(Port::Admin, admin, guarded, open)
}

/// The data port's router.
pub fn data_port_router(admin: &Arc<Admin>) -> Router {
    let router = router_of(Port::Data, admin, endpoints(&admin.gateway), OpenApiRouter::new());
    router.merge(session::routes(&admin.gateway)).merge(crate::auth::page::routes(&admin.gateway))
}

fn router_of(
    port: Port,
    admin: &Arc<Admin>,
    guarded: OpenApiRouter<Arc<Admin>>,
    open: OpenApiRouter<Arc<Admin>>,
) -> Router {
    let (guarded, mut document) = guarded.split_for_parts();
    document::guard(&mut document);
    let (open, more) = open.split_for_parts();
    document.merge(more);
    let guard = middleware::from_fn_with_state((Arc::clone(admin), port), authorise);
    let guarded = guarded.fallback(not_found).method_not_allowed_fallback(wrong_method);
    open.method_not_allowed_fallback(wrong_method)
        .merge(guarded.layer(guard))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(Extension(Written(document::written(&document))))
        .with_state(Arc::clone(admin))
}

/// The endpoints of both ports.
fn endpoints(gateway: &Arc<Gateway>) -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::with_openapi(document::frame())
        .routes(routes!(stats))
        .routes(routes!(log_state, set_log))
        .routes(routes!(openapi))
        .routes(routes!(events::stream))
        .merge(backends::routes())
        .merge(doctor::routes())
        .merge(tasks::routes().with_state(Arc::clone(gateway)))
}

/// Who calls an endpoint.
pub(crate) struct Caller {
    address: Option<IpAddr>,
    who: &'static str,
}

impl Caller {
    /// The caller as the audit log names it.
    pub(crate) fn actor(&self) -> Actor {
        Actor {
            who: self.who,
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
        let who = parts.extensions.get().map_or("nobody", Access::who);
        Ok(Self { address, who })
    }
}

#[derive(Serialize, ToSchema)]
struct Health {
    /// `ok` or `ready`
    status: &'static str,
}

async fn authorise(
    State((admin, port)): State<(Arc<Admin>, Port)>,
    mut request: Request,
    next: Next,
) -> Response {
    let config = admin.gateway.config.load_full();
    match guard::admit(&config, &admin.logins, port, &request) {
        Ok(access) => {
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Err(refusal) if guard::may_log_in(&refusal, port, &request) => {
            Redirect::to("/login").into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
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
    if !gateway.prober.first_check_done() {
        return Rejection::new(Kind::NoBackend, "the first health check is not done yet")
            .retry_after(1)
            .into_response();
    }
    if !healthy {
        return Rejection::new(Kind::NoBackend, "no backend is healthy")
            .retry_after(1)
            .into_response();
    }
    if gateway.pool().is_some_and(|pool| !pool.is_ready()) {
        return Rejection::new(Kind::NoBackend, "no backend takes prompts")
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
async fn openapi(Extension(Written(document)): Extension<Written>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}

async fn not_found() -> Rejection {
    Rejection::new(Kind::NotFound, "there is nothing at this address")
}

pub(crate) async fn wrong_method(method: Method) -> Rejection {
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
