//! Tasks: prompts as users see them, from the backend's word that it took one to its end.
//!
//! In sticky mode the gateway does not queue prompts, it sees them pass. [`intake`] reads a POST's
//! body and reply as they go by; [`follow`] watches the queues of backends that hold prompts of
//! ours and asks their history how those ended; [`cancel`] takes one back. What they learn goes
//! into the [`Ledger`], a pure state machine, and from it into [`rates`] (seconds per prompt by
//! [`kind`]) and [`mod@line`] (when a prompt will have ended).
//!
//! [`Tasks`] is the ledger as the gateway shares it: one lock, never held over an await. Who wants
//! to hear of changes either [subscribes](Tasks::subscribe), and may miss some when it is slow, or
//! is the one [observer](Tasks::observe), which misses none and must be quick.
//!
//! Bounded: the newest 10,000 tasks, open ones evicted last. Those of sticky mode are gone after a
//! restart, pool mode puts back the ended ones; what was learnt of the backends is kept.

pub mod asking;
pub mod cancel;
pub mod follow;
pub mod intake;
pub mod kind;
pub mod ledger;
pub mod line;
pub mod rates;
pub mod task;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::backend::{Backend, BackendId};
use crate::clock::Moment;
use crate::comfy::history::Entry;
use crate::comfy::queue_items::QueueItems;
use crate::fleet::{Fleet, View};
use crate::identity::ClientKey;
use asking::Asker;
use intake::Room;
use kind::Kind;
pub use ledger::{ClientStanding, Counts, Ledger, Mark, Past, Placed, THE_LINE, TaskChange};
use line::Outlook;
pub use rates::{Mean, Record};
pub use task::{Accepted, Now, TaskState, TaskView};

/// Tasks that are kept.
pub const MAX_TASKS: usize = 10_000;
/// Changes that a slow subscriber may fall behind.
const BACKLOG: usize = 1024;

/// A task has changed its state.
#[derive(Debug, Clone, Serialize)]
pub struct TaskEvent {
    /// The task as it is now.
    pub task: TaskView,
}

type Observer = Box<dyn Fn(&TaskChange) + Send + Sync>;

/// The tasks of a gateway.
pub struct Tasks {
    ledger: Mutex<Ledger>,
    events: broadcast::Sender<TaskEvent>,
    observer: OnceLock<Observer>,
    asker: Asker,
    room: Room,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            ledger: Mutex::new(Ledger::new(MAX_TASKS)),
            events: broadcast::Sender::new(BACKLOG),
            observer: OnceLock::new(),
            asker: Asker::default(),
            room: Room::default(),
        }
    }
}

impl Tasks {
    /// Hears of every change of state; one that lags by 1,024 misses some.
    pub fn subscribe(&self) -> broadcast::Receiver<TaskEvent> {
        self.events.subscribe()
    }

    /// Has every change of state counted by `observer`, which is called in order, must be quick
    /// and must not call back. Only the first one is taken.
    pub fn observe(&self, observer: impl Fn(&TaskChange) + Send + Sync + 'static) {
        let _ = self.observer.set(Box::new(observer));
    }

    /// A backend has accepted a prompt.
    pub fn accepted(&self, accepted: Accepted) {
        self.change(|ledger, now| ledger.accepted(accepted, now));
    }

    /// A task was there before this process: it was made then.
    pub fn set_created(&self, backend: BackendId, id: &str, created_ms: u64) {
        self.ledger.lock().set_created(backend, id, Now::read().at_ms(created_ms));
    }

    /// It has been found out what kind of prompt a task is.
    pub fn set_kind(&self, backend: BackendId, id: &str, kind: Kind) {
        self.ledger.lock().set_kind(backend, id, kind);
    }

    /// To be taken before a backend's queue is asked for.
    pub fn mark(&self, backend: &Backend) -> Mark {
        let breaks = backend.live.breaks();
        self.ledger.lock().mark(breaks)
    }

    /// Takes a backend's queue; returns the ids whose end is to be looked up.
    pub fn saw_queue(&self, backend: BackendId, items: &QueueItems, mark: Mark) -> Vec<Arc<str>> {
        self.change(|ledger, now| ledger.saw_queue(backend, items, mark, now))
    }

    /// Takes what a backend's history says of a prompt that is no longer in its queue.
    pub fn outcome(&self, backend: BackendId, id: &str, entry: Entry, mark: Mark) {
        self.change(|ledger, now| ledger.outcome(backend, id, entry, mark, now));
    }

    /// A backend is gone for good, and what it had not finished with it.
    pub fn backend_lost(&self, backend: BackendId, why: &str) {
        self.change(|ledger, now| ledger.backend_lost(backend, why, now));
    }

