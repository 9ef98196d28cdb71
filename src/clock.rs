//! Time as the gateway counts it: milliseconds since the process started, never backwards.
//!
//! Everything pure takes a [`Moment`] as an argument; only edges ask [`Moment::now`].

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A point in time; small enough for an atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// The time now. Starts at one second, so that zero can mean "never".
    pub fn now() -> Self {
        Self(START.elapsed().as_millis() as u64 + 1000)
    }

    /// Time from `earlier` to this moment; zero when that lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This moment plus a duration.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis() as u64))
    }
}
