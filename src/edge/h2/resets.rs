//! How many requests a client may take back before they were answered (CVE-2023-44487).
//!
//! Each costs us the work of beginning it and the client next to nothing, and it does not count as
//! one of the requests at once. Browsers do it too, by the dozen, when somebody scrolls past a
//! gallery: so there is a stock that fills again.

use std::time::Instant;

/// Requests that may be taken back in one go.
const STOCK: f64 = 200.0;
/// And again per second.
const PER_SECOND: f64 = 20.0;

/// What is left of a connection's stock.
#[derive(Debug)]
pub(super) struct Resets {
    left: f64,
    at: Instant,
}

impl Resets {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: STOCK, at: now }
    }

    /// Takes one off the stock; false when it is used up.
    pub(super) fn may_take_back(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * PER_SECOND).min(STOCK);
        self.at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_a_flood_does_not_and_time_heals() {
        let start = Instant::now();
        let mut resets = Resets::new(start);
        let burst = (0..1000).filter(|_| resets.may_take_back(start)).count();
        assert_eq!(burst, 200);
        let later = start + Duration::from_secs(2);
        assert_eq!((0..1000).filter(|_| resets.may_take_back(later)).count(), 40);
        let much_later = start + Duration::from_hours(1);
        assert_eq!((0..1000).filter(|_| resets.may_take_back(much_later)).count(), 200);
    }

    #[test]
    fn what_a_gallery_does_goes_on_for_ever() {
        let start = Instant::now();
        let mut resets = Resets::new(start);
        for n in 0..10_000_u32 {
            assert!(resets.may_take_back(start + Duration::from_millis(51) * n), "{n}");
        }
    }
}
