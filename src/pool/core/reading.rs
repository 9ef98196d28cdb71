//! Whole readings of a backend's queue, which find what events did not tell.
//!
//! A reading shows the past: it counts against what is believed of a job only when it was begun
//! after the last news of that job.

use super::entry::{Life, Place};
use super::{Core, Moment};
use crate::backend::BackendId;
use crate::pool::job::JobId;

impl Core {
    /// A whole reading, begun at `asked`.
    pub(super) fn read(
        &mut self,
        backend: BackendId,
        running: &[JobId],
        pending: &[JobId],
        foreign: u32,
        asked: Moment,
    ) {
        let Some(lane) = self.lanes.get_mut(backend) else { return };
        if lane.read.is_some_and(|before| before > asked) {
            return;
        }
        (lane.read, lane.foreign) = (Some(asked), foreign);
        for id in self.seats.all(backend) {
            let shown = (running.contains(&id), pending.contains(&id));
            self.compare(id, shown, asked);
        }
        for &id in running.iter().chain(pending) {
            self.found(backend, id, asked);
        }
        self.strays_read(backend, running, pending, asked);
    }

    /// Holds a job against a reading of the backend where it is believed to be.
    fn compare(&mut self, id: JobId, (runs, waits): (bool, bool), asked: Moment) {
        let Some(entry) = self.entries.get(&id).filter(|entry| entry.accepted) else { return };
        let current = |place: &&Place| place.is_settled() && place.news < asked;
        let Some(place) = entry.place.as_deref().filter(current) else { return };
        match place.life {
            Life::Sent if runs => {
                self.begin(id);
                self.pursue_cancel(id);
            }
            Life::Sent | Life::Running if !runs && !waits => self.ask(id),
            _ => {}
        }
    }

    /// A job of ours is there; perhaps it is believed to be elsewhere.
    fn found(&mut self, backend: BackendId, id: JobId, asked: Moment) {
        let known = self.entries.get(&id).is_some_and(|e| !e.is_at(backend) && e.since < asked);
        if known {
            self.seen_elsewhere(backend, id);
        }
    }
}
