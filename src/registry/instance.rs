//! One instance of a service, and how it is judged.
//!
//! Services are arbitrary HTTP servers: there is no queue to ask for, so they are judged by what
//! happens to requests. A connection that does not come about takes an instance out at once, for a
//! second at first and for twice as long each time until a minute is reached; so does the third
//! connection in a row that ends without an answer. When the time is over a TCP connection is
//! tried: it brings the instance back, or doubles the time. Only an answer clears the record, so
//! that a server that takes connections and answers nothing is tried ever more rarely. Idle ones
//! are tried every `health_check.interval`.

use std::time::Duration;

use jiff::Timestamp;

use super::registration::Registration;
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::retry::Failure;

/// How long an instance is out at first.
const FIRST_OUT: Duration = Duration::from_secs(1);
/// How long it is out at most.
pub const LONGEST_OUT: Duration = Duration::from_mins(1);
/// Connections in a row that may end without an answer.
const CUTS: u32 = 3;

/// An instance of a service.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its number, none of a backend's.
    pub id: BackendId,
    /// What responses, logs and metrics call it: the service's id and a number, `yolo11x:1`. The
    /// colon keeps it apart from the names of backends.
    pub label: String,
    /// What it said of itself.
    pub registration: Registration,
    /// Requests handed to it.
    pub calls: u64,
    /// When it registered or sent a heartbeat last.
    pub last_seen: Timestamp,
    pub(super) expires: Option<Moment>,
    healthy: bool,
    /// What went wrong since the last answer.
    trouble: u32,
    cuts: u32,
    probe_at: Moment,
    probing: bool,
}

impl Instance {
    /// An instance that has just registered: believed, and tried at once.
    pub(super) fn new(
        id: BackendId,
        label: String,
        registration: Registration,
        now: Moment,
        at: Timestamp,
    ) -> Self {
        let mut instance = Self {
            id,
            label,
            registration,
            calls: 0,
            last_seen: at,
            expires: None,
            healthy: true,
            trouble: 0,
            cuts: 0,
            probe_at: now,
            probing: false,
        };
        instance.seen(now, at);
        instance
    }

    /// Whether it may be sent requests.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// When it is tried next.
    pub fn next_probe(&self) -> Moment {
        self.probe_at
    }

    /// It has shown life by itself: it is tried soon, if it was out.
    pub(super) fn seen(&mut self, now: Moment, at: Timestamp) {
        self.last_seen = at;
        self.expires = self.registration.heartbeat.map(|heartbeat| now.plus(heartbeat));
        if !self.healthy {
            self.probe_at = now;
        }
    }

    /// Nothing is known of where it is yet.
    pub(super) fn unresolved(&mut self) {
        self.healthy = false;
    }

    /// It has answered a request.
    pub(super) fn answered(&mut self) {
        self.trouble = 0;
        self.cuts = 0;
    }

    /// A request failed on it; true when that takes it out.
    pub(super) fn failed(&mut self, failure: Failure, now: Moment) -> bool {
        match failure {
            Failure::Connect => {}
            Failure::Reset if self.cuts + 1 >= CUTS => {}
            Failure::Reset => {
                self.cuts += 1;
                return false;
            }
            // Slow is not dead.
            Failure::Timeout => return false,
        }
        // Requests that were on their way together fail together: that is one failure.
        self.healthy && self.take_out(now)
    }

    /// A connection was tried; true when that changes whether it is healthy.
    pub(super) fn probed(&mut self, connected: bool, interval: Duration, now: Moment) -> bool {
        self.probing = false;
        if !connected {
            let was_healthy = self.healthy;
            self.take_out(now);
            return was_healthy;
        }
        self.probe_at = now.plus(interval);
        !std::mem::replace(&mut self.healthy, true)
    }

    fn take_out(&mut self, now: Moment) -> bool {
        let out = FIRST_OUT.saturating_mul(1 << self.trouble.min(16)).min(LONGEST_OUT);
        self.trouble = self.trouble.saturating_add(1);
        self.cuts = 0;
        self.probe_at = now.plus(out);
        self.healthy = false;
        true
    }

    /// Whether it is to be tried now; if so it counts as being tried.
    pub(super) fn take_probe(&mut self, now: Moment) -> bool {
        let due = !self.probing && self.probe_at <= now;
        self.probing |= due;
        due
    }
}
