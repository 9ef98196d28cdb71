//! The admin plane: what operators and monitors ask a gateway.
//!
//! | verb and path | reply |
//! |---|---|
//! | `GET /healthz` | 200: the process lives |
//! | `GET /readyz` | 200: the first check is done and a backend is healthy; else 503 |
//! | `GET /lb/stats` | totals |
//! | `GET /lb/tasks?state=&limit=&offset=` | prompts that passed, the newest first |
//! | `GET /lb/tasks/{id}`, `DELETE /lb/tasks/{id}` | one of them; its cancellation |
//! | `GET /lb/session`, `POST /lb/session {"backend": "NAME"}` | the caller; data port, no token |
//! | `GET /lb/events` | what changes, as server-sent events ([`events`]) |
//! | `GET /` and what belongs to it | the [`dashboard`], on the admin port alone |
//! | `GET /lb/log`, `POST /lb/log {"verbose": true}` | verbose logging |
//!
//! and the endpoints of [`backends`]. Who may use them is decided by [`guard`]: with `admin.token`
//! everything but the first two wants `Authorization: Bearer` or, in a browser, a login. The data
//! port serves `/lb/*` too, and never without a token.

pub mod backends;
pub mod dashboard;
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

use std::sync::Arc;

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::gateway::Gateway;
use crate::logging;
use crate::operator::{Actor, Operator};
use crate::rejection::{Kind, Rejection};
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

/// The admin port's router.
pub fn router(admin: &Arc<Admin>) -> Router {
    let guard = middleware::from_fn_with_state((Arc::clone(admin), Port::Admin), authorise);
    let guarded =
        endpoints(&admin.gateway).merge(dashboard::routes()).fallback(not_found).layer(guard);
    Router::new()
        .route("/healthz", get(|| async { Json(Health { status: "ok" }) }))
        .route("/readyz", get(readyz))
        .merge(dashboard::open_routes())
        .merge(guarded)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::clone(admin))
}

/// The data port's router.
pub fn data_port_router(admin: &Arc<Admin>) -> Router {
    let guard = middleware::from_fn_with_state((Arc::clone(admin), Port::Data), authorise);
    endpoints(&admin.gateway)
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(guard)
        .with_state(Arc::clone(admin))
        .merge(session::routes(&admin.gateway))
}

fn endpoints(gateway: &Arc<Gateway>) -> Router<Arc<Admin>> {
    Router::new()
        .route("/lb/stats", get(stats))
        .route("/lb/events", get(events::stream))
        .route("/lb/log", get(log_state).post(set_log))
        .merge(tasks::routes().with_state(Arc::clone(gateway)))
        .merge(backends::routes())
}

/// Who calls an endpoint.
pub(crate) struct Caller {
    address: Option<SocketAddr>,
    who: &'static str,
}

impl Caller {
    /// The caller as the audit log names it.
    fn actor(&self) -> Actor {
        let from = self.address.map_or_else(|| "unknown".to_owned(), |a| a.ip().to_string());
        Actor { who: self.who, from }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self {
            address: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
            who: parts.extensions.get().map_or("nobody", Access::who),
        })
    }
}

#[derive(Serialize)]
struct Health {
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
        for (name, value) in self.headers() {
            if let Ok(value) = value.parse() {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}
