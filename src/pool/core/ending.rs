//! The end of a job, and the telling of each move on the way.

use std::sync::Arc;

use super::entry::{Entry, Life, Place};
use super::{Action, Core, Outcome};
use crate::config::Fairness;
use crate::pool::job::JobId;
use crate::pool::line::{Level, Ticket};

impl Core {
    /// Tells where an accepted job is now, if that is new.
    pub(super) fn tell(&mut self, id: JobId) {
        let now = self.now;
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.accepted) else { return };
        let phase = entry.phase();
        if entry.told == Some(phase) {
            return;
        }
        (entry.told, entry.since) = (Some(phase), now);
        let (job, attempt, marks) = (Arc::clone(&entry.job), entry.attempt, entry.marks());
        self.out.push(Action::Moved { job, phase, attempt, marks });
    }

    /// Has kept what changed of an accepted job without a move.
    pub(super) fn mark(&mut self, id: JobId) {
        let Some(entry) = self.entries.get(&id).filter(|entry| entry.accepted) else { return };
        let (job, phase) = (Arc::clone(&entry.job), entry.phase());
        let (attempt, marks) = (entry.attempt, entry.marks());
        self.out.push(Action::Marked { job, phase, attempt, marks });
    }

    /// The last word on an accepted job.
    pub(super) fn end(&mut self, id: JobId, outcome: Outcome, run_seconds: Option<f64>) {
        let place = self.unplace(id);
        let Some(entry) = self.forget(id) else { return };
        let measured = place.as_deref().and_then(measured);
        let run_seconds = run_seconds.or(measured);
        if let Some(place) = &place {
            self.learn(&entry, place, &outcome, run_seconds);
        }
        self.out.push(Action::Ended {
            job: entry.job,
            outcome,
            backend: entry.ran_on,
            attempts: entry.attempt,
            run_seconds,
        });
    }

    /// Takes a job out of everything.
    pub(super) fn forget(&mut self, id: JobId) -> Option<Entry> {
        self.unplace(id);
        self.line.remove(id);
        self.particular.remove(&id);
        let entry = self.entries.remove(&id)?;
        self.by_prompt.remove(&entry.job.prompt_id);
        if entry.accepted {
            self.open -= 1;
            self.disown_by_owner(&entry);
        }
        Some(entry)
    }

    fn disown_by_owner(&mut self, entry: &Entry) {
        let key = entry.job.owner.key;
        if let Some(jobs) = self.by_owner.get_mut(&key) {
            jobs.remove(&entry.job.id);
            if jobs.is_empty() {
                self.by_owner.remove(&key);
            }
        }
    }

    fn learn(&mut self, entry: &Entry, place: &Place, outcome: &Outcome, seconds: Option<f64>) {
        let Some(seconds) = seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0) else {
            return;
        };
        if *outcome == Outcome::Completed {
            let kind = entry.job.kind.as_ref().map(|kind| kind.hash);
            self.learnt.learn(place.lane, kind, seconds);
        }
        if self.options.fairness == Fairness::GpuTime
            && place.cost > 0.0
            && let Some(slot) = self.lanes.slot(place.lane)
        {
            let job = &entry.job;
            let level = Level { again: false, priority: job.priority };
            let (id, flow, number) = (job.id, job.owner.key, job.number);
            let ticket = Ticket { id, flow, level, number, cost: place.cost };
            self.line.correct(&ticket, slot, seconds - place.cost);
        }
    }
}

/// Seconds from its beginning to its finish, as events told.
fn measured(place: &Place) -> Option<f64> {
    let started = place.started.filter(|_| place.life == Life::Ending)?;
    place.finished.map(|finished| finished.since(started).as_secs_f64())
}
