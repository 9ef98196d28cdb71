//! A `ComfyUI` as far as the core can tell.

use std::collections::BTreeMap;

use super::super::{Known, Outcome, TakenBack};
use crate::pool::job::JobId;

/// A prompt in a server's queue.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prompt {
    /// `None` when it did not come through the gateway.
    pub(super) job: Option<JobId>,
    pub(super) number: f64,
    pub(super) ms: u64,
    pub(super) fails: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    pub(super) up: bool,
    /// Up, but the gateway does not get through.
    pub(super) cut: bool,
    /// It runs its prompt for ever, and does not heed interrupts.
    pub(super) hung: bool,
    /// Counts its lives and runs: what was begun in an earlier one comes to nothing.
    pub(super) run: u64,
    pub(super) life: u64,
    pub(super) pending: Vec<Prompt>,
    pub(super) running: Option<Prompt>,
    pub(super) history: BTreeMap<JobId, Outcome>,
    /// It has the special node; what the gateway believes may differ.
    pub(super) special: bool,
}

impl Server {
    pub(super) fn answers(&self) -> bool {
        self.up && !self.cut
    }

    pub(super) fn runs(&self, id: JobId) -> bool {
        self.running.as_ref().is_some_and(|prompt| prompt.job == Some(id))
    }

    /// The next prompt begins, if none runs.
    pub(super) fn begin(&mut self) -> Option<Prompt> {
        if self.running.is_some() || !self.up || self.pending.is_empty() {
            return None;
        }
        let order =
            |a: &usize, b: &usize| self.pending[*a].number.total_cmp(&self.pending[*b].number);
        let at = (0..self.pending.len()).min_by(order)?;
        let prompt = self.pending.remove(at);
        self.run += 1;
        self.running = Some(prompt.clone());
        Some(prompt)
    }

    /// The running prompt ends.
    pub(super) fn finish(&mut self, outcome: Outcome) -> Option<JobId> {
        let id = self.running.take()?.job?;
        self.history.insert(id, outcome);
        Some(id)
    }

    pub(super) fn take_back(&mut self, id: JobId) -> TakenBack {
        self.pending.retain(|prompt| prompt.job != Some(id));
        if self.runs(id) || self.history.contains_key(&id) {
            TakenBack::Started
        } else {
            TakenBack::Gone
        }
    }

    pub(super) fn knows(&self, id: JobId) -> Known {
        if self.pending.iter().any(|prompt| prompt.job == Some(id)) {
            Known::Pending
        } else if self.runs(id) {
            Known::Running
        } else if let Some(outcome) = self.history.get(&id) {
            Known::Ended { outcome: outcome.clone(), run_seconds: None }
        } else {
            Known::Absent
        }
    }

    /// It dies, or is killed, with everything it had.
    pub(super) fn die(&mut self) {
        self.life += 1;
        self.run += 1;
        (self.up, self.hung) = (false, false);
        self.pending.clear();
        self.running = None;
        self.history.clear();
    }
}
