//! One of the map's shards: a table of what every request wants, and a slab of the rest.
//!
//! With a million clients memory is what a look-up waits for, so the table holds a client's backend
//! and last use beside its key, in half a cache line, and most requests touch nothing else.
//! The slab keeps the clients in order of use. Moving one to the front touches its neighbours; in a
//! large shard that is done only when it has not been moved for a 64th of its time to live, and the
//! order is inexact by as much.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::slab::{Links, Node, Slab};
use super::tally::Tallies;
use super::{BackendId, Placement, Seconds};
use crate::identity::ClientKey;

/// Shards up to this size keep their lists in exact order of use.
const EXACT: usize = 1024;
/// A key and its hash, computed once for shard and table.
#[derive(Clone, Copy)]
pub(super) struct Keyed {
    pub(super) key: ClientKey,
    pub(super) hash: u64,
}

/// A key with its hash.
pub(super) fn keyed(key: ClientKey, hasher: &RandomState) -> Keyed {
    Keyed { key, hash: hasher.hash_one(key) }
}

/// What every request wants to know of a client.
struct Entry {
    key: ClientKey,
    backend: BackendId,
    last_used: Seconds,
    /// When it was last moved to the front of its list.
    linked_at: Seconds,
    /// Its place in the slab.
    node: u32,
}

const _: () = assert!(size_of::<Entry>() == 32);

/// What a shard needs of the map around it.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) tallies: &'a Tallies,
    pub(super) hasher: &'a RandomState,
    pub(super) now: Seconds,
    /// Seconds a placement holds.
    pub(super) ttl: u32,
    /// Bound of the list of changes.
    pub(super) max_dirty: usize,
}

impl Around<'_> {
    /// Seconds of use after which a client moves to the front of a large shard's list.
    fn link_step(&self) -> u32 {
        (self.ttl / 64).max(1)
    }

    /// Seconds of use after which the store hears of it.
    fn save_step(&self) -> u32 {
        (self.ttl / 16).max(1)
    }
}

/// A client to be added.
pub(super) struct Newcomer {
    pub(super) backend: BackendId,
    pub(super) last_used: Seconds,
    pub(super) by_hand: bool,
    /// Read from the store: neither a newcomer to the scheduler nor a change to save.
    pub(super) restored: bool,
}

pub(super) struct Shard {
    table: HashTable<Entry>,
    slab: Slab,
    clock: Seconds,
    generation: u32,
    dirty: Vec<ClientKey>,
    overflowed: bool,
}

