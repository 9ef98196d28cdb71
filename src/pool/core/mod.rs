//! The core of pool mode: which job goes where and when, as a pure state machine.
//!
//! [`Core::handle`] takes what happened as an [`Input`] and the time, and adds what is to be done
//! to a list of [`Action`]s. It meets no socket, clock or random source of its own, so that a
//! simulation can drive it through years of failures, and the shell around it is only plumbing.
//!
//! A job's way, file by file: `placing` puts a new one to a server that judges it and sends
//! waiting ones to free lanes; `verdict` hears the server's word; `taking` hears of prompts
//! taken back into the [line](crate::pool::line); `running` follows events, `reading` whole
//! readings of a queue; `asking` asks a backend what it knows of a job; `ending` ends it.
//! `failover` deals with lanes that come, go and die, `silence` with prompts that show no life,
//! `stray` with copies of a job at places where it no longer belongs, `ahead` with prompts that
//! wait behind another, `sharing` with callers that have enough, `cancel` with owners' wishes. What is known: `entry` of a job, `lane`
//! of a backend, `able` of who can run what, `learnt` of run times. `timers` tells when to
//! look again, `views` shows it all.
//!
//! Bounds: everything goes with the accepted jobs, the lanes, and at most
//! `stray::MAX_STRAYS` strays. Hazard: a job is moved only through `Core::unplace`, `Core::seat`
//! and `Core::tell`, which keep the lanes' sets and the journal's phases right.

mod able;
mod ahead;
mod api;
mod asking;
mod cancel;
mod ending;
mod entry;
mod failover;
mod lane;
mod learnt;
mod placing;
mod reading;
mod running;
mod seats;
mod sharing;
mod silence;
#[cfg(test)]
mod simulation;
mod stray;
mod taking;
#[cfg(test)]
mod tests;
mod timers;
mod verdict;
mod views;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

pub use api::*;
pub use failover::ARRIVED;
pub use views::LaneView;

use crate::clock::Moment;
use crate::identity::ClientKey;
use crate::pool::job::JobId;
use crate::pool::line::{LaneSet, Line};
use entry::Entry;
use lane::Lanes;
use learnt::Learnt;
use seats::Seats;
use stray::Strays;
use timers::Timers;

/// The state machine.
pub struct Core {
    options: Options,
    lanes: Lanes,
    seats: Seats,
    line: Line,
    entries: HashMap<JobId, Entry>,
    by_prompt: HashMap<Arc<str>, JobId>,
    by_owner: HashMap<ClientKey, BTreeSet<JobId>>,
    /// Jobs that are accepted and have not ended.
    open: usize,
    /// Jobs at a server only for its verdict, or being taken back after it.
    vetting: BTreeSet<JobId>,
    /// Waiting jobs that may not, or had better not, go to some lane.
    particular: BTreeSet<JobId>,
    strays: Strays,
    timers: Timers,
    learnt: Learnt,
    /// Lanes whose running prompt is about to end.
    ripe: LaneSet,
    turn: u64,
    /// After a restart nothing leaves the line before the lanes' queues were read, or this moment.
    settling: Option<Moment>,
    /// Lanes have changed since the line was filed by what they can run.
    unfiled: bool,
    now: Moment,
    out: Vec<Action>,
}

impl Core {
    /// A core without lanes and jobs.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            lanes: Lanes::default(),
            seats: Seats::default(),
            line: Line::default(),
            entries: HashMap::new(),
            by_prompt: HashMap::new(),
            by_owner: HashMap::new(),
            open: 0,
            vetting: BTreeSet::new(),
            particular: BTreeSet::new(),
            strays: Strays::default(),
            timers: Timers::default(),
            learnt: Learnt::default(),
            ripe: LaneSet::default(),
            turn: 0,
            settling: None,
            unfiled: false,
            now: Moment(0),
            out: Vec::new(),
        }
    }

    /// Something happened at `now`; what is to be done is added to `actions`.
    pub fn handle(&mut self, input: Input, now: Moment, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.out, actions);
        self.take_in(input);
        self.pump();
        std::mem::swap(&mut self.out, actions);
    }

    /// When [`Input::Tick`] is wanted next.
    pub fn next_tick(&self) -> Option<Moment> {
        self.timers.next()
    }

    fn take_in(&mut self, input: Input) {
        match input {
            Input::Submit(job) => self.submit(job),
            Input::Abandon(id) => self.abandon(id),
            Input::Verdict { job, attempt, verdict } => self.judged(job, attempt, verdict),
            Input::TakenBack { job, attempt, result } => self.taken_back(job, attempt, result),
            Input::Started { backend, job } => self.started(backend, job),
            Input::Alive { backend, job } => self.alive(backend, job),
            Input::Finished { backend, job } => self.finished(backend, job),
            Input::Told { backend, job, attempt, known } => self.told(backend, job, attempt, known),
            Input::Queue { backend, running, pending, foreign, asked } => {
                self.read(backend, &running, &pending, foreign, asked);
            }
            Input::Lane(lane) => self.lane(lane),
            Input::LaneGone(backend) => self.lane_gone(backend),
            Input::LaneReset(backend) => self.lane_reset(backend),
            Input::Cancel(id) => self.cancel(id),
            Input::Interrupt(id) => self.interrupt(id),
            Input::Options(options) => self.take_options(options),
            Input::Tick => self.tick(),
        }
    }

    fn take_options(&mut self, options: Options) {
        let refile = options.fairness != self.options.fairness;
        self.options = options;
        self.unfiled |= refile;
    }
}
