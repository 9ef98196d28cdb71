//! Who wants a companion, who has one, and what its home was told. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::BackendId;
use crate::clock::Moment;
use crate::identity::ClientKey;

/// Companion sockets at most.
pub(super) const MAX: usize = 4096;
/// Callers at most who are remembered for having asked a custom node; beyond, all are forgotten.
const ASKERS: usize = 10_000;
/// How long a caller is remembered, and a client after its socket ended.
const REMEMBERED: Duration = Duration::from_mins(10);
/// No client that left is remembered once there are so many.
const KEPT: usize = 20_000;

/// The clients, and what is open for them.
pub(super) struct Table<C> {
    clients: HashMap<Arc<str>, Client<C>>,
    askers: HashMap<ClientKey, Moment>,
    open: usize,
}

/// A client with a socket, or one that had one a while ago and wanted a companion.
struct Client<C> {
    key: ClientKey,
    zone: Option<Box<str>>,
    sockets: usize,
    left: Moment,
    /// It gets a companion while it has a socket.
    wants: bool,
    /// It has subscribed to the terminal.
    logs: bool,
    /// What its home was told of that last; none while its companion is not open.
    told: Option<bool>,
    companion: Option<(BackendId, C)>,
}

/// A client that wants a companion.
pub(super) struct Wish {
    pub(super) sid: Arc<str>,
    pub(super) key: ClientKey,
    pub(super) zone: Option<Box<str>>,
    /// Where it has one.
    pub(super) at: Option<BackendId>,
}

impl<C> Default for Table<C> {
    fn default() -> Self {
        Self { clients: HashMap::new(), askers: HashMap::new(), open: 0 }
    }
}

impl<C> Client<C> {
    fn new(key: ClientKey, zone: Option<&str>, sockets: usize) -> Self {
        let (wants, logs, told, companion) = (false, false, None, None);
        let (zone, left) = (zone.map(Into::into), Moment::default());
        Self { key, zone, sockets, left, wants, logs, told, companion }
    }

    fn is_at(&self, home: BackendId) -> bool {
        self.companion.as_ref().is_some_and(|(at, _)| *at == home)
    }

    fn wish(&self, sid: &Arc<str>) -> Wish {
        let at = self.companion.as_ref().map(|(at, _)| *at);
        Wish { sid: Arc::clone(sid), key: self.key, zone: self.zone.clone(), at }
    }
}

impl<C> Table<C> {
    /// Whose a client is.
    pub(super) fn key_of(&self, sid: &str) -> Option<ClientKey> {
        self.clients.get(sid).map(|client| client.key)
    }

    /// A socket has come; true when it wants a companion. Another caller's under the same sid
    /// inherits nothing.
    pub(super) fn came(
        &mut self,
        sid: &Arc<str>,
        key: ClientKey,
        zone: Option<&str>,
        now: Moment,
    ) -> bool {
        let asked = self.askers.get(&key).is_some_and(|at| now.since(*at) < REMEMBERED);
        if self.clients.get(sid).is_some_and(|client| client.key != key) {
            self.close(sid);
        }
        let client = match self.clients.entry(Arc::clone(sid)) {
            Entry::Occupied(known) => {
                let known = known.into_mut();
                if known.key != key {
                    *known = Client::new(key, zone, known.sockets);
                }
                known
            }
            Entry::Vacant(free) => free.insert(Client::new(key, zone, 0)),
        };
        client.sockets += 1;
        client.wants |= asked;
        client.wants
    }

    /// A socket has ended.
    pub(super) fn left(&mut self, sid: &str, now: Moment) {
        let is_full = self.clients.len() > KEPT;
        let Some(client) = self.clients.get_mut(sid) else { return };
        client.sockets = client.sockets.saturating_sub(1);
        if client.sockets > 0 {
            return;
        }
        client.left = now;
        let is_kept = client.wants && !is_full;
        self.close(sid);
        if !is_kept {
            self.clients.remove(sid);
        }
    }

    fn close(&mut self, sid: &str) {
        if let Some(client) = self.clients.get_mut(sid) {
            client.told = None;
            self.open -= usize::from(client.companion.take().is_some());
        }
    }

    /// A caller has asked its home for a custom node's route: these of its clients want companions.
    pub(super) fn asked(
        &mut self,
        key: ClientKey,
        mut sids: Vec<Arc<str>>,
        now: Moment,
    ) -> Vec<Arc<str>> {
        if self.askers.len() >= ASKERS && !self.askers.contains_key(&key) {
            self.askers.clear();
        }
        self.askers.insert(key, now);
        sids.retain(|sid| {
            let client = self.clients.get_mut(sid).filter(|client| client.key == key);
            client.map(|client| client.wants = true).is_some()
        });
        sids
    }

    /// A client subscribes to the terminal, or no longer does; none when it has no socket, is
    /// another caller's, or has nothing to be told.
    pub(super) fn subscribe(&mut self, sid: &str, key: ClientKey, enabled: bool) -> Option<Wish> {
        let (sid, _) = self.clients.get_key_value(sid)?;
        let sid = Arc::clone(sid);
        let client = self.clients.get_mut(&sid).filter(|c| c.key == key && c.sockets > 0)?;
        client.logs = enabled;
        client.wants |= enabled;
        client.wants.then(|| client.wish(&sid))
    }

    /// Those that want a companion now.
    pub(super) fn wanting(&self) -> Vec<Wish> {
        let here = self.clients.iter().filter(|(_, client)| client.wants && client.sockets > 0);
        here.map(|(sid, client)| client.wish(sid)).collect()
    }

