//! What a backend's event sockets have heard lately, so that the same on a companion socket is
//! known for a broadcast.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Moment;
use crate::pool::events::{Kind, parse};
use crate::pool::frame::Frame;

/// How long before a companion heard a message it may have come on an event socket.
pub(super) const BEFORE: Duration = Duration::from_secs(2);
/// Messages remembered at most. More broadcasts than these in two seconds would pass for private.
const MAX: usize = 4096;

/// Hashes of messages, under a key of this process, so that no server can make two collide.
#[derive(Debug, Default)]
pub(super) struct Echo {
    key: RandomState,
    companions: AtomicUsize,
    heard: Mutex<VecDeque<(u64, Moment)>>,
}

/// A companion that compares; while there is none, nothing is remembered.
#[derive(Debug)]
pub(super) struct Comparing<'a>(&'a Echo);

impl Echo {
    /// Remembers from now on.
    pub(super) fn compare(&self) -> Comparing<'_> {
        self.companions.fetch_add(1, Relaxed);
        Comparing(self)
    }

    /// Takes a message of an event socket.
    pub(super) fn heard(&self, frame: &Frame, now: Moment) {
        if self.companions.load(Relaxed) == 0 || parse(frame).kind != Kind::Custom {
            return;
        }
        let hash = self.hash(frame);
        let mut heard = self.heard.lock();
        if heard.len() >= MAX {
            heard.pop_front();
        }
        heard.push_back((hash, now));
    }

    /// Whether a message that a companion heard at `at` was heard by an event socket too.
    pub(super) fn knows(&self, hash: u64, at: Moment) -> bool {
        let heard = self.heard.lock();
        heard.iter().rev().any(|(known, when)| *known == hash && at.since(*when) <= BEFORE)
    }

    /// A message's hash.
    pub(super) fn hash(&self, frame: &Frame) -> u64 {
        self.key.hash_one((frame.binary, &frame.bytes))
    }
}

impl Drop for Comparing<'_> {
    fn drop(&mut self) {
        if self.0.companions.fetch_sub(1, Relaxed) == 1 {
            self.0.heard.lock().clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &'static str) -> Frame {
        Frame { binary: false, bytes: text.into() }
    }

    #[test]
    fn what_was_heard_is_known_for_two_seconds() {
        let echo = Echo::default();
        let _comparing = echo.compare();
        let (one, other) = (frame("one"), frame("other"));
        echo.heard(&one, Moment(10_000));
        let hash = echo.hash(&one);
        assert!(echo.knows(hash, Moment(9_950)) && echo.knows(hash, Moment(12_000)));
        assert!(!echo.knows(hash, Moment(12_001)));
        assert!(!echo.knows(echo.hash(&other), Moment(10_000)));
    }

    #[test]
    fn nothing_is_remembered_without_companions_and_never_much() {
        let echo = Echo::default();
        echo.heard(&frame("one"), Moment(1));
        assert!(echo.heard.lock().is_empty());
        let comparing = echo.compare();
        for _ in 0..2 * MAX {
            echo.heard(&frame("one"), Moment(1));
        }
        assert_eq!(echo.heard.lock().len(), MAX);
        drop(comparing);
        assert!(echo.heard.lock().is_empty());
    }
}
