//! Lanes that come, change, die and go, and what becomes of their jobs; the start after a restart.
//!
//! At least once: a job whose server died with it runs again, `max_retries` times at most, unless it
//! must not run twice. Only a job's own attempts count: one that waited behind another loses
//! nothing. A job that never comes back from its servers is called what it is, a poison job.

use std::sync::Arc;
use std::time::Duration;

use super::entry::{Avoid, Entry, Life, Place};
use super::timers::Timer;
use super::{Core, Kept, Lane, Moment, Outcome, Phase, Refusal};
use crate::backend::BackendId;
use crate::pool::job::JobId;

/// How long after a restart the line waits at most for readings of the lanes' queues.
pub(super) const SETTLE: Duration = Duration::from_secs(3);
/// What the gateway sent before it died has arrived after so long: earlier readings do not count.
pub const ARRIVED: Duration = Duration::from_millis(500);

/// How a job was lost at its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// The backend answers, and does not have it.
    Absent,
    /// The backend is gone.
    Dead,
    /// It showed no life.
    Hung,
}

impl Core {
    /// A backend is new or has changed.
    pub(super) fn lane(&mut self, lane: Lane) {
        let backend = lane.backend;
        let reachable = lane.reachable;
        let now = lane.clone();
        let before = self.lanes.put(lane, self.now);
        if before.as_ref().is_none_or(|before| is_other(before, &now)) {
            self.lanes.forget_hints();
            self.unfiled = true;
        }
        match (before.is_some_and(|before| before.reachable), reachable) {
            (true, false) => self.lane_lost(backend),
            (false, true) => self.lane_back(backend),
            _ => {}
        }
        self.reclass_particular();
    }

    /// It does not answer: what it has is doubtful.
    fn lane_lost(&mut self, backend: BackendId) {
        for id in self.seats.all(backend) {
            self.unhear(id);
            if self.is_held(id) {
                self.doubt(id);
            }
        }
    }

    /// What a job did at its lane of late may not have been heard.
    fn unhear(&mut self, id: JobId) {
        if let Some(place) = self.entries.get_mut(&id).and_then(|entry| entry.place.as_mut()) {
            place.unheard = true;
        }
    }

    /// It answers again: it is asked for each.
    fn lane_back(&mut self, backend: BackendId) {
        for id in self.seats.all(backend) {
            let Some(place) = self.entries.get(&id).and_then(|entry| entry.place.as_ref()) else {
                continue;
            };
            if place.doubtful.is_some() || place.life == Life::Ending {
                self.ask(id);
            }
        }
        self.strays_back(backend);
    }

    /// Whether the backend has taken it, by its word or by events.
    fn is_held(&self, id: JobId) -> bool {
        let place = self.entries.get(&id).and_then(|entry| entry.place.as_ref());
        place.is_some_and(|place| !place.verdict_out || place.life != Life::Sent)
    }

    /// It has lost what it knew.
    pub(super) fn lane_reset(&mut self, backend: BackendId) {
        if let Some(lane) = self.lanes.get_mut(backend) {
            (lane.last_kind, lane.suspect, lane.foreign) = (None, false, 0);
        }
        for id in self.seats.all(backend) {
            self.unhear(id);
            if self.is_held(id) {
                self.doubt(id);
            }
        }
        self.strays_back(backend);
        self.reclass_particular();
    }

    /// It is no longer part of the fleet.
    pub(super) fn lane_gone(&mut self, backend: BackendId) {
        let Some(slot) = self.lanes.slot(backend) else { return };
        self.ripe.remove(slot);
        self.lanes.remove(backend);
        for id in self.seats.all(backend) {
            self.lost(id, Loss::Dead);
        }
        self.strays.forget_lane(backend);
        self.seats.forget(backend);
        self.fail_bound_to(backend);
        self.unfiled = true;
    }

    /// Waiting jobs that only that backend could run.
    fn fail_bound_to(&mut self, backend: BackendId) {
        let bound = |entry: &&Entry| {
            entry.accepted && entry.place.is_none() && entry.job.needs.only_on == Some(backend)
        };
        let mut ids: Vec<JobId> = self.entries.values().filter(bound).map(|e| e.job.id).collect();
        ids.sort_unstable();
        for id in ids {
            let error = "the server that holds the file it reads is no longer there".to_owned();
            self.end(id, Outcome::Failed { error }, None);
        }
    }

