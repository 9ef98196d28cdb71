//! Who can run what: the set of lanes for a job, and its ticket for the line.
//!
//! What `/object_info` says is a hint. When it leaves no lane, those that lack least are tried, and
//! the server's word is final: a missing model may spoil one output of several, a missing node
//! spoils the prompt. What one lane has taken, those that have no less of it may run as well.

use std::sync::Arc;

use super::entry::{Avoid, Entry};
use super::lane::{LaneState, Lanes};
use super::{Core, Lane};
use crate::config::Fairness;
use crate::identity::ClientKey;
use crate::pool::job::{JobId, Needs};
use crate::pool::line::{LaneSet, Level, Ticket};

/// Who takes the turns when fairness is by arrival alone.
const EVERYBODY: [u8; 16] = [0; 16];
/// Needs whose lanes are remembered.
const MAX_HINTS: usize = 1024;
/// Least cost of a turn, in seconds of GPU time.
const LEAST_COST: f64 = 0.001;

/// Whether the configuration lets a lane run it.
pub(super) fn permits(lane: &Lane, needs: &Needs) -> bool {
    let here = needs.only_on.is_none_or(|only| only == lane.backend);
    let serves = match &needs.task_type {
        Some(wanted) if !lane.task_types.is_empty() => {
            lane.task_types.iter().any(|served| **served == **wanted)
        }
        _ => true,
    };
    here && serves
}

/// Whether a lane, as far as is known, has what it needs.
pub(super) fn has(lane: &Lane, needs: &Needs) -> bool {
    permits(lane, needs)
        && lane.capabilities.as_ref().is_none_or(|has| {
            needs.nodes.is_subset(&has.nodes) && needs.models.is_subset(&has.models)
        })
}

/// How many node types, and how many models, a lane lacks; unknown ones lack nothing.
fn lacks(lane: &Lane, needs: &Needs) -> (usize, usize) {
    lane.capabilities.as_ref().map_or((0, 0), |has| {
        let (nodes, models) =
            (needs.nodes.difference(&has.nodes), needs.models.difference(&has.models));
        (nodes.count(), models.count())
    })
}

/// Whether a lane has, of what is needed, all that another one has.
fn matches(lane: &Lane, other: &Lane, needs: &Needs) -> bool {
    let (Some(here), Some(there)) = (&lane.capabilities, &other.capabilities) else { return true };
    let nodes = needs.nodes.iter().all(|n| here.nodes.contains(n) || !there.nodes.contains(n));
    let models =
        || needs.models.iter().all(|m| here.models.contains(m) || !there.models.contains(m));
    permits(lane, needs) && nodes && models()
}

impl Lanes {
    /// The lanes that, as far as is known, have what it needs; remembered, since looking through
    /// large installations costs.
    fn hinted(&self, needs: &Arc<Needs>) -> LaneSet {
        if let Some(set) = self.hints.lock().get(needs) {
            return set.clone();
        }
        let set = self.set(|state| has(&state.lane, needs));
        let mut hints = self.hints.lock();
        if hints.len() >= MAX_HINTS {
            hints.clear();
        }
        hints.insert(Arc::clone(needs), set.clone());
        set
    }

    pub(super) fn forget_hints(&mut self) {
        self.hints.get_mut().clear();
    }

    pub(super) fn permitted(&self, needs: &Needs) -> LaneSet {
        self.set(|state| permits(&state.lane, needs))
    }

    /// The permitted lanes that lack least of what is needed, closed ones only if there is no other.
    pub(super) fn nearest(&self, needs: &Needs) -> LaneSet {
        let permitted = self.permitted(needs);
        let open = permitted.and(&self.open());
        let among = if open.is_empty() { permitted } else { open };
        let lacks = |slot| self.at(slot).map(|state| lacks(&state.lane, needs));
        let least = among.iter().filter_map(lacks).min();
        among.iter().filter(|slot| lacks(*slot) == least).collect()
    }

