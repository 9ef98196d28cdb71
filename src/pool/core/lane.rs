//! What is known of the backends: as configured and probed, and what they were seen to do.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Lane;
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::pool::job::Needs;
use crate::pool::line::LaneSet;
use crate::ring::Ring;

/// Weight of the latest in means.
const ALPHA: f64 = 0.2;

/// One lane.
pub(super) struct LaneState {
    pub(super) lane: Lane,
    /// Prompts there that are not ours, and when the reading that told was begun.
    pub(super) foreign: u32,
    pub(super) read: Option<Moment>,
    /// A prompt there showed no life: nothing goes there until it is taken out or has restarted.
    pub(super) suspect: bool,
    /// The kind it ran last: its cache is warm for that.
    pub(super) last_kind: Option<u64>,
    /// Mean milliseconds until a POST was answered; 0 when unknown.
    pub(super) verdict_ms: f64,
    /// Jobs sent there.
    pub(super) calls: u64,
    /// Since when it is reachable, or not.
    pub(super) turned: Moment,
}

impl LaneState {
    pub(super) fn is_open(&self) -> bool {
        self.lane.open && !self.suspect
    }

    pub(super) fn learn_verdict(&mut self, ms: f64) {
        let mean = self.verdict_ms;
        self.verdict_ms = if mean == 0.0 { ms } else { mean + ALPHA * (ms - mean) };
    }
}

/// The lanes, in slots whose numbers stay while a lane is there.
#[derive(Default)]
pub(super) struct Lanes {
    slots: Vec<Option<LaneState>>,
    index: HashMap<BackendId, usize>,
    ring: Option<Ring>,
    /// Which lanes have what is needed; forgotten when lanes come, go or change.
    pub(super) hints: Mutex<HashMap<Arc<Needs>, LaneSet>>,
}

impl Lanes {
    pub(super) fn slot(&self, backend: BackendId) -> Option<usize> {
        self.index.get(&backend).copied()
    }

    pub(super) fn at(&self, slot: usize) -> Option<&LaneState> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn get(&self, backend: BackendId) -> Option<&LaneState> {
        self.at(self.slot(backend)?)
    }

    pub(super) fn get_mut(&mut self, backend: BackendId) -> Option<&mut LaneState> {
        let slot = self.slot(backend)?;
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &LaneState)> {
        self.slots.iter().enumerate().filter_map(|(at, lane)| lane.as_ref().map(|lane| (at, lane)))
    }

    /// How many slots there are, empty ones included.
    pub(super) fn slots(&self) -> &[Option<LaneState>] {
        &self.slots
    }

    pub(super) fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    pub(super) fn is_reachable(&self, backend: BackendId) -> bool {
        self.get(backend).is_some_and(|lane| lane.lane.reachable)
    }

    /// The lanes that `accept` takes.
    pub(super) fn set(&self, accept: impl Fn(&LaneState) -> bool) -> LaneSet {
        self.iter().filter(|(_, lane)| accept(lane)).map(|(slot, _)| slot).collect()
    }

    pub(super) fn open(&self) -> LaneSet {
        self.set(LaneState::is_open)
    }

    /// Of `able` lanes those in `from` that may be used: backups only when no other of `able` is
    /// open.
    pub(super) fn usable(&self, able: &LaneSet, from: &LaneSet) -> LaneSet {
        let both = able.and(from);
        let is_primary = |slot| self.at(slot).is_some_and(|l| l.is_open() && !l.lane.backup);
        if both.is_empty() || !able.iter().any(is_primary) {
            return both;
        }
        both.iter().filter(|&slot| is_primary(slot)).collect()
    }

    /// Takes in a lane. What was known before, if it is not new.
    pub(super) fn put(&mut self, lane: Lane, now: Moment) -> Option<Lane> {
        let Some(state) = self.get_mut(lane.backend) else {
            self.add(lane, now);
            return None;
        };
        if state.lane.reachable != lane.reachable {
            state.turned = now;
        }
        // Taken out by whoever probes it: from here on `open` tells.
        state.suspect &= lane.open;
        let renamed = state.lane.name != lane.name || state.lane.weight != lane.weight;
        let before = std::mem::replace(&mut state.lane, lane);
        if renamed {
            self.draw_ring();
        }
        Some(before)
    }

    fn add(&mut self, lane: Lane, now: Moment) {
        let vacant = self.slots.iter().position(Option::is_none);
        let slot = vacant.unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.index.insert(lane.backend, slot);
        self.slots[slot] = Some(LaneState {
            lane,
            foreign: 0,
            read: None,
            suspect: false,
            last_kind: None,
            verdict_ms: 0.0,
            calls: 0,
            turned: now,
        });
        self.hints.get_mut().clear();
        self.draw_ring();
    }

    pub(super) fn remove(&mut self, backend: BackendId) -> bool {
        let Some(slot) = self.index.remove(&backend) else { return false };
        self.slots[slot] = None;
        self.hints.get_mut().clear();
        self.draw_ring();
        true
    }

    /// Vacant slots enter the ring under names that no backend has.
    fn draw_ring(&mut self) {
        let named = |(at, lane): (usize, &Option<LaneState>)| match lane {
            Some(state) => (state.lane.name.to_string(), state.lane.weight),
            None => (format!("\0{at}"), 1),
        };
        let names: Vec<_> = self.slots.iter().enumerate().map(named).collect();
        self.ring = Some(Ring::new(names.iter().map(|(name, weight)| (name.as_str(), *weight))));
    }
}
