//! Custom nodes' messages to everybody while none of our prompts runs: monitors, news of a model
//! that was downloaded. Pure.
//!
//! Such a message comes on both sockets of the gateway. One that comes on one only was meant for the
//! sid of that socket, by a node that speaks late of a prompt that has ended: whose that was is no
//! longer known, and nobody gets it.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::events::Flavour;
use super::frame::Frame;
use crate::clock::Moment;

/// How long the same may take on the other socket.
const APART: Duration = Duration::from_secs(2);
/// Messages that wait for their likes at most; the oldest go.
const MAX: usize = 256;

/// What came on one socket of a backend and not yet on the other.
#[derive(Debug, Default)]
pub(super) struct Announced {
    /// Hashed under a key of this process, so that no server can make two collide.
    key: RandomState,
    waiting: VecDeque<(u64, Flavour, Moment)>,
}

impl Announced {
    /// Takes a message; true when it has come on both sockets now.
    pub(super) fn heard(&mut self, flavour: Flavour, frame: &Frame, now: Moment) -> bool {
        while self.waiting.front().is_some_and(|(_, _, at)| now.since(*at) > APART) {
            self.waiting.pop_front();
        }
        let hash = self.key.hash_one((frame.binary, &frame.bytes));
        let other = flavour.other();
        let like = self.waiting.iter().position(|one| (one.0, one.1) == (hash, other));
        if let Some(place) = like {
            self.waiting.remove(place);
            return true;
        }
        if self.waiting.len() >= MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back((hash, flavour, now));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &'static str) -> Frame {
        Frame { binary: false, bytes: text.into() }
    }

    #[test]
    fn what_comes_on_both_sockets_is_for_all_and_counts_once() {
        let mut announced = Announced::default();
        let mut heard = |flavour, text, at| announced.heard(flavour, &frame(text), Moment(at));
        assert!(!heard(Flavour::Plain, "a", 10));
        assert!(!heard(Flavour::Plain, "a", 11), "twice on one socket");
        assert!(heard(Flavour::Flags, "a", 12));
        assert!(heard(Flavour::Flags, "a", 13));
        assert!(!heard(Flavour::Flags, "a", 14));
        assert!(!heard(Flavour::Plain, "b", 15));
        assert!(heard(Flavour::Plain, "a", 2014));
        assert!(!heard(Flavour::Flags, "b", 3000), "too late");
    }

    #[test]
    fn it_is_bounded() {
        let mut announced = Announced::default();
        for _ in 0..2 * MAX {
            announced.heard(Flavour::Plain, &frame("x"), Moment(1));
        }
        assert_eq!(announced.waiting.len(), MAX);
    }
}
