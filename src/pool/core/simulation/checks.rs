//! What must hold, whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use super::super::failover::SETTLE;
use super::super::{Action, Core, Input, Kept, Outcome, Phase, Post, Verdict};
use super::gateway::options;
use super::server::Server;
use crate::backend::BackendId;
use crate::pool::job::JobId;
use crate::pool::line::LaneSet;

/// What was done with each job, by the world's own count.
#[derive(Default)]
pub(super) struct Ledger {
    accepted: BTreeSet<JobId>,
    ended: BTreeMap<JobId, Outcome>,
    refused: BTreeSet<JobId>,
    /// Jobs of which a copy may be anywhere: their server was given up, or their gateway crashed.
    loose: BTreeSet<JobId>,
    completed: BTreeSet<JobId>,
    /// Where a job may be, and since when that is doubtful.
    doubtful: BTreeMap<JobId, (usize, u64)>,
    /// Copies that the journal of a crashed gateway does not name, and when it crashed.
    unwritten: BTreeMap<JobId, Vec<(usize, u64)>>,
    /// When a server was called suspect last.
    suspected: BTreeMap<usize, u64>,
    /// Jobs that must not run twice; those that have begun.
    once: BTreeSet<JobId>,
    begun: BTreeSet<JobId>,
    /// Jobs of which a POST broke off.
    unsure: BTreeSet<JobId>,
    /// POSTs that are not answered.
    posts: BTreeMap<JobId, u32>,
}

impl Ledger {
    /// The gateway does something. `noticed`: what it knows of each server, first whether it answers.
    pub(super) fn note(&mut self, now: u64, action: &Action, core: &Core, noticed: &[(bool, u64)]) {
        match action {
            Action::Accept { job, .. } => {
                assert!(self.accepted.insert(job.id), "{now}: {:?} accepted twice", job.id);
                assert!(!self.refused.contains(&job.id), "{now}: {:?} was refused", job.id);
            }
            Action::Refuse { job, .. } => {
                assert!(self.refused.insert(job.id), "{now}: {:?} refused twice", job.id);
                assert!(!self.accepted.contains(&job.id), "{now}: {:?} was accepted", job.id);
                self.loose.insert(job.id);
            }
            Action::Moved { job, phase, .. } => self.moved(now, job.id, *phase, noticed),
            Action::Ended { job, outcome, .. } => self.end(now, job.id, outcome),
            Action::Suspect(backend) => {
                self.suspected.insert(backend.0 as usize, now);
            }
            Action::Post(post) => self.posts(now, post, core, noticed),
            _ => {}
        }
    }

    fn posts(&mut self, now: u64, post: &Post, core: &Core, noticed: &[(bool, u64)]) {
        let id = post.job.id;
        assert!(!self.ended.contains_key(&id), "{now}: {id:?} is posted after its end");
        let capacity = core.capacity(post.backend);
        assert!(post.vetting || capacity, "{now}: {:?} holds too many", post.backend);
        if post.job.once {
            self.once.insert(id);
        }
        // Whoever cannot be read in time after a restart is taken for dead.
        let unread = |(at, since): &(usize, u64)| {
            !noticed[*at].0 || now - since >= SETTLE.as_millis() as u64
        };
        let given_up = self.unwritten.remove(&id).is_some_and(|copies| copies.iter().any(unread));
        // Its first judge was given up, and may have it.
        let given_up = given_up || !self.accepted.contains(&id) && self.unsure.contains(&id);
        let out = self.posts.entry(id).or_default();
        *out += 1;
        if *out > 1 {
            // A slow verdict is asked for elsewhere too.
            assert!(!post.job.once, "{now}: {id:?} posted twice");
        }
        if *out > 1 || given_up {
            self.loose.insert(id);
        }
    }

    pub(super) fn answered(&mut self, id: JobId, verdict: &Verdict) {
        if matches!(verdict, Verdict::Unknown) {
            self.unsure.insert(id);
        }
        self.posts.entry(id).and_modify(|out| *out = out.saturating_sub(1));
    }

    fn moved(&mut self, now: u64, id: JobId, phase: Phase, noticed: &[(bool, u64)]) {
        match phase {
            Phase::Doubtful(backend) => {
                let at = backend.0 as usize;
                let doubt = self.doubtful.entry(id).or_insert((at, now));
                if doubt.0 != at {
                    *doubt = (at, now);
                }
            }
            Phase::Waiting if let Some((at, since)) = self.doubtful.remove(&id) => {
                let dead = !noticed[at].0 || self.suspected.get(&at) == Some(&now);
                if dead || now - since >= options().declared_dead_after.as_millis() as u64 {
                    self.loose.insert(id);
                }
            }
            _ => {
                self.doubtful.remove(&id);
            }
        }
    }

    fn end(&mut self, now: u64, id: JobId, outcome: &Outcome) {
        assert!(self.accepted.contains(&id), "{now}: {id:?} ends and was never accepted");
        let before = self.ended.insert(id, outcome.clone());
        assert!(before.is_none(), "{now}: {id:?} ended twice");
        if *outcome == Outcome::Completed {
            assert!(self.completed.contains(&id), "{now}: {id:?} is called completed and is not");
        }
        if self.doubtful.contains_key(&id) {
            self.loose.insert(id);
        }
    }

