//! Strays: copies of a job at a place where it no longer belongs.
//!
//! A client that gave up, a backend declared dead that lives, a prompt that was judged elsewhere
//! meanwhile: a prompt of ours may be, or turn up, where no job of ours is. It is asked for when its
//! backend can be asked, and taken back or interrupted; but the first success of a job counts
//! wherever it came from, and one that still waits takes up a copy that runs already.
//!
//! Bounds: at most [`MAX_STRAYS`], the oldest forgotten first; each is pursued [`MAX_TRIES`] times.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::entry::{Life, Place};
use super::timers::Timer;
use super::{Action, Attempt, Core, Known, Outcome, TakenBack, Verdict};
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::pool::job::{Job, JobId};

/// Strays remembered.
pub(super) const MAX_STRAYS: usize = 4096;
const MAX_TRIES: u32 = 100;
/// Pause between two looks at a stray that is hard to stop.
const PAUSE: Duration = Duration::from_secs(1);

/// One copy.
struct Stray {
    job: Arc<Job>,
    token: Attempt,
    verdict_out: bool,
    asking: bool,
    taking: bool,
    /// It runs there, as far as is known.
    running: bool,
    /// It showed no life: never to be taken up again.
    hung: bool,
    /// It began while its job was elsewhere, so that its owner was not told: not to be taken up.
    unheard: bool,
    /// It was interrupted: not to be taken up, since that may come about at any moment.
    stopped: bool,
    since: Moment,
    tries: u32,
}

/// All copies.
#[derive(Default)]
pub(super) struct Strays(BTreeMap<(BackendId, JobId), Stray>);

impl Strays {
    /// Whether one runs there.
    pub(super) fn run_at(&self, backend: BackendId) -> bool {
        self.at(backend).any(|(_, stray)| stray.running && !stray.hung)
    }

    pub(super) fn forget_lane(&mut self, backend: BackendId) {
        self.0.retain(|(lane, _), _| *lane != backend);
    }

    fn at(&self, backend: BackendId) -> impl Iterator<Item = (JobId, &Stray)> {
        let range = (backend, JobId(0))..=(backend, JobId(u64::MAX));
        self.0.range(range).map(|((_, id), stray)| (*id, stray))
    }

    /// The copy that an answer without a backend is about.
    fn answered(
        &self,
        id: JobId,
        token: Attempt,
        out: impl Fn(&Stray) -> bool,
    ) -> Option<BackendId> {
        let about = |((_, job), stray): &(&(BackendId, JobId), &Stray)| {
            *job == id && stray.token == token && out(stray)
        };
        self.0.iter().find(about).map(|((backend, _), _)| *backend)
    }

    fn add(&mut self, key: (BackendId, JobId), stray: Stray) {
        if self.0.len() >= MAX_STRAYS {
            let oldest = self.0.iter().min_by_key(|(_, stray)| stray.since).map(|(key, _)| *key);
            oldest.map(|oldest| self.0.remove(&oldest));
        }
        self.0.insert(key, stray);
    }
}

impl Core {
    /// Gives up a job's place; what may be there is a stray.
    pub(super) fn disown(&mut self, id: JobId, hung: bool) {
        let Some(place) = self.unplace(id) else { return };
        let Some(entry) = self.entries.get(&id) else { return };
        let Place { lane, token, verdict_out, asking, taking, life, .. } = *place;
        if self.lanes.get(lane).is_none() {
            return;
        }
        let stray = Stray {
            job: Arc::clone(&entry.job),
            token,
            verdict_out,
            asking: asking.is_some(),
            taking,
            running: life == Life::Running,
            hung,
            unheard: false,
            stopped: false,
            since: self.now,
            tries: 0,
        };
        self.strays.add((lane, id), stray);
        if verdict_out && !taking {
            // It may wait there already.
            self.take_stray(lane, id);
        } else if !hung {
            self.ask_stray(lane, id);
        }
    }

    fn ask_stray(&mut self, backend: BackendId, id: JobId) {
        let reachable = self.lanes.is_reachable(backend);
        let Some(stray) = self.strays.0.get_mut(&(backend, id)) else { return };
        if stray.asking || stray.taking || stray.verdict_out || !reachable {
            return;
        }
        stray.tries += 1;
        if stray.tries > MAX_TRIES {
            self.strays.0.remove(&(backend, id));
            return;
        }
        stray.asking = true;
        let (job, attempt) = (Arc::clone(&stray.job), stray.token);
        self.out.push(Action::Ask { job, backend, attempt });
    }

