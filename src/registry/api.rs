//! How services register: `/api/v1/ai_analysis/…` on the admin port.
//!
//! | verb and path | body | reply |
//! |---|---|---|
//! | `POST register` | `{service_id, name, task_types, endpoint, version, heartbeat_seconds}`, of which name, version and heartbeat may be left out | 201, or 200 when the endpoint was known and is updated: the service |
//! | `POST heartbeat` | `{endpoint}` | 200: the service; 404: it must register again |
//! | `POST unregister` | `{endpoint}` | 200: the service as it was; 404 |
//! | `GET services` | | `{"services": [service], "total"}` |
//! | `GET services/stats/{task_type}` | | `{task_type, "services": [service], total, healthy, call_count}`; 404 names the types there are |
//!
//! A service: `{service_id, name, endpoint, task_types, version, call_count, failures, healthy,
//! instance, response_seconds, heartbeat_seconds, last_seen, last_check, last_error}`; `instance` is
//! its label in `x-comfygate-backend`, logs and metrics.
//!
//! Bodies are read as JSON whatever their `Content-Type`, for that is how services send them
//! (`curl -d`). A browser can send such a request from any page, so what comes from another site
//! is refused.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::core::Registered;
use super::registration::{Registration, Wanted, endpoint};
use super::{Registry, Service};
use crate::admin::Caller;
use crate::admin::endpoint_policy::{self, EndpointPolicy};
use crate::comfy::origin;
use crate::config::Endpoint;
use crate::gateway::Gateway;
use crate::operator::audit;
use crate::rejection::{Kind, Rejection};

/// Bytes of a body at most: 64 task types of 128 characters fit, however they are escaped.
const MAX_BODY: usize = 256 << 10;
/// What the bodies look like, for whoever sent something else.
const REGISTRATION: &str =
    r#"{"service_id": "yolo11x", "task_types": ["count"], "endpoint": "http://HOST:PORT/infer"}"#;
const WHICH: &str = r#"{"endpoint": "http://HOST:PORT/infer"}"#;

/// The endpoints, to be merged into the admin port's router.
pub fn routes(gateway: &Arc<Gateway>) -> Router<Arc<Gateway>> {
    let guard = middleware::from_fn_with_state(Arc::clone(gateway), from_here);
    let routes = Router::new()
        .route("/register", post(register))
        .route("/heartbeat", post(heartbeat))
        .route("/unregister", post(unregister))
        .route("/services", get(services))
        .route("/services/stats/{task_type}", get(stats))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(guard);
    Router::new().nest("/api/v1/ai_analysis", routes)
}

async fn from_here(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let foreign = {
        let names = &gateway.config.load().server.public_names;
        origin::is_foreign(request.method(), request.headers(), names)
    };
    if foreign {
        let message = "another site may not send requests here";
        return Rejection::new(Kind::Forbidden, message).into_response();
    }
    next.run(request).await
}

/// One instance of a service.
#[derive(Debug, Serialize)]
pub struct ServiceView {
    service_id: String,
    name: String,
    endpoint: String,
    task_types: Vec<String>,
    version: String,
    call_count: u64,
    failures: u64,
    healthy: bool,
    instance: String,
    response_seconds: f64,
    heartbeat_seconds: Option<f64>,
    last_seen: Timestamp,
    last_check: Option<Timestamp>,
    last_error: Option<String>,
}

impl From<Service> for ServiceView {
    fn from(service: Service) -> Self {
        let Service { instance, backend } = service;
        let notes = backend.live.notes();
        let registration = &instance.registration;
        Self {
            endpoint: registration.url(),
            call_count: instance.calls,
            failures: backend.live.failures.load(std::sync::atomic::Ordering::Relaxed),
            healthy: instance.is_healthy(),
            response_seconds: backend.live.response_seconds(),
            heartbeat_seconds: registration.heartbeat.map(|heartbeat| heartbeat.as_secs_f64()),
            last_seen: instance.last_seen,
            last_check: notes.last_check,
            last_error: notes.last_error,
            service_id: instance.registration.service_id,
            name: instance.registration.name,
            task_types: instance.registration.task_types,
            version: instance.registration.version,
            instance: instance.label,
        }
    }
}

