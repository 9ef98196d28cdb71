//! How many prompts a backend holds, as well as that can be known from outside.
//!
//! Readings come late: a poll shows the past, and an event may overtake the reply to the POST
//! that caused it. So prompts are counted here as they are sent ([`Depth::sending`]), kept when
//! the backend accepts them, and dropped once a reading surely includes them. When in doubt a
//! prompt counts twice for an instant rather than not at all: the one makes a backend look busy
//! for a moment, the other herds everybody there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::clock::Moment;

/// A backend's queue: the last reading and what was sent since.
#[derive(Debug, Default)]
pub struct Depth {
    running: AtomicU32,
    pending: AtomicU32,
    /// When the reading was taken; 0 before the first.
    read_at: AtomicU64,
    /// Prompts on their way, not yet answered.
    in_flight: AtomicU32,
    /// Prompts accepted so far.
    accepted: AtomicU64,
    /// How many of those the reading includes.
    covered: AtomicU64,
    /// Readings that came as events.
    events: AtomicU64,
}

/// What a poll remembers from its start, for [`Depth::polled`].
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    accepted: u64,
    events: u64,
}

/// A reading for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Prompts running.
    pub running: u32,
    /// Prompts waiting.
    pub pending: u32,
    /// When it was taken; `None` before the first.
    pub at: Option<Moment>,
}

impl Depth {
    /// Prompts that the backend has to do: read, accepted since, and on their way.
    pub fn prompts(&self) -> u32 {
        let reading = self.running.load(SeqCst).saturating_add(self.pending.load(SeqCst));
        let since = self.accepted.load(SeqCst).saturating_sub(self.covered.load(SeqCst));
        reading.saturating_add(self.in_flight.load(SeqCst)).saturating_add(since as u32)
    }

    /// The last reading as it came.
    pub fn reading(&self) -> Reading {
        let at = self.read_at.load(SeqCst);
        Reading {
            running: self.running.load(SeqCst),
            pending: self.pending.load(SeqCst),
            at: (at > 0).then_some(Moment(at)),
        }
    }

    /// Whether the last reading is older than `age`, or there is none.
    pub fn is_stale(&self, now: Moment, age: Duration) -> bool {
        self.reading().at.is_none_or(|at| now.since(at) > age)
    }

    /// Counts a prompt that is about to be sent.
    pub fn sending(self: &Arc<Self>) -> Sending {
        self.in_flight.fetch_add(1, SeqCst);
        Sending { depth: Arc::clone(self), events: self.events.load(SeqCst), open: true }
    }

    /// To be called when a poll starts.
    pub fn mark(&self) -> Mark {
        Mark { accepted: self.accepted.load(SeqCst), events: self.events.load(SeqCst) }
    }

    /// Takes a poll's result. What an event told while the poll was under way is newer and stays.
    pub fn polled(&self, mark: Mark, running: u32, pending: u32, now: Moment) {
        if self.events.load(SeqCst) == mark.events {
            self.set(running, pending, mark.accepted);
        }
        self.read_at.store(now.0, SeqCst);
    }

    /// Takes the `queue_remaining` of a status event. One prompt runs at a time.
    pub fn pushed(&self, remaining: u32, now: Moment) {
        self.events.fetch_add(1, SeqCst);
        self.set(remaining.min(1), remaining.saturating_sub(1), self.accepted.load(SeqCst));
        self.read_at.store(now.0, SeqCst);
    }

    /// Forgets everything read: the backend went down and took its queue with it.
    pub fn lost(&self) {
        self.set(0, 0, self.accepted.load(SeqCst));
        self.read_at.store(0, SeqCst);
    }

    fn set(&self, running: u32, pending: u32, covered: u64) {
        self.running.store(running, SeqCst);
        self.pending.store(pending, SeqCst);
        self.covered.store(covered, SeqCst);
    }
}

/// A prompt on its way to a backend; gives its place back when dropped.
#[derive(Debug)]
pub struct Sending {
    depth: Arc<Depth>,
    events: u64,
    open: bool,
}

impl Sending {
    /// The backend took the prompt: it counts until a reading includes it. A status event since
    /// the sending is taken to be this prompt's own, since ComfyUI sends it before the reply.
    pub fn accepted(mut self) {
        let covered = self.depth.events.load(SeqCst) > self.events;
        self.depth.accepted.fetch_add(1, SeqCst);
        if covered {
            self.depth.covered.fetch_add(1, SeqCst);
        }
        self.close();
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.depth.in_flight.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(5000);

    #[test]
    fn a_sent_prompt_counts_at_once_and_until_a_later_poll_has_seen_it() {
        let depth = Arc::new(Depth::default());
        let early = depth.mark();
        let sending = depth.sending();
        assert_eq!(depth.prompts(), 1);
        sending.accepted();
        depth.polled(early, 0, 0, NOW);
        assert_eq!(depth.prompts(), 1, "the poll began before the prompt was accepted");
        depth.polled(depth.mark(), 1, 0, NOW);
        assert_eq!(depth.prompts(), 1);
    }

    #[test]
    fn a_refused_prompt_leaves_no_trace() {
        let depth = Arc::new(Depth::default());
        drop(depth.sending());
        assert_eq!(depth.prompts(), 0);
    }

    #[test]
    fn an_event_that_overtakes_the_reply_is_not_counted_twice() {
        let depth = Arc::new(Depth::default());
        let sending = depth.sending();
        depth.pushed(1, NOW);
        sending.accepted();
        assert_eq!(depth.prompts(), 1);
        depth.pushed(0, NOW);
        assert_eq!(depth.prompts(), 0);
    }

    #[test]
    fn a_poll_does_not_undo_a_newer_event() {
        let depth = Arc::new(Depth::default());
        let mark = depth.mark();
        depth.pushed(4, NOW);
        depth.polled(mark, 0, 0, NOW);
        assert_eq!(depth.reading().pending, 3);
    }

    #[test]
    fn a_reading_goes_stale() {
        let depth = Depth::default();
        assert!(depth.is_stale(NOW, Duration::from_secs(15)));
        depth.pushed(0, NOW);
        assert!(!depth.is_stale(Moment(20_000), Duration::from_secs(15)));
        assert!(depth.is_stale(Moment(20_001), Duration::from_secs(15)));
    }
}
