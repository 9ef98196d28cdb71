//! Taking prompts back out of a backend's queue: after a verdict, for another lane, or because the
//! owner cancelled.

use std::sync::Arc;

use super::entry::{Entry, Life};
use super::{Action, Attempt, Core, Outcome, TakenBack};
use crate::pool::job::JobId;

impl Core {
    /// Asks for a prompt back, unless something else about it is out.
    pub(super) fn take_back(&mut self, id: JobId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(place) = &mut entry.place else { return };
        if place.taking || place.verdict_out || !self.lanes.is_reachable(place.lane) {
            return;
        }
        place.taking = true;
        let (backend, attempt) = (place.lane, place.token);
        self.out.push(Action::TakeBack { job: Arc::clone(&entry.job), backend, attempt });
    }

    /// A prompt was taken back, or not.
    pub(super) fn taken_back(&mut self, id: JobId, token: Attempt, result: TakenBack) {
        let place = self.entries.get_mut(&id).and_then(|entry| entry.place.as_mut());
        let Some(place) = place.filter(|place| place.token == token && place.taking) else {
            return self.stray_taken_back(id, token, result);
        };
        place.taking = false;
        let life = place.life;
        match result {
            TakenBack::Gone if life == Life::Sent => self.given_back(id),
            // Events say that it ran: the backend's history knows.
            TakenBack::Gone => self.ask(id),
            TakenBack::Started => self.found_started(id),
            TakenBack::Unknown => self.doubt(id),
        }
    }

    /// It is not there any more, and has not run.
    pub(super) fn given_back(&mut self, id: JobId) {
        let Some(place) = self.unplace(id) else { return };
        match self.entries.get(&id) {
            Some(Entry { accepted: false, .. }) => self.judge(id),
            Some(Entry { cancelled: true, .. }) => self.end(id, Outcome::Cancelled, None),
            _ if place.vetting => self.enqueue(id),
            _ => self.go_again(id),
        }
    }

    /// It was too late: it runs, or has run.
    fn found_started(&mut self, id: JobId) {
        self.begin(id);
        self.ask(id);
        self.pursue_cancel(id);
    }
}
