//! Where sessions are found: by `clientId`, by caller, and by when they lost their socket.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::session::Session;
use crate::identity::ClientKey;

/// A session and who serves it.
pub(super) struct Slot {
    pub(super) sid: Arc<str>,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) session: Session,
    /// The socket that hears events now.
    pub(super) live: Option<Live>,
    /// When it lost its socket, as a place in the registry's order.
    pub(super) away: Option<u64>,
    /// What of its cost is counted among those that are away.
    pub(super) counted: usize,
    /// No longer in the registry.
    pub(super) removed: bool,
}

pub(super) struct Live {
    pub(super) number: u64,
    pub(super) key: ClientKey,
    pub(super) wake: Arc<Notify>,
}

#[derive(Default)]
pub(super) struct Registry {
    pub(super) slots: HashMap<Arc<str>, Arc<Slot>>,
    pub(super) callers: HashMap<ClientKey, HashSet<Arc<str>>>,
    pub(super) away: BTreeMap<u64, Arc<str>>,
    /// Counts sockets and leavings.
    pub(super) counter: u64,
}

impl Registry {
    /// A session without a socket.
    pub(super) fn enter_away(&mut self, sid: &Arc<str>) -> Arc<Slot> {
        if let Some(slot) = self.slots.get(sid) {
            return Arc::clone(slot);
        }
        let slot = Arc::new(Slot { sid: Arc::clone(sid), state: Mutex::default() });
        self.leave(&slot, &mut slot.state.lock());
        self.slots.insert(Arc::clone(sid), Arc::clone(&slot));
        slot
    }

    /// Puts a session behind all others that are away.
    pub(super) fn leave(&mut self, slot: &Slot, state: &mut State) {
        if let Some(order) = state.away {
            self.away.remove(&order);
        }
        self.counter += 1;
        state.away = Some(self.counter);
        self.away.insert(self.counter, Arc::clone(&slot.sid));
    }

    /// The one that lost its socket first.
    pub(super) fn oldest(&self) -> Option<Arc<Slot>> {
        self.oldest_that(|_| true)
    }

    /// The first of those of which this holds.
    pub(super) fn oldest_that(&self, holds: impl Fn(&State) -> bool) -> Option<Arc<Slot>> {
        let mut slots = self.away.values().filter_map(|sid| self.slots.get(sid));
        slots.find(|slot| holds(&slot.state.lock())).cloned()
    }

    pub(super) fn forget_caller(&mut self, key: ClientKey, sid: &Arc<str>) {
        if let Some(sids) = self.callers.get_mut(&key) {
            sids.remove(sid);
            if sids.is_empty() {
                self.callers.remove(&key);
            }
        }
    }
}
