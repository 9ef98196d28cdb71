//! Whether a failed request goes to another backend.
//!
//! A retry hides a dead backend from the one client that hit it, and it multiplies load: when a
//! farm fails because it is overloaded, clients' requests come back as two, then four, and what was
//! a slow minute becomes an outage. A fixed number of attempts per request does not prevent that.
//! Bounding all retries together by a share of the live traffic does: single failures are always
//! retried, a general failure adds a fifth to the load at most and then shows as what it is.
//!
//! So two questions are asked in turn. [`may_retry`] is a pure table: could this request do harm
//! when it is sent twice? A connection that failed before a byte was sent cannot have (any method);
//! an idempotent request may also be repeated after a reset that came before the response's head.
//! `POST /prompt` never goes twice once it began to leave: a prompt that runs twice costs minutes
//! of somebody's GPU. A timeout is no reset: the backend may be at work on it, and the next one
//! would be as slow. Then [`RetryBudget::retry`], after Envoy's `retry_budget`: retries in flight may
//! be 20 % of the requests in flight, and 3 at least, so that an idle gateway retries too. Unlike
//! Envoy's, a retry that finds no room waits for some: when a backend of three dies, a third of all
//! requests fail in the same instant, and none of them need be lost for the others' sake.
//!
//! Both sides are counted by guards; whatever way a request ends, its guard gives back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::Method;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Retries in flight per 100 requests in flight.
const SHARE_PERCENT: u32 = 20;
/// Retries in flight that are always allowed.
const AT_LEAST: u32 = 3;
/// How long a retry may wait for room: when one backend of two dies, half of all requests have to
/// take turns, and those of a ComfyUI whose loop stalls take seconds.
pub const WAIT_FOR_ROOM: Duration = Duration::from_secs(10);

/// How a request to a backend failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection came about: refused, unreachable, no TLS, or no time left for it.
    Connect,
    /// The connection ended.
    Reset,
    /// No answer in time.
    Timeout,
}

/// What there is to know about a failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryCase<'a> {
    /// Its method.
    pub method: &'a Method,
    /// It is `POST /prompt`, with or without `/api`.
    pub is_prompt_post: bool,
    /// A byte of it, head or body, was handed to the connection.
    pub bytes_sent: bool,
    /// A part of its body was read from the client and not kept, so that it cannot be sent again.
    pub body_lost: bool,
    /// A byte of the response's head arrived.
    pub response_started: bool,
    /// What happened.
    pub failure: Failure,
    /// Backends tried so far, this one included.
    pub attempt: u32,
    /// Backends that may be tried (`failover.attempts`; 1 when failover is off).
    pub max_attempts: u32,
}

/// What to do with a failed request; a refusal says why, for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Send it to the next best backend, if the budget allows.
    Retry,
    /// The client has begun to get an answer.
    ResponseStarted,
    /// As many backends as may be tried were tried.
    AttemptsSpent,
    /// A part of the body is gone.
    BodyLost,
    /// A prompt began to leave; it may run.
    PromptSent,
    /// Something began to leave that must not arrive twice.
    NotIdempotent,
    /// The backend may be at work on it.
    TimedOut,
}

/// Whether a failed request may go to another backend, budget aside.
pub fn may_retry(case: &RetryCase<'_>) -> Verdict {
    if case.response_started {
        Verdict::ResponseStarted
    } else if case.attempt >= case.max_attempts {
        Verdict::AttemptsSpent
    } else if case.body_lost {
        Verdict::BodyLost
    } else if !case.bytes_sent {
        Verdict::Retry
    } else if case.is_prompt_post {
        Verdict::PromptSent
    } else if !case.method.is_idempotent() {
        Verdict::NotIdempotent
    } else if case.failure == Failure::Timeout {
        Verdict::TimedOut
    } else {
        Verdict::Retry
    }
}

/// Counts requests and retries in flight; one serves the process.
#[derive(Debug, Default)]
pub struct RetryBudget {
    active: AtomicU32,
    retries: AtomicU32,
    room: Notify,
}

impl RetryBudget {
    /// A budget with nothing in flight.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Counts a client's request until the guard is dropped; retries do not count again.
    #[must_use = "the request counts only while the guard lives"]
    pub fn request(self: &Arc<Self>) -> RequestGuard {
        self.active.fetch_add(1, Ordering::Relaxed);
        RequestGuard(Arc::clone(self))
    }

    /// A retry as soon as the budget allows one more, if that is within [`WAIT_FOR_ROOM`]; it
    /// counts until the guard is dropped.
    pub async fn retry(self: &Arc<Self>) -> Option<RetryGuard> {
        let found = async {
            loop {
                // Listening before looking, so that room made in between is not missed.
                let room = self.room.notified();
                if let Some(guard) = self.try_retry() {
                    return guard;
                }
                room.await;
            }
        };
        timeout(WAIT_FOR_ROOM, found).await.ok()
    }

    /// A retry, if the budget allows one more now; it counts until the guard is dropped.
    #[must_use = "the retry counts only while the guard lives"]
    pub fn try_retry(self: &Arc<Self>) -> Option<RetryGuard> {
        let allowed = self.allowed();
        let one_more = |retries: u32| (retries < allowed).then(|| retries + 1);
        self.retries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(RetryGuard(Arc::clone(self)))
    }

