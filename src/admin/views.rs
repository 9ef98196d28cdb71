//! What the admin plane shows of the gateway, as it is written to JSON: durations are seconds as
//! numbers, timestamps RFC 3339 in UTC, lists stand under their plural name with `total`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::backend::Backend;
use crate::clock::Moment;
use crate::config::Mode;
use crate::gateway::Gateway;
use crate::inventory::Device;
use crate::summary::Summary;

/// `GET /lb/stats`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stats {
    mode: &'static str,
    strategy: &'static str,
    uptime_seconds: f64,
    backends: Counts,
    best_backend: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    last_health_check: Option<Timestamp>,
    sessions: usize,
    websockets: u64,
    tasks: Counted,
}

#[derive(Debug, Serialize, ToSchema)]
struct Counts {
    total: usize,
    healthy: usize,
}

#[derive(Debug, Serialize, ToSchema)]
struct Counted {
    queued: u64,
    running: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
}

impl Stats {
    /// The totals now.
    pub fn of(gateway: &Gateway) -> Self {
        let config = gateway.config.load();
        let view = gateway.fleet.view();
        let lives = || view.backends.iter().map(|backend| &backend.live);
        let tasks = gateway.tasks.counts();
        Self {
            mode: match config.mode {
                Mode::Sticky => "sticky",
                Mode::Pool => "pool",
            },
            strategy: config.scheduler.strategy.name(),
            uptime_seconds: Moment::now().since(gateway.started).as_secs_f64(),
            backends: Counts {
                total: view.backends.len(),
                healthy: lives().filter(|live| live.standing().is_healthy()).count(),
            },
            best_backend: Summary::of(&view, None).best,
            last_health_check: lives().filter_map(|live| live.notes().last_check).max(),
            sessions: gateway.affinity.len(),
            websockets: lives().map(|live| u64::from(live.sockets.load(Relaxed))).sum(),
            tasks: Counted {
                queued: tasks.queued,
                running: tasks.running,
                completed: tasks.completed,
                failed: tasks.failed,
                cancelled: tasks.cancelled,
            },
        }
    }
}

/// `GET /lb/backends`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Backends {
    backends: Vec<BackendView>,
    total: usize,
}

impl Backends {
    /// Every backend now.
    pub fn of(gateway: &Gateway) -> Self {
        let view = gateway.fleet.view();
        let backends: Vec<_> = view.backends.iter().map(|b| BackendView::of(gateway, b)).collect();
        Self { total: backends.len(), backends }
    }
}

/// One backend.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackendView {
    name: String,
    url: String,
    state: &'static str,
    healthy: bool,
    /// Whether new clients (sticky mode) or prompts (pool mode) go there.
    takes_jobs: bool,
    enabled: bool,
    wanted: &'static str,
    weight: u32,
    max_queue: u32,
    backup: bool,
    queue: Queue,
    queue_age_seconds: Option<f64>,
    sessions: usize,
    websockets: u32,
    /// Requests and sockets that it holds now.
    connections: u32,
    max_connections: u32,
    /// How often it was ejected for failing requests.
    ejections: u64,
    /// When it comes back from its ejection, if it is ejected.
    #[schema(value_type = Option<String>, format = DateTime)]
    ejected_until: Option<Timestamp>,
    calls: u64,
    failures: u64,
    success_rate: f64,
    response_seconds: f64,
    prompt_seconds: f64,
    version: Option<String>,
    devices: Vec<Device>,
    labels: BTreeMap<String, String>,
    task_types: Vec<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    last_check: Option<Timestamp>,
    last_error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Queue {
    running: u32,
    pending: u32,
    total: u32,
}

impl BackendView {
    /// A backend now.
    pub fn of(gateway: &Gateway, backend: &Backend) -> Self {
        let (spec, live) = (&backend.spec, &backend.live);
        let standing = live.standing();
        let reading = live.depth.reading();
        let notes = live.notes();
        let system = live.inventory.system();
        let (calls, failures) = (live.calls.load(Relaxed), live.failures.load(Relaxed));
        Self {
            name: spec.name.clone(),
            url: spec.endpoint.url(),
            state: standing.label(),
            healthy: standing.is_healthy(),
            takes_jobs: match gateway.pool() {
                Some(pool) => pool.is_open(backend),
                None => standing.takes_new() && standing.is_healthy(),
            },
            enabled: standing.wanted != crate::backend::Wanted::Disabled,
            wanted: standing.wanted.name(),
            weight: spec.weight,
            max_queue: spec.max_queue,
            backup: spec.backup,
            queue: Queue {
                running: reading.running,
                pending: live.depth.prompts().saturating_sub(reading.running),
                total: live.depth.prompts(),
            },
            queue_age_seconds: reading.at.map(|at| Moment::now().since(at).as_secs_f64()),
            sessions: gateway.affinity.sessions(backend.id.0),
            websockets: live.sockets.load(Relaxed),
            connections: live.connections.count(),
            max_connections: spec.max_connections,
            ejections: live.outlier.ejections(),
            ejected_until: notes.ejected_until,
            calls,
            failures,
            success_rate: gateway.tasks.success_rate(backend.id, calls, failures),
            response_seconds: live.response_seconds(),
            prompt_seconds: live.learnt().prompt_seconds,
            version: system.as_deref().and_then(|system| system.version.clone()),
            devices: system.as_deref().map(|system| system.devices.clone()).unwrap_or_default(),
            labels: spec.labels.iter().cloned().collect(),
            task_types: spec.task_types.clone(),
            last_check: notes.last_check,
            last_error: notes.last_error,
        }
    }
}