/// `GET services`.
#[derive(Debug, Serialize)]
pub struct Services {
    services: Vec<ServiceView>,
    total: usize,
}

impl Services {
    /// The services now.
    pub fn of(registry: &Registry) -> Self {
        let services: Vec<_> = registry.services().into_iter().map(ServiceView::from).collect();
        Self { total: services.len(), services }
    }
}

/// `GET services/stats/{task_type}`.
#[derive(Debug, Serialize)]
pub struct TypeStats {
    task_type: String,
    services: Vec<ServiceView>,
    total: usize,
    healthy: usize,
    call_count: u64,
}

/// The body of `POST heartbeat` and `POST unregister`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    endpoint: String,
}

async fn register(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    body: Bytes,
) -> Result<(StatusCode, Json<ServiceView>), Rejection> {
    let wanted = Registration::try_from(read::<Wanted>(&body, REGISTRATION)?)?;
    let address = locate(&gateway, &wanted.endpoint).await?;
    let (registered, service) = gateway.registry.register(wanted, address)?;
    let (status, before) = match registered {
        Registered::New(_) => (StatusCode::CREATED, "absent"),
        Registered::Updated(_) => (StatusCode::OK, "registered"),
    };
    let endpoint = service.instance.registration.endpoint.url();
    audit(&caller.actor(), &endpoint, before, "registered");
    Ok((status, Json(service.into())))
}

/// Where an endpoint is, if it may be used.
async fn locate(gateway: &Gateway, endpoint: &Endpoint) -> Result<SocketAddr, Rejection> {
    let policy = EndpointPolicy::new(&gateway.config.load().admin.allow_endpoints);
    let found = endpoint_policy::resolve(endpoint).await?;
    let addresses: Vec<_> = found.iter().map(SocketAddr::ip).collect();
    endpoint_policy::check(endpoint, &addresses, &policy)?;
    let first = found.first().copied();
    first.ok_or_else(|| Rejection::new(Kind::InvalidValue, "the name does not resolve"))
}

async fn heartbeat(
    State(gateway): State<Arc<Gateway>>,
    body: Bytes,
) -> Result<Json<ServiceView>, Rejection> {
    let (endpoint, _) = endpoint(&read::<Which>(&body, WHICH)?.endpoint)?;
    let service = gateway.registry.beat(&endpoint).ok_or_else(not_registered)?;
    Ok(Json(service.into()))
}

async fn unregister(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    body: Bytes,
) -> Result<Json<ServiceView>, Rejection> {
    let (endpoint, _) = endpoint(&read::<Which>(&body, WHICH)?.endpoint)?;
    let service = gateway.registry.unregister(&endpoint).ok_or_else(not_registered)?;
    audit(&caller.actor(), &endpoint.url(), "registered", "absent");
    Ok(Json(service.into()))
}

async fn services(State(gateway): State<Arc<Gateway>>) -> Json<Services> {
    Json(Services::of(&gateway.registry))
}

async fn stats(
    State(gateway): State<Arc<Gateway>>,
    Path(task_type): Path<String>,
) -> Result<Json<TypeStats>, Rejection> {
    let services = gateway.registry.services_of(&task_type)?;
    let services: Vec<ServiceView> = services.into_iter().map(ServiceView::from).collect();
    Ok(Json(TypeStats {
        task_type,
        total: services.len(),
        healthy: services.iter().filter(|service| service.healthy).count(),
        call_count: services.iter().map(|service| service.call_count).sum(),
        services,
    }))
}

fn read<T: DeserializeOwned>(body: &[u8], example: &str) -> Result<T, Rejection> {
    serde_json::from_slice(body).map_err(|error| {
        Rejection::new(Kind::InvalidValue, format!("the body does not fit: {error}"))
            .cure(format!("send such as {example}"))
    })
}

fn not_registered() -> Rejection {
    Rejection::new(Kind::NotFound, "no service is registered at this endpoint")
        .cure("POST /api/v1/ai_analysis/register registers one")
}
