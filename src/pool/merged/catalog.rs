//! The catalog: every backend's `/object_info`, kept, and the union of them.
//!
//! A backend makes its reply on the loop that serves its clients, so it is asked rarely: when it
//! is new, has come back or moved, and when what is kept has aged [`MAX_AGE`]. What has merely
//! aged is served at once while it is read anew; a backend of which nothing is known is waited
//! for, but only [`GRACE`] when others are known. Each backend is read once at a time whoever
//! asks, and the union is made once for each change.
//!
//! **Bounds**: a reply 128 MiB, four read at once (one that has not begun to answer does not
//! count), two minutes each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use log::debug;
use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::fetch::{Fetcher, Question, reachable, read};
use super::nodes::{Nodes, Union};
use super::uploads::{Files, Uploads};
use crate::backend::{Backend, BackendId};
use crate::config::Endpoint;
use crate::fleet::Fleet;
use crate::logging::TARGET;

/// What is kept is read anew after this long.
pub const MAX_AGE: Duration = Duration::from_mins(1);
/// How long those of which nothing is known are waited for when others are known.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long the first answer is waited for.
const PATIENCE: Duration = Duration::from_mins(1);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(10);
/// Time for one reply.
const TIME: Duration = Duration::from_mins(2);
/// Bytes of a reply at most.
const MAX_BYTES: usize = 128 << 20;
/// Replies read at once.
const AT_ONCE: usize = 4;

/// Keeps every backend's nodes.
pub struct Catalog {
    fleet: Arc<Fleet>,
    fetcher: Arc<Fetcher>,
    uploads: Uploads,
    slots: Mutex<HashMap<BackendId, Slot>>,
    /// Counts readings that ended.
    ended: watch::Sender<u64>,
    heavy: Semaphore,
    /// Held while a union is made.
    last: Turn<Option<Made>>,
}

/// What is known of one backend.
#[derive(Default)]
struct Slot {
    life: Life,
    nodes: Option<Arc<Nodes>>,
    /// When the nodes were read in this life.
    read: Option<Instant>,
    failed: Option<Instant>,
    busy: bool,
}

/// Tells a server from the one that was there before.
#[derive(Clone, Default, PartialEq, Eq)]
struct Life(u64, Option<Endpoint>);

/// A union with what it was made of.
struct Made {
    servers: Vec<Arc<Nodes>>,
    uploads: Files,
    union: Arc<Union>,
}

impl Slot {
    fn is_due(&self) -> bool {
        let within = |at: Option<Instant>, time| at.is_some_and(|at: Instant| at.elapsed() < time);
        !self.busy && !within(self.read, MAX_AGE) && !within(self.failed, RETRY)
    }
}

impl Catalog {
    /// A catalog of a fleet; `uploads` tells the files that the gateway keeps.
    pub fn new(fleet: Arc<Fleet>, fetcher: Arc<Fetcher>, uploads: Uploads) -> Arc<Self> {
        Arc::new(Self {
            fleet,
            fetcher,
            uploads,
            slots: Mutex::default(),
            ended: watch::Sender::new(0),
            heavy: Semaphore::new(AT_ONCE),
            last: Turn::default(),
        })
    }

    /// The nodes of all backends that answer; `None` when none does.
    pub async fn union(self: &Arc<Self>) -> Option<Arc<Union>> {
        self.settle().await;
        let servers = self.servers();
        if servers.is_empty() {
            return None;
        }
        let uploads = (self.uploads)();
        let mut last = self.last.lock().await;
        if let Some(made) = last.as_ref().filter(|made| made.is_of(&servers, &uploads)) {
            return Some(Arc::clone(&made.union));
        }
        let (parts, files) = (servers.clone(), Arc::clone(&uploads));
        let united = tokio::task::spawn_blocking(move || Union::of(&parts, &files)).await;
        let union = Arc::new(united.ok()?);
        *last = Some(Made { servers, uploads, union: Arc::clone(&union) });
        Some(union)
    }

