//! The ledger of tasks: a pure state machine of what was accepted, seen and ended. It takes the
//! time as an argument and meets no socket.
//!
//! A task is queued when its prompt's POST was answered, running when the backend's queue shows it
//! so, and ended by what the backend's history says. A prompt that is in neither, two looks in a
//! row, was deleted; or lost, when the backend had broken off since it was last seen there.
//!
//! Everything a request asks is a look-up: tasks by number, numbers by backend and id, by state, by
//! client. At most `limit` tasks are kept; of those above it the oldest ended goes first.

mod dispatch;
mod moves;
mod reading;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::kind::Kind;
use super::line::{Outlook, Reckoning, Running};
use super::rates::Rates;
use super::task::{Accepted, Now, Task, TaskState, TaskView};
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::comfy::history::Entry;
use crate::comfy::queue_items::QueueItems;
use crate::identity::ClientKey;
pub use dispatch::{Past, Placed, THE_LINE};
pub use reading::{ClientStanding, Counts};

/// A task's number, given in the order of acceptance.
pub(super) type Number = u64;

/// Looks in a row that must miss a prompt before it counts as gone.
const MISSES: u8 = 2;
/// What a task that vanished with its backend's memory says.
pub const LOST: &str = "lost by the backend";

/// What a look at a backend's queue was based on, taken before it was asked.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    next: Number,
    breaks: u64,
}

/// A change of a task, as observers count it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskChange {
    /// What it is now.
    pub state: TaskState,
    /// Seconds it waited; known once it runs or has run.
    pub wait_seconds: Option<f64>,
    /// Seconds it ran; known once it has ended.
    pub run_seconds: Option<f64>,
}

/// What is known of one backend's prompts.
#[derive(Default)]
struct Line {
    ids: HashMap<Arc<str>, Number>,
    open: BTreeSet<Number>,
    outlook: Option<Outlook>,
    /// A running prompt that is none of ours, and since when.
    stranger: Option<(String, Moment)>,
}

#[derive(Default)]
struct ClientTasks {
    queued: BTreeSet<Number>,
    running: BTreeSet<Number>,
    known: usize,
    last_end: Option<Moment>,
}

impl ClientTasks {
    fn of(&mut self, state: TaskState) -> Option<&mut BTreeSet<Number>> {
        match state {
            TaskState::Queued => Some(&mut self.queued),
            TaskState::Running => Some(&mut self.running),
            _ => None,
        }
    }
}

/// The tasks of a gateway.
pub struct Ledger {
    limit: usize,
    next: Number,
    tasks: BTreeMap<Number, Task>,
    by_state: [BTreeSet<Number>; 5],
    lines: HashMap<BackendId, Line>,
    clients: HashMap<ClientKey, ClientTasks>,
    ended: [u64; 5],
    /// What was learnt from the tasks that ended.
    pub rates: Rates,
    changes: Vec<(TaskChange, TaskView)>,
}

