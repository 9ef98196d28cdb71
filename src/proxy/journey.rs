//! What is known of a request on its way through Pingora's phases.

use std::time::Instant;

use pingora_core::{Error, ErrorSource, ErrorType};

use crate::backend::BackendId;
use crate::comfy::class::Class;
use crate::connections::Connection;
use crate::edge::envelope::Envelope;
use crate::gateway::Destination;
use crate::rejection::Rejection;
use crate::retry::{RequestGuard, RetryGuard};
use crate::tasks::intake::Intake;

/// What is known of a request on its way.
#[derive(Default)]
pub struct Journey {
    pub(super) envelope: Option<Box<Envelope>>,
    pub(super) destination: Option<Destination>,
    pub(super) tried: Vec<BackendId>,
    /// What kind of request it is.
    pub(super) class: Class,
    /// Counts it among those that its backend holds.
    pub(super) connection: Option<Connection>,
    /// Only this backend can answer it.
    pub(super) is_bound: bool,
    pub(super) refused: Option<Rejection>,
    pub(super) body_bytes: u64,
    /// What a prompt tells in passing.
    pub(super) intake: Option<Intake>,
    /// When the connection to the backend stood.
    pub(super) connected: Option<Instant>,
    /// When the response's head came.
    pub(super) answered: Option<Instant>,
    /// What is to be tried after a failure.
    pub(super) next_try: Option<NextTry>,
    /// The backend has been asked again after a stale connection.
    pub(super) asked_again: bool,
    pub(super) _active: Option<RequestGuard>,
    /// The retry under way, until its answer comes.
    pub(super) retry: Option<RetryGuard>,
}

/// Where a failed request goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextTry {
    /// To the same backend: only the kept-alive connection had ended.
    Again,
    /// To the next best one.
    Elsewhere,
}

impl Journey {
    /// Takes a refusal that is to be answered in place of the backend.
    #[expect(clippy::unnecessary_box_returns, reason = "as Pingora's errors come")]
    pub(super) fn refuse(&mut self, refused: Rejection) -> Box<Error> {
        let status = refused.kind.status().as_u16();
        self.refused = Some(refused);
        Error::explain(ErrorType::HTTPStatus(status), "refused")
    }

    pub(super) fn backend_name(&self) -> Option<&str> {
        self.destination.as_ref().map(|destination| destination.backend.name())
    }
}

/// Why a request went as it did, for the access log.
pub(super) fn reason(journey: &Journey, error: Option<&Error>) -> &'static str {
    match (&journey.refused, error) {
        (Some(refused), _) => refused.kind.name(),
        (None, Some(error)) if *error.esource() == ErrorSource::Downstream => "client_gone",
        (None, Some(_)) => "upstream_failed",
        (None, None) if !journey.tried.is_empty() => "retried",
        (None, None) => "ok",
    }
}