    /// Whether a companion is to be opened at this home; one that is elsewhere is closed.
    pub(super) fn makes_room(&mut self, sid: &str, home: BackendId) -> bool {
        let client = self.clients.get(sid).filter(|client| client.sockets > 0);
        if client.is_none_or(|client| client.is_at(home)) {
            return false;
        }
        self.close(sid);
        self.open < MAX
    }

    /// A companion was opened there, for which there was room.
    pub(super) fn opened(&mut self, sid: &str, home: BackendId, companion: C) {
        if let Some(client) = self.clients.get_mut(sid) {
            client.companion = Some((home, companion));
            self.open += 1;
        }
    }

    /// A home has a new socket for a client, so that it knows of no subscription.
    pub(super) fn forgot(&mut self, sid: &str, home: BackendId) {
        if let Some(client) = self.clients.get_mut(sid).filter(|client| client.is_at(home)) {
            client.told = Some(false);
        }
    }

    /// What a client's home still has to be told of its subscription.
    pub(super) fn untold(&self, sid: &str, home: BackendId) -> Option<bool> {
        let client = self.clients.get(sid).filter(|client| client.is_at(home))?;
        (client.told? != client.logs).then_some(client.logs)
    }

    /// A client's home was told.
    pub(super) fn told(&mut self, sid: &str, home: BackendId, enabled: bool) {
        if let Some(client) = self.clients.get_mut(sid).filter(|client| client.is_at(home)) {
            client.told = Some(enabled);
        }
    }

    /// Whether a client's companion has been open there.
    pub(super) fn is_open_at(&self, sid: &str, home: BackendId) -> bool {
        self.clients.get(sid).is_some_and(|client| client.is_at(home) && client.told.is_some())
    }

    /// Whether a client's home knows what it wants of the terminal.
    pub(super) fn has_told(&self, sid: &str, enabled: bool) -> bool {
        self.clients.get(sid).is_some_and(|client| client.told == Some(enabled))
    }

    /// Forgets those who left long ago.
    pub(super) fn sweep(&mut self, now: Moment) {
        self.clients.retain(|_, client| client.sockets > 0 || now.since(client.left) < REMEMBERED);
        self.askers.retain(|_, at| now.since(*at) < REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: BackendId = BackendId(1);
    const THERE: BackendId = BackendId(2);
    const NOW: Moment = Moment(1000);

    fn caller(n: u8) -> ClientKey {
        ClientKey::of_address(std::net::IpAddr::from([10, 0, 0, n]))
    }

    /// A client of the first caller that has a companion here.
    fn table(sid: &Arc<str>) -> Table<()> {
        let mut table = Table::default();
        assert!(!table.came(sid, caller(1), None, NOW), "an idle one has none");
        assert_eq!(table.asked(caller(1), vec![Arc::clone(sid), "no".into()], NOW).len(), 1);
        assert!(table.makes_room(sid, HERE));
        table.opened(sid, HERE, ());
        assert!(!table.makes_room(sid, HERE), "one is enough");
        table
    }

    #[test]
    fn who_comes_back_gets_one_again_and_another_caller_does_not() {
        let sid: Arc<str> = "sid".into();
        let mut table = table(&sid);
        table.left(&sid, NOW);
        assert_eq!((table.open, table.wanting().len()), (0, 0));
        assert!(table.came(&sid, caller(1), None, NOW));
        assert!(table.came(&"other".into(), caller(1), None, NOW), "its caller has asked");
        assert!(!table.came(&sid, caller(2), None, NOW));
        assert!(table.asked(caller(1), vec![Arc::clone(&sid)], NOW).is_empty());
        table.left(&sid, NOW);
        assert!(table.clients.contains_key(&sid), "the second socket is there");
        table.left(&sid, NOW);
        assert!(!table.clients.contains_key(&sid));
    }

    #[test]
    fn one_that_moves_is_closed_where_it_was_and_told_anew() {
        let sid: Arc<str> = "sid".into();
        let mut table = table(&sid);
        assert!(table.subscribe(&sid, caller(2), true).is_none());
        assert!(table.subscribe(&sid, caller(1), true).is_some());
        assert_eq!(table.untold(&sid, HERE), None, "it is not open yet");
        table.forgot(&sid, HERE);
        assert_eq!(table.untold(&sid, HERE), Some(true));
        table.told(&sid, HERE, true);
        assert!(table.has_told(&sid, true) && table.untold(&sid, HERE).is_none());
        assert!(table.makes_room(&sid, THERE));
        table.opened(&sid, THERE, ());
        assert_eq!(table.open, 1);
        table.forgot(&sid, HERE);
        assert!(!table.is_open_at(&sid, THERE), "that was the old one");
        table.forgot(&sid, THERE);
        assert_eq!(table.untold(&sid, THERE), Some(true));
    }

    #[test]
    fn it_is_bounded_and_forgets() {
        let mut table = Table::default();
        for n in 0..2 * MAX {
            let sid: Arc<str> = n.to_string().into();
            table.came(&sid, caller(1), None, NOW);
            if table.makes_room(&sid, HERE) {
                table.opened(&sid, HERE, ());
            }
        }
        assert_eq!(table.open, MAX);
        for n in 0..2 * MAX {
            table.asked(caller(1), vec![n.to_string().into()], NOW);
            table.left(&n.to_string(), NOW);
        }
        assert_eq!((table.open, table.clients.len()), (0, 2 * MAX));
        table.sweep(NOW.plus(REMEMBERED));
        assert_eq!((table.clients.len(), table.askers.len()), (0, 0));
    }
}
