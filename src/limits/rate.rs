//! Token buckets for any number of clients in a fixed piece of memory.
//!
//! A bucket is one number, the time at which it will be full again (the generic cell rate
//! algorithm). Buckets lie in sets of `WAYS`, chosen by a keyed hash; one that is full again is
//! what a new client's is, so its place is free. When a set has no free place, the bucket nearest
//! to being full goes: its client gains a few requests, and nobody else notices. An attacker with
//! very many addresses can so dilute the limit of clients, never refuse one that is below it.
//!
//! The crates for this (governor, for one) keep a map that grows with every key seen.
//!
//! Pure but for the locks: `now` and the rate are given, so that a reload changes rates at once.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use parking_lot::Mutex;

use crate::identity::ClientKey;

/// Buckets that a client may lie in.
const WAYS: usize = 8;
/// Sets of buckets: with eight each, 1.5 MiB for 65,536 clients at a time.
const SETS: usize = 8192;
/// Sets under one lock.
const PER_LOCK: usize = 128;

/// So many a second, and more at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_second: u32,
    burst: u32,
}

impl Rate {
    /// `per_second` on the whole (0 is any number), `seconds` of that at once.
    pub fn new(per_second: u32, seconds: u32) -> Self {
        Self { per_second, burst: per_second.saturating_mul(seconds).max(1) }
    }

    /// Nanoseconds in which one token comes.
    fn token(self) -> u64 {
        1_000_000_000 / u64::from(self.per_second.max(1))
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    client: ClientKey,
    /// Nanoseconds from the start at which it is full.
    full_at: u64,
}

const FREE: Bucket = Bucket { client: ClientKey::NOBODY, full_at: 0 };

/// The buckets.
#[derive(Debug)]
pub struct Rates {
    hasher: RandomState,
    shards: Vec<Mutex<Vec<[Bucket; WAYS]>>>,
}

impl Default for Rates {
    fn default() -> Self {
        Self::with_sets(SETS)
    }
}

impl Rates {
    fn with_sets(sets: usize) -> Self {
        let per_lock = PER_LOCK.min(sets);
        let shard = || Mutex::new(vec![[FREE; WAYS]; per_lock]);
        Self {
            hasher: RandomState::new(),
            shards: (0..sets.div_ceil(per_lock)).map(|_| shard()).collect(),
        }
    }

    /// Takes a client's token; else says when there will be one.
    pub fn take(&self, client: ClientKey, rate: Rate, now: Duration) -> Result<(), Duration> {
        if rate.per_second == 0 {
            return Ok(());
        }
        let hash = self.hasher.hash_one(client) as usize;
        let shard = &self.shards[hash % self.shards.len()];
        let mut sets = shard.lock();
        let of_set = hash / self.shards.len() % sets.len();
        let set = &mut sets[of_set];
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let bucket = place(set, client, now);
        let full_at = bucket.full_at.max(now) + rate.token();
        let room = rate.token().saturating_mul(u64::from(rate.burst));
        match (full_at - now).checked_sub(room) {
            None | Some(0) => {
                *bucket = Bucket { client, full_at };
                Ok(())
            }
            Some(wait) => Err(Duration::from_nanos(wait)),
        }
    }
}

/// A client's bucket, or the one that becomes its.
fn place(set: &mut [Bucket; WAYS], client: ClientKey, now: u64) -> &mut Bucket {
    let own = set.iter().position(|bucket| bucket.client == client);
    let fullest = || (0..WAYS).min_by_key(|&at| set[at].full_at).unwrap_or_default();
    let at = own.unwrap_or_else(fullest);
    let bucket = &mut set[at];
    if own.is_none() {
        *bucket = Bucket { client, full_at: now };
    }
    bucket
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn client(n: u32) -> ClientKey {
        ClientKey::of_address(std::net::Ipv4Addr::from_bits(n).into())
    }

    #[test]
    fn a_burst_passes_then_the_rate() {
        let (rates, rate) = (Rates::default(), Rate::new(10, 10));
        let passed = |count: u32, now: Duration| {
            (0..count).filter(|_| rates.take(client(1), rate, now).is_ok()).count()
        };
        assert_eq!(passed(200, SECOND), 100);
        assert_eq!(rates.take(client(1), rate, SECOND), Err(SECOND / 10));
        assert_eq!(passed(200, 2 * SECOND), 10);
        assert_eq!(passed(200, 60 * SECOND), 100);
        assert_eq!(rates.take(client(2), rate, 60 * SECOND), Ok(()), "another client");
    }

    #[test]
    fn any_number_of_clients_fits_and_an_honest_one_is_never_refused() {
        let (rates, rate) = (Rates::with_sets(16), Rate::new(10, 10));
        for n in 0..100_000 {
            let now = Duration::from_millis(u64::from(n));
            // A flood from very many addresses, some of which come often.
            let _ = rates.take(client(n % 5000), rate, now);
            if n % 200 == 0 {
                assert_eq!(rates.take(client(1_000_000), rate, now), Ok(()), "{n}");
            }
        }
        let buckets: usize = rates.shards.iter().map(|shard| shard.lock().len() * WAYS).sum();
        assert_eq!(buckets, 16 * WAYS);
    }

    proptest! {
        /// Over any stretch of time a client alone gets the burst and the rate, and no more.
        #[test]
        fn never_more_than_burst_and_rate(
            per_second in 1u32..1000, pauses in prop::collection::vec(0u64..200, 1..400),
        ) {
            let (rates, rate) = (Rates::with_sets(1), Rate::new(per_second, 2));
            let (mut now, mut passed) = (0, 0u64);
            for pause in pauses {
                now += pause;
                let taken = rates.take(client(1), rate, Duration::from_millis(now));
                passed += u64::from(taken.is_ok());
                let most = u64::from(per_second) * (2000 + now) / 1000 + 1;
                prop_assert!(passed <= most, "{passed} > {most} at {now} ms");
            }
        }

        /// Who waits as told is let in.
        #[test]
        fn the_wait_is_long_enough(per_second in 1u32..1000, count in 1u32..3000) {
            let (rates, rate) = (Rates::with_sets(1), Rate::new(per_second, 1));
            let waits: Vec<_> =
                (0..count).filter_map(|_| rates.take(client(1), rate, SECOND).err()).collect();
            if let Some(wait) = waits.last() {
                prop_assert_eq!(rates.take(client(1), rate, SECOND + *wait), Ok(()));
            }
        }
    }
}
