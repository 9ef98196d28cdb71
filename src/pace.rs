//! How fast a backend works: seconds per prompt, learnt from its queue's movements.
//!
//! A prompt runs from the moment the one before it ended (or it arrived at an empty queue) until
//! the depth falls by one. Falls by more than one are deletions and teach nothing. The mean is
//! exponentially weighted with α = 0.2, so that a dozen prompts tell today's pace.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Moment;

const ALPHA: f64 = 0.2;

/// What was learnt, as it outlives the process.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Learnt {
    /// Mean seconds per prompt; 0 when nothing is known.
    pub prompt_seconds: f64,
    /// Longest prompt that ended, in seconds.
    pub longest_seconds: f64,
}

/// Learns a backend's pace from the depths it shows.
#[derive(Debug, Default)]
pub struct Pace {
    learnt: Learnt,
    depth: u32,
    /// Since when the running prompt runs.
    running_since: Option<Moment>,
}

impl Pace {
    /// Goes on from what an earlier process learnt.
    pub fn new(learnt: Learnt) -> Self {
        let sane = |seconds: f64| if seconds.is_finite() && seconds > 0.0 { seconds } else { 0.0 };
        let learnt = Learnt {
            prompt_seconds: sane(learnt.prompt_seconds),
            longest_seconds: sane(learnt.longest_seconds),
        };
        Self { learnt, ..Self::default() }
    }

    /// What is known so far.
    pub fn learnt(&self) -> Learnt {
        self.learnt
    }

    /// Takes a depth as seen at `now`.
    pub fn saw(&mut self, depth: u32, now: Moment) {
        if depth + 1 == self.depth
            && let Some(since) = self.running_since
        {
            self.finished(now.since(since));
        }
        if depth < self.depth || (self.depth == 0 && depth > 0) {
            self.running_since = (depth > 0).then_some(now);
        }
        self.depth = depth;
    }

    /// Forgets the prompt under way: the backend lost it.
    pub fn lost(&mut self) {
        self.depth = 0;
        self.running_since = None;
    }

    fn finished(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        let mean = self.learnt.prompt_seconds;
        self.learnt.prompt_seconds =
            if mean > 0.0 { mean + ALPHA * (took - mean) } else { took.max(0.001) };
        self.learnt.longest_seconds = self.learnt.longest_seconds.max(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_two_ends_is_a_prompts_time() {
        let mut pace = Pace::default();
        for (depth, at) in [(0, 0), (2, 1000), (3, 1500), (2, 4000), (1, 7000), (0, 10_000)] {
            pace.saw(depth, Moment(at));
        }
        assert_eq!(pace.learnt(), Learnt { prompt_seconds: 3.0, longest_seconds: 3.0 });
    }

    #[test]
    fn a_cleared_queue_teaches_nothing() {
        let mut pace = Pace::default();
        for (depth, at) in [(5, 0), (1, 10), (0, 20)] {
            pace.saw(depth, Moment(at + 1000));
        }
        assert!(pace.learnt().prompt_seconds < 0.011);
        let mut pace = Pace::default();
        pace.saw(5, Moment(1000));
        pace.saw(0, Moment(1010));
        assert_eq!(pace.learnt(), Learnt::default());
    }

    #[test]
    fn nonsense_from_disk_is_nothing_known() {
        let pace = Pace::new(Learnt { prompt_seconds: f64::NAN, longest_seconds: -4.0 });
        assert_eq!(pace.learnt(), Learnt::default());
    }
}
