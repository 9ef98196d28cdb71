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
//! (`curl -d`).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::core::Registered;
use super::registration::{Registration, Wanted, endpoint};
use super::{Registry, Service};
use crate::admin::Caller;
use crate::admin::asked::{InBody, InPath};
use crate::admin::document::Refusal;
use crate::admin::endpoint_policy::{self, EndpointPolicy};
use crate::config::Endpoint;
use crate::gateway::Gateway;
use crate::operator::audit;
use crate::rejection::{Kind, Rejection};

/// Bytes of a body at most: 64 task types of 128 characters fit, however they are escaped.
const MAX_BODY: usize = 256 << 10;

/// The endpoints, to be merged into the admin port's router.
pub fn routes() -> OpenApiRouter<Arc<Gateway>> {
    let routes = OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(heartbeat))
        .routes(routes!(unregister))
        .routes(routes!(services))
        .routes(routes!(stats))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    OpenApiRouter::new().nest("/api/v1/ai_analysis", routes)
}

/// One instance of a service.
#[derive(Debug, Serialize, ToSchema)]
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
    #[schema(value_type = String, format = DateTime)]
    last_seen: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
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
#[derive(Debug, Serialize, ToSchema)]
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
#[derive(Debug, Serialize, ToSchema)]
pub struct TypeStats {
    task_type: String,
    services: Vec<ServiceView>,
    total: usize,
    healthy: usize,
    call_count: u64,
}

/// The body of `POST heartbeat` and `POST unregister`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    endpoint: String,
}

/// Registers an instance of a service, or updates the one at its endpoint
#[utoipa::path(post, path = "/register", tag = "services", request_body = Wanted, responses(
    (status = 200, description = "Its endpoint was known and is updated", body = ServiceView),
    (status = 201, description = "It is registered", body = ServiceView),
    (status = 409, description = "There are as many as there may be", body = Refusal)))]
async fn register(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    InBody(wanted): InBody<Wanted>,
) -> Result<(StatusCode, Json<ServiceView>), Rejection> {
    let wanted = Registration::try_from(wanted)?;
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

/// Says that an instance is alive
#[utoipa::path(post, path = "/heartbeat", tag = "services", request_body = Which, responses(
    (status = 200, description = "It is known", body = ServiceView),
    (status = 404, description = "No service is registered at this endpoint", body = Refusal)))]
async fn heartbeat(
    State(gateway): State<Arc<Gateway>>,
    InBody(which): InBody<Which>,
) -> Result<Json<ServiceView>, Rejection> {
    let (endpoint, _) = endpoint(&which.endpoint)?;
    let service = gateway.registry.beat(&endpoint).ok_or_else(not_registered)?;
    Ok(Json(service.into()))
}

/// Forgets an instance
#[utoipa::path(post, path = "/unregister", tag = "services", request_body = Which, responses(
    (status = 200, description = "The instance as it was", body = ServiceView),
    (status = 404, description = "No service is registered at this endpoint", body = Refusal)))]
async fn unregister(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    InBody(which): InBody<Which>,
) -> Result<Json<ServiceView>, Rejection> {
    let (endpoint, _) = endpoint(&which.endpoint)?;
    let service = gateway.registry.unregister(&endpoint).ok_or_else(not_registered)?;
    audit(&caller.actor(), &endpoint.url(), "registered", "absent");
    Ok(Json(service.into()))
}

/// Every instance of every service
#[utoipa::path(get, path = "/services", tag = "services",
    responses((status = 200, description = "The services", body = Services)))]
async fn services(State(gateway): State<Arc<Gateway>>) -> Json<Services> {
    Json(Services::of(&gateway.registry))
}

/// A task type in a path.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct OfType {
    /// The task type
    task_type: String,
}

/// The instances that do one type of task
#[utoipa::path(get, path = "/services/stats/{task_type}", tag = "services", params(OfType),
    responses(
        (status = 200, description = "Them and their sums", body = TypeStats),
        (status = 404, description = "No service does this", body = Refusal)))]
async fn stats(
    State(gateway): State<Arc<Gateway>>,
    InPath(OfType { task_type }): InPath<OfType>,
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

fn not_registered() -> Rejection {
    Rejection::new(Kind::NotFound, "no service is registered at this endpoint")
        .cure("POST /api/v1/ai_analysis/register registers one")
}
