//! Running prompts that show no life: interrupted first, and when that does not help their backend
//! is suspect and loses its jobs.

use std::sync::Arc;
use std::time::Duration;

use super::entry::Life;
use super::failover::Loss;
use super::timers::Timer;
use super::{Action, Core};
use crate::backend::BackendId;
use crate::pool::job::{Job, JobId};

/// A prompt may be silent for this many times the longest of its kind.
const TIMES_LONGEST: f64 = 5.0;

impl Core {
    /// It runs: look at it when it could be silent for too long.
    pub(super) fn watch(&mut self, id: JobId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(place) = entry.place.as_mut().filter(|place| !place.watched) else { return };
        place.watched = true;
        let job = Arc::clone(&entry.job);
        self.wake(self.silence(&job), Timer::Silence(id));
    }

    /// How long a job may show no life.
    fn silence(&self, job: &Job) -> Duration {
        let longest = self.learnt.longest(job.kind.as_ref().map(|kind| kind.hash));
        let long = (longest.unwrap_or(0.0) * TIMES_LONGEST).clamp(0.0, 1e9);
        self.options.silence.max(Duration::from_secs_f64(long))
    }

    /// Whether it has shown life lately.
    pub(super) fn listen(&mut self, id: JobId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let Some(place) = entry.place.as_ref().filter(|place| place.life == Life::Running) else {
            return;
        };
        let (lane, heard, silent) = (place.lane, place.heard, place.silent);
        let limit = self.silence(&entry.job);
        let grace = self.options.interrupt_grace;
        let interrupted = silent.filter(|at| *at >= heard);
        if place.doubtful.is_some() {
            return self.wake(limit, Timer::Silence(id));
        }
        match interrupted {
            Some(at) if self.now.since(at) >= grace => self.suspect(lane),
            Some(at) => self.wake_at(at.plus(grace), Timer::Silence(id)),
            None if self.now.since(heard) >= limit => self.hush(id),
            None => self.wake_at(heard.plus(limit), Timer::Silence(id)),
        }
    }

    fn hush(&mut self, id: JobId) {
        let now = self.now;
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(place) = &mut entry.place else { return };
        place.silent = Some(now);
        let (job, backend) = (Arc::clone(&entry.job), place.lane);
        self.out.push(Action::Interrupt { job, backend });
        self.wake(self.options.interrupt_grace, Timer::Silence(id));
    }

    /// An interrupt did not help: nothing goes there, and what it has runs again elsewhere.
    fn suspect(&mut self, backend: BackendId) {
        if let Some(lane) = self.lanes.get_mut(backend) {
            lane.suspect = true;
        }
        self.out.push(Action::Suspect(backend));
        for id in self.seats.all(backend) {
            let entry = self.entries.get(&id).filter(|entry| entry.accepted);
            let place = entry.and_then(|entry| entry.place.as_ref());
            if place.is_some_and(|place| place.life != Life::Ending && !place.verdict_out) {
                self.doubt(id);
                self.lost(id, Loss::Hung);
            }
        }
        self.reclass_particular();
    }
}