    /// A server begins to run a job.
    pub(super) fn began(&mut self, now: u64, server: usize, id: JobId, servers: &[Server]) {
        let again = !self.begun.insert(id);
        assert!(!again || !self.once.contains(&id), "{now}: {id:?} must not run twice");
        if self.loose.contains(&id) {
            return;
        }
        assert!(!self.ended.contains_key(&id), "{now}: {id:?} starts after its end");
        for (other, state) in servers.iter().enumerate() {
            let both = other != server && state.answers() && state.runs(id);
            assert!(!both, "{now}: {id:?} runs on {other} and {server}");
        }
    }

    pub(super) fn finished(&mut self, id: JobId, outcome: &Outcome) {
        if *outcome == Outcome::Completed {
            self.completed.insert(id);
        }
    }

    /// The gateway knows only what its journal kept.
    pub(super) fn crashed(&mut self, now: u64, kept: &[Kept], copies: &[(usize, JobId)]) {
        self.posts.clear();
        (self.doubtful, self.unwritten) = (BTreeMap::new(), BTreeMap::new());
        for kept in kept {
            let (id, named) = (kept.job.id, kept.phase.backend().map(|at| at.0 as usize));
            if let (Phase::Doubtful(_), Some(at)) = (kept.phase, named) {
                self.doubtful.insert(id, (at, now));
            }
            let unwritten = |(at, copy): &&(usize, JobId)| *copy == id && Some(*at) != named;
            let unwritten: Vec<_> =
                copies.iter().filter(unwritten).map(|(at, _)| (*at, now)).collect();
            if !unwritten.is_empty() {
                self.unwritten.insert(id, unwritten);
            }
        }
    }

    /// When everything is well again.
    pub(super) fn last_check(&self, now: u64, core: &Core) {
        for id in &self.accepted {
            assert!(
                self.ended.contains_key(id),
                "{now}: {id:?} is lost: {:?}",
                core.get(*id).map(|v| v.phase)
            );
        }
        assert_eq!(core.open_jobs(), 0, "{now}: open jobs");
        assert_eq!(core.strays(), 0, "{now}: strays");
    }
}

impl Core {
    /// What holds between two inputs.
    pub(in super::super) fn check(&self) {
        let placed = self.entries.values().filter(|entry| entry.place.is_some()).count();
        assert_eq!(placed + self.line.len(), self.entries.len(), "a job is nowhere");
        let accepted = self.entries.values().filter(|entry| entry.accepted).count();
        assert_eq!(accepted, self.open, "accepted jobs");
        for (slot, lane) in self.lanes.iter().filter(|(_, lane)| self.is_free(lane)) {
            let only = [slot].into_iter().collect();
            let usable = |able: &LaneSet| !self.lanes.usable(able, &only).is_empty();
            let best = self.line.best_but(usable, &self.passed_over());
            assert_eq!(best, None, "{:?} is free beside a waiting job", lane.lane.backend);
        }
        assert!(self.seats_are_right(), "seats");
    }

    /// Whether a lane holds no more than it may, what was taken up there aside.
    fn capacity(&self, backend: BackendId) -> bool {
        let Some(seat) = self.seats.get(backend) else { return true };
        let dispatched = |id: &&JobId| {
            let place = self.entries.get(*id).and_then(|entry| entry.place.as_ref());
            place.is_some_and(|place| place.token & super::super::entry::VETTING == 0)
        };
        let most = 1 + self.options.prefetch as usize;
        seat.occupants.iter().filter(dispatched).count() <= most
    }

    fn seats_are_right(&self) -> bool {
        let right = |entry: &super::super::entry::Entry| {
            let Some(place) = &entry.place else { return true };
            let Some(seat) = self.seats.get(place.lane) else { return false };
            let (occupies, id) = (place.occupies(), &entry.job.id);
            seat.occupants.contains(id) == occupies && seat.guests.contains(id) != occupies
        };
        self.entries.values().all(right)
    }
}

/// An input in few words.
pub(super) fn brief(input: &Input) -> String {
    match input {
        Input::Submit(job) => {
            format!("Submit {:?} {:?} once {}", job.id, job.needs.nodes, job.once)
        }
        Input::Lane(lane) => {
            format!("Lane {:?} open {} reachable {}", lane.backend, lane.open, lane.reachable)
        }
        other => format!("{other:?}"),
    }
}

/// An action in few words.
pub(super) fn brief_action(action: &Action) -> String {
    match action {
        Action::Post(post) => format!(
            "Post {:?} to {:?} as {:x} vetting {}",
            post.job.id, post.backend, post.attempt, post.vetting
        ),
        Action::TakeBack { job, backend, attempt } => {
            format!("TakeBack {:?} from {backend:?} as {attempt:x}", job.id)
        }
        Action::Ask { job, backend, attempt } => {
            format!("Ask {backend:?} for {:?} as {attempt:x}", job.id)
        }
        Action::Interrupt { job, backend } => format!("Interrupt {:?} at {backend:?}", job.id),
        Action::Accept { job, .. } => format!("Accept {:?}", job.id),
        Action::Refuse { job, refusal } => format!("Refuse {:?} {refusal:?}", job.id),
        Action::Moved { job, phase, attempt, .. } => {
            format!("Moved {:?} to {phase:?} as {attempt}", job.id)
        }
        Action::Marked { job, marks, .. } => format!("Marked {:?} with {marks:?}", job.id),
        Action::Ended { job, outcome, .. } => format!("Ended {:?} {outcome:?}", job.id),
        Action::Suspect(backend) => format!("Suspect {backend:?}"),
    }
}
