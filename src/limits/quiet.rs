//! Keeps what an attacker causes from filling the log: a line a second, with how many were left
//! out before it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::Moment;

/// Time between two lines, in milliseconds.
const BETWEEN: u64 = 1000;

/// Lets a line through now and then.
#[derive(Debug, Default)]
pub struct Quiet {
    last: AtomicU64,
    left_out: AtomicU64,
}

impl Quiet {
    /// Whether a line may be written, and how many were left out before it.
    pub fn may_speak(&self, now: Moment) -> Option<u64> {
        let last = self.last.load(Relaxed);
        let is_time = last == 0 || now.0.saturating_sub(last) >= BETWEEN;
        if is_time && self.last.compare_exchange(last, now.0, Relaxed, Relaxed).is_ok() {
            return Some(self.left_out.swap(0, Relaxed));
        }
        self.left_out.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_second_tells_of_the_others() {
        let quiet = Quiet::default();
        assert_eq!(quiet.may_speak(Moment(1000)), Some(0));
        assert_eq!(quiet.may_speak(Moment(1500)), None);
        assert_eq!(quiet.may_speak(Moment(1999)), None);
        assert_eq!(quiet.may_speak(Moment(2000)), Some(2));
        assert_eq!(quiet.may_speak(Moment(9000)), Some(0));
    }
}
