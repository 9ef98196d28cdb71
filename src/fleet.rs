//! The fleet: the set of backends as a snapshot that readers share and changes replace.
//!
//! Readers load the [`View`] without a lock. [`Fleet::apply`] puts another list of backends in
//! its place: names that stay keep their [`Live`] part, names that go are marked removed, which
//! ends their sockets and probes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::{Backend, BackendId, Live, Wanted};
use crate::clock::Moment;
use crate::config;
use crate::health::Health;
use crate::pace::Learnt;
use crate::ring::Ring;
use crate::roster::Member;

/// The backends at one moment.
#[derive(Debug)]
pub struct View {
    /// In the order of the configuration.
    pub backends: Vec<Arc<Backend>>,
    /// Who owns which client.
    pub ring: Ring,
    by_id: HashMap<BackendId, usize>,
}

impl View {
    fn new(backends: Vec<Arc<Backend>>) -> Self {
        let ring = Ring::new(backends.iter().map(|b| (b.name(), b.spec.weight)));
        let by_id = backends.iter().enumerate().map(|(i, b)| (b.id, i)).collect();
        Self { backends, ring, by_id }
    }

    /// The backend of a number.
    pub fn get(&self, id: BackendId) -> Option<&Arc<Backend>> {
        self.position(id).map(|position| &self.backends[position])
    }

    /// A backend's place in the list.
    pub fn position(&self, id: BackendId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// The backend of a name.
    pub fn named(&self, name: &str) -> Option<&Arc<Backend>> {
        self.backends.iter().find(|backend| backend.name() == name)
    }
}

/// The set of backends.
#[derive(Debug)]
pub struct Fleet {
    view: ArcSwap<View>,
    /// Numbers given so far, and the lock under which the view is replaced.
    names: Mutex<HashMap<String, BackendId>>,
    turn: AtomicU64,
    changed: watch::Sender<u64>,
}

/// What an [`Fleet::apply`] did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Backends that are new, to be probed.
    pub added: Vec<Arc<Backend>>,
    /// Names that are gone.
    pub removed: Vec<String>,
}

impl Fleet {
    /// An empty fleet.
    pub fn new() -> Self {
        Self {
            view: ArcSwap::from_pointee(View::new(Vec::new())),
            names: Mutex::default(),
            turn: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        }
    }

    /// The backends now.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// The next turn, for the strategies that take turns.
    pub fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Relaxed)
    }

    /// The number of a name, given on first sight: placements may name backends that are not
    /// (yet) part of the fleet.
    pub fn id_of(&self, name: &str) -> BackendId {
        let mut names = self.names.lock();
        next_id(&mut names, name)
    }

    /// The name of a number, also of one that is not part of the fleet any more.
    pub fn name_of(&self, id: BackendId) -> Option<Arc<str>> {
        if let Some(backend) = self.view().get(id) {
            return Some(backend.name().into());
        }
        let names = self.names.lock();
        names.iter().find(|(_, known)| **known == id).map(|(name, _)| name.as_str().into())
    }

    /// Puts another list of backends in place. `learnt` gives what an earlier process learnt.
    pub fn apply(&self, members: Vec<Member>, learnt: impl Fn(&str) -> Learnt) -> Applied {
        let mut names = self.names.lock();
        let old = self.view.load_full();
        let mut applied = Applied::default();
        let backends: Vec<Arc<Backend>> = members
            .into_iter()
            .map(|Member { spec, wanted }| {
                let id = next_id(&mut names, &spec.name);
                if let Some(known) = old.get(id) {
                    renew(known, spec, wanted)
                } else {
                    let live = Arc::new(Live::new(wanted, learnt(&spec.name)));
                    let backend = Arc::new(Backend { id, spec, live });
                    applied.added.push(Arc::clone(&backend));
                    backend
                }
            })
            .collect();
        let view = View::new(backends);
        for gone in old.backends.iter().filter(|backend| view.get(backend.id).is_none()) {
            applied.removed.push(gone.name().to_owned());
            gone.live.alter(|standing| standing.removed = true);
        }
        self.view.store(Arc::new(view));
        self.touch();
        applied
    }

    /// Says that something changed that a summary or a listener may care about.
    pub fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Hears of every [`Fleet::touch`].
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

fn next_id(names: &mut HashMap<String, BackendId>, name: &str) -> BackendId {
    if let Some(&id) = names.get(name) {
        return id;
    }
    let id = BackendId(names.len() as u32);
    names.insert(name.to_owned(), id);
    id
}

/// The same backend under a changed specification. At another address it is a stranger until
/// its next probe.
fn renew(known: &Arc<Backend>, spec: config::Backend, wanted: Wanted) -> Arc<Backend> {
    let moved = known.spec.endpoint != spec.endpoint;
    known.live.alter(|standing| {
        standing.wanted = wanted;
        if moved {
            standing.health = Health::Unknown;
        }
    });
    if moved {
        known.live.taken_back(Moment::now());
        known.live.address.store(None);
        known.live.inventory.forget();
        known.live.poke.notify_one();
    }
    Arc::new(Backend { id: known.id, spec, live: Arc::clone(&known.live) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoint;

    fn spec(name: &str, port: u16) -> Member {
        let spec = config::Backend {
            name: name.into(),
            endpoint: Endpoint { tls: false, host: "127.0.0.1".into(), port, base: String::new() },
            weight: 1,
            max_queue: 10,
            enabled: true,
            backup: false,
            max_connections: 100,
            headers: Vec::new(),
            labels: Vec::new(),
            task_types: Vec::new(),
            tls: config::BackendTls::default(),
        };
        Member { spec, wanted: Wanted::Enabled }
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_names_that_stay() {
        let fleet = Fleet::new();
        fleet.apply(vec![spec("a", 1), spec("b", 2)], |_| Learnt::default());
        let live = Arc::clone(&fleet.view().named("b").unwrap().live);
        let a = Arc::clone(&fleet.view().named("a").unwrap().live);
        let applied = fleet.apply(vec![spec("c", 3), spec("b", 2)], |_| Learnt::default());
        assert_eq!(applied.removed, ["a"]);
        assert_eq!(applied.added.len(), 1);
        assert!(Arc::ptr_eq(&live, &fleet.view().named("b").unwrap().live));
        assert_eq!(a.standing().stop_reason(), Some(StopReason::BackendRemoved));
    }

    #[test]
    fn a_name_keeps_its_number_when_it_comes_back() {
        let fleet = Fleet::new();
        fleet.apply(vec![spec("a", 1), spec("b", 2)], |_| Learnt::default());
        let id = fleet.view().named("a").unwrap().id;
        fleet.apply(vec![spec("b", 2)], |_| Learnt::default());
        fleet.apply(vec![spec("b", 2), spec("a", 1)], |_| Learnt::default());
        assert_eq!(fleet.view().named("a").unwrap().id, id);
        assert!(fleet.view().named("a").unwrap().live.standing().stop_reason().is_none());
    }

    #[test]
    fn a_moved_backend_is_unknown_until_probed() {
        let fleet = Fleet::new();
        fleet.apply(vec![spec("a", 1)], |_| Learnt::default());
        fleet.view().named("a").unwrap().live.alter(|s| s.health = Health::Up);
        fleet.view().named("a").unwrap().live.ejected(Moment::now());
        fleet.apply(vec![spec("a", 9)], |_| Learnt::default());
        assert_eq!(fleet.view().named("a").unwrap().live.standing().label(), "unknown");
    }

    use crate::relay::StopReason;
}