    /// A backend has had its time to come back with a job.
    pub(super) fn doubted_for_long(&mut self, id: JobId) {
        let Some(place) = self.entries.get(&id).and_then(|entry| entry.place.as_ref()) else {
            return;
        };
        let Some(since) = place.doubtful else { return };
        let lane = self.lanes.get(place.lane);
        // Gone, or back, for that long: what it was before does not count.
        let since = lane.map_or(since, |lane| lane.turned.max(since));
        let due = since.plus(self.options.declared_dead_after);
        let still_posting = lane.is_some_and(|lane| lane.lane.reachable) && place.verdict_out;
        if due > self.now || still_posting {
            let again =
                if still_posting { self.now.plus(self.options.retry_interval) } else { due };
            return self.wake_at(again.max(due), Timer::Doubt(id));
        }
        self.lost(id, Loss::Dead);
    }

    /// A job is lost where it was: it runs again elsewhere, or has had its chances.
    pub(super) fn lost(&mut self, id: JobId, loss: Loss) {
        let Some(place) = self.entries.get(&id).and_then(|entry| entry.place.as_deref()) else {
            return;
        };
        let (lane, ran) = (place.lane, place.life >= Life::Running);
        let never_there = loss == Loss::Absent && place.ambiguous && !place.unheard && !ran;
        if loss == Loss::Absent {
            self.unplace(id);
        } else {
            self.disown(id, loss == Loss::Hung);
        }
        let max = self.options.max_retries;
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.strikes += u32::from(ran);
        let (once, strikes) = (entry.job.once && !never_there, entry.strikes);
        let keep_from = if entry.accepted { Avoid::Died } else { Avoid::Refused };
        entry.avoid(lane, keep_from);
        if !entry.accepted && once {
            self.refuse(id, Refusal::Timeout);
        } else if !entry.accepted {
            self.judge(id);
        } else if entry.cancelled {
            self.end(id, Outcome::Cancelled, None);
        } else if once {
            self.end(id, Outcome::Failed { error: once_error() }, None);
        } else if strikes > max {
            self.end(id, Outcome::Failed { error: poison_error(strikes) }, None);
        } else {
            self.go_again(id);
        }
    }

    /// After a restart of the gateway: what waited waits again, in its old order; what was at a
    /// backend is doubtful until that tells.
    pub fn restore(&mut self, kept: Vec<Kept>, now: Moment, actions: &mut Vec<super::Action>) {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.out, actions);
        if !kept.is_empty() {
            self.settling = Some(self.now);
            self.wake(SETTLE, Timer::Settle);
        }
        let mut kept = kept;
        kept.sort_by_key(|kept| kept.job.id);
        for kept in kept {
            self.restore_one(kept);
        }
        self.pump();
        std::mem::swap(&mut self.out, actions);
    }

    fn restore_one(&mut self, kept: Kept) {
        let Kept { job, phase, attempts, marks, reply } = kept;
        let id = job.id;
        if self.entries.contains_key(&id) {
            return;
        }
        self.by_prompt.insert(Arc::clone(&job.prompt_id), id);
        self.by_owner.entry(job.owner.key).or_default().insert(id);
        self.open += 1;
        let mut entry = Entry::new(job, self.now);
        (entry.accepted, entry.reply, entry.told) = (true, reply, Some(phase));
        (entry.attempt, entry.strikes, entry.cancelled) =
            (attempts, marks.strikes, marks.cancelled);
        let (lane, life) = match phase {
            Phase::Waiting => (None, Life::Sent),
            Phase::Doubtful(lane) if marks.began => (Some(lane), Life::Running),
            Phase::Sent(lane) | Phase::Doubtful(lane) => (Some(lane), Life::Sent),
            Phase::Running(lane) => (Some(lane), Life::Running),
            Phase::Ending(lane) => (Some(lane), Life::Ending),
        };
        entry.again = lane.is_none() && attempts > 0;
        entry.ran_on = lane.filter(|_| life >= Life::Running);
        entry.place = lane.map(|lane| {
            let place = Place::new(lane, attempts, self.now);
            let started = (life == Life::Running).then_some(self.now);
            // Its POST may have been on its way when the gateway died.
            let ambiguous = life == Life::Sent;
            Box::new(Place { life, started, ambiguous, unheard: true, ..place })
        });
        self.entries.insert(id, entry);
        if lane.is_some() {
            self.seat(id);
            self.doubt(id);
        } else {
            self.enqueue(id);
        }
    }
}

/// Whether it can do other work than before.
fn is_other(before: &Lane, now: &Lane) -> bool {
    before.capabilities != now.capabilities || before.task_types != now.task_types
}

fn once_error() -> String {
    "its server was lost while it may have been running, and it must not run twice".to_owned()
}

fn poison_error(times: u32) -> String {
    format!("poison job: its server died {times} times while running it")
}
