//! Events of jobs: they begin, show life, and finish. Events may come before the answer to the
//! POST, after the job has ended, and from places where the job no longer belongs.

use super::entry::{Life, Place};
use super::timers::Timer;
use super::{Core, Moment};
use crate::backend::BackendId;
use crate::pool::job::JobId;

impl Core {
    fn place_at(&mut self, id: JobId, backend: BackendId) -> Option<&mut Place> {
        let place = self.entries.get_mut(&id)?.place.as_deref_mut()?;
        (place.lane == backend).then_some(place)
    }

    /// It runs there.
    pub(super) fn started(&mut self, backend: BackendId, id: JobId) {
        let now = self.now;
        let Some(place) = self.place_at(id, backend) else {
            return self.begun_elsewhere(backend, id);
        };
        if place.life == Life::Ending {
            return;
        }
        (place.news, place.heard) = (now, now);
        self.begin(id);
        self.ask_others(backend, id);
        self.pursue_cancel(id);
    }

    /// It shows life there.
    pub(super) fn alive(&mut self, backend: BackendId, id: JobId) {
        let now = self.now;
        match self.place_at(id, backend) {
            Some(place) if place.life == Life::Running && place.doubtful.is_none() => {
                (place.news, place.heard) = (now, now);
            }
            Some(_) => self.started(backend, id),
            None => {}
        }
    }

    /// The backend is done with it: the lane is free at once.
    pub(super) fn finished(&mut self, backend: BackendId, id: JobId) {
        let now = self.now;
        let Some(place) = self.place_at(id, backend) else {
            return self.stray_finished(backend, id);
        };
        if place.life == Life::Ending {
            return;
        }
        place.news = now;
        self.begin(id);
        let Some(place) = self.place_at(id, backend) else { return };
        (place.life, place.finished) = (Life::Ending, Some(now));
        self.seat(id);
        self.tell(id);
        if self.entries.get(&id).is_some_and(|entry| entry.accepted) {
            self.ask_or_doubt(id, backend);
        }
    }

    /// Asks a backend that may have gone since.
    pub(super) fn ask_or_doubt(&mut self, id: JobId, backend: BackendId) {
        if self.lanes.is_reachable(backend) {
            self.ask(id);
        } else {
            self.doubt(id);
        }
    }

    /// It has begun to run where it is.
    pub(super) fn begin(&mut self, id: JobId) {
        self.stay(id);
        let now = self.now;
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(place) = &mut entry.place else { return };
        let first = place.life == Life::Sent;
        place.doubtful = None;
        if !first {
            return self.tell(id);
        }
        (place.life, place.started, place.heard) = (Life::Running, Some(now), now);
        entry.cancelled |= place.stop;
        let lane = place.lane;
        entry.ran_on = Some(lane);
        let kind = entry.job.kind.as_ref().map(|kind| kind.hash);
        if let Some(state) = self.lanes.get_mut(lane) {
            state.last_kind = kind;
        }
        self.seat(id);
        self.tell(id);
        self.watch(id);
        self.expect_end(lane, kind, now);
    }

    /// A backend runs one prompt at a time: of others believed running there news was lost.
    fn ask_others(&mut self, backend: BackendId, id: JobId) {
        let running = |core: &Self, other: &JobId| {
            let place = core.entries.get(other).and_then(|entry| entry.place.as_ref());
            place.is_some_and(|place| place.life == Life::Running && place.is_settled())
        };
        let others = self.seats.get(backend).map(|seat| seat.occupants.clone()).unwrap_or_default();
        for other in others.into_iter().filter(|other| *other != id) {
            if running(self, &other) {
                self.ask(other);
            }
        }
    }

    /// When a running prompt is expected to end, as its kind did there.
    fn expect_end(&mut self, lane: BackendId, kind: Option<u64>, started: Moment) {
        if self.options.prefetch == 0 {
            return;
        }
        let Some(seconds) = kind.and_then(|kind| self.learnt.of_kind(lane, kind)) else { return };
        let post = self.lanes.get(lane).map_or(0.0, |lane| lane.verdict_ms);
        let ms = (seconds * 1000.0 - post).max(0.0) as u64;
        self.wake_at(Moment(started.0.saturating_add(ms)), Timer::Ripe(lane));
    }
}