    /// Somebody asked to cancel a task.
    pub fn cancelling(&self, backend: BackendId, id: &str) {
        self.ledger.lock().cancelling(backend, id);
    }

    /// A task and where it is.
    pub fn get(&self, id: &str) -> Option<(BackendId, TaskView)> {
        self.ledger.lock().get(id, Now::read())
    }

    /// How a task stands.
    pub fn state_of(&self, backend: BackendId, id: &str) -> Option<TaskState> {
        self.ledger.lock().state_of(backend, id)
    }

    /// A page of tasks, the newest first, and how many there are in all.
    pub fn list(
        &self,
        state: Option<TaskState>,
        limit: usize,
        offset: usize,
    ) -> (Vec<TaskView>, usize) {
        self.ledger.lock().list(state, limit, offset, Now::read())
    }

    /// How many tasks are in each state: open ones now, ended ones since the start.
    pub fn counts(&self) -> Counts {
        self.ledger.lock().counts()
    }

    /// Open tasks of a client.
    pub fn open_of(&self, key: ClientKey) -> usize {
        self.ledger.lock().open_of(key)
    }

    /// When the last task of a client ended, as far as is remembered.
    pub fn last_end_of(&self, key: ClientKey) -> Option<Moment> {
        self.ledger.lock().last_end_of(key)
    }

    /// Open tasks of a backend.
    pub fn open_on(&self, backend: BackendId) -> usize {
        self.ledger.lock().open_on(backend)
    }

    /// Where a client stands.
    pub fn standing_of(&self, key: ClientKey) -> ClientStanding {
        self.ledger.lock().standing_of(key, Now::read())
    }

    /// Seconds per prompt of a backend.
    pub fn mean(&self, backend: BackendId) -> Option<Mean> {
        self.ledger.lock().rates.mean(backend)
    }

    /// See [`Rates::success_rate`](rates::Rates::success_rate).
    pub fn success_rate(&self, backend: BackendId, calls: u64, failures: u64) -> f64 {
        self.ledger.lock().rates.success_rate(backend, calls, failures)
    }

    /// What was learnt of the fleet's backends, to be kept.
    pub fn records(&self, view: &View) -> BTreeMap<String, Record> {
        use std::sync::atomic::Ordering::Relaxed;
        let ledger = self.ledger.lock();
        let record = |backend: &Arc<Backend>| {
            let live = &backend.live;
            let (calls, failures) = (live.calls.load(Relaxed), live.failures.load(Relaxed));
            let record =
                ledger.rates.record(backend.id, calls, failures, live.response_seconds())?;
            Some((backend.name().to_owned(), record))
        };
        view.backends.iter().filter_map(record).collect()
    }

    /// Puts back what an earlier process learnt.
    pub fn restore(&self, fleet: &Fleet, records: &BTreeMap<String, Record>) {
        for (name, record) in records {
            let id = fleet.id_of(name);
            let mut ledger = self.ledger.lock();
            ledger.rates.restore(id, record);
            let mean = ledger.rates.mean(id);
            drop(ledger);
            if let Some(backend) = fleet.view().get(id) {
                backend.live.teach(mean.map(|mean| mean.seconds));
                backend.live.set_response_seconds(record.response_seconds);
            }
        }
    }

    /// Keeps at least so many tasks: a queue of the gateway's own may be longer than the default.
    pub fn keep_at_least(&self, tasks: usize) {
        self.ledger.lock().keep_at_least(tasks);
    }

    /// Puts back a task that an earlier process saw end; nobody is told.
    pub fn remember(&self, past: Past) {
        self.ledger.lock().remember(past);
    }

    /// Pool mode moved a task.
    pub fn placed(&self, id: &str, placed: &Placed) {
        self.change(|ledger, now| ledger.placed(id, placed, now));
    }

    /// Pool mode saw a task end.
    pub fn ended(&self, id: &str, entry: Entry, attempts: u32) {
        self.change(|ledger, now| ledger.ended(id, entry, attempts, now));
    }

    /// Seconds that a prompt of this kind takes on a backend.
    pub fn predict(&self, backend: BackendId, kind: Option<u64>) -> Option<f64> {
        self.ledger.lock().rates.predict(backend, kind)
    }

    /// Pool mode reckons when waiting tasks will have ended: id, place in the line, seconds.
    pub fn foresee(&self, reckoned: &[(Arc<str>, u32, Option<f64>)]) {
        self.ledger.lock().foresee(reckoned, Moment::now());
    }

    fn outlook(&self, backend: BackendId) -> (Option<Outlook>, Option<Mean>) {
        let ledger = self.ledger.lock();
        (ledger.outlook(backend), ledger.rates.mean(backend))
    }