    fn take_stray(&mut self, backend: BackendId, id: JobId) {
        let reachable = self.lanes.is_reachable(backend);
        let Some(stray) = self.strays.0.get_mut(&(backend, id)) else { return };
        if stray.taking || !reachable {
            return;
        }
        stray.taking = true;
        let (job, attempt) = (Arc::clone(&stray.job), stray.token);
        self.out.push(Action::TakeBack { job, backend, attempt });
    }

    fn stop_stray(&mut self, backend: BackendId, id: JobId) {
        let Some(stray) = self.strays.0.get_mut(&(backend, id)) else { return };
        (stray.running, stray.stopped) = (true, true);
        let job = Arc::clone(&stray.job);
        self.out.push(Action::Interrupt { job, backend });
        self.wake(PAUSE, Timer::Stray(backend, id));
    }

    pub(super) fn look_after_stray(&mut self, backend: BackendId, id: JobId) {
        self.ask_stray(backend, id);
    }

    /// A backend answers again: its strays are asked for.
    pub(super) fn strays_back(&mut self, backend: BackendId) {
        let ids: Vec<JobId> = self.strays.at(backend).map(|(id, _)| id).collect();
        for id in ids {
            self.ask_stray(backend, id);
        }
    }

    /// The answer to a POST whose job is no longer there.
    pub(super) fn stray_judged(&mut self, id: JobId, token: Attempt, verdict: &Verdict) {
        let Some(backend) = self.strays.answered(id, token, |stray| stray.verdict_out) else {
            return;
        };
        self.seats.answered(backend);
        let Some(stray) = self.strays.0.get_mut(&(backend, id)) else { return };
        stray.verdict_out = false;
        match verdict {
            Verdict::Accepted(_) | Verdict::Unknown => self.ask_stray(backend, id),
            Verdict::Refused { .. } | Verdict::NotSent if stray.running => {
                self.ask_stray(backend, id);
            }
            Verdict::Refused { .. } | Verdict::NotSent => {
                self.strays.0.remove(&(backend, id));
            }
        }
    }

    pub(super) fn stray_taken_back(&mut self, id: JobId, token: Attempt, result: TakenBack) {
        let Some(backend) = self.strays.answered(id, token, |stray| stray.taking) else { return };
        let Some(stray) = self.strays.0.get_mut(&(backend, id)) else { return };
        stray.taking = false;
        match result {
            TakenBack::Gone if stray.verdict_out => {}
            TakenBack::Gone => drop(self.strays.0.remove(&(backend, id))),
            TakenBack::Started => self.stray_runs(backend, id),
            TakenBack::Unknown => self.wake(PAUSE, Timer::Stray(backend, id)),
        }
    }

    pub(super) fn stray_told(
        &mut self,
        backend: BackendId,
        id: JobId,
        token: Attempt,
        known: Known,
    ) {
        let stray = self.strays.0.get_mut(&(backend, id));
        let Some(stray) = stray.filter(|stray| stray.token == token && stray.asking) else {
            return;
        };
        stray.asking = false;
        match known {
            Known::Pending => self.take_stray(backend, id),
            Known::Running => self.stray_runs(backend, id),
            Known::Unknown => self.wake(PAUSE, Timer::Stray(backend, id)),
            Known::Absent => drop(self.strays.0.remove(&(backend, id))),
            Known::Ended { outcome, run_seconds } => {
                self.strays.0.remove(&(backend, id));
                if outcome == Outcome::Completed {
                    self.late_success(backend, id, run_seconds);
                }
            }
        }
    }

    /// A copy runs: its job takes it up if it waits for a lane or is only judged elsewhere, else it
    /// is interrupted.
    fn stray_runs(&mut self, backend: BackendId, id: JobId) {
        let stray = self.strays.0.get(&(backend, id));
        let of_use = stray.is_none_or(|stray| !stray.hung && !stray.unheard && !stray.stopped);
        if self.line.contains(id) && of_use {
            self.take_up(backend, id);
        } else if of_use && self.is_only_judged(id) {
            self.disown(id, false);
            self.take_up(backend, id);
        } else {
            self.stop_stray(backend, id);
        }
    }

