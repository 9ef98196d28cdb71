//! The endpoints that look at and change the fleet.
//!
//! | verb and path | reply |
//! |---|---|
//! | `GET /lb/backends`, `GET /lb/backends/{name}` | the backends, one of them |
//! | `POST /lb/backends` | 201 with the backend; 409 name or endpoint exists; 400 |
//! | `DELETE /lb/backends/{name}` | 204; with `?drain=true` 202 with the backend; 404 |
//! | `POST /lb/backends/{name}/enable`, `/disable`, `/drain` | 200 with the backend; 404 |
//! | `POST /lb/health-check` | the backends, after a check of them all |
//! | `GET /lb/scheduler` | `{strategy, strategies}` |
//! | `POST /lb/scheduler/strategy/{strategy}` | the same; 400 lists the valid ones |

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::asked::{InBody, InPath, InQuery};
use super::document::Refusal;
use super::views::{BackendView, Backends};
use super::{Admin, Caller};
use crate::backend::{Backend, Wanted};
use crate::config::{self, Strategy};
use crate::operator::Actor;
use crate::rejection::{Kind, Rejection};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(list, add))
        .routes(routes!(one, remove))
        .routes(routes!(enable))
        .routes(routes!(disable))
        .routes(routes!(drain))
        .routes(routes!(health_check))
        .routes(routes!(scheduler))
        .routes(routes!(set_strategy))
}

/// A backend in a path.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct Named {
    /// Name of the backend
    #[param(pattern = "^[A-Za-z0-9._-]{1,64}$", example = "comfy-1")]
    name: String,
}

/// Every backend
#[utoipa::path(get, path = "/lb/backends", tag = "backends",
    responses((status = 200, description = "The backends", body = Backends)))]
async fn list(State(admin): State<Arc<Admin>>) -> Json<Backends> {
    Json(Backends::of(&admin.gateway))
}

/// One backend
#[utoipa::path(get, path = "/lb/backends/{name}", tag = "backends", params(Named), responses(
    (status = 200, description = "The backend", body = BackendView),
    (status = 404, description = "There is none of this name", body = Refusal)))]
async fn one(
    State(admin): State<Arc<Admin>>,
    InPath(Named { name }): InPath<Named>,
) -> Result<Json<BackendView>, Rejection> {
    Ok(Json(admin.shown(&*admin.operator.named(&name)?)))
}

/// A backend to add, by `url` or by `host` and `port`; keys and bounds are those of the
/// configuration file
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "comfy-3",
    "host": "127.0.0.1", "port": 8190, "weight": 1, "max_queue": 10, "enabled": true}))]
#[expect(dead_code, reason = "read for its types alone; the configuration reads the values")]
pub(super) struct NewBackend {
    /// Its name
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    name: String,
    /// Where it listens, with a base path at most
    #[schema(pattern = "^https?://[^@?#]+$")]
    url: Option<String>,
    /// Where it listens: a name or an address
    host: Option<String>,
    /// Where it listens: the port
    #[schema(minimum = 1, maximum = 65535)]
    port: Option<u32>,
    /// Share of the load
    #[schema(minimum = 1, maximum = 100, default = 1)]
    weight: Option<u32>,
    /// Prompts it should hold at most
    #[schema(minimum = 1, maximum = 1_000_000, default = 10)]
    max_queue: Option<u32>,
    /// Whether it serves at once
    #[schema(default = true)]
    enabled: Option<bool>,
    /// Whether it is used only when no other is healthy
    #[schema(default = false)]
    backup: Option<bool>,
    /// Requests and WebSockets that it holds at once, at most
    #[schema(minimum = 1, maximum = 1_000_000, default = 4096)]
    max_connections: Option<u32>,
    /// Headers to send to it
    headers: Option<BTreeMap<String, String>>,
    /// Labels, such as its zone
    labels: Option<BTreeMap<String, String>>,
    /// Task types that it serves
    task_types: Option<Vec<String>>,
    /// How its TLS is checked, for an https URL
    tls: Option<NewTls>,
}

/// How the TLS of a backend is checked
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "it says what the words must be, and is read again as configuration")]
struct NewTls {
    /// The name to ask for and to expect, in place of the URL's
    server_name: Option<String>,
    /// Whether any certificate will do
    #[schema(default = false)]
    insecure: Option<bool>,
}

/// Adds a backend
#[utoipa::path(post, path = "/lb/backends", tag = "backends", request_body = NewBackend, responses(
    (status = 201, description = "It was added", body = BackendView,
        headers(("Location" = String, description = "Its address"))),
    (status = 400, description = "What is wrong, with key, value and cure", body = Refusal),
    (status = 409, description = "The name or the endpoint exists", body = Refusal),
    (status = 503, description = "The change cannot be kept", body = Refusal)))]
async fn add(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    InBody(words): InBody<Value>,
) -> Result<Response, Rejection> {
    check_types(&words)?;
    let backend = admin.add_backend(words, &caller.actor()).await?;
    let location = format!("/lb/backends/{}", backend.name());
    let created = [(header::LOCATION, location)];
    Ok((StatusCode::CREATED, created, Json(admin.shown(&backend))).into_response())
}

