//! What callers and the writer share: the line of changes to be written, the open jobs, the index
//! of the finished ones.
//!
//! A caller holds a lock for the time of a few inserts and never waits for the disk. New jobs are
//! refused when the line is full or the disk in trouble; what happens to accepted ones is never
//! dropped, and is bounded by how many they are.
//!
//! Locks are taken in the order `state`, then `index`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, RwLock};

use super::change::{self, Accepted, Change, Ended, Moved, OpenJob, PhaseName};
use super::error::Unavailable;
use super::finished::Finished;
use super::index::{Bounds, Index, Place, Slot};
use super::line::{Entry, Item, Ticket, stopped};
use crate::backend::BackendId;
use crate::pool::core::Marks;
use crate::pool::job::JobId;

/// New jobs in the line at most.
const MAX_WAITING: usize = 4096;
/// Bytes of new jobs in the line at most; a single one may be larger.
const MAX_WAITING_BYTES: usize = 128 << 20;
/// Bytes that are written in one go; a single change may be larger.
const BATCH: usize = 16 << 20;

/// Tells a backend's name.
pub type Names = Arc<dyn Fn(BackendId) -> Option<Arc<str>> + Send + Sync>;

/// Whether changes are still taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Life {
    Running,
    /// No new jobs; the rest is written.
    Closing,
    Closed,
}

pub(super) struct State {
    line: VecDeque<Item>,
    waiting: usize,
    waiting_bytes: usize,
    pub(super) open: HashMap<JobId, OpenJob>,
    pub(super) next_id: u64,
    pub(super) counter: u64,
    pub(super) next_ordinal: u64,
    /// Why nothing can be written.
    pub(super) trouble: Option<String>,
    pub(super) bounds: Bounds,
    pub(super) life: Life,
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) wake: Condvar,
    pub(super) index: RwLock<Index>,
    names: Names,
}

/// Where the numbers go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) id: u64,
    pub(super) ordinal: u64,
    pub(super) counter: u64,
}

