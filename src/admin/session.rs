//! `/lb/session` on the data port: where the caller stands, and choosing a backend by hand.
//!
//! No token is asked for: everybody may know and choose for themselves. Who the caller is has been
//! found out at the front door, cross-site requests have been refused there.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::affinity::Seconds;
use crate::backend::{BackendId, Wanted};
use crate::config::Mode;
use crate::gateway::Gateway;
use crate::identity::Caller;
use crate::rejection::{Kind, Rejection};

/// Who asks for one of the gateway's own endpoints on the data port.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// Who.
    pub caller: Caller,
    /// The backend that the path chooses.
    pub by_hand: Option<BackendId>,
    /// When.
    pub now: Seconds,
    /// From where.
    pub address: std::net::IpAddr,
    /// Whether the way here is encrypted.
    pub secure: bool,
}

#[derive(Debug, Serialize)]
struct Session {
    caller: String,
    backend: Option<String>,
    position: Option<u32>,
    eta_seconds: Option<f64>,
    queued: usize,
    running: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Choice {
    backend: String,
}

/// The endpoint.
pub(super) fn routes(gateway: &Arc<Gateway>) -> Router {
    Router::new()
        .route("/lb/session", get(show).post(choose))
        .method_not_allowed_fallback(super::wrong_method)
        .with_state(Arc::clone(gateway))
}

async fn show(
    State(gateway): State<Arc<Gateway>>,
    Extension(visitor): Extension<Visitor>,
) -> Json<Session> {
    Json(session(&gateway, &visitor))
}

fn session(gateway: &Gateway, visitor: &Visitor) -> Session {
    let key = visitor.caller.key();
    let placed = gateway.affinity.peek(key, visitor.now);
    let home = visitor.by_hand.or(placed.map(|placed| BackendId(placed.backend)));
    let view = gateway.fleet.view();
    let standing = gateway.tasks.standing_of(key);
    // In pool mode a caller has no backend of its own, but where its first job runs.
    let backend = match gateway.pool() {
        Some(pool) => pool.running_at(key),
        None => home,
    };
    Session {
        caller: visitor.caller.to_string(),
        backend: backend.and_then(|id| view.get(id)).map(|backend| backend.name().to_owned()),
        position: standing.position,
        eta_seconds: standing.eta_seconds,
        queued: standing.queued,
        running: standing.running,
    }
}

async fn choose(
    State(gateway): State<Arc<Gateway>>,
    Extension(visitor): Extension<Visitor>,
    body: Bytes,
) -> Result<Json<Session>, Rejection> {
    let Choice { backend } = serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the body does not name a backend: {error}");
        Rejection::new(Kind::InvalidValue, message).cure(r#"send {"backend": "NAME"}"#)
    })?;
    place(&gateway, &visitor, &backend)?;
    Ok(Json(session(&gateway, &visitor)))
}

fn place(gateway: &Gateway, visitor: &Visitor, name: &str) -> Result<(), Rejection> {
    let conflict = |message: &str| Rejection::new(Kind::Conflict, message);
    if gateway.config.load().mode == Mode::Pool {
        return Err(conflict("in pool mode every prompt finds its own backend"));
    }
    if visitor.by_hand.is_some() {
        let cure = "open the page at / or choose by the address /@NAME/";
        return Err(conflict("this address has chosen a backend already").cure(cure));
    }
    let view = gateway.fleet.view();
    let backend = view.named(name).ok_or_else(|| {
        let shown: String = name.chars().take(80).collect();
        Rejection::new(Kind::NotFound, format!("there is no backend {shown:?}"))
            .cure("choose one that exists, or leave the choice to the gateway")
    })?;
    let key = visitor.caller.key();
    let standing = backend.live.standing();
    if !standing.keeps_old() {
        let message = format!("the backend {} is {}", backend.name(), standing.label());
        return Err(conflict(&message).cure("choose another one"));
    }
    let is_home = || {
        let placed = gateway.affinity.peek(key, visitor.now);
        placed.is_some_and(|placed| placed.backend == backend.id.0)
    };
    if standing.wanted == Wanted::Draining && !is_home() {
        let message =
            format!("the backend {} is draining and takes no new clients", backend.name());
        return Err(conflict(&message).cure("choose another one"));
    }
    gateway.affinity.place(key, backend.id.0, visitor.now, true);
    Ok(())
}
