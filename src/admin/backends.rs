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

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::views::{BackendView, Backends};
use super::{Admin, Caller};
use crate::backend::{Backend, Wanted};
use crate::config::Strategy;
use crate::operator::Actor;
use crate::rejection::{Kind, Rejection};

/// The routes, relative to the root.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/lb/backends", get(list).post(add))
        .route("/lb/backends/{name}", get(one).delete(remove))
        .route("/lb/backends/{name}/enable", post(enable))
        .route("/lb/backends/{name}/disable", post(disable))
        .route("/lb/backends/{name}/drain", post(drain))
        .route("/lb/health-check", post(health_check))
        .route("/lb/scheduler", get(scheduler))
        .route("/lb/scheduler/strategy/{strategy}", post(set_strategy))
}

async fn list(State(admin): State<Arc<Admin>>) -> Json<Backends> {
    Json(Backends::of(&admin.gateway))
}

async fn one(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
) -> Result<Json<BackendView>, Rejection> {
    let view = admin.gateway.fleet.view();
    let backend = view.named(&name).ok_or_else(|| {
        Rejection::new(Kind::NotFound, format!("there is no backend named {}", shown(&name)))
            .cure("GET /lb/backends lists them")
    })?;
    Ok(Json(admin.shown(backend)))
}

async fn add(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    words: Result<Json<Value>, JsonRejection>,
) -> Result<Response, Rejection> {
    let Json(words) = words.map_err(bad_json)?;
    let backend = admin.add_backend(words, &caller.actor()).await?;
    let location = format!("/lb/backends/{}", backend.name());
    let created = [(header::LOCATION, location)];
    Ok((StatusCode::CREATED, created, Json(admin.shown(&backend))).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    #[serde(default)]
    drain: bool,
}

async fn remove(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path(name): Path<String>,
    how: Result<Query<Removal>, QueryRejection>,
) -> Result<Response, Rejection> {
    let Query(how) = how.map_err(|error| {
        Rejection::new(Kind::InvalidValue, error.body_text()).cure("use ?drain=true or nothing")
    })?;
    if how.drain {
        let backend = admin.operator.leave(&name, &caller.actor()).await?;
        return Ok((StatusCode::ACCEPTED, Json(admin.shown(&backend))).into_response());
    }
    admin.operator.remove(&name, &caller.actor()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn enable(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<BackendView>, Rejection> {
    admin.want(&name, Wanted::Enabled, &caller).await
}

async fn disable(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<BackendView>, Rejection> {
    admin.want(&name, Wanted::Disabled, &caller).await
}

async fn drain(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<BackendView>, Rejection> {
    admin.want(&name, Wanted::Draining, &caller).await
}

async fn health_check(State(admin): State<Arc<Admin>>) -> Json<Backends> {
    admin.gateway.prober.check_all().await;
    Json(Backends::of(&admin.gateway))
}

#[derive(Serialize)]
struct Scheduler {
    strategy: &'static str,
    strategies: Vec<&'static str>,
}

async fn scheduler(State(admin): State<Arc<Admin>>) -> Json<Scheduler> {
    Json(Scheduler {
        strategy: admin.gateway.config.load().scheduler.strategy.name(),
        strategies: Strategy::NAMES.iter().map(|(name, _)| *name).collect(),
    })
}

async fn set_strategy(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Scheduler>, Rejection> {
    let strategy = Strategy::named(&name).ok_or_else(|| {
        let names: Vec<&str> = Strategy::NAMES.iter().map(|(name, _)| *name).collect();
        Rejection::new(Kind::InvalidValue, format!("{} is no strategy", shown(&name)))
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

/// The refusal of a body that is no JSON.
#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
pub(super) fn bad_json(error: JsonRejection) -> Rejection {
    Rejection::new(Kind::InvalidValue, error.body_text())
        .cure("send a JSON object with Content-Type: application/json")
}

/// A name from outside as it may stand in a message: short.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}
