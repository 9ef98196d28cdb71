//! Pauses between attempts to connect.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// The next pause: doubled with each failure, and spread so that all sockets that one event cut
/// do not come back in step.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// How long to wait now; `dice` lies in 0..1.
    pub(super) fn pause(&mut self, dice: f64) -> Duration {
        let pause = self.0.mul_f64(0.5 + 0.5 * dice.clamp(0.0, 1.0));
        self.0 = (self.0 * 2).min(LONGEST);
        pause
    }

    /// All is well again.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_seconds_and_start_over() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(1.0), FIRST);
        assert_eq!(backoff.pause(0.0), FIRST);
        for _ in 0..20 {
            assert!(backoff.pause(1.0) <= LONGEST);
        }
        assert_eq!(backoff.pause(1.0), LONGEST);
        backoff.reset();
        assert_eq!(backoff.pause(1.0), FIRST);
    }
}
