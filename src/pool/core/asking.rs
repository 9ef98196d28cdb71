//! Asking a backend what it knows of a job, and believing it.
//!
//! An answer that says less than events said meanwhile is asked for again rather than believed.

use std::sync::Arc;
use std::time::Duration;

use super::entry::Life;
use super::failover::Loss;
use super::timers::Timer;
use super::{Action, Attempt, Core, Known, Outcome};
use crate::backend::BackendId;
use crate::pool::job::JobId;

/// How often an ended job that its backend does not know is asked for.
const MAX_ABSENT: u32 = 4;
/// Pause after an answer that events have overtaken.
const OVERTAKEN: Duration = Duration::from_millis(100);

impl Core {
    /// Asks the backend where a job is, unless an answer is out or it cannot be reached; then it is
    /// asked when it can.
    pub(super) fn ask(&mut self, id: JobId) {
        let now = self.now;
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(place) = &mut entry.place else { return };
        if place.asking.is_some() || !self.lanes.is_reachable(place.lane) {
            return;
        }
        place.asking = Some(now);
        let (backend, attempt) = (place.lane, place.token);
        self.out.push(Action::Ask { job: Arc::clone(&entry.job), backend, attempt });
    }

    /// It may be at its backend or not: ask, and wait for at most the time after which a backend is
    /// declared dead.
    pub(super) fn doubt(&mut self, id: JobId) {
        let now = self.now;
        let Some(place) = self.entries.get_mut(&id).and_then(|entry| entry.place.as_mut()) else {
            return;
        };
        place.questioned = now;
        if place.doubtful.is_none() {
            place.doubtful = Some(now);
            self.wake(self.options.declared_dead_after, Timer::Doubt(id));
            self.tell(id);
        }
        self.ask(id);
    }

    /// A backend was asked about a job.
    pub(super) fn told(&mut self, backend: BackendId, id: JobId, token: Attempt, known: Known) {
        let now = self.now;
        let place = self.entries.get_mut(&id).and_then(|entry| entry.place.as_mut());
        let place = place.filter(|place| place.lane == backend && place.token == token);
        let Some((place, asked)) = place.and_then(|p| p.asking.take().map(|asked| (p, asked)))
        else {
            return self.stray_told(backend, id, token, known);
        };
        let stale = place.questioned > asked && !matches!(known, Known::Ended { .. });
        if stale {
            return self.ask(id);
        }
        if known == Known::Absent {
            return if place.news > asked { self.ask(id) } else { self.absent(id) };
        }
        if known == Known::Unknown {
            return self.wake(self.options.retry_interval, Timer::Ask(id));
        }
        place.news = now;
        if place.doubtful.take().is_some() {
            place.heard = now;
        }
        place.absent = 0;
        match known {
            Known::Ended { outcome, run_seconds } => self.ended_there(id, outcome, run_seconds),
            _ if place.life == Life::Ending => {
                self.wake(OVERTAKEN, Timer::Ask(id));
                self.tell(id);
            }
            Known::Running => self.found_running(id),
            _ => self.found_pending(id),
        }
    }

    /// It runs there; perhaps its 200 was lost on the way.
    fn found_running(&mut self, id: JobId) {
        self.accept_unheard(id);
        self.begin(id);
        self.pursue_cancel(id);
    }

    /// It waits there. One whose 200 was lost is taken back and judged again, for its words.
    fn found_pending(&mut self, id: JobId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let Some(place) = &entry.place else { return };
        let unwanted = !entry.accepted || entry.cancelled || place.vetting;
        let free = self.lanes.get(place.lane).is_some_and(|lane| self.is_free(lane));
        if entry.accepted && place.vetting && free && !entry.cancelled {
            self.stay(id);
            self.tell(id);
        } else if unwanted && place.life == Life::Sent {
            self.tell(id);
            self.take_back(id);
        } else {
            self.tell(id);
        }
    }

    fn accept_unheard(&mut self, id: JobId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let Some(place) = &entry.place else { return };
        if !entry.accepted && !place.verdict_out {
            let lane = place.lane;
            let reply = super::verdict::reply_for(&entry.job);
            self.stay(id);
            self.accept(id, lane, reply);
        }
    }

    /// It ended there.
    fn ended_there(&mut self, id: JobId, outcome: Outcome, run_seconds: Option<f64>) {
        self.accept_unheard(id);
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.accepted) else { return };
        let Some(place) = &entry.place else { return };
        entry.ran_on = Some(place.lane);
        // Its owner did not interrupt it, we did.
        if outcome == Outcome::Cancelled && !entry.cancelled && place.silent.is_some() {
            return self.lost(id, Loss::Hung);
        }
        self.stay(id);
        self.end(id, outcome, run_seconds);
    }

    /// The backend does not know it.
    fn absent(&mut self, id: JobId) {
        let retry = self.options.retry_interval;
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let (accepted, cancelled, once) = (entry.accepted, entry.cancelled, entry.job.once);
        let Some(place) = &mut entry.place else { return };
        place.absent += 1;
        let may_have_run = once && place.unheard;
        let again = match place.life {
            // It may still be on its way.
            _ if place.verdict_out => true,
            // Its history is lost, if the backend was away since.
            Life::Ending => place.absent < MAX_ABSENT && place.doubtful.is_none(),
            _ => place.ambiguous && place.absent < 2,
        };
        if again {
            return self.wake(retry, Timer::Ask(id));
        }
        if accepted && place.life == Life::Ending && place.doubtful.is_none() {
            let outcome = if cancelled { Outcome::Cancelled } else { Outcome::Completed };
            self.end(id, outcome, None);
        } else if place.vetting && place.life == Life::Sent && accepted && !may_have_run {
            self.given_back(id);
        } else {
            self.lost(id, Loss::Absent);
        }
    }
}