    /// The first success counts; the second copy is stopped.
    fn late_success(&mut self, backend: BackendId, id: JobId, run_seconds: Option<f64>) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.accepted) else { return };
        entry.ran_on = Some(backend);
        self.disown(id, false);
        self.end(id, Outcome::Completed, run_seconds);
    }

    /// A waiting job is found at a backend: it is there then, and the backend is asked.
    fn take_up(&mut self, backend: BackendId, id: JobId) {
        let stray = self.strays.0.remove(&(backend, id));
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.attempt = entry.attempt.max(1);
        let token = stray.as_ref().map_or(entry.attempt, |stray| stray.token);
        let mut place = Place::new(backend, token, self.now);
        place.verdict_out = stray.as_ref().is_some_and(|stray| stray.verdict_out);
        place.taking = stray.as_ref().is_some_and(|stray| stray.taking);
        entry.place = Some(Box::new(place));
        self.line.remove(id);
        self.particular.remove(&id);
        self.seat(id);
        self.doubt(id);
    }

    /// A copy has begun to run: the job is there, if elsewhere it is only judged.
    pub(super) fn begun_elsewhere(&mut self, backend: BackendId, id: JobId) {
        let judged = self.is_only_judged(id);
        let elsewhere = self.entries.get(&id).is_some_and(|entry| entry.place.is_some());
        match self.strays.0.get_mut(&(backend, id)) {
            Some(stray) if judged && !stray.hung && !stray.stopped => {
                self.disown(id, false);
                self.take_up(backend, id);
                self.begin(id);
                return self.pursue_cancel(id);
            }
            Some(stray) => stray.unheard |= elsewhere && !stray.running,
            None => {}
        }
        self.seen_elsewhere(backend, id);
    }

    /// Whether a job is at a server for its verdict alone.
    fn is_only_judged(&self, id: JobId) -> bool {
        let place = self.entries.get(&id).and_then(|entry| entry.place.as_ref());
        place.is_some_and(|place| place.vetting && place.life == Life::Sent)
    }

    /// Events or a reading show a job at a place where it is not believed to be.
    pub(super) fn seen_elsewhere(&mut self, backend: BackendId, id: JobId) {
        let mut of_use = true;
        if let Some(stray) = self.strays.0.get_mut(&(backend, id)) {
            (stray.running, stray.hung) = (true, false);
            of_use = !stray.unheard && !stray.stopped;
        }
        if self.line.contains(id) && of_use {
            self.take_up(backend, id);
        } else if self.strays.0.contains_key(&(backend, id)) {
            self.ask_stray(backend, id);
        } else if self.entries.get(&id).is_some_and(|entry| entry.accepted) {
            self.note_stray(backend, id);
        }
    }

    /// A copy that nobody knew of.
    fn note_stray(&mut self, backend: BackendId, id: JobId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let stray = Stray {
            job: Arc::clone(&entry.job),
            token: entry.attempt,
            verdict_out: false,
            asking: false,
            taking: false,
            running: false,
            hung: false,
            unheard: false,
            stopped: false,
            since: self.now,
            tries: 0,
        };
        self.strays.add((backend, id), stray);
        self.ask_stray(backend, id);
    }

    pub(super) fn stray_finished(&mut self, backend: BackendId, id: JobId) {
        let Some(stray) = self.strays.0.get_mut(&(backend, id)) else { return };
        stray.running = false;
        if self.entries.contains_key(&id) {
            self.ask_stray(backend, id);
        } else if !stray.asking && !stray.taking && !stray.verdict_out {
            self.strays.0.remove(&(backend, id));
        }
    }

    /// A reading that no longer shows a stray: it has ended, or is gone.
    pub(super) fn strays_read(
        &mut self,
        backend: BackendId,
        running: &[JobId],
        pending: &[JobId],
        asked: Moment,
    ) {
        let current = self.strays.at(backend).filter(|(_, stray)| stray.since < asked);
        let ids: Vec<JobId> = current.map(|(id, _)| id).collect();
        for id in ids {
            let Some(stray) = self.strays.0.get_mut(&(backend, id)) else { continue };
            stray.running = running.contains(&id);
            if pending.contains(&id) {
                self.take_stray(backend, id);
            } else if running.contains(&id) || self.entries.contains_key(&id) {
                self.ask_stray(backend, id);
            } else if !stray.asking && !stray.taking && !stray.verdict_out {
                self.strays.0.remove(&(backend, id));
            }
        }
    }

    /// How many strays are remembered.
    pub fn strays(&self) -> usize {
        self.strays.0.len()
    }
}
