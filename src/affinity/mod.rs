//! Which backend each client belongs to, and since when.
//!
//! One [`AffinityMap`] serves the process. A request looks its client up with
//! [`AffinityMap::get_or_place_with`]: the choice of a backend runs under the lock of the client's
//! shard, so that two first requests of one client that race get one backend. A WebSocket holds the
//! [`SocketGuard`] of [`AffinityMap::open_socket`] while it lives, which keeps its client from
//! expiring. Once a second somebody calls [`AffinityMap::sweep`], and twice a second somebody
//! writes what [`AffinityMap::drain_dirty`] returns to the store.
//!
//! A placement holds for `ttl` after the client was last seen. At `max_clients` the longest unused
//! goes first, one with an open socket never while there is another. Maps of up to 4,096 clients
//! are one shard and keep that order exactly; larger ones have 64 and take the longest unused of
//! the newcomer's shard, within a 64th of the ttl.
//!
//! Keys come from outside (an IPv6 user has many /64s to choose from), so the index uses std's
//! keyed `SipHash`: 25 ns of the 300 a look-up may take, and no way to make keys collide on purpose.
//! No lock is held over an await: none of this is async.

mod clock;
mod shard;
mod slab;
mod socket;
mod tally;

use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

pub use clock::{Clock, Seconds, whole_seconds};
pub use socket::SocketGuard;
pub use tally::FRESH_SECONDS;

use crate::identity::ClientKey;
use shard::{Around, Keyed, Newcomer, Shard, keyed};
use tally::Tallies;

/// A backend's number in this process; the fleet gives it, names are for the store.
pub type BackendId = u32;

/// Shards of a large map.
const SHARDS: usize = 64;
/// Maps up to this size are one shard.
const ONE_SHARD: usize = 4096;
/// Clients evicted at most for one newcomer: a limit lowered by a reload is reached with time.
const MAX_EVICTED: usize = 32;

/// What is known of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Where it belongs.
    pub backend: BackendId,
    /// When it was last seen.
    pub last_used: Seconds,
    /// When it came to this backend.
    pub placed_at: Seconds,
    /// It chose this backend itself.
    pub by_hand: bool,
    /// It has prompted since it came (or was there before the last restart).
    pub prompted: bool,
    /// Its open WebSockets.
    pub sockets: u32,
}

/// The outcome of a placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Where the client belongs now.
    pub backend: BackendId,
    /// Where it belonged before; `None`: nowhere.
    pub previous: Option<BackendId>,
}

impl Placed {
    /// The client was not known.
    pub fn is_new(&self) -> bool {
        self.previous.is_none()
    }

    /// The client left another backend for this one.
    pub fn has_moved(&self) -> bool {
        self.previous.is_some_and(|previous| previous != self.backend)
    }
}

/// Clients and their backends.
pub struct AffinityMap {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    tallies: Tallies,
    total: AtomicUsize,
    ttl: AtomicU32,
    max_clients: AtomicUsize,
    cursor: AtomicUsize,
}

impl AffinityMap {
    /// An empty map. The number of shards follows from `max_clients` and stays.
    pub fn new(ttl: Duration, max_clients: usize) -> Self {
        let shards = if max_clients <= ONE_SHARD { 1 } else { SHARDS };
        Self {
            shards: (0..shards).map(|_| Mutex::new(Shard::new())).collect(),
            hasher: RandomState::new(),
            tallies: Tallies::default(),
            total: AtomicUsize::new(0),
            ttl: AtomicU32::new(whole_seconds(ttl)),
            max_clients: AtomicUsize::new(max_clients.max(1)),
            cursor: AtomicUsize::new(0),
        }
    }

    /// Takes over the limits of a reloaded configuration; clients above them go with time.
    pub fn set_limits(&self, ttl: Duration, max_clients: usize) {
        self.ttl.store(whole_seconds(ttl), Ordering::Relaxed);
        self.max_clients.store(max_clients.max(1), Ordering::Relaxed);
    }

    /// The client's backend; counts as a use.
    pub fn get(&self, key: ClientKey, now: Seconds) -> Option<BackendId> {
        let id = self.id(key);
        let (mut shard, around) = self.enter(self.home(id), now);
        let backend = self.live(&mut shard, id, &around)?;
        shard.touch(id, &around);
        Some(backend)
    }

    /// What is known of the client; does not count as a use.
    pub fn peek(&self, key: ClientKey, now: Seconds) -> Option<Placement> {
        let id = self.id(key);
        let (mut shard, around) = self.enter(self.home(id), now);
        self.live(&mut shard, id, &around)?;
        shard.placement(id)
    }