    /// The lanes that have, of what is needed, all that a lane has which took it.
    fn like(&self, proven: usize, needs: &Needs) -> LaneSet {
        let Some(proven) = self.at(proven) else { return LaneSet::default() };
        self.set(|state| matches(&state.lane, &proven.lane, needs))
    }

    /// The lanes able to run a job, before its own troubles are looked at.
    pub(super) fn able(&self, entry: &Entry) -> LaneSet {
        let needs = &entry.job.needs;
        let mut able = self.hinted(needs);
        let proven = entry.trouble.as_ref().and_then(|trouble| trouble.proven);
        if let Some(proven) = proven.and_then(|lane| self.slot(lane)) {
            able.extend(self.like(proven, needs).iter());
        }
        if able.is_empty() { self.nearest(needs) } else { able }
    }

    /// The lanes that a job may wait for.
    pub(super) fn waited_for(&self, entry: &Entry) -> LaneSet {
        let mut able = self.able(entry);
        let Some(trouble) = &entry.trouble else { return able };
        let mut died = LaneSet::default();
        for (lane, why) in &trouble.avoid {
            match (self.slot(*lane), why) {
                (Some(slot), Avoid::Died) => died.insert(slot),
                (Some(slot), _) => able.remove(slot),
                (None, _) => {}
            }
        }
        let rest = able.without(&died);
        let can = |slot| self.at(slot).is_some_and(LaneState::is_open);
        if rest.iter().any(can) { rest } else { able }
    }
}

impl Core {
    fn ticket(&self, entry: &Entry) -> Ticket {
        let job = &entry.job;
        let everybody = ClientKey::from_bytes(EVERYBODY);
        let by_arrival = self.options.fairness == Fairness::Fifo;
        let seconds = self.learnt.anywhere(job.kind.as_ref().map(|kind| kind.hash));
        Ticket {
            id: job.id,
            flow: if by_arrival { everybody } else { job.owner.key },
            level: Level { again: entry.again, priority: job.priority },
            number: job.number,
            cost: match self.options.fairness {
                Fairness::GpuTime => seconds.unwrap_or(1.0).max(LEAST_COST),
                _ => 1.0,
            },
        }
    }

    /// Puts an accepted job that is nowhere into the line.
    pub(super) fn enqueue(&mut self, id: JobId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let now = self.now;
        if let Some(trouble) = &mut entry.trouble {
            trouble.avoid.retain(|(_, why)| !matches!(why, Avoid::Until(at) if *at <= now));
            let wary = !trouble.avoid.is_empty();
            if wary {
                self.particular.insert(id);
            } else {
                self.particular.remove(&id);
            }
        }
        let Some(entry) = self.entries.get(&id) else { return };
        let ticket = self.ticket(entry);
        let lanes = self.lanes.waited_for(entry);
        if self.line.lanes_of(id) != Some(&lanes) {
            self.line.push(ticket, lanes);
        }
        self.tell(id);
    }

    /// A waiting job may go to other lanes than before.
    pub(super) fn reclass(&mut self, id: JobId) {
        if self.line.contains(id) {
            self.enqueue(id);
        }
    }

    /// Lanes have opened or closed: jobs that keep from some look again.
    pub(super) fn reclass_particular(&mut self) {
        let ids: Vec<JobId> = self.particular.iter().copied().collect();
        for id in ids {
            self.reclass(id);
        }
    }

    /// Lanes have come, gone or changed what they can do: every waiting job is filed anew, once
    /// however many changed while nothing could leave the line anyway.
    pub(super) fn refile(&mut self) {
        if !std::mem::take(&mut self.unfiled) {
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        line.rebuild(|ticket| match self.entries.get(&ticket.id) {
            Some(entry) => (self.ticket(entry), self.lanes.waited_for(entry)),
            None => (ticket, LaneSet::default()),
        });
        self.line = line;
    }
}
