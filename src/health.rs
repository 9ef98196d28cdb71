//! Health as a pure state machine: outcomes of probes go in, changes with their reasons come out.
//!
//! `unknown` until the first probe ends, whose word is taken at once. After that a backend goes
//! down after `unhealthy_threshold` failures in a row and up after `healthy_threshold` successes.
//! A refused connection is hard evidence: it asks for fast probes, and three in a row take the
//! backend down whatever the threshold, so that a dead server is out within a second. Slow or
//! wrong answers count by the thresholds alone, since ComfyUI's event loop stalls for seconds
//! while it loads a model: slow is not dead.

use std::time::Duration;

use crate::clock::Moment;

/// How a backend stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// No probe has ended yet.
    Unknown,
    /// It answers.
    Up,
    /// It does not.
    Down,
}

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A queue was read.
    Good,
    /// Nobody listens, or the connection was cut: hard evidence.
    Refused(String),
    /// Too slow, or an answer that makes no sense.
    Bad(String),
}

/// A change of health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub from: Health,
    /// What it is.
    pub to: Health,
    /// Why, in words for the log.
    pub reason: String,
}

/// Failures and successes in a row that change the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Failures that take a backend down.
    pub unhealthy: u32,
    /// Successes that bring it up.
    pub healthy: u32,
}

/// Refusals in a row that take a backend down whatever the threshold says.
const HARD_LIMIT: u32 = 3;

/// Pause between probes while there is hard evidence against a backend.
pub const FAST_INTERVAL: Duration = Duration::from_millis(250);

/// Judges one backend.
#[derive(Debug)]
pub struct Judge {
    thresholds: Thresholds,
    health: Health,
    good_in_a_row: u32,
    bad_in_a_row: u32,
    refused_in_a_row: u32,
}

impl Judge {
    /// A judge who knows nothing yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            health: Health::Unknown,
            good_in_a_row: 0,
            bad_in_a_row: 0,
            refused_in_a_row: 0,
        }
    }

    /// Judges by other thresholds from now on.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// The verdict so far.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Whether the next probe should come after [`FAST_INTERVAL`]: something is wrong but the
    /// verdict is still out.
    pub fn wants_fast_probe(&self) -> bool {
        self.health == Health::Up && self.refused_in_a_row > 0
    }

    /// Takes a probe's outcome.
    pub fn observe(&mut self, outcome: Outcome) -> Option<Change> {
        match outcome {
            Outcome::Good => self.good(),
            Outcome::Refused(reason) => {
                self.refused_in_a_row += 1;
                self.bad(reason)
            }
            Outcome::Bad(reason) => {
                self.refused_in_a_row = 0;
                self.bad(reason)
            }
        }
    }

    fn good(&mut self) -> Option<Change> {
        self.good_in_a_row = self.good_in_a_row.saturating_add(1);
        self.bad_in_a_row = 0;
        self.refused_in_a_row = 0;
        let enough = match self.health {
            Health::Up => return None,
            Health::Unknown => true,
            Health::Down => self.good_in_a_row >= self.thresholds.healthy,
        };
        enough.then(|| self.change(Health::Up, "it answers".into()))
    }

    fn bad(&mut self, reason: String) -> Option<Change> {
        self.bad_in_a_row = self.bad_in_a_row.saturating_add(1);
        self.good_in_a_row = 0;
        let enough = match self.health {
            Health::Down => return None,
            Health::Unknown => true,
            Health::Up => {
                self.bad_in_a_row >= self.thresholds.unhealthy
                    || self.refused_in_a_row >= HARD_LIMIT
            }
        };
        enough.then(|| self.change(Health::Down, reason))
    }

    fn change(&mut self, to: Health, reason: String) -> Change {
        let from = std::mem::replace(&mut self.health, to);
        Change { from, to, reason }
    }
}

/// Tells a backend that answers but has stopped working from one that works on something long.
#[derive(Debug, Default)]
pub struct Stall {
    seen: Option<(u32, u64)>,
    moved_at: Moment,
}

/// A running prompt without any sign of life for this long is suspect...
const STALL_AT_LEAST: Duration = Duration::from_mins(10);
/// ...or for this many times the longest prompt the backend ever finished, if that is more.
const STALL_TIMES_LONGEST: f64 = 5.0;