    /// Gives the client a backend, whatever it had.
    pub fn place(&self, key: ClientKey, backend: BackendId, now: Seconds, by_hand: bool) -> Placed {
        let id = self.id(key);
        let home = self.home(id);
        let (mut shard, around) = self.enter(home, now);
        let previous = self.settle(&mut shard, id, backend, by_hand, &around);
        drop(shard);
        self.trim(home, key, now);
        Placed { backend, previous }
    }

    /// The client's backend, as `choose` decides: it gets the present one, if any, and returns the
    /// one to have (the same one to stay). `None` leaves everything as it was.
    ///
    /// `choose` runs under the shard's lock: it must be quick and pure, and of this map it may call
    /// only [`AffinityMap::fresh`], [`AffinityMap::sessions`] and [`AffinityMap::len`].
    pub fn get_or_place_with(
        &self,
        key: ClientKey,
        now: Seconds,
        choose: impl FnOnce(Option<BackendId>) -> Option<BackendId>,
    ) -> Option<Placed> {
        let id = self.id(key);
        let home = self.home(id);
        let (mut shard, around) = self.enter(home, now);
        let previous = self.live(&mut shard, id, &around);
        let backend = choose(previous)?;
        if previous == Some(backend) {
            shard.touch(id, &around);
            return Some(Placed { backend, previous });
        }
        self.settle(&mut shard, id, backend, false, &around);
        drop(shard);
        self.trim(home, key, now);
        Some(Placed { backend, previous })
    }

    /// The client has prompted: it no longer counts as [`AffinityMap::fresh`].
    pub fn mark_prompted(&self, key: ClientKey, now: Seconds) {
        let id = self.id(key);
        let (mut shard, around) = self.enter(self.home(id), now);
        shard.mark_prompted(id, &around);
    }

    /// Counts an open WebSocket of a placed client until the guard is dropped.
    pub fn open_socket(self: &Arc<Self>, key: ClientKey, now: Seconds) -> Option<SocketGuard> {
        let id = self.id(key);
        let (mut shard, around) = self.enter(self.home(id), now);
        self.live(&mut shard, id, &around)?;
        let generation = shard.pin(id, &around)?;
        drop(shard);
        Some(SocketGuard::new(Arc::clone(self), key, generation))
    }

    /// Forgets all clients of a backend that is gone; returns how many. Walks the whole map, one
    /// shard at a time.
    pub fn remove_backend(&self, backend: BackendId, now: Seconds) -> usize {
        let mut removed = 0;
        for home in 0..self.shards.len() {
            let (mut shard, around) = self.enter(home, now);
            removed += self.counted(&mut shard, |shard| shard.remove_backend(backend, &around));
        }
        self.tallies.forget(backend);
        removed
    }

    /// Forgets the clients of a draining backend that have no open socket and that `idle` lets go;
    /// returns how many. Walks the whole map, one shard at a time; `idle` runs under a shard's lock.
    pub fn release(
        &self,
        backend: BackendId,
        now: Seconds,
        idle: impl Fn(ClientKey) -> bool,
    ) -> usize {
        let mut removed = 0;
        for home in 0..self.shards.len() {
            let (mut shard, around) = self.enter(home, now);
            removed += self.counted(&mut shard, |shard| shard.release(backend, &around, &idle));
        }
        removed
    }

    /// Removes expired clients, at most `budget` of them; returns how many. Also keeps time for
    /// sockets that close: call it every second.
    pub fn sweep(&self, now: Seconds, budget: usize) -> usize {
        let start = self.cursor.fetch_add(1, Ordering::Relaxed);
        let (mut left, mut removed) = (budget, 0);
        for step in 0..self.shards.len() {
            let (mut shard, around) = self.enter((start + step) % self.shards.len(), now);
            let (gone, looked) = self.counted(&mut shard, |shard| shard.sweep(left, &around));
            left -= looked;
            removed += gone;
        }
        removed
    }

