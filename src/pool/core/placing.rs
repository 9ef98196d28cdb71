//! Placing: a new job before a server that judges it, waiting ones on free lanes.
//!
//! Binding is late: a lane is free when it is open, holds none of our jobs and runs nobody else's.
//! There is never a free lane beside a waiting job that it could run and its caller may, so that a new job goes
//! straight to a free lane or nobody before it could.

use std::sync::Arc;
use std::time::Duration;

use super::entry::{Entry, Place, VETTING};
use super::lane::LaneState;
use super::timers::Timer;
use super::{ARRIVED, Action, Core, Post, Refusal};
use crate::backend::BackendId;
use crate::pool::job::{Job, JobId};
use crate::pool::line::LaneSet;
use crate::selection::{Candidate, Client, choose};

/// A POST for a verdict that takes longer than this, and [`SLOW`] times the lane's mean, is slow.
const LEAST_PATIENCE: Duration = Duration::from_millis(250);
const SLOW: f64 = 8.0;

impl Core {
    /// A client hands in a job.
    pub(super) fn submit(&mut self, job: Arc<Job>) {
        let id = job.id;
        if self.entries.contains_key(&id) {
            return;
        }
        self.by_prompt.insert(Arc::clone(&job.prompt_id), id);
        self.entries.insert(id, Entry::new(job, self.now));
        self.wake(self.options.verdict_timeout, Timer::Patience(id));
        self.judge(id);
    }

    /// Puts a job that is not accepted yet before a server, or refuses it.
    pub(super) fn judge(&mut self, id: JobId) {
        let Some(entry) = self.entries.get(&id) else { return };
        match self.court(entry) {
            Ok((slot, false)) => self.post(id, slot, false),
            Ok(_) if self.is_full() => self.refuse(id, Refusal::Full),
            Ok((slot, true)) => self.post(id, slot, true),
            Err(refusal) => self.refuse(id, refusal),
        }
    }

    fn is_full(&self) -> bool {
        self.line.len() + self.vetting.len() >= self.options.max_size
    }

    /// The lane that is to judge a job, and whether only to judge it.
    pub(super) fn court(&self, entry: &Entry) -> Result<(usize, bool), Refusal> {
        let tried = self.tried(entry);
        let open = self.lanes.open();
        let able = self.lanes.able(entry);
        let told = |lane: &LaneState| lane.is_open() || lane.lane.capabilities.is_some();
        let known = able.iter().filter_map(|slot| self.lanes.at(slot)).any(told);
        let able = if known { able } else { self.lanes.nearest(&entry.job.needs) };
        let set = self.lanes.usable(&able.without(&tried), &open);
        let idle = self.free();
        let waits = self.has_enough(entry.job.owner.key);
        let free = if waits { LaneSet::default() } else { set.and(&idle) };
        if let Some(slot) = self.choose(&entry.job, &free) {
            return Ok((slot, false));
        }
        let busy = set.without(&idle);
        let set = if waits && !busy.is_empty() { busy } else { set };
        set.iter().min_by(|&a, &b| self.judges(a, b)).map(|s| (s, true)).ok_or(Refusal::NoBackend)
    }

    fn tried(&self, entry: &Entry) -> LaneSet {
        let avoid = entry.trouble.iter().flat_map(|trouble| &trouble.avoid);
        avoid.filter_map(|(lane, _)| self.lanes.slot(*lane)).collect()
    }

    /// Which of two busy lanes gives its verdict sooner: fewest questions out, then the quickest.
    fn judges(&self, a: usize, b: usize) -> std::cmp::Ordering {
        let rank = |slot| {
            let lane = self.lanes.at(slot);
            let asks = lane.map_or(u32::MAX, |lane| self.seats.asks(lane.lane.backend));
            (asks, lane.map_or(0.0, |lane| lane.verdict_ms))
        };
        let ((asks_a, mean_a), (asks_b, mean_b)) = (rank(a), rank(b));
        asks_a.cmp(&asks_b).then(mean_a.total_cmp(&mean_b)).then(a.cmp(&b))
    }

    /// Whether a lane waits for work.
    pub(super) fn is_free(&self, lane: &LaneState) -> bool {
        let backend = lane.lane.backend;
        lane.is_open()
            && lane.foreign == 0
            && self.settling.is_none()
            && self.seats.occupants(backend) == 0
            && !self.strays.run_at(backend)
    }

    /// The lanes that wait for work.
    pub(super) fn free(&self) -> LaneSet {
        self.lanes.set(|lane| self.is_free(lane))
    }

    /// Gives every free lane the best job that it can run, then looks ahead.
    pub(super) fn pump(&mut self) {
        self.settle();
        if self.settling.is_some() {
            return;
        }
        self.refile();
        while !self.line.is_empty() {
            let free = self.free();
            let usable = |able: &LaneSet| !self.lanes.usable(able, &free).is_empty();
            let passed = self.passed_over();
            let Some(id) = self.line.best_but(usable, &passed) else { break };
            let able = self.line.lanes_of(id).cloned().unwrap_or_default();
            let set = self.lanes.usable(&able, &free);
            let job = self.entries.get(&id).map(|entry| Arc::clone(&entry.job));
            match job.and_then(|job| self.choose(&job, &set)) {
                Some(slot) => self.dispatch(id, slot),
                None => break,
            }
        }
        self.look_ahead();
    }

    /// Ends the pause after a restart when every lane's queue was read.
    fn settle(&mut self) {
        let Some(since) = self.settling.map(|since| since.plus(ARRIVED)) else { return };
        let unread =
            |lane: &LaneState| lane.lane.reachable && lane.read.is_none_or(|at| at < since);
        let read = !self.lanes.open().is_empty() && !self.lanes.iter().any(|(_, l)| unread(l));
        if read {
            self.settling = None;
        }
    }

