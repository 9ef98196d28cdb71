//! A slab of a shard's clients, chained into two lists in order of use.
//!
//! Clients without an open socket are in one list, those with one (the pinned) in the other; the
//! back of each is the longest unused, so that expiry and eviction look at one client at a time.

use super::Seconds;
use crate::identity::ClientKey;

/// End of a list.
const NIL: u32 = u32::MAX;

/// What is known of a client beyond what every request wants.
pub(super) struct Node {
    pub(super) key: ClientKey,
    pub(super) links: Links,
    pub(super) placed_at: Seconds,
    /// When it was last used, as the store knows it.
    pub(super) saved_at: Seconds,
    /// Tells this placement from a later one of the same client, for guards of its sockets.
    pub(super) generation: u32,
    pub(super) sockets: u32,
    pub(super) by_hand: bool,
    pub(super) prompted: bool,
    pub(super) dirty: bool,
}

const _: () = assert!(size_of::<Node>() <= 44);

/// A node's neighbours.
pub(super) struct Links {
    prev: u32,
    next: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { prev: NIL, next: NIL }
    }
}

struct List {
    front: u32,
    back: u32,
}

/// The nodes, the free ones chained by `next`.
pub(super) struct Slab {
    nodes: Vec<Node>,
    free: u32,
    /// Without and with an open socket.
    lists: [List; 2],
}

impl Slab {
    pub(super) fn new() -> Self {
        let empty = || List { front: NIL, back: NIL };
        Self { nodes: Vec::new(), free: NIL, lists: [empty(), empty()] }
    }

    /// The longest unused of a list.
    pub(super) fn back(&self, pinned: bool) -> u32 {
        self.lists[usize::from(pinned)].back
    }

    /// The node, which is in use; `None` at the end of a list.
    pub(super) fn get(&self, at: u32) -> Option<&Node> {
        self.nodes.get(at as usize)
    }

    pub(super) fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    pub(super) fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    /// Adds a node at the front of its list.
    pub(super) fn insert(&mut self, node: Node) -> u32 {
        let at = if self.free == NIL {
            self.nodes.push(node);
            self.nodes.len() as u32 - 1
        } else {
            let at = self.free;
            self.free = self.node(at).links.next;
            *self.node_mut(at) = node;
            at
        };
        self.link(at);
        at
    }

    pub(super) fn remove(&mut self, at: u32) {
        self.unlink(at);
        self.node_mut(at).links.next = self.free;
        self.free = at;
    }

    /// Makes a node the latest used of its list.
    pub(super) fn move_to_front(&mut self, at: u32) {
        self.unlink(at);
        self.link(at);
    }

    /// Changes the number of sockets, and with it perhaps the list.
    pub(super) fn set_sockets(&mut self, at: u32, sockets: u32) {
        self.unlink(at);
        self.node_mut(at).sockets = sockets;
        self.link(at);
    }

    /// Bytes held.
    pub(super) fn memory(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
    }

    fn link(&mut self, at: u32) {
        let list = usize::from(self.node(at).sockets > 0);
        let front = self.lists[list].front;
        self.node_mut(at).links = Links { prev: NIL, next: front };
        if front == NIL {
            self.lists[list].back = at;
        } else {
            self.node_mut(front).links.prev = at;
        }
        self.lists[list].front = at;
    }

    fn unlink(&mut self, at: u32) {
        let node = self.node(at);
        let (Links { prev, next }, list) = (&node.links, usize::from(node.sockets > 0));
        let (prev, next) = (*prev, *next);
        if prev == NIL {
            self.lists[list].front = next;
        } else {
            self.node_mut(prev).links.next = next;
        }
        if next == NIL {
            self.lists[list].back = prev;
        } else {
            self.node_mut(next).links.prev = prev;
        }
    }
}
