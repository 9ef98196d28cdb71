//! Prompts that wait behind another at a backend: posted ahead when the running one is about to
//! end, and called back when a lane is free that could run them at once.

use super::Core;
use super::entry::{Life, Place};
use crate::backend::BackendId;
use crate::pool::job::JobId;
use crate::pool::line::LaneSet;

impl Core {
    /// A running prompt is about to end.
    pub(super) fn ripen(&mut self, backend: BackendId) {
        if let Some(slot) = self.lanes.slot(backend) {
            self.ripe.insert(slot);
        }
    }

    /// Posts ahead where a prompt is about to end, and calls back what waits in vain.
    pub(super) fn look_ahead(&mut self) {
        if self.options.prefetch > 0 {
            self.post_ahead();
        }
        self.call_back();
    }

    fn post_ahead(&mut self) {
        for slot in self.ripe.clone().iter() {
            let Some(lane) = self.lanes.at(slot) else { continue };
            let backend = lane.lane.backend;
            let room = lane.lane.max_queue >= 2 && lane.foreign == 0 && lane.is_open();
            if !self.runs_one(backend) {
                self.ripe.remove(slot);
            } else if room && let Some(id) = self.best_for(slot) {
                self.ripe.remove(slot);
                self.dispatch(id, slot);
            }
        }
    }

    fn runs_one(&self, backend: BackendId) -> bool {
        let occupants = self.seats.get(backend).map(|seat| &seat.occupants);
        let one = occupants.filter(|occupants| occupants.len() == 1).and_then(|o| o.first());
        let place = one.and_then(|id| self.entries.get(id)).and_then(|entry| entry.place.as_ref());
        place.is_some_and(|place| place.life == Life::Running && place.doubtful.is_none())
    }

    fn best_for(&self, slot: usize) -> Option<JobId> {
        let only = LaneSet::from_iter([slot]);
        let usable = |able: &LaneSet| !self.lanes.usable(able, &only).is_empty();
        self.line.best_but(usable, &self.passed_over())
    }

    /// One prompt that waits behind another comes back for each lane that is free for it.
    fn call_back(&mut self) {
        let mut free = self.free();
        if free.is_empty() {
            return;
        }
        let behind: Vec<JobId> =
            self.lanes.iter().flat_map(|(_, lane)| self.behind(lane)).collect();
        for id in behind {
            let Some(entry) = self.entries.get(&id) else { continue };
            let usable = self.lanes.usable(&self.lanes.waited_for(entry), &free);
            if let Some(slot) = usable.iter().next() {
                free.remove(slot);
                self.take_back(id);
            }
        }
    }

    /// Jobs that were sent to a lane where something else runs.
    fn behind(&self, lane: &super::lane::LaneState) -> Vec<JobId> {
        let Some(seat) = self.seats.get(lane.lane.backend) else { return Vec::new() };
        let alone = seat.occupants.len() < 2 && lane.foreign == 0;
        if alone {
            return Vec::new();
        }
        let waits = |place: &Place| place.life == Life::Sent && place.is_settled();
        let settled = |id: &JobId| {
            let entry = self.entries.get(id).filter(|entry| entry.accepted && !entry.cancelled);
            entry.and_then(|entry| entry.place.as_deref()).is_some_and(waits)
        };
        seat.occupants.iter().copied().filter(settled).collect()
    }
}
