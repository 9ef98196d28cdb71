//! Turns among callers: start-time fair queueing (P. Goyal, H. Vin, H. Cheng, "Start-time Fair
//! Queueing", SIGCOMM 1996).
//!
//! Each caller has a start tag; the least goes next and then moves on by its job's cost. Virtual
//! time is the start tag of what was dispatched last; who comes new starts there, so that nobody
//! saves up turns while away. Among equal tags goes first who has had his for longest, so that
//! between two turns of a caller that waits each other one has one at most. The tag of a caller without jobs is kept only while it is ahead of
//! virtual time, and of at most [`MAX_AWAY`] callers.

use std::collections::{BTreeSet, HashMap};

use super::Passed;
use crate::identity::ClientKey;
use crate::pool::job::JobId;

/// Callers without jobs whose tags are remembered.
const MAX_AWAY: usize = 16_384;

/// A float that orders as its number does; never NaN by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag(u64);

impl Tag {
    pub(super) fn new(value: f64) -> Self {
        let bits = (value + 0.0).to_bits();
        Self(if bits >> 63 == 1 { !bits } else { bits | 1 << 63 })
    }
}

/// A job's place among its caller's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    number: Tag,
    pub(super) id: JobId,
}

impl Place {
    pub(super) fn new(number: f64, id: JobId) -> Self {
        Self { number: Tag::new(number), id }
    }
}

/// A caller: its next start tag, since when it has that (counted in turns), and its jobs.
pub(super) struct Flow {
    pub(super) tag: f64,
    pub(super) since: u64,
    pub(super) jobs: BTreeSet<Place>,
}

impl Flow {
    fn head(&self) -> Option<JobId> {
        self.jobs.first().map(|place| place.id)
    }
}

/// The callers of one class and level.
pub(super) struct Turns {
    time: f64,
    flows: HashMap<ClientKey, Flow>,
    heads: BTreeSet<(Tag, u64, JobId, ClientKey)>,
    /// Callers without jobs, by their tags.
    away: BTreeSet<(Tag, ClientKey)>,
}

impl Turns {
    pub(super) fn starting(time: f64) -> Self {
        let (flows, heads, away) = Default::default();
        Self { time, flows, heads, away }
    }

    pub(super) fn time(&self) -> f64 {
        self.time
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    pub(super) fn head_but(&self, passed: &Passed) -> Option<(Tag, u64, JobId)> {
        let mut heads = self.heads.iter().filter(|(.., key)| !passed.flows.contains(key));
        heads.find_map(|(tag, since, id, key)| {
            if !passed.jobs.contains(id) {
                return Some((*tag, *since, *id));
            }
            let mut jobs = self.flows.get(key)?.jobs.iter();
            let next = jobs.find(|place| !passed.jobs.contains(&place.id))?;
            Some((*tag, *since, next.id))
        })
    }

    pub(super) fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.flows.values().filter(|flow| !flow.jobs.is_empty())
    }

    pub(super) fn push(&mut self, key: ClientKey, place: Place, turn: u64) {
        let time = self.time;
        self.change(key, |flow| {
            if flow.jobs.is_empty() {
                (flow.tag, flow.since) = (flow.tag.max(time), turn);
            }
            flow.jobs.insert(place);
        });
    }

    pub(super) fn remove(&mut self, key: ClientKey, place: Place) {
        self.change(key, |flow| {
            flow.jobs.remove(&place);
        });
    }

    /// Its turn has come; the start tag it had.
    pub(super) fn take(&mut self, key: ClientKey, place: Place, cost: f64, turn: u64) -> f64 {
        let mut start = self.time;
        self.change(key, |flow| {
            start = flow.tag;
            flow.jobs.remove(&place);
            (flow.tag, flow.since) = (flow.tag + cost, turn);
        });
        start
    }

    /// A caller has used more, or less, elsewhere or than was thought.
    pub(super) fn charge(&mut self, key: ClientKey, cost: f64) {
        let time = self.time;
        if self.flows.contains_key(&key) {
            self.change(key, |flow| flow.tag = (flow.tag + cost).max(time));
        }
    }

    /// Virtual time moves on, never back.
    pub(super) fn advance(&mut self, start: f64) {
        self.time = self.time.max(start);
        while let Some(&(tag, key)) = self.away.first()
            && (tag <= Tag::new(self.time) || self.away.len() > MAX_AWAY)
        {
            self.away.pop_first();
            self.flows.remove(&key);
        }
    }

    /// Changes a caller and files it anew.
    fn change(&mut self, key: ClientKey, change: impl FnOnce(&mut Flow)) {
        let new = || Flow { tag: f64::MIN, since: 0, jobs: BTreeSet::new() };
        let flow = self.flows.entry(key).or_insert_with(new);
        match flow.head() {
            Some(head) => self.heads.remove(&(Tag::new(flow.tag), flow.since, head, key)),
            None => self.away.remove(&(Tag::new(flow.tag), key)),
        };
        change(flow);
        match flow.head() {
            Some(head) => self.heads.insert((Tag::new(flow.tag), flow.since, head, key)),
            None => self.away.insert((Tag::new(flow.tag), key)),
        };
        self.advance(self.time);
    }
}
