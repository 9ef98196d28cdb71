//! What the scheduler wants to know of each backend's clients, kept up to date as they come and go:
//! how many there are, and how many were placed in the last 30 s and have not prompted yet.
//!
//! The second figure is a ring of 30 one-second buckets, so that it costs the same for ten
//! newcomers or a hundred thousand: a client is counted in the bucket of the second it was placed
//! in, taken out when it prompts or goes, and forgotten with its bucket.

use std::collections::HashMap;

use parking_lot::{Mutex, RwLock};

use super::{BackendId, Seconds};

/// Seconds for which a placed client without a prompt counts as a newcomer.
pub const FRESH_SECONDS: u32 = 30;

/// The figures of all backends.
///
/// Locks are taken in the order shard, then tally; nothing here ever takes a shard's.
#[derive(Default)]
pub(super) struct Tallies(RwLock<HashMap<BackendId, Mutex<Tally>>>);

impl Tallies {
    /// A client was placed; `fresh_at` is the time when it counts as a newcomer.
    pub(super) fn joined(&self, backend: BackendId, fresh_at: Option<Seconds>) {
        self.update(backend, |tally| {
            tally.sessions += 1;
            if let Some(at) = fresh_at {
                tally.fresh.add(at);
            }
        });
    }

    /// A client went; `fresh_at` as when it came, unless it has prompted since.
    pub(super) fn left(&self, backend: BackendId, fresh_at: Option<Seconds>) {
        self.update(backend, |tally| {
            tally.sessions = tally.sessions.saturating_sub(1);
            if let Some(at) = fresh_at {
                tally.fresh.take(at);
            }
        });
    }

    /// A newcomer placed at `at` has prompted.
    pub(super) fn prompted(&self, backend: BackendId, at: Seconds) {
        self.update(backend, |tally| tally.fresh.take(at));
    }

    pub(super) fn sessions(&self, backend: BackendId) -> usize {
        self.0.read().get(&backend).map_or(0, |tally| tally.lock().sessions)
    }

    pub(super) fn fresh(&self, backend: BackendId, now: Seconds) -> u32 {
        self.0.read().get(&backend).map_or(0, |tally| tally.lock().fresh.total(now))
    }

    /// Forgets a backend that has no clients, so that comings and goings leave nothing behind.
    pub(super) fn forget(&self, backend: BackendId) {
        let mut all = self.0.write();
        if all.get(&backend).is_some_and(|tally| tally.lock().sessions == 0) {
            all.remove(&backend);
        }
    }

    fn update(&self, backend: BackendId, change: impl FnOnce(&mut Tally)) {
        if let Some(tally) = self.0.read().get(&backend) {
            return change(&mut tally.lock());
        }
        change(self.0.write().entry(backend).or_default().get_mut());
    }
}

#[derive(Default)]
struct Tally {
    sessions: usize,
    fresh: Ring,
}

/// Counts of the last [`FRESH_SECONDS`] seconds; `head` is the newest of them.
#[derive(Default)]
struct Ring {
    head: Seconds,
    total: u32,
    counts: [u32; FRESH_SECONDS as usize],
}

impl Ring {
    fn total(&mut self, now: Seconds) -> u32 {
        self.advance(now);
        self.total
    }

    fn add(&mut self, at: Seconds) {
        self.advance(at);
        if self.holds(at) {
            self.counts[Self::bucket(at)] += 1;
            self.total += 1;
        }
    }

    fn take(&mut self, at: Seconds) {
        let bucket = Self::bucket(at);
        if self.holds(at) && self.counts[bucket] > 0 {
            self.counts[bucket] -= 1;
            self.total -= 1;
        }
    }

    /// Forgets the seconds that have left the window; at most one turn of the ring.
    fn advance(&mut self, now: Seconds) {
        let steps = now.since(self.head).min(FRESH_SECONDS);
        for step in 0..steps {
            let bucket = Self::bucket(now.minus(step));
            self.total -= self.counts[bucket];
            self.counts[bucket] = 0;
        }
        self.head = self.head.max(now);
    }

    fn holds(&self, at: Seconds) -> bool {
        at <= self.head && self.head.since(at) < FRESH_SECONDS
    }

    fn bucket(at: Seconds) -> usize {
        (at.0 % FRESH_SECONDS) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Seconds = Seconds(1_000);

    #[test]
    fn newcomers_count_for_thirty_seconds() {
        let tallies = Tallies::default();
        tallies.joined(1, Some(T));
        tallies.joined(1, Some(T.plus(10)));
        assert_eq!(tallies.fresh(1, T.plus(29)), 2);
        assert_eq!(tallies.fresh(1, T.plus(30)), 1);
        assert_eq!(tallies.fresh(1, T.plus(40)), 0);
        assert_eq!(tallies.sessions(1), 2);
    }

    #[test]
    fn prompting_or_leaving_late_takes_nothing_from_others() {
        let tallies = Tallies::default();
        tallies.joined(1, Some(T));
        tallies.joined(1, Some(T.plus(30)));
        tallies.prompted(1, T);
        tallies.left(1, Some(T));
        assert_eq!(tallies.fresh(1, T.plus(31)), 1);
        tallies.left(1, Some(T.plus(30)));
        assert_eq!((tallies.fresh(1, T.plus(31)), tallies.sessions(1)), (0, 0));
    }

    #[test]
    fn only_a_backend_without_clients_is_forgotten() {
        let tallies = Tallies::default();
        tallies.joined(1, None);
        tallies.forget(1);
        assert_eq!(tallies.sessions(1), 1);
        tallies.left(1, None);
        tallies.forget(1);
        assert!(tallies.0.read().is_empty());
    }
}
