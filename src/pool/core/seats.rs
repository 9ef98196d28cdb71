//! Which jobs are at which backend, kept apart by whether they take it up.
//!
//! Occupants run there or are to; guests are there for a verdict, on their way back, or done.

use std::collections::{BTreeSet, HashMap};

use super::Core;
use super::entry::Place;
use crate::backend::BackendId;
use crate::pool::job::JobId;

/// The jobs at one backend.
#[derive(Default)]
pub(super) struct Seat {
    pub(super) occupants: BTreeSet<JobId>,
    pub(super) guests: BTreeSet<JobId>,
    /// POSTs that are not answered yet.
    pub(super) asks: u32,
}

/// The jobs at each backend, whether its lane is known or not.
#[derive(Default)]
pub(super) struct Seats(HashMap<BackendId, Seat>);

impl Seats {
    pub(super) fn get(&self, backend: BackendId) -> Option<&Seat> {
        self.0.get(&backend)
    }

    pub(super) fn of(&mut self, backend: BackendId) -> &mut Seat {
        self.0.entry(backend).or_default()
    }

    pub(super) fn occupants(&self, backend: BackendId) -> usize {
        self.get(backend).map_or(0, |seat| seat.occupants.len())
    }

    /// All that take up a backend, or are to.
    pub(super) fn all_occupants(&self) -> impl Iterator<Item = JobId> + '_ {
        self.0.values().flat_map(|seat| seat.occupants.iter().copied())
    }

    pub(super) fn asks(&self, backend: BackendId) -> u32 {
        self.get(backend).map_or(0, |seat| seat.asks)
    }

    /// All that are at a backend, in order.
    pub(super) fn all(&self, backend: BackendId) -> Vec<JobId> {
        let Some(seat) = self.get(backend) else { return Vec::new() };
        seat.occupants.union(&seat.guests).copied().collect()
    }

    /// A POST was answered.
    pub(super) fn answered(&mut self, backend: BackendId) {
        let seat = self.of(backend);
        seat.asks = seat.asks.saturating_sub(1);
        self.tidy(backend);
    }

    /// A backend is no more.
    pub(super) fn forget(&mut self, backend: BackendId) {
        self.0.remove(&backend);
    }

    fn leave(&mut self, backend: BackendId, id: JobId) {
        let seat = self.of(backend);
        seat.occupants.remove(&id);
        seat.guests.remove(&id);
        self.tidy(backend);
    }

    fn tidy(&mut self, backend: BackendId) {
        let empty = |s: &Seat| s.asks == 0 && s.occupants.is_empty() && s.guests.is_empty();
        if self.get(backend).is_some_and(empty) {
            self.0.remove(&backend);
        }
    }
}

impl Core {
    /// Files a job under its place, as that is now.
    pub(super) fn seat(&mut self, id: JobId) {
        let Some(place) = self.entries.get(&id).and_then(|entry| entry.place.as_ref()) else {
            return;
        };
        let seat = self.seats.of(place.lane);
        let (to, from) = if place.occupies() {
            (&mut seat.occupants, &mut seat.guests)
        } else {
            (&mut seat.guests, &mut seat.occupants)
        };
        from.remove(&id);
        to.insert(id);
        if place.vetting {
            self.vetting.insert(id);
        } else {
            self.vetting.remove(&id);
        }
    }

    /// Takes a job from its place, if it has one.
    pub(super) fn unplace(&mut self, id: JobId) -> Option<Box<Place>> {
        let entry = self.entries.get_mut(&id)?;
        let place = entry.place.take()?;
        entry.since = self.now;
        self.vetting.remove(&id);
        self.seats.leave(place.lane, id);
        Some(place)
    }
}