    /// Requests in flight.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Retries in flight.
    pub fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Retries that may be in flight at this moment.
    fn allowed(&self) -> u32 {
        let share = u64::from(self.active()) * u64::from(SHARE_PERCENT) / 100;
        (share as u32).max(AT_LEAST)
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct RequestGuard(Arc<RetryBudget>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A retry in flight.
#[derive(Debug)]
pub struct RetryGuard(Arc<RetryBudget>);

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::Relaxed);
        self.0.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const METHODS: [Method; 8] = [
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::PUT,
        Method::DELETE,
        Method::TRACE,
        Method::POST,
        Method::PATCH,
    ];

    const GET: RetryCase<'static> = RetryCase {
        method: &Method::GET,
        is_prompt_post: false,
        bytes_sent: true,
        body_lost: false,
        response_started: false,
        failure: Failure::Reset,
        attempt: 1,
        max_attempts: 3,
    };

    fn every_case(check: impl Fn(&RetryCase<'_>)) {
        let failures = [Failure::Connect, Failure::Reset, Failure::Timeout];
        for (method, failure) in METHODS.iter().flat_map(|m| failures.map(|failure| (m, failure))) {
            for bits in 0..16u8 {
                for attempt in 1..=4 {
                    let is_prompt_post = bits & 1 > 0 && *method == Method::POST;
                    let (bytes_sent, body_lost) = (bits & 2 > 0, bits & 4 > 0);
                    let response_started = bits & 8 > 0;
                    check(&RetryCase {
                        method,
                        is_prompt_post,
                        bytes_sent,
                        body_lost,
                        response_started,
                        failure,
                        attempt,
                        max_attempts: 3,
                    });
                }
            }
        }
    }

    /// The three sentences, against the whole table.
    #[test]
    fn the_whole_table_is_as_promised() {
        every_case(|case| {
            let promised = !case.response_started
                && !case.body_lost
                && case.attempt < 3
                && (!case.bytes_sent
                    || (case.method.is_idempotent() && case.failure != Failure::Timeout));
            assert_eq!(may_retry(case) == Verdict::Retry, promised, "{case:?}");
        });
    }

    #[test]
    fn a_prompt_that_began_to_leave_never_goes_twice() {
        every_case(|case| {
            if case.is_prompt_post && case.bytes_sent {
                assert_ne!(may_retry(case), Verdict::Retry, "{case:?}");
            }
        });
        let post = RetryCase { method: &Method::POST, is_prompt_post: true, ..GET };
        assert_eq!(may_retry(&post), Verdict::PromptSent);
        assert_eq!(may_retry(&RetryCase { bytes_sent: false, ..post }), Verdict::Retry);
    }

    #[test]
    fn refusals_say_why() {
        let verdict = |case: RetryCase<'_>| may_retry(&case);
        assert_eq!(verdict(GET), Verdict::Retry);
        let case = RetryCase { response_started: true, ..GET };
        assert_eq!(verdict(case), Verdict::ResponseStarted);
        assert_eq!(verdict(RetryCase { attempt: 3, ..GET }), Verdict::AttemptsSpent);
        assert_eq!(verdict(RetryCase { max_attempts: 1, ..GET }), Verdict::AttemptsSpent);
        assert_eq!(verdict(RetryCase { body_lost: true, ..GET }), Verdict::BodyLost);
        assert_eq!(verdict(RetryCase { method: &Method::POST, ..GET }), Verdict::NotIdempotent);
        assert_eq!(verdict(RetryCase { failure: Failure::Timeout, ..GET }), Verdict::TimedOut);
    }

    #[test]
    fn three_retries_are_always_allowed_and_then_a_fifth() {
        let budget = RetryBudget::new();
        let few: Vec<_> = (0..5).map_while(|_| budget.try_retry()).collect();
        assert_eq!(few.len(), 3);
        drop(few);
        let requests: Vec<_> = (0..50).map(|_| budget.request()).collect();
        let retries: Vec<_> = (0..50).map_while(|_| budget.try_retry()).collect();
        assert_eq!(retries.len(), 10);
        drop((requests, retries));
        assert_eq!((budget.active(), budget.retries()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_without_room_wait_for_it_but_not_for_ever() {
        let budget = RetryBudget::new();
        let held: Vec<_> = (0..3).map_while(|_| budget.try_retry()).collect();
        assert!(budget.retry().await.is_none(), "nobody made room");
        let waiting: Vec<_> = (0..6)
            .map(|_| {
                let budget = Arc::clone(&budget);
                tokio::spawn(async move {
                    let guard = budget.retry().await;
                    tokio::time::sleep(WAIT_FOR_ROOM / 3).await;
                    guard.is_some()
                })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(held);
        for waiter in waiting {
            assert!(waiter.await.unwrap());
        }
        assert_eq!(budget.retries(), 0);
    }

    #[test]
    fn racing_threads_never_exceed_the_budget() {
        let budget = RetryBudget::new();
        let _requests: Vec<_> = (0..40).map(|_| budget.request()).collect();
        let most = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let held = (budget.try_retry(), budget.try_retry(), budget.try_retry());
                        most.fetch_max(budget.retries(), Ordering::Relaxed);
                        drop(held);
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!((1..=8).contains(&most), "{most} retries at once");
        assert_eq!(budget.retries(), 0);
    }

    proptest! {
        /// Steps: a request comes or goes, a retry is asked for or ends.
        #[test]
        fn the_budget_is_never_exceeded(steps in prop::collection::vec(0u8..8, 0..200)) {
            let budget = RetryBudget::new();
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    0..=3 => requests.push(budget.request()),
                    4 => drop(requests.pop()),
                    5 => drop(retries.pop()),
                    _ => {
                        let room = (retries.len() as u32) < (requests.len() as u32 / 5).max(3);
                        let got = budget.try_retry();
                        prop_assert_eq!(got.is_some(), room);
                        retries.extend(got);
                    }
                }
                prop_assert_eq!(budget.active() as usize, requests.len());
                prop_assert_eq!(budget.retries() as usize, retries.len());
            }
        }
    }
}