impl Stall {
    /// Takes a reading (depth and a digest of what runs) and the time of the last event that
    /// passed, and says whether the backend is suspect.
    pub fn is_suspect(
        &mut self,
        reading: (u32, u64),
        last_event: Moment,
        longest_seconds: f64,
        now: Moment,
    ) -> bool {
        if self.seen != Some(reading) {
            self.seen = Some(reading);
            self.moved_at = now;
        }
        let quiet = now.since(self.moved_at.max(last_event));
        let longest = Duration::try_from_secs_f64(longest_seconds * STALL_TIMES_LONGEST);
        reading.0 > 0 && quiet >= STALL_AT_LEAST.max(longest.unwrap_or(Duration::MAX))
    }
}

/// A returning backend takes a share of new clients that grows linearly over this time.
pub const SLOW_START: Duration = Duration::from_secs(30);
/// The share it starts with.
const FIRST_SHARE: f64 = 0.1;

/// The share of new clients for a backend that came back `since`.
pub fn ramp(since: Option<Moment>, now: Moment) -> f64 {
    since.map_or(1.0, |since| {
        (now.since(since).as_secs_f64() / SLOW_START.as_secs_f64()).clamp(FIRST_SHARE, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(unhealthy: u32, healthy: u32) -> Judge {
        Judge::new(Thresholds { unhealthy, healthy })
    }

    fn bad() -> Outcome {
        Outcome::Bad("slow".into())
    }

    fn refused() -> Outcome {
        Outcome::Refused("connection refused".into())
    }

    #[test]
    fn the_first_probe_decides_at_once() {
        assert_eq!(judge(3, 3).observe(Outcome::Good).unwrap().to, Health::Up);
        let change = judge(3, 3).observe(bad()).unwrap();
        assert_eq!((change.from, change.to), (Health::Unknown, Health::Down));
    }

    #[test]
    fn slow_answers_count_by_the_threshold_and_only_in_a_row() {
        let mut judge = judge(3, 2);
        judge.observe(Outcome::Good);
        assert_eq!(judge.observe(bad()), None);
        assert_eq!(judge.observe(bad()), None);
        assert_eq!(judge.observe(Outcome::Good), None);
        assert_eq!(judge.observe(bad()), None);
        assert_eq!(judge.observe(bad()), None);
        assert_eq!(judge.observe(bad()).unwrap().reason, "slow");
        assert_eq!(judge.observe(Outcome::Good), None);
        assert_eq!(judge.observe(Outcome::Good).unwrap().to, Health::Up);
    }

    #[test]
    fn three_refusals_are_enough_whatever_the_threshold() {
        let mut judge = judge(10, 1);
        judge.observe(Outcome::Good);
        assert!(!judge.wants_fast_probe());
        assert_eq!(judge.observe(refused()), None);
        assert!(judge.wants_fast_probe());
        assert_eq!(judge.observe(refused()), None);
        assert_eq!(judge.observe(refused()).unwrap().to, Health::Down);
        assert!(!judge.wants_fast_probe(), "the verdict is in");
    }

    #[test]
    fn a_stall_is_ten_quiet_minutes_or_five_times_the_longest_prompt() {
        let minute = |m: u64| Moment(m * 60_000);
        let mut stall = Stall::default();
        assert!(!stall.is_suspect((1, 7), Moment(0), 0.0, minute(1)));
        assert!(!stall.is_suspect((1, 7), Moment(0), 0.0, minute(10)));
        assert!(stall.is_suspect((1, 7), Moment(0), 0.0, minute(11)));
        assert!(!stall.is_suspect((1, 7), minute(9), 0.0, minute(11)), "an event is life");
        assert!(!stall.is_suspect((1, 7), Moment(0), 600.0, minute(50)));
        assert!(stall.is_suspect((1, 7), Moment(0), 600.0, minute(51)));
        assert!(!stall.is_suspect((1, 8), Moment(0), 0.0, minute(60)), "another prompt runs");
        let mut idle = Stall::default();
        idle.is_suspect((0, 0), Moment(0), 0.0, minute(1));
        assert!(!idle.is_suspect((0, 0), Moment(0), 0.0, minute(99)));
    }

    #[test]
    fn the_ramp_is_linear_after_a_return_only() {
        assert!((ramp(None, Moment(0)) - 1.0).abs() < f64::EPSILON);
        assert!((ramp(Some(Moment(0)), Moment(0)) - 0.1).abs() < 1e-9);
        assert!((ramp(Some(Moment(0)), Moment(15_000)) - 0.5).abs() < 1e-9);
        assert!((ramp(Some(Moment(0)), Moment(90_000)) - 1.0).abs() < 1e-9);
    }
}
