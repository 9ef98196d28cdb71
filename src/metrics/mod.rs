//! Metrics for Prometheus: `GET /metrics` on the admin port.
//!
//! | name (after `comfygate_`) | kind | tells |
//! |---|---|---|
//! | `requests_total{backend,method,code}` | counter | what the data port answered |
//! | `request_duration_seconds{backend}` | histogram | from a request's head to the answer's end |
//! | `backend_up`, `backend_state{state}`, `backend_queue{kind}` `{backend}` | gauge | each backend now |
//! | `backend_connections{backend}` | gauge | requests and sockets that it holds |
//! | `backend_ejections_total{backend}` | counter | see [`outlier`](crate::outlier) |
//! | `backend_sessions`, `backend_success_ratio`, `queue_age_seconds`, `websockets` `{backend}` | gauge | the same |
//! | `sessions`, `tasks_queued`, `config_last_reload_success` | gauge | the gateway now |
//! | `tasks_total{state}`, `failovers_total`, `retries_total` | counter | since the start |
//! | `rejections_total{reason}`, `cache_requests_total{result}` | counter | since the start |
//! | `task_wait_seconds`, `task_run_seconds` | histogram | tasks that ended |
//! | `eta_error_seconds` | histogram | tasks that waited in pool mode, as they begin |
//!
//! A request counts once, when its answer is over; a WebSocket when its 101 is sent, since its life
//! is no answer time; one whose client left before an answer began does not count. `backend=""`
//! is an answer of the gateway's own. Every label is out of a closed set, the fleet's names and
//! those of [`Traffic`], so the number of series does not depend on clients.
//!
//! Counting is a few relaxed additions to atomics that lie with the backend
//! ([`Live::traffic`](crate::backend::Live::traffic)) or here; a backend that goes takes its series
//! along. Gauges are taken from the fleet when somebody asks ([`scrape`]).

mod durations;
mod endpoint;
pub mod scrape;
mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

pub use durations::Durations;
pub use endpoint::{count_local, routes};
pub use traffic::Traffic;

use crate::rejection::{Kind, Rejection};
use crate::tasks::{TaskChange, TaskState};

/// Bounds of a task's waiting and running time, in seconds: a picture takes a few, a video an hour.
const TASK_SECONDS: [f64; 13] =
    [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEnd {
    /// With its outputs.
    Completed,
    /// With an error.
    Failed,
    /// By somebody's wish.
    Cancelled,
}

impl TaskEnd {
    /// Every end, in the order of the enum.
    pub const ALL: [Self; 3] = [Self::Completed, Self::Failed, Self::Cancelled];

    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What became of a request at the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheResult {
    /// Answered from it.
    Hit,
    /// Not there yet.
    Miss,
    /// Not for the cache.
    Bypass,
}

impl CacheResult {
    /// Every result, in the order of the enum.
    pub const ALL: [Self; 3] = [Self::Hit, Self::Miss, Self::Bypass];

    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
        }
    }
}

/// What is counted for the gateway as a whole; each backend counts its own [`Traffic`].
#[derive(Debug)]
pub struct Metrics {
    /// What the gateway answered itself.
    pub front: Traffic,
    failovers: AtomicU64,
    retries: AtomicU64,
    rejections: [AtomicU64; Kind::ALL.len()],
    cache: [AtomicU64; CacheResult::ALL.len()],
    tasks: [AtomicU64; TaskEnd::ALL.len()],
    task_wait: Durations,
    task_run: Durations,
    /// How far off the first reckoning of a task's beginning was (pool mode).
    pub eta_error: Arc<Durations>,
    reload_failed: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            front: Traffic::default(),
            failovers: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            rejections: std::array::from_fn(|_| AtomicU64::new(0)),
            cache: std::array::from_fn(|_| AtomicU64::new(0)),
            tasks: std::array::from_fn(|_| AtomicU64::new(0)),
            task_wait: Durations::new(&TASK_SECONDS),
            task_run: Durations::new(&TASK_SECONDS),
            eta_error: Arc::new(Durations::new(&TASK_SECONDS)),
            reload_failed: AtomicBool::new(false),
        }
    }
}

impl Metrics {
    /// A refusal became the answer to a request that the front door holds.
    pub fn refused(&self, method: &str, refused: &Rejection) {
        self.front.answered(method, refused.kind.status().as_u16(), Duration::ZERO);
        self.rejected(refused.kind);
    }

    /// A refusal became an answer that is counted elsewhere.
    pub fn rejected(&self, kind: Kind) {
        if let Some(count) = self.rejections.get(kind as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// A client lost its backend and was placed on another one.
    pub fn failed_over(&self) {
        self.failovers.fetch_add(1, Relaxed);
    }

    /// A request goes to another backend after one failed it.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// The cache was asked.
    pub fn cache_asked(&self, result: CacheResult) {
        self.cache[result as usize].fetch_add(1, Relaxed);
    }

    /// A task ended, having waited and run so long; `None` for what it never came to.
    pub fn task_ended(&self, end: TaskEnd, wait: Option<Duration>, run: Option<Duration>) {
        self.tasks[end as usize].fetch_add(1, Relaxed);
        if let Some(wait) = wait {
            self.task_wait.observe(wait);
        }
        if let Some(run) = run {
            self.task_run.observe(run);
        }
    }

    /// A task changed as it came to count.
    pub fn task_changed(&self, change: &TaskChange) {
        let end = match change.state {
            TaskState::Queued | TaskState::Running => return,
            TaskState::Completed => TaskEnd::Completed,
            TaskState::Failed => TaskEnd::Failed,
            TaskState::Cancelled => TaskEnd::Cancelled,
        };
        let time = |seconds: Option<f64>| Duration::try_from_secs_f64(seconds?).ok();
        self.task_ended(end, time(change.wait_seconds), time(change.run_seconds));
    }

    /// A reload of the configuration ended so.
    pub fn reloaded(&self, success: bool) {
        self.reload_failed.store(!success, Relaxed);
    }
}
