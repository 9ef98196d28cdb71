//! How often something may happen: a bucket that is full at first and fills evenly, kept as one
//! number (the generic cell rate algorithm).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::clock::Moment;

/// So many in a period, which may all come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// The period.
    pub period: Duration,
}

impl Rate {
    /// `10`, `10/s`, `600/m`, `5000/h`.
    pub fn parse(text: &str) -> Option<Self> {
        let (count, unit) = text.split_once('/').unwrap_or((text, "s"));
        let seconds = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return None,
        };
        let count = count.trim().parse().ok().filter(|count| (1..=1_000_000).contains(count))?;
        Some(Self { count, period: Duration::from_secs(seconds) })
    }

    /// Microseconds that one takes.
    fn each(self) -> u64 {
        (self.period.as_micros() as u64 / u64::from(self.count.max(1))).max(1)
    }

    /// Takes one, given when all that was taken will be paid for; the same then, or how long to
    /// wait.
    pub(super) fn take(self, paid: u64, now: Moment) -> Result<u64, Duration> {
        let now = now.0.saturating_mul(1000);
        let paid = paid.max(now).saturating_add(self.each());
        match (paid - now).checked_sub(self.period.as_micros() as u64) {
            None | Some(0) => Ok(paid),
            Some(over) => Err(Duration::from_micros(over)),
        }
    }

    /// Gives one back.
    pub(super) fn give_back(self, paid: u64) -> u64 {
        paid.saturating_sub(self.each())
    }
}

/// A bucket that many take from.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    paid: AtomicU64,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate) -> Self {
        Self { rate, paid: AtomicU64::new(0) }
    }

    /// Its rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one, or says how long to wait.
    pub fn take(&self, now: Moment) -> Result<(), Duration> {
        let mut wait = Duration::ZERO;
        let taken = self.paid.fetch_update(Relaxed, Relaxed, |paid| {
            self.rate.take(paid, now).map_err(|over| wait = over).ok()
        });
        taken.map(drop).map_err(|_| wait)
    }
}

/// Whole seconds to wait, for `Retry-After`.
pub fn retry_after(wait: Duration) -> u32 {
    (wait.as_secs_f64().ceil() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_count_and_a_unit() {
        let rate = |count, seconds| Some(Rate { count, period: Duration::from_secs(seconds) });
        assert_eq!(Rate::parse("10"), rate(10, 1));
        assert_eq!(Rate::parse("600/m"), rate(600, 60));
        assert_eq!(Rate::parse("7 / h"), rate(7, 3600));
        for wrong in ["", "0", "-1", "1/d", "1/", "a", "1.5", "99999999"] {
            assert_eq!(Rate::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_bucket_gives_its_count_at_once_and_then_evenly() {
        let bucket = Bucket::new(Rate::parse("4/s").unwrap());
        let taken = |at: u64| bucket.take(Moment(at));
        for _ in 0..4 {
            assert_eq!(taken(1000), Ok(()));
        }
        assert_eq!(taken(1000), Err(Duration::from_millis(250)));
        assert_eq!(taken(1250), Ok(()));
        assert!(taken(1250).is_err());
        for _ in 0..4 {
            assert_eq!(taken(9000), Ok(()));
        }
        assert!(taken(9000).is_err());
    }

    #[test]
    fn over_long_time_no_more_passes_than_the_rate() {
        let bucket = Bucket::new(Rate::parse("10/s").unwrap());
        let passed = (0..10_000u64).filter(|at| bucket.take(Moment(1000 + at)).is_ok()).count();
        assert!((100..=110).contains(&passed), "{passed} in ten seconds");
    }
}