    /// Reads what is due whenever the fleet changes, for ever: so that nobody has to wait for it.
    pub async fn keep_warm(self: Arc<Self>) {
        let mut changes = self.fleet.watch();
        loop {
            self.read_due();
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until everything is known that can be known soon.
    async fn settle(self: &Arc<Self>) {
        let mut ended = self.ended.subscribe();
        let start = Instant::now();
        let mut grace = None;
        loop {
            ended.borrow_and_update();
            self.read_due();
            if !self.is_awaited() {
                return;
            }
            if grace.is_none() && !self.servers().is_empty() {
                grace = Some(Instant::now() + GRACE);
            }
            let deadline = grace.unwrap_or(start + PATIENCE);
            if !matches!(timeout_at(deadline, ended.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// What is kept of the backends that answer, in their order.
    fn servers(&self) -> Vec<Arc<Nodes>> {
        let slots = self.slots.lock();
        let there = reachable(&self.fleet.view());
        there.iter().filter_map(|backend| slots.get(&backend.id)?.nodes.clone()).collect()
    }

    /// Whether a backend that answers is being read for the first time in its life.
    fn is_awaited(&self) -> bool {
        let slots = self.slots.lock();
        let first = |slot: &Slot| slot.busy && slot.read.is_none();
        let there = reachable(&self.fleet.view());
        there.iter().any(|backend| slots.get(&backend.id).is_some_and(first))
    }

    /// Begins to read what is due.
    fn read_due(self: &Arc<Self>) {
        let view = self.fleet.view();
        let mut slots = self.slots.lock();
        slots.retain(|id, _| view.get(*id).is_some());
        for backend in reachable(&view) {
            let life = Life(backend.live.breaks(), Some(backend.spec.endpoint.clone()));
            let slot = slots.entry(backend.id).or_default();
            if slot.life != life {
                // What is kept stays until it is read anew.
                let (nodes, busy) = (slot.nodes.take(), slot.busy);
                *slot = Slot { life: life.clone(), nodes, busy, ..Slot::default() };
            }
            if slot.is_due() {
                slot.busy = true;
                tokio::spawn(Arc::clone(self).read_one(backend, life));
            }
        }
    }

    async fn read_one(self: Arc<Self>, backend: Arc<Backend>, life: Life) {
        let read = timeout(TIME, self.fetch(&backend)).await;
        let read = read.unwrap_or_else(|_| Err("it takes too long".to_owned()));
        if let Err(why) = &read {
            debug!(target: TARGET, "/object_info of {} could not be read: {why}", backend.name());
        }
        if let Some(slot) = self.slots.lock().get_mut(&backend.id) {
            slot.busy = false;
            let now = Some(Instant::now());
            match read {
                // Of an earlier life: it is read again.
                _ if slot.life != life => {}
                Err(_) => slot.failed = now,
                Ok(nodes) => {
                    slot.read = now;
                    if slot.nodes.as_deref() != Some(&nodes) {
                        slot.nodes = Some(Arc::new(nodes));
                    }
                }
            }
        }
        self.ended.send_modify(|count| *count += 1);
    }

    async fn fetch(&self, backend: &Backend) -> Result<Nodes, String> {
        let response = self.fetcher.head(backend, Question::get("/object_info")).await?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("it answers {}", response.status()));
        }
        let _turn = self.heavy.acquire().await.map_err(|error| error.to_string())?;
        let body = read(response, MAX_BYTES).await?;
        let known: Vec<_> = self
            .slots
            .lock()
            .values()
            .filter_map(|slot| slot.nodes.clone())
            .take(AT_ONCE)
            .collect();
        let parsed = tokio::task::spawn_blocking(move || Nodes::read(&body, &known)).await;
        parsed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

impl Made {
    fn is_of(&self, servers: &[Arc<Nodes>], uploads: &Files) -> bool {
        let same = |(ours, theirs): (&Arc<Nodes>, &Arc<Nodes>)| Arc::ptr_eq(ours, theirs);
        self.servers.len() == servers.len()
            && self.servers.iter().zip(servers).all(same)
            && (Arc::ptr_eq(&self.uploads, uploads) || self.uploads == *uploads)
    }
}
