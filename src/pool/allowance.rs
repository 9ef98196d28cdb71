//! How many prompts a caller may hand in: a token bucket for each.
//!
//! A bucket holds a minute's prompts and fills evenly, so that a caller may hand in a minute's worth
//! at once and then goes on at the rate. At most [`CALLERS`] buckets are remembered; when there are
//! more, first those go that are full again, which is what a new one is, then the fullest.
//!
//! Pure: `now` and the rate are given.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Moment;
use crate::identity::ClientKey;

/// Callers that are remembered.
const CALLERS: usize = 10_000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Moment,
}

impl Bucket {
    fn filled(self, now: Moment, per_minute: f64) -> f64 {
        let gained = now.since(self.at).as_secs_f64() * per_minute / 60.0;
        (self.tokens + gained).min(per_minute)
    }
}

/// The buckets of all callers.
#[derive(Debug, Default)]
pub(super) struct Allowances(HashMap<ClientKey, Bucket>);

impl Allowances {
    /// Takes a token of a caller; else says when there will be one. A rate of 0 allows anything.
    pub(super) fn take(
        &mut self,
        caller: ClientKey,
        per_minute: u32,
        now: Moment,
    ) -> Result<(), Duration> {
        if per_minute == 0 {
            return Ok(());
        }
        let rate = f64::from(per_minute);
        if !self.0.contains_key(&caller) && self.0.len() >= CALLERS {
            self.make_room(rate, now);
        }
        let bucket = self.0.entry(caller).or_insert(Bucket { tokens: rate, at: now });
        let tokens = bucket.filled(now, rate);
        if tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - tokens) * 60.0 / rate));
        }
        *bucket = Bucket { tokens: tokens - 1.0, at: now };
        Ok(())
    }

    fn make_room(&mut self, rate: f64, now: Moment) {
        self.0.retain(|_, bucket| bucket.filled(now, rate) < rate);
        if self.0.len() < CALLERS {
            return;
        }
        let fullest = self
            .0
            .iter()
            .max_by(|(_, a), (_, b)| a.filled(now, rate).total_cmp(&b.filled(now, rate)));
        if let Some(caller) = fullest.map(|(caller, _)| *caller) {
            self.0.remove(&caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller(n: u64) -> ClientKey {
        ClientKey::from_bytes(u128::from(n).to_be_bytes())
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_the_rate() {
        let mut allowances = Allowances::default();
        let at = |ms: u64| Moment(1_000_000 + ms);
        for _ in 0..6 {
            assert_eq!(allowances.take(caller(1), 6, at(0)), Ok(()));
        }
        assert_eq!(allowances.take(caller(1), 6, at(0)), Err(Duration::from_secs(10)));
        assert_eq!(allowances.take(caller(2), 6, at(0)), Ok(()), "another's own");
        assert_eq!(allowances.take(caller(1), 6, at(9_000)), Err(Duration::from_secs(1)));
        assert_eq!(allowances.take(caller(1), 6, at(10_001)), Ok(()));
        assert!(allowances.take(caller(1), 6, at(10_001)).is_err());
        assert_eq!(allowances.take(caller(1), 0, at(10_001)), Ok(()), "no limit");
    }

    #[test]
    fn callers_are_bounded_and_who_is_out_of_tokens_stays_so() {
        let mut allowances = Allowances::default();
        let now = Moment(1_000_000);
        for _ in 0..10 {
            let _ = allowances.take(caller(0), 10, now);
        }
        for n in 1..=2 * CALLERS as u64 {
            assert_eq!(allowances.take(caller(n), 10, now), Ok(()));
        }
        assert_eq!(allowances.0.len(), CALLERS);
        assert!(allowances.take(caller(0), 10, now).is_err());
    }

    proptest! {
        #[test]
        fn never_more_than_a_minutes_worth_above_the_rate(
            rate in 1..100u32,
            steps in prop::collection::vec(0..5_000u64, 1..200),
        ) {
            let mut allowances = Allowances::default();
            let (mut now, mut taken) = (0, 0u32);
            for step in steps {
                now += step;
                taken += u32::from(allowances.take(caller(1), rate, Moment(now)).is_ok());
                let most = f64::from(rate) * (1.0 + now as f64 / 60_000.0);
                prop_assert!(f64::from(taken) <= most + 1e-6);
            }
        }
    }
}
