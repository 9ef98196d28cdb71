//! What is known of one job: whether it is accepted, and where it is.

use std::sync::Arc;

use bytes::Bytes;

use super::{Attempt, Marks, Phase};
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::pool::job::Job;

/// Numbers the POSTs that only want a verdict, apart from the attempts to run.
pub(super) const VETTING: Attempt = 1 << 31;

/// One job.
pub(super) struct Entry {
    pub(super) job: Arc<Job>,
    /// The body of the 200; empty before.
    pub(super) reply: Bytes,
    pub(super) accepted: bool,
    /// Its owner wants it stopped.
    pub(super) cancelled: bool,
    /// It goes before those that were never dispatched.
    pub(super) again: bool,
    /// Attempts to run it so far.
    pub(super) attempt: Attempt,
    /// Those of them that failed while it ran, or by a server's word.
    pub(super) strikes: u32,
    /// POSTs for a verdict so far.
    pub(super) vettings: u32,
    /// When it came to where it is.
    pub(super) since: Moment,
    /// Where it ran last.
    pub(super) ran_on: Option<BackendId>,
    /// The phase that was told last.
    pub(super) told: Option<Phase>,
    /// Where it is; `None` in the line.
    pub(super) place: Option<Box<Place>>,
    pub(super) trouble: Option<Box<Trouble>>,
}

/// What went wrong with a job so far.
#[derive(Default)]
pub(super) struct Trouble {
    /// Lanes that it keeps from.
    pub(super) avoid: Vec<(BackendId, Avoid)>,
    /// It ran there, or was accepted, although nothing said that it could.
    pub(super) proven: Option<BackendId>,
    /// What the last server that refused it said.
    pub(super) words: Option<String>,
}

/// Why a job keeps from a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Avoid {
    /// The server there refused it, or failed to judge it.
    Refused,
    /// It could not be reached just now.
    Until(Moment),
    /// It died with the job: only when no other can.
    Died,
}

/// How far a job is at a backend, as events and answers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Life {
    Sent,
    Running,
    Ending,
}

/// A job at a backend.
pub(super) struct Place {
    pub(super) lane: BackendId,
    /// Tells answers to this POST, and to what is asked about it, from older ones.
    pub(super) token: Attempt,
    /// Only its verdict is wanted, or it is being taken back after it.
    pub(super) vetting: bool,
    pub(super) life: Life,
    /// When it was posted.
    pub(super) posted: Moment,
    /// When it began to run.
    pub(super) started: Option<Moment>,
    /// When events said that it was done.
    pub(super) finished: Option<Moment>,
    /// When something was known of it last.
    pub(super) news: Moment,
    /// When it showed life last, by an event.
    pub(super) heard: Moment,
    /// The POST is not answered yet.
    pub(super) verdict_out: bool,
    /// The POST broke off: it may still arrive.
    pub(super) ambiguous: bool,
    /// Its server, or the gateway, was away since it was posted: it may have begun unheard.
    pub(super) unheard: bool,
    /// It may be there, or not: since when.
    pub(super) doubtful: Option<Moment>,
    /// When there was reason for doubt last: answers to older questions say nothing.
    pub(super) questioned: Moment,
    /// An answer to an `Ask` is out: when it was asked.
    pub(super) asking: Option<Moment>,
    /// How often in a row the backend did not know it.
    pub(super) absent: u32,
    /// An answer to a `TakeBack` is out.
    pub(super) taking: bool,
    /// It was interrupted because it showed no life: when.
    pub(super) silent: Option<Moment>,
    /// It is to be interrupted when it begins to run.
    pub(super) stop: bool,
    /// What its turn was charged.
    pub(super) cost: f64,
    /// It has been looked after by the timer of silence.
    pub(super) watched: bool,
}

impl Place {
    pub(super) fn new(lane: BackendId, token: Attempt, now: Moment) -> Self {
        Self {
            lane,
            token,
            vetting: false,
            life: Life::Sent,
            posted: now,
            started: None,
            finished: None,
            news: now,
            heard: now,
            verdict_out: false,
            ambiguous: false,
            unheard: false,
            doubtful: None,
            questioned: Moment(0),
            asking: None,
            absent: 0,
            taking: false,
            silent: None,
            stop: false,
            cost: 0.0,
            watched: false,
        }
    }

    /// Whether it takes up its lane: it runs there, or is to.
    pub(super) fn occupies(&self) -> bool {
        !self.vetting && self.life != Life::Ending
    }

    /// Nothing is out that would have to be waited for.
    pub(super) fn is_settled(&self) -> bool {
        !self.verdict_out && self.asking.is_none() && !self.taking && self.doubtful.is_none()
    }

    fn phase(&self) -> Phase {
        match (self.doubtful, self.life) {
            (Some(_), _) => Phase::Doubtful(self.lane),
            (None, Life::Sent) => Phase::Sent(self.lane),
            (None, Life::Running) => Phase::Running(self.lane),
            (None, Life::Ending) => Phase::Ending(self.lane),
        }
    }
}

impl Entry {
    pub(super) fn new(job: Arc<Job>, now: Moment) -> Self {
        Self {
            job,
            reply: Bytes::new(),
            accepted: false,
            cancelled: false,
            again: false,
            attempt: 0,
            strikes: 0,
            vettings: 0,
            since: now,
            ran_on: None,
            told: None,
            place: None,
            trouble: None,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.place.as_ref().map_or(Phase::Waiting, |place| place.phase())
    }

    pub(super) fn marks(&self) -> Marks {
        let began = self.place.as_ref().is_some_and(|place| place.life >= Life::Running);
        Marks { strikes: self.strikes, began, cancelled: self.cancelled }
    }

    pub(super) fn is_at(&self, backend: BackendId) -> bool {
        self.place.as_ref().is_some_and(|place| place.lane == backend)
    }

    pub(super) fn trouble(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }

    /// Keeps the job from a lane; what was said of that lane before counts no more.
    pub(super) fn avoid(&mut self, lane: BackendId, why: Avoid) {
        let avoid = &mut self.trouble().avoid;
        avoid.retain(|(other, old)| *other != lane || *old == Avoid::Refused);
        if !avoid.iter().any(|(other, _)| *other == lane) {
            avoid.push((lane, why));
        }
    }
}
