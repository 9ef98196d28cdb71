//! How many prompts a backend holds, as well as that can be known from outside.
//!
//! Readings come late: a poll shows the past, and an event may come before or after the reply to
//! the POST that caused it. So prompts are counted here from the moment they are sent
//! ([`Depth::sending`]) until a reading includes them. `ComfyUI` sends one event per change of its
//! queue, in order, so each rise that an event shows is a prompt sent before it; a poll includes
//! everything that was accepted before it began. When in doubt a prompt counts twice for an instant
//! rather than not at all: the one makes a backend look busy for a moment, the other herds
//! everybody there.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Moment;

/// A backend's queue: the last reading and what was sent since. The lock is held for a few
/// instructions at a time.
#[derive(Debug, Default)]
pub struct Depth(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    reading: Reading,
    /// Prompts sent that the reading does not show yet, answered or not.
    unseen: u32,
    /// Prompts on their way, not yet answered.
    in_flight: u32,
    /// Prompts accepted so far.
    accepted: u64,
    /// Readings that came as events.
    events: u64,
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

impl Reading {
    fn total(&self) -> u32 {
        self.running.saturating_add(self.pending)
    }
}

impl Depth {
    /// Prompts that the backend has to do: read, accepted since, and on their way.
    pub fn prompts(&self) -> u32 {
        let count = self.0.lock();
        count.reading.total().saturating_add(count.unseen)
    }

    /// The last reading as it came.
    pub fn reading(&self) -> Reading {
        self.0.lock().reading
    }

    /// Whether the last reading is older than `age`, or there is none.
    pub fn is_stale(&self, now: Moment, age: Duration) -> bool {
        self.reading().at.is_none_or(|at| now.since(at) > age)
    }

    /// Counts a prompt that is about to be sent.
    pub fn sending(self: &Arc<Self>) -> Sending {
        let mut count = self.0.lock();
        count.in_flight += 1;
        count.unseen += 1;
        Sending { depth: Arc::clone(self), accepted: false }
    }

    /// To be called when a poll starts.
    pub fn mark(&self) -> Mark {
        let count = self.0.lock();
        Mark { accepted: count.accepted, events: count.events }
    }

    /// Takes a poll's result. What an event told while the poll was under way is newer and stays.
    pub fn polled(&self, mark: Mark, running: u32, pending: u32, now: Moment) {
        let mut count = self.0.lock();
        let since = (count.accepted - mark.accepted) as u32;
        let unseen = count.in_flight.saturating_add(since);
        if count.events == mark.events {
            count.unseen = unseen;
            count.reading = Reading { running, pending, at: Some(now) };
        } else {
            // What was accepted before the poll has had its event, even if that did not show as a
            // rise because another prompt ended in the same instant.
            count.unseen = count.unseen.min(unseen);
            count.reading.at = Some(now);
        }
    }

    /// Takes the `queue_remaining` of a status event. One prompt runs at a time.
    pub fn pushed(&self, remaining: u32, now: Moment) {
        let mut count = self.0.lock();
        let risen = remaining.saturating_sub(count.reading.total());
        count.unseen = count.unseen.saturating_sub(risen);
        count.events += 1;
        count.reading = Reading {
            running: remaining.min(1),
            pending: remaining.saturating_sub(1),
            at: Some(now),
        };
    }

    /// Forgets everything read: the backend went down and took its queue with it.
    pub fn lost(&self) {
        let mut count = self.0.lock();
        count.reading = Reading::default();
        count.unseen = count.in_flight;
    }
}

/// A prompt on its way to a backend; gives its place back when dropped.
#[derive(Debug)]
pub struct Sending {
    depth: Arc<Depth>,
    accepted: bool,
}

impl Sending {
    /// The backend took the prompt: it counts until a reading includes it.
    pub fn accepted(mut self) {
        self.accepted = true;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut count = self.depth.0.lock();
        count.in_flight = count.in_flight.saturating_sub(1);
        if self.accepted {
            count.accepted += 1;
        } else {
            count.unseen = count.unseen.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

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

    #[test]
    fn somebody_elses_prompt_confuses_for_an_instant_only() {
        let depth = Arc::new(Depth::default());
        let sending = depth.sending();
        depth.pushed(1, NOW);
        depth.pushed(2, NOW);
        sending.accepted();
        assert_eq!(depth.prompts(), 2);
    }

    #[test]
    fn a_rise_that_no_event_showed_is_made_up_for_by_the_next_poll() {
        let depth = Arc::new(Depth::default());
        depth.pushed(1, NOW);
        depth.sending().accepted();
        depth.pushed(1, NOW);
        assert_eq!(depth.prompts(), 2, "one ended, one came, in one instant");
        depth.polled(depth.mark(), 1, 0, NOW);
        assert_eq!(depth.prompts(), 1);
    }

    proptest! {
        /// Prompts are sent, queued, answered and finished in any order of events and replies;
        /// what was sent and is not known to have ended counts once, always. Guards a burst in
        /// which another prompt's event was taken for the own one.
        #[test]
        fn events_and_replies_in_any_order_count_each_prompt_once(
            steps in prop::collection::vec(0u8..5, 0..200)
        ) {
            let depth = Arc::new(Depth::default());
            let (mut leaving, mut unanswered) = (VecDeque::new(), VecDeque::new());
            let (mut queue, mut events) = (0u32, VecDeque::new());
            let (mut sent, mut known_ended, mut last) = (0u32, 0u32, 0u32);
            for step in steps {
                match step {
                    0 => {
                        leaving.push_back(depth.sending());
                        sent += 1;
                    }
                    1 => if let Some(sending) = leaving.pop_front() {
                        queue += 1;
                        events.push_back(queue);
                        unanswered.push_back(sending);
                    },
                    2 => if let Some(sending) = unanswered.pop_back() {
                        sending.accepted();
                    },
                    3 => if let Some(remaining) = events.pop_front() {
                        known_ended += u32::from(remaining < last);
                        last = remaining;
                        depth.pushed(remaining, NOW);
                    },
                    _ => if queue > 0 {
                        queue -= 1;
                        events.push_back(queue);
                    },
                }
                prop_assert_eq!(depth.prompts(), sent - known_ended);
            }
        }
    }
}
