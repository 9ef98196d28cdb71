//! One task: a prompt as users see it.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::kind::Kind;
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::identity::ClientKey;

/// How a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// It waits.
    Queued,
    /// It runs.
    Running,
    /// It succeeded.
    Completed,
    /// It failed, or was lost.
    Failed,
    /// Somebody took it back.
    Cancelled,
}

impl TaskState {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// Its name in replies and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether it has not ended.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }
}

/// A point in time by both clocks: the steady one for differences, the other for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Steady.
    pub moment: Moment,
    /// For people.
    pub wall: Timestamp,
}

impl Now {
    /// The time now.
    pub fn read() -> Self {
        Self { moment: Moment::now(), wall: Timestamp::now() }
    }

    /// The same for an earlier time, in milliseconds since 1970.
    #[must_use]
    pub fn at_ms(&self, ms: u64) -> Self {
        let ms = i64::try_from(ms).unwrap_or(i64::MAX);
        let wall = Timestamp::from_millisecond(ms).map_or(self.wall, |wall| wall.min(self.wall));
        let ago = self.wall.as_millisecond().saturating_sub(wall.as_millisecond());
        let ago = u64::try_from(ago).unwrap_or_default();
        Self { moment: Moment(self.moment.0.saturating_sub(ago)), wall }
    }

    /// Seconds since an earlier time.
    pub fn since(&self, earlier: &Self) -> f64 {
        self.moment.since(earlier.moment).as_secs_f64()
    }
}

/// A prompt that a backend has accepted.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The prompt's id.
    pub id: String,
    /// Whose it is, for counting.
    pub key: ClientKey,
    /// Whose it is, for people.
    pub caller: String,
    /// Where it is.
    pub backend: BackendId,
    /// The backend's name.
    pub backend_name: Arc<str>,
    /// The backend's breaks so far, see [`Live::breaks`](crate::backend::Live::breaks).
    pub breaks: u64,
}

/// A task as the ledger keeps it.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) id: Arc<str>,
    pub(super) key: ClientKey,
    pub(super) caller: String,
    pub(super) backend: BackendId,
    pub(super) backend_name: Arc<str>,
    pub(super) kind: Option<Kind>,
    pub(super) state: TaskState,
    pub(super) created: Now,
    pub(super) started: Option<Now>,
    pub(super) finished: Option<Now>,
    pub(super) run_seconds: Option<f64>,
    pub(super) error: Option<String>,
    pub(super) position: Option<u32>,
    /// Seconds from a moment until it will have ended.
    pub(super) ends: Option<(f64, Moment)>,
    /// Somebody asked us to cancel it.
    pub(super) cancelling: bool,
    /// Looks in a row that found it neither queued nor in history.
    pub(super) misses: u8,
    /// How often it was handed to a backend; 0 while it waits in the gateway for the first time.
    pub(super) attempts: u32,
    /// The backend's breaks when it was last seen there.
    pub(super) breaks: u64,
}

impl Task {
    pub(super) fn new(accepted: Accepted, now: Now) -> Self {
        Self {
            id: accepted.id.into(),
            key: accepted.key,
            caller: accepted.caller,
            backend: accepted.backend,
            backend_name: accepted.backend_name,
            kind: None,
            state: TaskState::Queued,
            created: now,
            started: None,
            finished: None,
            run_seconds: None,
            error: None,
            position: None,
            ends: None,
            cancelling: false,
            misses: 0,
            attempts: u32::from(accepted.backend != super::THE_LINE),
            breaks: accepted.breaks,
        }
    }

    pub(super) fn view(&self, now: Now) -> TaskView {
        let open = self.state.is_open();
        let eta = |(seconds, at): (f64, Moment)| {
            round((seconds - now.moment.since(at).as_secs_f64()).max(0.0))
        };
        TaskView {
            task_id: self.id.to_string(),
            state: self.state,
            caller: self.caller.clone(),
            backend: self.backend_name.to_string(),
            attempts: self.attempts,
            position: self.position.filter(|_| open),
            eta_seconds: self.ends.filter(|_| open).map(eta),
            kind: self.kind.as_ref().map(|kind| kind.label.to_string()),
            created_at: self.created.wall,
            started_at: self.started.map(|at| at.wall),
            finished_at: self.finished.map(|at| at.wall),
            run_seconds: self.run_seconds.map(round),
            error: self.error.clone(),
        }
    }
}

/// To the millisecond: more digits would promise more than is known.
fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// A task as the admin plane shows it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TaskView {
    /// The prompt's id.
    pub task_id: String,
    /// How it stands.
    pub state: TaskState,
    /// Whose it is.
    pub caller: String,
    /// Where it is or was.
    pub backend: String,
    /// How often it was handed to a backend.
    pub attempts: u32,
    /// 0: it runs; n: the n-th to wait in its backend's queue; none once it has ended.
    pub position: Option<u32>,
    /// Predicted seconds until it ends.
    pub eta_seconds: Option<f64>,
    /// What kind of prompt it is.
    pub kind: Option<String>,
    /// When the backend took it.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was seen to run, or must have begun to.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When its end was seen.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// How long it ran.
    pub run_seconds: Option<f64>,
    /// What went wrong.
    pub error: Option<String>,
}
