//! What run times teach: seconds by backend and kind.
//!
//! Means are exponentially weighted. At most [`MAX`] pairs are remembered; the one least recently
//! taught makes room.

use std::collections::HashMap;

use crate::backend::BackendId;

/// Pairs of backend and kind remembered.
const MAX: usize = 4096;
const ALPHA: f64 = 0.2;

#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    seconds: f64,
    longest: f64,
    turn: u64,
}

/// `None` stands for any backend, or any kind.
type Key = (Option<BackendId>, Option<u64>);

/// The means.
#[derive(Default)]
pub(super) struct Learnt {
    means: HashMap<Key, Mean>,
    turn: u64,
}

impl Learnt {
    /// A prompt succeeded after so many seconds.
    pub(super) fn learn(&mut self, backend: BackendId, kind: Option<u64>, seconds: f64) {
        if !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        self.take((Some(backend), None), seconds);
        self.take((None, None), seconds);
        if kind.is_some() {
            self.take((Some(backend), kind), seconds);
            self.take((None, kind), seconds);
        }
    }

    /// Seconds of a kind there, if it has run there.
    pub(super) fn of_kind(&self, backend: BackendId, kind: u64) -> Option<f64> {
        self.means.get(&(Some(backend), Some(kind))).map(|mean| mean.seconds)
    }

    /// Seconds of a kind anywhere; else of any kind.
    pub(super) fn anywhere(&self, kind: Option<u64>) -> Option<f64> {
        let of_kind = kind.and_then(|_| self.means.get(&(None, kind)));
        of_kind.or_else(|| self.means.get(&(None, None))).map(|mean| mean.seconds)
    }

    /// The longest that a kind ever took anywhere.
    pub(super) fn longest(&self, kind: Option<u64>) -> Option<f64> {
        kind?;
        self.means.get(&(None, kind)).map(|mean| mean.longest)
    }

    fn take(&mut self, key: Key, seconds: f64) {
        if !self.means.contains_key(&key) && self.means.len() >= MAX {
            let oldest = self.means.iter().min_by_key(|(_, mean)| mean.turn).map(|(key, _)| *key);
            oldest.map(|oldest| self.means.remove(&oldest));
        }
        self.turn += 1;
        let new = Mean { seconds, ..Mean::default() };
        let mean = self.means.entry(key).or_insert(new);
        mean.seconds += ALPHA * (seconds - mean.seconds);
        mean.longest = mean.longest.max(seconds);
        mean.turn = self.turn;
    }
}