    /// Clients known, the expired but not yet swept ones included.
    pub fn len(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Whether no client is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Clients of a backend, the expired but not yet swept ones included.
    pub fn sessions(&self, backend: BackendId) -> usize {
        self.tallies.sessions(backend)
    }

    /// Clients that came to a backend in the last [`FRESH_SECONDS`] and have not prompted yet.
    pub fn fresh(&self, backend: BackendId, now: Seconds) -> u32 {
        self.tallies.fresh(backend, now)
    }

    /// Puts back what the store kept, oldest first; false when it has expired, is known already or
    /// the map is full. The client is not a newcomer to the scheduler.
    pub fn restore(
        &self,
        key: ClientKey,
        backend: BackendId,
        last_used: Seconds,
        by_hand: bool,
        now: Seconds,
    ) -> bool {
        let id = self.id(key);
        let (mut shard, around) = self.enter(self.home(id), now);
        let last_used = last_used.min(around.now);
        let full = self.len() >= self.max_clients.load(Ordering::Relaxed);
        if full || around.now.since(last_used) > around.ttl || shard.contains(id) {
            return false;
        }
        let new = Newcomer { backend, last_used, by_hand, restored: true };
        self.counted(&mut shard, |shard| shard.insert(id, &new, &around));
        true
    }

    /// About `limit` clients that changed since they were last returned, with what they are now;
    /// `None`: gone. Mere use counts as a change once per 16th of the ttl.
    pub fn drain_dirty(&self, limit: usize) -> Vec<(ClientKey, Option<Placement>)> {
        let start = self.cursor.fetch_add(1, Ordering::Relaxed);
        let mut changes = Vec::new();
        for step in 0..self.shards.len() {
            let left = limit.saturating_sub(changes.len());
            if left == 0 {
                break;
            }
            let shard = &self.shards[(start + step) % self.shards.len()];
            shard.lock().drain_dirty(left, &self.hasher, &mut changes);
        }
        changes
    }

    /// Bytes of memory the clients take.
    pub fn memory(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().memory()).sum()
    }

    fn unpin(&self, key: ClientKey, generation: u32) {
        let id = self.id(key);
        self.shards[self.home(id)].lock().unpin(id, generation);
    }

    fn id(&self, key: ClientKey) -> Keyed {
        keyed(key, &self.hasher)
    }

    /// The client's shard, by bits of the hash that the shard's table does not go by.
    fn home(&self, id: Keyed) -> usize {
        (id.hash >> 40) as usize % self.shards.len()
    }

    fn enter(&self, home: usize, now: Seconds) -> (MutexGuard<'_, Shard>, Around<'_>) {
        let mut shard = self.shards[home].lock();
        let around = Around {
            tallies: &self.tallies,
            hasher: &self.hasher,
            now: shard.advance(now),
            ttl: self.ttl.load(Ordering::Relaxed),
            max_dirty: 1024 + self.max_clients.load(Ordering::Relaxed) / self.shards.len(),
        };
        (shard, around)
    }

    /// The client's backend; an expired placement is removed and counted.
    fn live(&self, shard: &mut Shard, id: Keyed, around: &Around<'_>) -> Option<BackendId> {
        self.counted(shard, |shard| shard.live(id, around))
    }

    fn settle(
        &self,
        shard: &mut Shard,
        id: Keyed,
        backend: BackendId,
        by_hand: bool,
        around: &Around<'_>,
    ) -> Option<BackendId> {
        let Some(previous) = self.live(shard, id, around) else {
            let new = Newcomer { backend, last_used: around.now, by_hand, restored: false };
            self.counted(shard, |shard| shard.insert(id, &new, around));
            return None;
        };
        shard.touch(id, around);
        if previous != backend {
            shard.rehome(id, backend, around);
        }
        shard.set_by_hand(id, by_hand, around);
        Some(previous)
    }

    /// Runs a change of a shard and carries the change of its size over to the total.
    fn counted<T>(&self, shard: &mut Shard, change: impl FnOnce(&mut Shard) -> T) -> T {
        let before = shard.len();
        let result = change(shard);
        let after = shard.len();
        if after > before {
            self.total.fetch_add(after - before, Ordering::Relaxed);
        } else if before > after {
            self.total.fetch_sub(before - after, Ordering::Relaxed);
        }
        result
    }

    /// Makes room after `keep` has come. Holds one lock at a time, so racing newcomers may stand
    /// above the limit for a moment.
    fn trim(&self, home: usize, keep: ClientKey, now: Seconds) {
        for _ in 0..MAX_EVICTED {
            if self.len() <= self.max_clients.load(Ordering::Relaxed) {
                return;
            }
            if !(self.evict(home, false, keep, now) || self.evict(home, true, keep, now)) {
                return;
            }
        }
    }

    /// Evicts one client, looking first in the shard `home`.
    fn evict(&self, home: usize, pinned: bool, keep: ClientKey, now: Seconds) -> bool {
        (0..self.shards.len()).any(|step| {
            let (mut shard, around) = self.enter((home + step) % self.shards.len(), now);
            self.counted(&mut shard, |shard| shard.evict(pinned, keep, &around))
        })
    }
}

#[cfg(test)]
mod tests;