    /// Sends a waiting job to a lane.
    pub(super) fn dispatch(&mut self, id: JobId, slot: usize) {
        if let Some(cost) = self.entries.get(&id).map(|entry| self.cost(entry)) {
            self.line.price(id, cost);
        }
        let ticket = self.line.take(id, slot);
        self.particular.remove(&id);
        self.post(id, slot, false);
        let place = self.entries.get_mut(&id).and_then(|entry| entry.place.as_mut());
        if let (Some(place), Some(ticket)) = (place, ticket) {
            place.cost = ticket.cost;
        }
    }

    /// POSTs a job that is nowhere.
    fn post(&mut self, id: JobId, slot: usize, vetting: bool) {
        let Some(backend) = self.lanes.at(slot).map(|lane| lane.lane.backend) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let token = if vetting {
            entry.vettings += 1;
            VETTING | entry.vettings
        } else {
            entry.attempt += 1;
            entry.attempt
        };
        let mut place = Place::new(backend, token, self.now);
        (place.vetting, place.verdict_out) = (vetting, true);
        entry.place = Some(Box::new(place));
        let job = Arc::clone(&entry.job);
        self.turn += 1;
        self.seats.of(backend).asks += 1;
        self.seat(id);
        self.tell(id);
        let patience = self.patience(slot);
        if let Some(lane) = self.lanes.get_mut(backend) {
            lane.calls += 1;
        }
        self.wake(patience, Timer::Slow(id));
        self.out.push(Action::Post(Post { job, backend, attempt: token, vetting }));
    }

    /// How long a POST may take before it is called slow.
    fn patience(&self, slot: usize) -> Duration {
        let mean = self.lanes.at(slot).map_or(0.0, |lane| lane.verdict_ms);
        let usual = Duration::from_secs_f64((mean * SLOW / 1000.0).clamp(0.0, 3600.0));
        usual.max(LEAST_PATIENCE).min(self.options.verdict_timeout)
    }

    /// Chooses among free lanes: one with a warm cache first, then as the configuration says.
    pub(super) fn choose(&self, job: &Job, set: &LaneSet) -> Option<usize> {
        let slots: Vec<usize> = set.iter().collect();
        if let [] | [_] = slots[..] {
            return slots.first().copied();
        }
        let warm = self.warm(job, &self.in_zone(job, &slots));
        let offered = |slot: usize| if warm.is_empty() { set } else { &warm }.contains(slot);
        let slotted = self.lanes.slots().iter().enumerate();
        let candidates: Vec<Candidate> =
            slotted.map(|(slot, lane)| self.candidate(job, lane.as_ref(), offered(slot))).collect();
        let key = job.owner.key.to_bytes();
        let client = Client { key: &key, turn: self.turn };
        let choice = choose(&candidates, self.lanes.ring()?, self.options.rule, client, &[]);
        choice.map(|choice| choice.position).or_else(|| slots.first().copied())
    }

    /// The lanes of the job's zone, if it has one and any is there.
    fn in_zone(&self, job: &Job, slots: &[usize]) -> Vec<usize> {
        let here = |slot: &usize| self.at_home(job, *slot);
        let near: Vec<usize> = slots.iter().copied().filter(here).collect();
        if job.zone.is_none() || near.is_empty() { slots.to_vec() } else { near }
    }

    fn at_home(&self, job: &Job, slot: usize) -> bool {
        self.lanes.at(slot).is_some_and(|lane| lane.lane.zone == job.zone)
    }

    /// The lanes that ran the job's kind last and are not much slower at it than the others.
    fn warm(&self, job: &Job, slots: &[usize]) -> LaneSet {
        let slack = self.options.warm_slack.as_secs_f64();
        let Some(kind) = job.kind.as_ref().map(|kind| kind.hash).filter(|_| slack > 0.0) else {
            return LaneSet::default();
        };
        let seconds = |slot: usize| {
            self.lanes.at(slot).and_then(|lane| self.learnt.of_kind(lane.lane.backend, kind))
        };
        let known = slots.iter().filter_map(|&slot| seconds(slot));
        let least = known.fold(f64::INFINITY, f64::min);
        let near = |slot: usize| seconds(slot).is_none_or(|seconds| seconds <= least + slack);
        let ran = |slot: usize| self.lanes.at(slot).is_some_and(|l| l.last_kind == Some(kind));
        slots.iter().copied().filter(|&slot| ran(slot) && near(slot)).collect()
    }

    /// A lane as the choice sees it: each with this one job on it, so that weights and learnt
    /// times speak although all are idle.
    fn candidate(&self, job: &Job, lane: Option<&LaneState>, offered: bool) -> Candidate {
        let kind = job.kind.as_ref().map(|kind| kind.hash);
        let known = |backend: BackendId| kind.and_then(|kind| self.learnt.of_kind(backend, kind));
        let seconds =
            |lane: &LaneState| known(lane.lane.backend).unwrap_or(lane.lane.prompt_seconds);
        Candidate {
            eligible: offered,
            serves: true,
            in_zone: job.zone.is_none() || lane.is_some_and(|lane| lane.lane.zone == job.zone),
            backup: lane.is_some_and(|lane| lane.lane.backup),
            suspect: false,
            stale: false,
            prompts: 1,
            fresh_clients: 0,
            weight: lane.map_or(1, |lane| lane.lane.weight),
            max_queue: 2,
            calls: lane.map_or(0, |lane| lane.calls),
            prompt_seconds: lane.map_or(0.0, seconds),
            ramp: 1.0,
        }
    }
}
