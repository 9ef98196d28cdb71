//! Frames that were written and may still be lost on their way.
//!
//! Nobody knows what of the bytes that left reached a client whose connection broke. A ping carries
//! the number of the last frame before it; its answer confirms all up to there. What is not
//! confirmed comes again after a reconnect. A client that answers no pings has the bounds confirm
//! the oldest.

use std::collections::VecDeque;

use super::entry::Entry;
use super::queue::Queue;
use super::session::KEPT_FOR;
use crate::clock::Moment;

/// What is remembered at most.
const MOST: usize = 16 << 20;

#[derive(Debug)]
struct Written {
    number: u64,
    at: Moment,
    entry: Entry,
}

/// What was written and not confirmed.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    frames: VecDeque<Written>,
    cost: usize,
    /// How many frames were written, ever.
    count: u64,
}

impl Unconfirmed {
    /// A frame is being written. Those that only tell a state, and those that are not kept anyway,
    /// are not remembered.
    pub(super) fn add(&mut self, entry: Entry, now: Moment) {
        self.count += 1;
        if !entry.own || entry.is_passing_state() {
            return;
        }
        self.cost += entry.cost();
        self.frames.push_back(Written { number: self.count, at: now, entry });
        while self.cost > MOST {
            self.drop_oldest();
        }
    }

    /// The number of the newest frame that is to be confirmed.
    pub(super) fn newest(&mut self, now: Moment) -> Option<u64> {
        while self.frames.front().is_some_and(|written| now.since(written.at) >= KEPT_FOR) {
            self.drop_oldest();
        }
        self.frames.back().map(|written| written.number)
    }

    /// All up to this number have arrived.
    pub(super) fn confirm(&mut self, number: u64) {
        while self.frames.front().is_some_and(|written| written.number <= number) {
            self.drop_oldest();
        }
    }

    /// All that may be lost, in order.
    pub(super) fn take(&mut self, now: Moment) -> Queue {
        let mut lost = Queue::default();
        for written in std::mem::take(&mut self.frames) {
            if now.since(written.at) < KEPT_FOR {
                lost.push(written.entry);
            }
        }
        self.cost = 0;
        lost
    }

    pub(super) fn clear(&mut self) {
        self.frames = VecDeque::new();
        self.cost = 0;
    }

    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    fn drop_oldest(&mut self) {
        if let Some(written) = self.frames.pop_front() {
            self.cost -= written.entry.cost();
        }
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
    }
}