    /// Changes the ledger and tells of it, in order.
    fn change<T>(&self, change: impl FnOnce(&mut Ledger, Now) -> T) -> T {
        let mut ledger = self.ledger.lock();
        let result = change(&mut ledger, Now::read());
        for (change, task) in ledger.take_changes() {
            if let Some(observer) = self.observer.get() {
                observer(&change);
            }
            let _ = self.events.send(TaskEvent { task });
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::config::{self, Endpoint};
    use crate::pace::Learnt;

    fn fleet() -> Fleet {
        let endpoint =
            Endpoint { tls: false, host: "127.0.0.1".into(), port: 1, base: String::new() };
        let spec = config::Backend {
            name: "gpu".into(),
            endpoint,
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
        let fleet = Fleet::new();
        let wanted = crate::backend::Wanted::Enabled;
        fleet.apply(vec![crate::roster::Member { spec, wanted }], |_| Learnt::default());
        fleet
    }

    fn accept(tasks: &Tasks, backend: &Backend, id: &str) {
        tasks.accepted(Accepted {
            id: id.into(),
            key: ClientKey::from_bytes([1; 16]),
            caller: "10.0.0.1".into(),
            backend: backend.id,
            backend_name: backend.name().into(),
            breaks: 0,
        });
    }

    /// Tasks whose backend has run a prompt of kind 1 for 10 s and one of kind 2 for 2 s.
    fn taught(backend: &Backend) -> Tasks {
        let tasks = Tasks::default();
        for (id, hash, seconds) in [("a", 1, 10.0), ("b", 2, 2.0)] {
            accept(&tasks, backend, id);
            tasks.set_kind(backend.id, id, Kind { hash, label: "".into() });
            let entry = Entry::Completed { run_seconds: Some(seconds) };
            let mark = tasks.mark(backend);
            tasks.outcome(backend.id, id, entry, mark);
        }
        tasks
    }

    #[test]
    fn what_was_learnt_predicts_after_a_restart() {
        let before = fleet();
        let view = before.view();
        let tasks = taught(&view.backends[0]);
        view.backends[0].live.set_response_seconds(0.25);
        let kept = serde_json::to_string(&tasks.records(&view)).unwrap();

        let after = fleet();
        let view = after.view();
        let backend = &view.backends[0];
        let tasks = Tasks::default();
        tasks.restore(&after, &serde_json::from_str(&kept).unwrap());
        assert!((backend.live.learnt().prompt_seconds - 8.4).abs() < 1e-9);
        assert!((backend.live.response_seconds() - 0.25).abs() < 1e-9);
        let ledger = tasks.ledger.lock();
        assert_eq!(ledger.rates.predict(backend.id, Some(2)), Some(2.0));
    }

    #[test]
    fn least_wait_sees_the_kinds_that_wait() {
        let fleet = fleet();
        let view = fleet.view();
        let backend = &view.backends[0];
        let tasks = taught(backend);
        for id in ["c", "d"] {
            accept(&tasks, backend, id);
            tasks.set_kind(backend.id, id, Kind { hash: 2, label: "".into() });
        }
        let pending = vec!["c".to_owned(), "d".to_owned()];
        let items = QueueItems { running: Vec::new(), pending, complete: true };
        tasks.saw_queue(backend.id, &items, tasks.mark(backend));
        let (outlook, mean) = tasks.outlook(backend.id);
        backend.live.set_outlook(outlook);
        backend.live.teach(mean.map(|mean| mean.seconds));
        let cost = |prompts| {
            backend.live.depth.pushed(prompts, Moment::now());
            backend.candidate(0, std::time::Duration::from_secs(9)).prompt_seconds
        };
        assert!((cost(2) - 2.0).abs() < 0.01, "two of the quick kind");
        // Two strangers more count the mean of 8.4 s each.
        assert!((cost(4) - (2.0 * 2.0 + 2.0 * 8.4) / 4.0).abs() < 0.01);
        assert!((cost(0) - 8.4).abs() < 0.01, "the mean, for the next one");
    }

    #[test]
    fn observers_miss_nothing_and_subscribers_hear_the_task() {
        let fleet = fleet();
        let view = fleet.view();
        let tasks = Tasks::default();
        let mut events = tasks.subscribe();
        let count = Arc::new(AtomicU64::new(0));
        let counting = Arc::clone(&count);
        tasks.observe(move |_| {
            counting.fetch_add(1, Relaxed);
        });
        for number in 0..2000 {
            accept(&tasks, &view.backends[0], &number.to_string());
        }
        assert_eq!(count.load(Relaxed), 2000);
        assert!(matches!(events.try_recv(), Err(broadcast::error::TryRecvError::Lagged(976))));
        assert_eq!(events.try_recv().unwrap().task.task_id, "976");
    }
}
