//! One condition with hysteresis: it must hold for a while before it fires, and be over for a
//! longer while before it clears, so that what flaps tells little.
//!
//! Pure: the caller brings the time. A change of mind takes 10 s or 30 s, in turns: whatever a
//! backend does, no minute has more than four (at worst it clears, fires 10 s later, clears 30 s
//! after that and fires again 10 s later).

use std::time::Duration;

use crate::clock::Moment;

/// How long a condition must hold, and how long it must be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hysteresis {
    /// It fires after it has held for so long.
    pub fire_after: Duration,
    /// It clears after it has been over for so long.
    pub clear_after: Duration,
}

impl Default for Hysteresis {
    fn default() -> Self {
        Self { fire_after: Duration::from_secs(10), clear_after: Duration::from_secs(30) }
    }
}

impl Hysteresis {
    /// Pause between two looks: a tenth of the shorter time, at most a second.
    pub fn pause(&self) -> Duration {
        let shorter = self.fire_after.min(self.clear_after);
        (shorter / 10).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

/// A change of mind, with the time at which what led to it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has held since.
    Fire(Moment),
    /// It has been over since.
    Clear(Moment),
}

/// What is known of a condition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Condition {
    firing: bool,
    /// Since when what is seen contradicts `firing`.
    contradicted: Option<Moment>,
}

impl Condition {
    /// Whether it fires.
    pub fn is_firing(&self) -> bool {
        self.firing
    }

    /// Whether it neither fires nor is about to.
    pub fn is_quiet(&self) -> bool {
        !self.firing && self.contradicted.is_none()
    }

    /// Takes what is seen now.
    pub fn observe(&mut self, holds: bool, now: Moment, hysteresis: &Hysteresis) -> Option<Turn> {
        if holds == self.firing {
            self.contradicted = None;
            return None;
        }
        let since = *self.contradicted.get_or_insert(now);
        let wait = if holds { hysteresis.fire_after } else { hysteresis.clear_after };
        if now.since(since) < wait {
            return None;
        }
        *self = Self { firing: holds, contradicted: None };
        Some(if holds { Turn::Fire(since) } else { Turn::Clear(since) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Looks once a second at what `holds` at that second; seconds and turns that came.
    fn turns(seconds: u64, holds: impl Fn(u64) -> bool) -> Vec<(u64, Turn)> {
        let mut condition = Condition::default();
        let hysteresis = Hysteresis::default();
        let at = |second: u64| Moment(1000 * second);
        (0..seconds)
            .filter_map(|s| Some((s, condition.observe(holds(s), at(s), &hysteresis)?)))
            .collect()
    }

    #[test]
    fn killed_and_restarted_is_one_down_and_one_up() {
        assert_eq!(
            turns(300, |second| (20..50).contains(&second)),
            [(30, Turn::Fire(Moment(20_000))), (80, Turn::Clear(Moment(50_000)))]
        );
    }

    #[test]
    fn an_end_shorter_than_30_seconds_does_not_clear() {
        let holds = |second: u64| !(40..69).contains(&second);
        assert_eq!(turns(300, holds), [(10, Turn::Fire(Moment(0)))]);
    }

    #[test]
    fn twenty_flaps_in_a_minute_tell_nothing_when_even() {
        assert_eq!(turns(60, |second| second % 3 == 0), []);
    }

    proptest! {
        /// Whatever a backend does in a minute, and however many minutes that goes on.
        #[test]
        fn a_minute_has_at_most_four_turns(
            lengths in prop::collection::vec(1u64..50, 1..200),
        ) {
            let mut holds = Vec::new();
            for (index, &length) in lengths.iter().enumerate() {
                holds.extend(std::iter::repeat_n(index % 2 == 0, length as usize));
            }
            let turns = turns(holds.len() as u64, |second| holds[second as usize]);
            for (index, (second, turn)) in turns.iter().enumerate() {
                let minute = turns.iter().filter(|(s, _)| (*second..second + 60).contains(s));
                prop_assert!(minute.count() <= 4, "{turns:?}");
                let (fires, wait) = match turn {
                    Turn::Fire(_) => (true, 10),
                    Turn::Clear(_) => (false, 30),
                };
                prop_assert_eq!(fires, index % 2 == 0, "turns alternate");
                let before = (second - wait) as usize..=*second as usize;
                prop_assert!(holds[before].iter().all(|&held| held == fires), "{turns:?}");
            }
        }
    }
}
