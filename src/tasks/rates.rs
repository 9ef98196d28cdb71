//! What is learnt of each backend from the prompts that ended on it: seconds per prompt, over all
//! and by kind, and how many succeeded. Kept over restarts as [`Record`]s by backend name.
//!
//! Means are exponentially weighted with α = 0.2, so that a dozen prompts tell today's pace. A
//! backend remembers [`MAX_KINDS`] kinds; the one least recently run makes room.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::backend::BackendId;

/// Kinds remembered per backend.
pub const MAX_KINDS: usize = 256;
const ALPHA: f64 = 0.2;

/// Seconds per prompt.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mean {
    /// Of late.
    pub seconds: f64,
    /// The longest ever.
    pub longest: f64,
    /// How many taught it.
    pub prompts: u64,
}

impl Mean {
    fn take(&mut self, seconds: f64) {
        self.seconds += if self.prompts == 0 { seconds } else { ALPHA * (seconds - self.seconds) };
        self.longest = self.longest.max(seconds);
        self.prompts = self.prompts.saturating_add(1);
    }

    fn is_sane(&self) -> bool {
        let sane = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        self.prompts > 0 && sane(self.seconds) && sane(self.longest)
    }
}

/// What outlives the process of one backend. Missing fields are zero, unknown ones ignored.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Over all prompts.
    pub all: Mean,
    /// By kind, the least recently run first.
    pub kinds: Vec<(u64, Mean)>,
    /// Prompts that succeeded.
    pub completed: u64,
    /// Prompts that failed.
    pub failed: u64,
    /// Requests handed to it.
    pub calls: u64,
    /// Requests that failed on it.
    pub failures: u64,
    /// Mean seconds until a response's head came.
    pub response_seconds: f64,
}

#[derive(Debug, Default)]
struct Learnt {
    all: Mean,
    kinds: HashMap<u64, (Mean, u64)>,
    turn: u64,
    completed: u64,
    failed: u64,
    /// Requests, and failed ones, that earlier processes saw.
    earlier: (u64, u64),
}

impl Learnt {
    fn kind(&mut self, hash: u64) -> &mut Mean {
        if !self.kinds.contains_key(&hash) && self.kinds.len() >= MAX_KINDS {
            let oldest = self.kinds.iter().min_by_key(|(_, (_, turn))| *turn);
            if let Some(oldest) = oldest.map(|(&hash, _)| hash) {
                self.kinds.remove(&oldest);
            }
        }
        self.turn += 1;
        let entry = self.kinds.entry(hash).or_default();
        entry.1 = self.turn;
        &mut entry.0
    }
}

/// What is learnt of all backends.
#[derive(Debug, Default)]
pub struct Rates {
    backends: HashMap<BackendId, Learnt>,
}

impl Rates {
    /// A prompt succeeded; `seconds` if it is known how long it ran.
    pub fn completed(&mut self, backend: BackendId, kind: Option<u64>, seconds: Option<f64>) {
        let learnt = self.backends.entry(backend).or_default();
        learnt.completed += 1;
        let Some(seconds) = seconds.filter(|s| s.is_finite() && *s >= 0.0) else { return };
        learnt.all.take(seconds);
        if let Some(hash) = kind {
            learnt.kind(hash).take(seconds);
        }
    }

    /// A prompt failed.
    pub fn failed(&mut self, backend: BackendId) {
        self.backends.entry(backend).or_default().failed += 1;
    }

    /// Seconds a prompt will run: as its kind did there, else as prompts there do.
    pub fn predict(&self, backend: BackendId, kind: Option<u64>) -> Option<f64> {
        let learnt = self.backends.get(&backend)?;
        let of_kind = kind.and_then(|hash| learnt.kinds.get(&hash)).map(|(mean, _)| mean.seconds);
        of_kind.or_else(|| (learnt.all.prompts > 0).then_some(learnt.all.seconds))
    }

    /// Seconds per prompt there, over all kinds.
    pub fn mean(&self, backend: BackendId) -> Option<Mean> {
        let learnt = self.backends.get(&backend)?;
        (learnt.all.prompts > 0).then_some(learnt.all)
    }

    /// Share of what did not fail: prompts that ended (cancelled ones left out) and requests
    /// together, those of earlier processes included; 1 before the first.
    pub fn success_rate(&self, backend: BackendId, calls: u64, failures: u64) -> f64 {
        let none = Learnt::default();
        let learnt = self.backends.get(&backend).unwrap_or(&none);
        let all = learnt.earlier.0 + calls + learnt.completed + learnt.failed;
        let bad = learnt.earlier.1 + failures + learnt.failed;
        if all == 0 { 1.0 } else { all.saturating_sub(bad) as f64 / all as f64 }
    }

