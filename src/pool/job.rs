//! A job: a prompt that was handed to the farm.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::backend::BackendId;
use crate::identity::ClientKey;
use crate::tasks::kind::Kind;

/// A job's number, in the order of arrival; unique over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// Whose a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The caller, as fairness and isolation count it.
    pub key: ClientKey,
    /// The caller for people.
    pub caller: Arc<str>,
    /// The `client_id` that the prompt named; `None` when it named none or null.
    pub client_id: Option<Arc<str>>,
}

/// What a job needs of the server that is to run it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Needs {
    /// Node types.
    pub nodes: BTreeSet<Box<str>>,
    /// Names of model files, slashes forward.
    pub models: BTreeSet<Box<str>>,
    /// The kind of work, where backends list what they do (`task_types`).
    pub task_type: Option<Box<str>>,
    /// Runs only there: it reads an output file of that backend.
    pub only_on: Option<BackendId>,
}

/// A job as it was handed in. Shared, never changed.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// The id that its client knows.
    pub prompt_id: Arc<str>,
    /// Whose it is.
    pub owner: Owner,
    /// Its place as ComfyUI orders: the lowest runs first. Finite.
    pub number: f64,
    /// Before all of a lower one; 0 unless asked for.
    pub priority: i32,
    /// What it needs.
    pub needs: Arc<Needs>,
    /// What its time is learnt by; `None` when it cannot be told.
    pub kind: Option<Kind>,
    /// The client's zone.
    pub zone: Option<Arc<str>>,
    /// It must not run twice.
    pub once: bool,
    /// Milliseconds since 1970 when it came.
    pub created_ms: u64,
    /// The POST's body as it came.
    pub body: Bytes,
}