impl Shard {
    pub(super) fn new() -> Self {
        Self {
            table: HashTable::new(),
            slab: Slab::new(),
            clock: Seconds(0),
            generation: 0,
            dirty: Vec::new(),
            overflowed: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Time as this shard has seen it: never backwards.
    pub(super) fn advance(&mut self, now: Seconds) -> Seconds {
        self.clock = self.clock.max(now);
        self.clock
    }

    pub(super) fn contains(&self, id: Keyed) -> bool {
        self.entry(id).is_some()
    }

    /// The client's backend, unless its placement has expired (then it is removed).
    pub(super) fn live(&mut self, id: Keyed, around: &Around<'_>) -> Option<BackendId> {
        let entry = self.entry(id)?;
        let (backend, node) = (entry.backend, entry.node);
        if around.now.since(entry.last_used) > around.ttl && self.slab.node(node).sockets == 0 {
            self.remove(id, around);
            return None;
        }
        Some(backend)
    }

    pub(super) fn placement(&self, id: Keyed) -> Option<Placement> {
        let entry = self.entry(id)?;
        let node = self.slab.node(entry.node);
        Some(Placement {
            backend: entry.backend,
            last_used: entry.last_used,
            placed_at: node.placed_at,
            by_hand: node.by_hand,
            prompted: node.prompted,
            sockets: node.sockets,
        })
    }

    /// Notes that the client was here.
    pub(super) fn touch(&mut self, id: Keyed, around: &Around<'_>) {
        let exact = self.len() <= EXACT;
        let Some(entry) = self.entry_mut(id) else { return };
        entry.last_used = around.now;
        if !exact && around.now.since(entry.linked_at) < around.link_step() {
            return;
        }
        let at = entry.node;
        if self.slab.node(at).sockets == 0 {
            self.move_to_front(id, at, around.now);
        }
        if around.now.since(self.slab.node(at).saved_at) >= around.save_step() {
            self.mark_dirty(at, around);
        }
    }

    /// Adds a client that is not here.
    pub(super) fn insert(&mut self, id: Keyed, new: &Newcomer, around: &Around<'_>) {
        self.generation = self.generation.wrapping_add(1);
        let node = Node {
            key: id.key,
            links: Links::default(),
            placed_at: new.last_used,
            saved_at: new.last_used,
            generation: self.generation,
            sockets: 0,
            by_hand: new.by_hand,
            prompted: new.restored,
            dirty: false,
        };
        around.tallies.joined(new.backend, fresh_at(&node));
        let node = self.slab.insert(node);
        let (backend, last_used) = (new.backend, new.last_used);
        let entry = Entry { key: id.key, backend, last_used, linked_at: last_used, node };
        self.table.insert_unique(id.hash, entry, |entry| around.hasher.hash_one(entry.key));
        if !new.restored {
            self.mark_dirty(node, around);
        }
    }

    /// Gives a client another backend; its sockets stay its own.
    pub(super) fn rehome(&mut self, id: Keyed, backend: BackendId, around: &Around<'_>) {
        let Some(entry) = self.entry_mut(id) else { return };
        let previous = std::mem::replace(&mut entry.backend, backend);
        let at = entry.node;
        let node = self.slab.node_mut(at);
        around.tallies.left(previous, fresh_at(node));
        (node.placed_at, node.prompted, node.by_hand) = (around.now, false, false);
        around.tallies.joined(backend, fresh_at(node));
        self.mark_dirty(at, around);
    }

    pub(super) fn set_by_hand(&mut self, id: Keyed, by_hand: bool, around: &Around<'_>) {
        let Some(at) = self.entry(id).map(|entry| entry.node) else { return };
        if self.slab.node(at).by_hand != by_hand {
            self.slab.node_mut(at).by_hand = by_hand;
            self.mark_dirty(at, around);
        }
    }

    pub(super) fn mark_prompted(&mut self, id: Keyed, around: &Around<'_>) {
        let Some(entry) = self.entry(id) else { return };
        let (backend, at) = (entry.backend, entry.node);
        let node = self.slab.node_mut(at);
        if let Some(placed) = fresh_at(node) {
            node.prompted = true;
            around.tallies.prompted(backend, placed);
        }
    }

    /// Counts a socket of a client and returns its placement's generation.
    pub(super) fn pin(&mut self, id: Keyed, around: &Around<'_>) -> Option<u32> {
        self.touch(id, around);
        let at = self.entry(id)?.node;
        if self.slab.node(at).sockets == 0 {
            self.slab.set_sockets(at, 1);
            self.move_to_front(id, at, around.now);
        } else {
            let node = self.slab.node_mut(at);
            node.sockets = node.sockets.saturating_add(1);
        }
        Some(self.slab.node(at).generation)
    }

    /// Gives back what [`Shard::pin`] counted, if that placement is still there.
    pub(super) fn unpin(&mut self, id: Keyed, generation: u32) {
        let now = self.clock;
        let Some(at) = self.entry(id).map(|entry| entry.node) else { return };
        let node = self.slab.node_mut(at);
        if node.generation != generation {
            return;
        }
        if node.sockets > 1 {
            node.sockets -= 1;
            return;
        }
        self.slab.set_sockets(at, 0);
        self.move_to_front(id, at, now);
        if let Some(entry) = self.entry_mut(id) {
            entry.last_used = now;
        }
    }

    /// Removes the longest unused client of those with (`pinned`) or without an open socket, unless it
    /// is `keep`.
    pub(super) fn evict(&mut self, pinned: bool, keep: ClientKey, around: &Around<'_>) -> bool {
        let back = self.slab.back(pinned);
        let Some(id) = self.id_at(back, around).filter(|id| id.key != keep) else { return false };
        self.remove(id, around);
        true
    }

    /// Removes expired clients and refreshes those kept alive by a socket, `budget` at most.
    /// Returns (removed, looked at).
    pub(super) fn sweep(&mut self, budget: usize, around: &Around<'_>) -> (usize, usize) {
        let mut removed = 0;
        while removed < budget {
            let Some(id) = self.id_at(self.slab.back(false), around) else { break };
            if self.live(id, around).is_some() {
                break;
            }
            removed += 1;
        }
        let mut looked = removed;
        while looked < budget && self.refresh_pinned(around) {
            looked += 1;
        }
        (removed, looked)
    }

    /// Removes all clients of a backend.
    pub(super) fn remove_backend(&mut self, backend: BackendId, around: &Around<'_>) -> usize {
        let mine = self.table.iter().filter(|entry| entry.backend == backend);
        let gone: Vec<Keyed> = mine.map(|entry| keyed(entry.key, around.hasher)).collect();
        for id in &gone {
            self.remove(*id, around);
        }
        gone.len()
    }

    /// Removes a backend's clients that have no open socket and that `idle` lets go.
    pub(super) fn release(
        &mut self,
        backend: BackendId,
        around: &Around<'_>,
        idle: impl Fn(ClientKey) -> bool,
    ) -> usize {
        let mine = self.table.iter().filter(|entry| entry.backend == backend);
        let gone: Vec<Keyed> = mine
            .filter(|entry| self.slab.node(entry.node).sockets == 0 && idle(entry.key))
            .map(|entry| keyed(entry.key, around.hasher))
            .collect();
        for id in &gone {
            self.remove(*id, around);
        }
        gone.len()
    }

    /// Takes up to `limit` changes (all of the shard's clients after an overflow).
    pub(super) fn drain_dirty(
        &mut self,
        limit: usize,
        hasher: &RandomState,
        into: &mut Vec<(ClientKey, Option<Placement>)>,
    ) {
        let keys: Vec<ClientKey> = if std::mem::take(&mut self.overflowed) {
            self.table.iter().map(|entry| entry.key).collect()
        } else {
            self.dirty.split_off(self.dirty.len().saturating_sub(limit))
        };
        if self.dirty.is_empty() {
            self.dirty = Vec::new();
        }
        for key in keys {
            let id = keyed(key, hasher);
            let placement = self.placement(id);
            if let (Some(saved), Some(at)) = (placement, self.entry(id).map(|entry| entry.node)) {
                let node = self.slab.node_mut(at);
                (node.dirty, node.saved_at) = (false, saved.last_used);
            }
            into.push((key, placement));
        }
    }

    /// Bytes of memory held, by the containers' capacities.
    pub(super) fn memory(&self) -> usize {
        self.table.allocation_size()
            + self.slab.memory()
            + self.dirty.capacity() * size_of::<ClientKey>()
    }

    /// Saves a client that a socket keeps alive from looking unused, if the longest pinned one is
    /// due for it.
    fn refresh_pinned(&mut self, around: &Around<'_>) -> bool {
        let at = self.slab.back(true);
        let Some(id) = self.id_at(at, around) else { return false };
        let Some(entry) = self.entry_mut(id) else { return false };
        if around.now.since(entry.linked_at) < around.save_step() {
            return false;
        }
        entry.last_used = around.now;
        self.move_to_front(id, at, around.now);
        self.mark_dirty(at, around);
        true
    }

    fn remove(&mut self, id: Keyed, around: &Around<'_>) {
        let found = self.table.find_entry(id.hash, |entry| entry.key == id.key);
        let Ok(entry) = found.map(|found| found.remove().0) else { return };
        around.tallies.left(entry.backend, fresh_at(self.slab.node(entry.node)));
        self.slab.remove(entry.node);
        self.push_dirty(id.key, around);
    }

    fn mark_dirty(&mut self, at: u32, around: &Around<'_>) {
        let node = self.slab.node_mut(at);
        if !node.dirty {
            node.dirty = true;
            let key = node.key;
            self.push_dirty(key, around);
        }
    }

    /// A list that nobody drains must not grow: past the bound it is dropped, and the next drain
    /// names every client instead. Removals among the dropped stay in the store until they expire.
    fn push_dirty(&mut self, key: ClientKey, around: &Around<'_>) {
        if self.overflowed {
            return;
        }
        if self.dirty.len() < around.max_dirty {
            self.dirty.push(key);
        } else {
            self.dirty = Vec::new();
            self.overflowed = true;
        }
    }

    fn entry(&self, id: Keyed) -> Option<&Entry> {
        self.table.find(id.hash, |entry| entry.key == id.key)
    }

    fn entry_mut(&mut self, id: Keyed) -> Option<&mut Entry> {
        self.table.find_mut(id.hash, |entry| entry.key == id.key)
    }

    /// The client at a place of the slab; `None` at the end of a list.
    fn id_at(&self, at: u32, around: &Around<'_>) -> Option<Keyed> {
        self.slab.get(at).map(|node| keyed(node.key, around.hasher))
    }

    fn move_to_front(&mut self, id: Keyed, at: u32, now: Seconds) {
        self.slab.move_to_front(at);
        if let Some(entry) = self.entry_mut(id) {
            entry.linked_at = now;
        }
    }
}

/// When the client became a newcomer, if it still is one by itself (the tally knows the time).
fn fresh_at(node: &Node) -> Option<Seconds> {
    (!node.prompted).then_some(node.placed_at)
}