/// A program's words are of the documented types, where a file's may be `port: "8188"`.
fn check_types(words: &Value) -> Result<(), Rejection> {
    let Err(error) = NewBackend::deserialize(words) else { return Ok(()) };
    // The configuration names the key and the cure; it has nothing to say of a mere type.
    let why = config::backend_of(words).err();
    let why = why.map_or_else(|| error.to_string(), |problems| problems.to_string());
    Err(Rejection::new(Kind::InvalidValue, why))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Removal {
    /// Let its clients stay until they leave by themselves, then remove it
    #[serde(default)]
    drain: bool,
}

/// Removes a backend
#[utoipa::path(delete, path = "/lb/backends/{name}", tag = "backends", params(Named, Removal),
    responses(
        (status = 202, description = "It drains, and goes with its last client", body = BackendView),
        (status = 204, description = "It is gone"),
        (status = 404, description = "There is none of this name", body = Refusal),
        (status = 503, description = "The change cannot be kept", body = Refusal)))]
async fn remove(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    InPath(Named { name }): InPath<Named>,
    InQuery(how): InQuery<Removal>,
) -> Result<Response, Rejection> {
    if how.drain {
        let backend = admin.operator.leave(&name, &caller.actor()).await?;
        return Ok((StatusCode::ACCEPTED, Json(admin.shown(&backend))).into_response());
    }
    admin.operator.remove(&name, &caller.actor()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Puts a backend in service
#[utoipa::path(post, path = "/lb/backends/{name}/enable", tag = "backends", params(Named),
    responses(
        (status = 200, description = "The backend", body = BackendView),
        (status = 404, description = "There is none of this name", body = Refusal),
        (status = 503, description = "The change cannot be kept", body = Refusal)))]
async fn enable(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    InPath(Named { name }): InPath<Named>,
) -> Result<Json<BackendView>, Rejection> {
    admin.want(&name, Wanted::Enabled, &caller).await
}

/// Takes a backend out of service at once: its clients go elsewhere
#[utoipa::path(post, path = "/lb/backends/{name}/disable", tag = "backends", params(Named),
    responses(
        (status = 200, description = "The backend", body = BackendView),
        (status = 404, description = "There is none of this name", body = Refusal),
        (status = 503, description = "The change cannot be kept", body = Refusal)))]
async fn disable(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    InPath(Named { name }): InPath<Named>,
) -> Result<Json<BackendView>, Rejection> {
    admin.want(&name, Wanted::Disabled, &caller).await
}

/// Gives a backend no new clients
#[utoipa::path(post, path = "/lb/backends/{name}/drain", tag = "backends", params(Named),
    responses(
        (status = 200, description = "The backend", body = BackendView),
        (status = 404, description = "There is none of this name", body = Refusal),
        (status = 503, description = "The change cannot be kept", body = Refusal)))]
async fn drain(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    InPath(Named { name }): InPath<Named>,
) -> Result<Json<BackendView>, Rejection> {
    admin.want(&name, Wanted::Draining, &caller).await
}

/// Checks every backend now, and replies when that is done
#[utoipa::path(post, path = "/lb/health-check", tag = "backends",
    responses((status = 200, description = "The backends after it", body = Backends)))]
async fn health_check(State(admin): State<Arc<Admin>>) -> Json<Backends> {
    admin.gateway.prober.check_all().await;
    Json(Backends::of(&admin.gateway))
}

/// How backends are chosen.
#[derive(Serialize, ToSchema)]
struct Scheduler {
    /// The strategy in force
    strategy: &'static str,
    /// All there are
    strategies: Vec<&'static str>,
}

/// How backends are chosen
#[utoipa::path(get, path = "/lb/scheduler", tag = "scheduler",
    responses((status = 200, description = "The strategies", body = Scheduler)))]
async fn scheduler(State(admin): State<Arc<Admin>>) -> Json<Scheduler> {
    Json(Scheduler {
        strategy: admin.gateway.config.load().scheduler.strategy.name(),
        strategies: Strategy::NAMES.iter().map(|(name, _)| *name).collect(),
    })
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Chosen {
    /// One of those that `GET /lb/scheduler` lists
    #[param(
        pattern = "^(least_busy|round_robin|weighted|weighted_round_robin|least_calls|least_wait|ip_hash)$",
        example = "least_busy"
    )]
    strategy: String,
}

/// Chooses another strategy
#[utoipa::path(post, path = "/lb/scheduler/strategy/{strategy}", tag = "scheduler", params(Chosen),
    responses(
        (status = 200, description = "The strategies", body = Scheduler),
        (status = 400, description = "There is none of this name", body = Refusal),
        (status = 503, description = "The change cannot be kept", body = Refusal)))]
async fn set_strategy(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    InPath(Chosen { strategy }): InPath<Chosen>,
) -> Result<Json<Scheduler>, Rejection> {
    let strategy = Strategy::named(&strategy).ok_or_else(|| {
        let names: Vec<&str> = Strategy::NAMES.iter().map(|(name, _)| *name).collect();
        let shown: String = strategy.chars().take(80).collect();
        Rejection::new(Kind::InvalidValue, format!("{shown} is no strategy"))
            .cure(format!("use one of {}", names.join(", ")))
    })?;
    admin.operator.set_strategy(strategy, &caller.actor()).await?;
    Ok(scheduler(State(admin)).await)
}

impl Admin {
    /// Adds a backend in the words of an API call or of the dashboard's form.
    pub(super) async fn add_backend(
        &self,
        words: Value,
        actor: &Actor,
    ) -> Result<Arc<Backend>, Rejection> {
        self.operator.add(words, actor).await
    }

    fn shown(&self, backend: &Backend) -> BackendView {
        BackendView::of(&self.gateway, backend)
    }

    async fn want(
        &self,
        name: &str,
        wanted: Wanted,
        caller: &Caller,
    ) -> Result<Json<BackendView>, Rejection> {
        let backend = self.operator.want(name, wanted, &caller.actor()).await?;
        Ok(Json(self.shown(&backend)))
    }
}
