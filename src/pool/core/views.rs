//! What readers see.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::entry::{Entry, Life};
use super::{Core, JobView, Phase};
use crate::backend::BackendId;
use crate::identity::ClientKey;
use crate::pool::job::JobId;

/// A lane as readers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    /// Which backend.
    pub backend: BackendId,
    /// Whether it takes new jobs.
    pub open: bool,
    /// Whether it waits for work.
    pub free: bool,
    /// A prompt there showed no life.
    pub suspect: bool,
    /// Our jobs there that run or are to.
    pub held: Vec<JobId>,
    /// Prompts there that did not come through this gateway.
    pub foreign: u32,
    /// The kind that it ran last.
    pub last_kind: Option<u64>,
}

impl Core {
    /// An accepted job that has not ended.
    pub fn get(&self, id: JobId) -> Option<JobView> {
        self.entries.get(&id).and_then(view)
    }

    /// The backend where a job is, accepted or before its verdict.
    pub fn place_of(&self, id: JobId) -> Option<BackendId> {
        self.entries.get(&id)?.place.as_ref().map(|place| place.lane)
    }

    /// The job with a prompt id, accepted or before its verdict.
    pub fn find(&self, prompt_id: &str) -> Option<JobId> {
        self.by_prompt.get(prompt_id).copied()
    }

    /// Jobs that are accepted and have not ended.
    pub fn open_jobs(&self) -> usize {
        self.open
    }

    /// Jobs in the line.
    pub fn waiting(&self) -> usize {
        self.line.len()
    }

    /// Whether a backend gets jobs.
    pub fn takes_jobs(&self, backend: BackendId) -> bool {
        self.lanes.get(backend).is_some_and(super::lane::LaneState::is_open)
    }

    /// How many prompts a backend should have: ours, those being judged there, and strangers'.
    pub fn expected(&self, backend: BackendId) -> usize {
        self.on(backend).len() + self.lanes.get(backend).map_or(0, |lane| lane.foreign as usize)
    }

    /// All accepted jobs: running first, then those at backends, then the line in its order. One
    /// that is being taken back by its owner's wish is gone already, as far as anybody can see.
    pub fn jobs(&self) -> Vec<JobView> {
        let shown = |entry: &&Entry| {
            entry.place.as_ref().is_some_and(|at| !entry.cancelled || at.life != Life::Sent)
        };
        let mut placed: Vec<JobView> =
            self.entries.values().filter(shown).filter_map(view).collect();
        let rank = |view: &JobView| match view.phase {
            Phase::Running(_) | Phase::Ending(_) => 0,
            Phase::Doubtful(_) => 1,
            _ => 2,
        };
        placed.sort_by_key(|view| (rank(view), view.started, view.job.id));
        let busy: HashSet<BackendId> = placed.iter().filter_map(running_on).collect();
        for view in &mut placed {
            view.waits |= matches!(view.phase, Phase::Sent(at) if busy.contains(&at));
        }
        // Those that a server only judges wait like the others.
        let (judged, mut all): (Vec<_>, Vec<_>) =
            placed.into_iter().partition(|view| self.vetting.contains(&view.job.id));
        let sent = all.len();
        all.extend(self.line.order().filter_map(|id| self.get(id)));
        for view in judged {
            let before = |other: &JobView| {
                let (own, same) = (&view.job, other.job.owner.key == view.job.owner.key);
                let later = same && other.job.number > own.number;
                other.job.priority < own.priority || other.job.priority == own.priority && later
            };
            let place = all[sent..].iter().position(before).map_or(all.len(), |at| sent + at);
            all.insert(place, view);
        }
        all
    }

    /// The accepted jobs at a backend.
    pub fn on(&self, backend: BackendId) -> Vec<JobView> {
        self.seats.all(backend).into_iter().filter_map(|id| self.get(id)).collect()
    }

    /// A caller's accepted jobs, in order of arrival.
    pub fn of(&self, key: ClientKey) -> Vec<JobView> {
        let ids = self.by_owner.get(&key).into_iter().flatten();
        ids.filter_map(|id| self.get(*id)).collect()
    }

    /// How many of a caller's accepted jobs have not ended.
    pub fn open_of(&self, key: ClientKey) -> usize {
        self.by_owner.get(&key).map_or(0, BTreeSet::len)
    }

    /// How many of those do not run yet.
    pub fn queued_of(&self, key: ClientKey) -> usize {
        let ids = self.by_owner.get(&key).into_iter().flatten();
        let entries = ids.filter_map(|id| self.entries.get(id));
        entries.filter(|entry| matches!(entry.phase(), Phase::Waiting | Phase::Sent(_))).count()
    }

    /// A job's place in the line, from 0. Costs as many steps.
    pub fn position(&self, id: JobId) -> Option<usize> {
        if !self.line.contains(id) {
            return None;
        }
        self.line.order().position(|other| other == id)
    }

    /// The lanes.
    pub fn lanes(&self) -> Vec<LaneView> {
        let lanes = self.lanes.iter().map(|(_, state)| {
            let backend = state.lane.backend;
            let held = self.seats.get(backend).map(|s| s.occupants.iter().copied().collect());
            LaneView {
                backend,
                open: state.is_open(),
                free: self.is_free(state),
                suspect: state.suspect,
                held: held.unwrap_or_default(),
                foreign: state.foreign,
                last_kind: state.last_kind,
            }
        });
        lanes.collect()
    }
}

fn running_on(view: &JobView) -> Option<BackendId> {
    match view.phase {
        Phase::Running(backend) => Some(backend),
        _ => None,
    }
}

fn view(entry: &Entry) -> Option<JobView> {
    entry.accepted.then(|| JobView {
        job: Arc::clone(&entry.job),
        phase: entry.phase(),
        waits: entry.place.as_ref().is_none_or(|place| place.vetting && place.life == Life::Sent),
        attempts: entry.attempt,
        started: entry.place.as_ref().filter(|p| p.life != Life::Sent).and_then(|p| p.started),
        reply: entry.reply.clone(),
    })
}