impl Shared {
    pub(super) fn new(
        open: HashMap<JobId, OpenJob>,
        index: Index,
        next: Next,
        bounds: Bounds,
        names: Names,
    ) -> Self {
        let state = State {
            line: VecDeque::new(),
            waiting: 0,
            waiting_bytes: 0,
            open,
            next_id: next.id,
            counter: next.counter,
            next_ordinal: next.ordinal,
            trouble: None,
            bounds,
            life: Life::Running,
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), index: RwLock::new(index), names }
    }

    pub(super) fn write(&self, change: Change) -> Ticket {
        match change {
            Change::Accepted(accepted) => self.accepted(accepted),
            Change::Moved(moved) => self.moved(moved),
            Change::Ended(ended) => self.ended(*ended),
        }
    }

    fn accepted(&self, accepted: Accepted) -> Ticket {
        let Accepted { job, reply, fingerprint, counter } = accepted;
        let id = job.id;
        let only_on = job.needs.only_on.map(|id| (self.names)(id).unwrap_or_else(|| "?".into()));
        let at = PhaseName::WAITING;
        let (attempts, marks) = (0, Marks::default());
        let open =
            OpenJob { job, only_on, reply, fingerprint, at, attempts, marks, remote_id: None };
        let entry = Entry::Open { open: Box::new(open.clone()), counter };
        let size = entry.size();
        let mut state = self.state.lock();
        if let Some(reason) = state.refusal(size) {
            return Ticket::ready(Err(reason));
        }
        state.open.insert(id, open);
        state.next_id = state.next_id.max(id.0.saturating_add(1));
        state.counter = state.counter.max(counter);
        state.waiting += 1;
        state.waiting_bytes += size;
        self.push(&mut state, entry)
    }

    /// A job that is not open (its client was refused) has nothing to be kept.
    fn moved(&self, moved: Moved) -> Ticket {
        let at = PhaseName::new(moved.phase, |id| (self.names)(id));
        let mut state = self.state.lock();
        if state.life == Life::Closed {
            return Ticket::ready(Err(stopped()));
        }
        let Some(open) = state.open.get_mut(&moved.id) else { return Ticket::ready(Ok(())) };
        open.at = at;
        (open.attempts, open.marks) = (moved.attempts, moved.marks);
        open.remote_id = moved.remote_id;
        let meta = change::put_moved(moved.id, open);
        self.push(&mut state, Entry::Moved { id: moved.id, meta })
    }

    /// From here on it is a finished job to readers.
    fn ended(&self, ended: Ended) -> Ticket {
        let backend = ended.backend.and_then(|id| (self.names)(id));
        let mut state = self.state.lock();
        if state.life == Life::Closed {
            return Ticket::ready(Err(stopped()));
        }
        let Some(open) = state.open.remove(&ended.id) else { return Ticket::ready(Ok(())) };
        let ordinal = state.next_ordinal;
        state.next_ordinal += 1;
        let job = &open.job;
        let finished = Finished {
            id: job.id,
            ordinal,
            prompt_id: Arc::clone(&job.prompt_id),
            owner: job.owner.clone(),
            number: job.number,
            outcome: ended.outcome,
            backend,
            attempts: ended.attempts,
            run_seconds: ended.run_seconds,
            created_ms: job.created_ms,
            finished_ms: ended.finished_ms,
            fingerprint: open.fingerprint,
            reply: None,
            summary: ended.summary,
            entry_len: ended.entry.len() as u64,
        };
        let (finished, reply) = finished.bound(open.reply);
        let (finished, entry) = (Arc::new(finished), ended.entry);
        let place = Place::Memory { entry: entry.clone(), reply: reply.clone() };
        self.index.write().insert(Slot { finished: Arc::clone(&finished), place });
        self.push(&mut state, Entry::Ended { finished, entry, reply })
    }

    /// Removes finished jobs; returns how many there were.
    pub(super) fn delete(&self, ids: impl FnOnce(&Index) -> Vec<JobId>) -> (usize, Ticket) {
        let mut state = self.state.lock();
        if state.life == Life::Closed {
            return (0, Ticket::ready(Err(stopped())));
        }
        let mut index = self.index.write();
        let mut gone = Vec::new();
        for id in ids(&index) {
            if let Some(slot) = index.ordinal(id).and_then(|ordinal| index.remove(ordinal)) {
                gone.push((id, slot.finished.ordinal));
            }
        }
        drop(index);
        let count = gone.len();
        if count == 0 {
            return (0, Ticket::ready(Ok(())));
        }
        (count, self.push(&mut state, Entry::Deleted(gone)))
    }

    fn push(&self, state: &mut State, entry: Entry) -> Ticket {
        if state.life == Life::Closed {
            return Ticket::ready(Err(stopped()));
        }
        let (sender, ticket) = Ticket::new();
        state.line.push_back(Item { entry, tickets: vec![sender] });
        self.wake.notify_one();
        ticket
    }

    /// Waits for changes until `deadline` at the latest, and takes a batch of them.
    pub(super) fn take(&self, deadline: Instant) -> (Vec<Item>, Life) {
        let mut state = self.state.lock();
        while state.line.is_empty() && state.life == Life::Running {
            if self.wake.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        (state.take_batch(), state.life)
    }

    /// No more changes: the writer has gone. What still stands in the line is refused.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.life = Life::Closed;
        let rest = std::mem::take(&mut state.line);
        drop(state);
        for item in rest {
            item.tell(&Err(stopped()));
        }
    }
}

impl State {
    fn refusal(&self, size: usize) -> Option<Unavailable> {
        if self.life > Life::Running {
            return Some(stopped());
        }
        if let Some(trouble) = &self.trouble {
            return Some(Unavailable(trouble.clone()));
        }
        let bytes = self.waiting_bytes.saturating_add(size);
        let full = self.waiting >= MAX_WAITING || bytes > MAX_WAITING_BYTES;
        (full && self.waiting > 0)
            .then(|| Unavailable("the disk is slower than the jobs come".to_owned()))
    }

    fn take_batch(&mut self) -> Vec<Item> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH
            && let Some(item) = self.line.pop_front()
        {
            let size = item.entry.size();
            bytes += size;
            if item.entry.is_new_job() {
                self.waiting -= 1;
                self.waiting_bytes -= size;
            }
            batch.push(item);
        }
        batch
    }
}
