//! What becomes of a request whose connection to a backend failed.

use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;

use super::Proxy;
use super::journey::{Journey, NextTry};
use crate::outlier::Evidence;
use crate::rejection::{Kind, Rejection};
use crate::retry::{Failure, RetryCase, Verdict, may_retry};

/// What had happened to a request when its connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// There was no connection yet.
    Nothing,
    /// It began to leave on a connection of its own.
    OnFresh,
    /// It began to leave on a kept-alive connection.
    OnReused,
}

impl Proxy {
    /// Decides whether a failed request is tried again, and where.
    #[expect(clippy::unnecessary_box_returns, reason = "as Pingora's errors come")]
    pub(super) fn failed(
        &self,
        session: &mut Session,
        journey: &mut Journey,
        mut error: Box<Error>,
        failure: Failure,
        sent: Sent,
    ) -> Box<Error> {
        error.set_retry(false);
        let Some(destination) = &journey.destination else { return error };
        if journey.refused.is_some() {
            return error;
        }
        let asked = session.is_body_done();
        let backend = &destination.backend;
        let failover = &self.gateway.config.load().failover;
        let bytes_sent = sent != Sent::Nothing;
        let case = RetryCase {
            method: &session.req_header().method,
            is_prompt_post: journey.envelope.as_deref().is_some_and(|e| e.is_prompt),
            bytes_sent,
            body_lost: bytes_sent && journey.body_bytes > 0,
            response_started: session.response_written().is_some(),
            failure,
            attempt: journey.tried.len() as u32 + 1,
            max_attempts: if failover.enabled { failover.attempts } else { 1 },
        };
        // The end of a kept-alive connection says little about the backend, and its client would
        // lose queue, history and files with it: a fresh connection shall tell.
        let stale = sent == Sent::OnReused && failure == Failure::Reset && !journey.asked_again;
        if stale && may_retry(&RetryCase { attempt: 0, ..case.clone() }) == Verdict::Retry {
            backend.live.poke.notify_one();
            journey.asked_again = true;
            journey.next_try = Some(NextTry::Again);
        } else {
            self.gateway.suspects(backend, &error.etype().as_str().to_lowercase());
            if destination.service_path.is_some() {
                self.gateway.registry.failed(backend.id, failure);
            } else if let Some(seen) = Evidence::of_failure(journey.class, failure, asked) {
                self.gateway.warden.saw(backend, seen);
            }
            journey.tried.push(backend.id);
            journey.asked_again = false;
            let elsewhere = !journey.is_bound && may_retry(&case) == Verdict::Retry;
            journey.next_try = elsewhere.then_some(NextTry::Elsewhere);
        }
        error.set_retry(journey.next_try.is_some());
        error
    }

    /// Waits until the budget has room for a retry.
    pub(super) async fn make_room(&self, journey: &mut Journey) -> Result<()> {
        journey.retry = None;
        journey.retry = self.gateway.budget.retry().await;
        match journey.retry {
            Some(_) => {
                self.gateway.metrics.retried();
                Ok(())
            }
            None => Err(journey.refuse(
                Rejection::new(Kind::UpstreamFailed, "the ComfyUI server failed").retry_after(1),
            )),
        }
    }

    /// Finds the next best backend.
    pub(super) fn turn_elsewhere(&self, journey: &mut Journey) -> Result<()> {
        journey.destination = None;
        if let Some(intake) = &mut journey.intake {
            intake.restart();
        }
        let Some(envelope) = journey.envelope.as_deref() else { return Ok(()) };
        match self.gateway.destination(envelope, &journey.tried) {
            Ok(destination) => journey.destination = Some(destination),
            Err(refused) => return Err(journey.refuse(refused)),
        }
        Ok(())
    }
}

/// The refusal that a failure of the proxy itself amounts to; none when the client is gone.
pub(super) fn refusal_of(error: &Error, asked: &str) -> Option<Rejection> {
    match (error.esource(), error.etype()) {
        (_, ErrorType::ReadTimedout | ErrorType::WriteTimedout | ErrorType::ConnectTimedout)
            if *error.esource() == ErrorSource::Upstream =>
        {
            let message = format!("the {asked} did not answer in time");
            Some(Rejection::new(Kind::UpstreamTimeout, message))
        }
        (ErrorSource::Upstream, _) => {
            Some(Rejection::new(Kind::UpstreamFailed, format!("the {asked} failed")))
        }
        (ErrorSource::Downstream, ErrorType::ReadTimedout) => {
            Some(Rejection::new(Kind::Timeout, "the request's body did not come in time"))
        }
        (
            ErrorSource::Downstream,
            ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::ConnectionClosed
            | ErrorType::WriteTimedout,
        ) => None,
        (ErrorSource::Downstream, _) => {
            Some(Rejection::new(Kind::BadRequest, "the request's body is malformed"))
        }
        _ => Some(Rejection::new(Kind::UpstreamFailed, "the request could not be proxied")),
    }
}