    /// What to keep of a backend, with its counters of this process.
    pub fn record(
        &self,
        backend: BackendId,
        calls: u64,
        failures: u64,
        response_seconds: f64,
    ) -> Option<Record> {
        let learnt = self.backends.get(&backend)?;
        let mut kinds: Vec<_> = learnt.kinds.iter().collect();
        kinds.sort_unstable_by_key(|(_, (_, turn))| *turn);
        Some(Record {
            all: learnt.all,
            kinds: kinds.into_iter().map(|(&hash, &(mean, _))| (hash, mean)).collect(),
            completed: learnt.completed,
            failed: learnt.failed,
            calls: learnt.earlier.0.saturating_add(calls),
            failures: learnt.earlier.1.saturating_add(failures),
            response_seconds,
        })
    }

    /// Puts back what an earlier process kept; nonsense counts as nothing.
    pub fn restore(&mut self, backend: BackendId, record: &Record) {
        let mut learnt = Learnt {
            completed: record.completed.min(u64::MAX >> 8),
            failed: record.failed.min(u64::MAX >> 8),
            earlier: (record.calls.min(u64::MAX >> 8), record.failures.min(u64::MAX >> 8)),
            ..Learnt::default()
        };
        if record.all.is_sane() {
            learnt.all = record.all;
        }
        for (hash, mean) in record.kinds.iter().filter(|(_, mean)| mean.is_sane()) {
            *learnt.kind(*hash) = *mean;
        }
        self.backends.insert(backend, learnt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BackendId = BackendId(1);

    fn near(one: Option<f64>, other: f64) -> bool {
        one.is_some_and(|one| (one - other).abs() < 1e-9)
    }

    #[test]
    fn a_kind_is_predicted_by_itself_and_a_strange_one_by_the_mean() {
        let mut rates = Rates::default();
        assert_eq!(rates.predict(A, Some(1)), None);
        rates.completed(A, Some(1), Some(10.0));
        rates.completed(A, Some(2), Some(1.0));
        assert!(near(rates.predict(A, Some(1)), 10.0));
        assert!(near(rates.predict(A, Some(2)), 1.0));
        assert!(near(rates.predict(A, Some(3)), 8.2), "10 and a fifth of the way to 1");
        assert!(near(rates.predict(A, None), 8.2));
        assert_eq!(rates.predict(BackendId(2), Some(1)), None);
        assert!((rates.mean(A).unwrap().longest - 10.0).abs() < 1e-9);
    }

    #[test]
    fn the_least_recently_run_kind_makes_room() {
        let mut rates = Rates::default();
        for kind in 0..MAX_KINDS as u64 {
            rates.completed(A, Some(kind), Some(5.0));
        }
        rates.completed(A, Some(0), Some(5.0));
        rates.completed(A, Some(9999), Some(7.0));
        let kept: Vec<u64> =
            rates.record(A, 0, 0, 0.0).unwrap().kinds.into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kept.len(), MAX_KINDS);
        assert!(kept.contains(&0) && kept.contains(&9999) && !kept.contains(&1));
    }

    #[test]
    fn what_was_kept_predicts_the_same_after_a_restart() {
        let mut rates = Rates::default();
        rates.completed(A, Some(u64::MAX), Some(3.0));
        rates.completed(A, None, None);
        rates.failed(A);
        let text = serde_json::to_string(&rates.record(A, 7, 2, 0.5).unwrap()).unwrap();
        let record: Record = serde_json::from_str(&text).unwrap();
        let mut later = Rates::default();
        later.restore(A, &record);
        assert!(near(later.predict(A, Some(u64::MAX)), 3.0));
        assert_eq!(later.record(A, 0, 0, 0.5).unwrap(), record);
        // Of 7 requests and 3 prompts 3 failed; of 10 more requests none.
        assert!((later.success_rate(A, 10, 0) - 17.0 / 20.0).abs() < 1e-9);
    }

    #[test]
    fn nonsense_from_disk_is_nothing_known() {
        let bad = Mean { seconds: f64::NAN, longest: 1.0, prompts: 3 };
        let mut rates = Rates::default();
        rates.restore(A, &Record { all: bad, kinds: vec![(1, bad)], ..Record::default() });
        assert_eq!(rates.predict(A, Some(1)), None);
        assert!((rates.success_rate(A, 0, 0) - 1.0).abs() < f64::EPSILON);
    }
}