impl Ledger {
    /// An empty ledger of at most `limit` tasks.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            next: 0,
            tasks: BTreeMap::new(),
            by_state: Default::default(),
            lines: HashMap::new(),
            clients: HashMap::new(),
            ended: [0; 5],
            rates: Rates::default(),
            changes: Vec::new(),
        }
    }

    /// A backend has accepted a prompt. One that is open under this id there stays as it is; one
    /// that has ended makes way, as it does in the backend's history.
    pub fn accepted(&mut self, accepted: Accepted, now: Now) {
        let known = self.find(accepted.backend, &accepted.id);
        if let Some(known) = known {
            if self.tasks.get(&known).is_some_and(|task| task.state.is_open()) {
                return;
            }
            self.remove(known);
        }
        let number = self.next;
        self.next += 1;
        let mut task = Task::new(accepted, now);
        let line = self.lines.entry(task.backend).or_default();
        self.rates.foresee(&mut task, line, now.moment);
        line.ids.insert(Arc::clone(&task.id), number);
        line.open.insert(number);
        let client = self.clients.entry(task.key).or_default();
        client.known += 1;
        client.queued.insert(number);
        self.by_state[TaskState::Queued as usize].insert(number);
        self.tasks.insert(number, task);
        self.changed(number, now);
        self.evict();
    }

    /// A task is older than this process.
    pub fn set_created(&mut self, backend: BackendId, id: &str, created: Now) {
        let found = self.find(backend, id);
        if let Some(task) = found.and_then(|number| self.tasks.get_mut(&number)) {
            task.created = created;
        }
    }

    /// It has been found out what kind of prompt a task is.
    pub fn set_kind(&mut self, backend: BackendId, id: &str, kind: Kind) {
        if let Some(task) = self.find(backend, id).and_then(|n| self.tasks.get_mut(&n)) {
            task.kind = Some(kind);
        }
    }

    /// To be taken before a backend's queue is asked for, with its breaks so far.
    pub fn mark(&self, breaks: u64) -> Mark {
        Mark { next: self.next, breaks }
    }

    /// Takes a backend's queue and returns the ids of open tasks that are no longer in it, whose
    /// end is to be looked up.
    pub fn saw_queue(
        &mut self,
        backend: BackendId,
        items: &QueueItems,
        mark: Mark,
        now: Now,
    ) -> Vec<Arc<str>> {
        let Some(line) = self.lines.get(&backend) else { return Vec::new() };
        let mut missing = line.open.clone();
        let mut reckoning = Reckoning::new(now.moment);
        for id in &items.running {
            self.runs(backend, id, mark, &mut reckoning, &mut missing, now);
        }
        let mut predictable = true;
        for (position, id) in (1..).zip(&items.pending) {
            let number = self.find(backend, id);
            let kind = number.and_then(|n| self.tasks.get(&n)).and_then(|t| t.kind.as_ref());
            let predicted = self.rates.predict(backend, kind.map(|kind| kind.hash));
            predictable &= predicted.is_some();
            let ends = reckoning.waits(predicted.unwrap_or_default());
            if let Some(task) = number.and_then(|n| self.tasks.get_mut(&n)) {
                number.map(|number| missing.remove(&number));
                task.seen(position, predictable.then_some((ends, now.moment)), mark);
            }
        }
        if let Some(line) = self.lines.get_mut(&backend) {
            let known = self.rates.mean(backend).is_some();
            line.outlook = known.then(|| reckoning.outlook());
        }
        if !items.complete {
            return Vec::new();
        }
        let gone = missing.range(..mark.next).filter_map(|number| self.tasks.get(number));
        gone.map(|task| Arc::clone(&task.id)).collect()
    }

    /// A prompt was seen running.
    fn runs(
        &mut self,
        backend: BackendId,
        id: &str,
        mark: Mark,
        reckoning: &mut Reckoning,
        missing: &mut BTreeSet<Number>,
        now: Now,
    ) {
        let number = self.find(backend, id).filter(|number| missing.remove(number));
        if let Some(number) = number {
            self.shift(number, TaskState::Running, now);
        }
        let task = number.and_then(|number| self.tasks.get_mut(&number));
        let since = match &task {
            Some(task) => task.started.map_or(now.moment, |started| started.moment),
            None => self.lines.entry(backend).or_default().stranger_since(id, now.moment),
        };
        let kind = task.as_ref().and_then(|task| task.kind.as_ref()).map(|kind| kind.hash);
        let predicted = self.rates.predict(backend, kind);
        let running = Running { predicted: predicted.unwrap_or_default(), since };
        let ends = reckoning.runs(running);
        if let Some(task) = task {
            task.seen(0, predicted.map(|_| (ends, now.moment)), mark);
        }
    }

    /// Takes what a backend's history says of a prompt that is no longer in its queue.
    pub fn outcome(&mut self, backend: BackendId, id: &str, entry: Entry, mark: Mark, now: Now) {
        let Some(number) = self.find(backend, id) else { return };
        let Some(task) = self.tasks.get_mut(&number).filter(|task| task.state.is_open()) else {
            return;
        };
        match entry {
            Entry::Completed { run_seconds } => {
                task.run_seconds = run_seconds;
                self.end(number, TaskState::Completed, None, now);
            }
            Entry::Failed { error } => self.end(number, TaskState::Failed, Some(error), now),
            Entry::Interrupted => self.end(number, TaskState::Cancelled, None, now),
            Entry::Absent => {
                task.misses = task.misses.saturating_add(1);
                if task.cancelling {
                    self.end(number, TaskState::Cancelled, None, now);
                } else if task.misses >= MISSES {
                    let lost = task.breaks != mark.breaks;
                    let state = if lost { TaskState::Failed } else { TaskState::Cancelled };
                    self.end(number, state, lost.then(|| LOST.to_owned()), now);
                }
            }
        }
    }

    /// A backend is gone for good, and what it had not finished with it.
    pub fn backend_lost(&mut self, backend: BackendId, why: &str, now: Now) {
        let open = self.lines.get(&backend).map(|line| line.open.clone()).unwrap_or_default();
        for number in open {
            self.end(number, TaskState::Failed, Some(format!("{LOST}: {why}")), now);
        }
    }

    /// Somebody asked to cancel a task: when it vanishes, that is why.
    pub fn cancelling(&mut self, backend: BackendId, id: &str) {
        if let Some(task) = self.find(backend, id).and_then(|n| self.tasks.get_mut(&n)) {
            task.cancelling = true;
        }
    }

    /// The changes since this was last called.
    pub fn take_changes(&mut self) -> Vec<(TaskChange, TaskView)> {
        std::mem::take(&mut self.changes)
    }

    fn find(&self, backend: BackendId, id: &str) -> Option<Number> {
        self.lines.get(&backend)?.ids.get(id).copied()
    }
}

impl Line {
    /// Since when a prompt that is none of ours runs, as far as we have seen.
    fn stranger_since(&mut self, id: &str, now: Moment) -> Moment {
        match &self.stranger {
            Some((known, since)) if known == id => *since,
            _ => {
                self.stranger = Some((id.to_owned(), now));
                now
            }
        }
    }
}

impl Rates {
    /// Puts a task that was just accepted at the end of the line, until a look tells better.
    fn foresee(&self, task: &mut Task, line: &mut Line, now: Moment) {
        let Some(mean) = self.predict(task.backend, None) else {
            return task.position = Some(line.open.len() as u32 + 1);
        };
        let outlook = line.outlook.get_or_insert_with(|| Reckoning::new(now).outlook());
        outlook.prompts = outlook.prompts.saturating_add(1);
        outlook.pending += mean;
        let running = u32::from(outlook.running.is_some());
        task.position = Some((outlook.prompts - running).max(1));
        task.ends = Some((outlook.wait(outlook.prompts, mean, now), now));
    }
}

impl Task {
    /// It was seen in its backend's queue.
    fn seen(&mut self, position: u32, ends: Option<(f64, Moment)>, mark: Mark) {
        self.position = Some(position);
        self.ends = ends;
        self.misses = 0;
        self.breaks = mark.breaks;
    }
}

#[cfg(test)]
mod tests;
