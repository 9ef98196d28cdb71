//! Coarse time: whole seconds that never run backwards and still mean something after a restart.
//!
//! The map of placements is driven by time passed in, so that tests can drive it by a simulated
//! clock. [`Seconds`] is on the scale of Unix time, because placements outlive the process; but a
//! [`Clock`] reads the wall clock once, at its creation, and goes on by the monotonic one, so that
//! an NTP step neither expires every client at once nor keeps them for ever.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment in whole seconds, close to Unix time (good until the year 2106).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seconds(pub u32);

impl Seconds {
    /// Seconds from `earlier` to here; 0 when `earlier` is later.
    pub fn since(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `seconds` after this one.
    #[must_use]
    pub fn plus(self, seconds: u32) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// The moment `seconds` before this one.
    #[must_use]
    pub fn minus(self, seconds: u32) -> Self {
        Self(self.0.saturating_sub(seconds))
    }
}

/// A duration in whole seconds, rounded up: whoever was promised 1.5 s gets 2.
pub fn whole_seconds(duration: Duration) -> u32 {
    let up = u64::from(duration.subsec_nanos() > 0);
    u32::try_from(duration.as_secs().saturating_add(up)).unwrap_or(u32::MAX)
}

/// The process's source of [`Seconds`]; make one at start and share it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    unix: Duration,
}

impl Clock {
    /// A clock set by the wall clock of this moment.
    pub fn start() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), unix }
    }

    /// Now.
    pub fn now(&self) -> Seconds {
        let passed = self.unix.saturating_add(self.started.elapsed());
        Seconds(u32::try_from(passed.as_secs()).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_never_go_below_zero() {
        assert_eq!(Seconds(7).since(Seconds(3)), 4);
        assert_eq!(Seconds(3).since(Seconds(7)), 0);
        assert_eq!(Seconds(3).minus(7), Seconds(0));
    }

    #[test]
    fn parts_of_a_second_round_up() {
        assert_eq!(whole_seconds(Duration::from_millis(1500)), 2);
        assert_eq!(whole_seconds(Duration::from_hours(1)), 3600);
        assert_eq!(whole_seconds(Duration::MAX), u32::MAX);
    }

    #[test]
    fn a_clock_is_near_unix_time() {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let read = u64::from(Clock::start().now().0);
        assert!(read.abs_diff(unix) <= 1, "{read} against {unix}");
    }
}
