//! A WebSocket message on its way from a backend to the owner of a job.

use std::sync::Arc;

use bytes::Bytes;

use super::job::{JobId, Owner};

/// One message, text or binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Whether it is a binary message; text is valid UTF-8.
    pub binary: bool,
    /// Its payload.
    pub bytes: Bytes,
}

/// What a message is, as far as bounding and ordering need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meaning {
    /// `execution_start`.
    Start,
    /// `execution_cached`: the nodes that need not run.
    Cached,
    /// `executing` with a node.
    Executing,
    /// `progress`: the latest tells all.
    Progress,
    /// `progress_state`: the latest tells all.
    ProgressState,
    /// A preview image (binary types 1 and 4), which may also be a result (`SaveImageWebsocket`).
    Preview,
    /// `executed`: an output.
    Output,
    /// `execution_success`, `execution_error` (unless `ExecutionBlocked`) or
    /// `execution_interrupted`.
    Terminal,
    /// `executing` with a null node: the last word on a prompt.
    End,
    /// Anything else; never dropped.
    Other,
}

/// A message of a job for its owner.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Whom it is for.
    pub owner: Owner,
    /// Which job it belongs to.
    pub job: JobId,
    /// The id that the owner knows the job by.
    pub prompt_id: Arc<str>,
    /// What it is.
    pub meaning: Meaning,
    /// The message as the owner is to get it.
    pub frame: Frame,
}
