//! Which session a frame goes to.
//!
//! A session lives while it has a socket, while it is kept for one that broke, and while a prompt
//! runs under its `clientId`. Those without a socket are in the order in which they lost it, so that
//! the oldest go when there are too many.
//!
//! Locks: the registry's comes before a session's, neither is held across an await, and a session
//! that was removed is marked, so that nobody who still holds it adds to it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::registry::{Live, Registry, Slot, State};
use super::seat::Seat;
use super::session::{Attach, Session};
use super::socket::{ClientInfo, MAX_SID};
use super::status::{Board, Reader};
use super::words;
use crate::clock::Moment;
use crate::config::ClientEvents;
use crate::identity::ClientKey;
use crate::pool::frame::{Delivery, Frame};
use crate::pool::job::{JobId, Owner};

/// Sessions without a socket at most.
pub const AWAY: usize = 10_000;
/// What they may cost together.
pub const AWAY_BYTES: usize = 256 << 20;

/// When they cost too much, those go first that cost as much as this, so that one client's images
/// do not push out what thousands of others may come back for.
const WEIGHTY: usize = 64 << 10;

/// All clients' sessions.
pub struct Hub {
    registry: Mutex<Registry>,
    board: Board,
    away_bytes: AtomicUsize,
    events: Mutex<ClientEvents>,
    features: Box<dyn Fn() -> Value + Send + Sync>,
    start: Instant,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("sessions", &self.registry.lock().slots.len())
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// No sessions yet. `features` gives what `GET /features` replies, at any time.
    pub fn new(
        events: ClientEvents,
        features: impl Fn() -> Value + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            registry: Mutex::default(),
            board: Board::new(),
            away_bytes: AtomicUsize::new(0),
            events: Mutex::new(events),
            features: Box::new(features),
            start: Instant::now(),
        })
    }

    /// `pool.client_events` has changed; sockets that come from now on go by it.
    pub fn set_client_events(&self, events: ClientEvents) {
        *self.events.lock() = events;
    }

    /// Passes a frame of a job to its owner's session, and what `ComfyUI` would broadcast of a job
    /// without `client_id` to the sockets of the same caller.
    pub fn deliver(&self, delivery: Delivery) {
        let Some(sid) = delivery.owner.client_id.clone() else { return self.overhear(&delivery) };
        // No socket can have such a name.
        if sid.is_empty() || sid.len() > MAX_SID {
            return;
        }
        let now = self.now();
        self.with_session(&sid, |session| session.deliver(delivery, now));
    }

    /// An earlier process had this client, perhaps: it may come back for what it missed.
    pub fn expect(&self, sid: &Arc<str>) {
        if sid.is_empty() || sid.len() > MAX_SID {
            return;
        }
        let now = self.now();
        self.with_session(sid, |session| session.expected(now));
    }

    /// A job has ended, with or without a last frame. To be called after the last
    /// [`deliver`](Self::deliver) for it; else it would stand in the way of the next one's frames.
    pub fn ended(&self, owner: &Owner, job: JobId) {
        let now = self.now();
        self.if_known(owner, |session| session.job_ended(job, now));
    }

    /// A job has lost its server and waits to run again from its beginning.
    pub fn withdrawn(&self, owner: &Owner, job: JobId) {
        let now = self.now();
        self.if_known(owner, |session| session.job_withdrawn(job, now));
    }

    /// Tells all sockets how much the farm has queued and running. Every call is a frame for each
    /// that keeps up, as with `ComfyUI`, which repeats equal ones; those behind get the newest.
    pub fn status(&self, queue_remaining: u64) {
        self.board.publish(queue_remaining);
    }

    /// Passes any other message to a `clientId`'s socket, if it has one.
    pub fn pass(&self, sid: &str, frame: Frame) {
        let now = self.now();
        if let Some(slot) = self.slot(sid) {
            let _ = self.change(&slot, |session| session.pass(frame, now));
        }
    }

    /// Passes any other message to the sockets of those callers of whom this holds.
    pub fn pass_to(&self, holds: impl Fn(ClientKey) -> bool, frame: &Frame) {
        let now = self.now();
        for slot in self.slots_of(holds) {
            let _ = self.change(&slot, |session| session.pass(frame.clone(), now));
        }
    }

    /// The `clientId`s of a caller that have a socket, so many at most.
    pub fn sids_of(&self, caller: ClientKey, limit: usize) -> Vec<Arc<str>> {
        let registry = self.registry.lock();
        registry.callers.get(&caller).into_iter().flatten().take(limit).cloned().collect()
    }

    /// Whether previews for this `clientId` carry metadata (`supports_preview_metadata`).
    pub fn flags(&self, client_id: &str) -> bool {
        let now = self.now();
        self.slot(client_id).is_some_and(|slot| slot.state.lock().session.wants_metadata(now))
    }

    /// Whether this `clientId` has a socket.
    pub fn is_live(&self, sid: &str) -> bool {
        self.slot(sid).is_some_and(|slot| slot.state.lock().live.is_some())
    }

    /// How many `clientId`s have a socket.
    pub fn live(&self) -> usize {
        let registry = self.registry.lock();
        registry.slots.len() - registry.away.len()
    }

    /// Forgets what was kept long enough. Attaching and detaching sockets do it too; only a gateway
    /// that hears of nobody any more needs to be reminded.
    pub fn sweep(&self) {
        let now = self.now();
        let mut registry = self.registry.lock();
        // Each is looked at once: one that must stay is put behind the others.
        for _ in 0..registry.away.len() {
            let Some((_, sid)) = registry.away.first_key_value() else { return };
            let Some(slot) = registry.slots.get(sid).cloned() else { return };
            let mut state = slot.state.lock();
            state.session.expire(now);
            if state.session.is_within_time(now) {
                return;
            }
            if state.session.is_useless(now) {
                self.remove(&mut registry, &slot, &mut state);
            } else {
                state.session.stay(now);
                registry.leave(&slot, &mut state);
                self.count(&mut state);
            }
        }
    }

    pub(super) fn now(&self) -> Moment {
        Moment(self.start.elapsed().as_millis() as u64 + 1000)
    }

    fn overhear(&self, delivery: &Delivery) {
        if !words::is_broadcast(delivery.meaning, &delivery.frame) {
            return;
        }
        let now = self.now();
        let slots: Vec<_> = {
            let registry = self.registry.lock();
            let sids = registry.callers.get(&delivery.owner.key);
            sids.into_iter().flatten().filter_map(|sid| registry.slots.get(sid).cloned()).collect()
        };
        for slot in slots {
            let _ = self.change(&slot, |session| session.overhear(delivery.clone(), now));
        }
    }

    fn slots_of(&self, holds: impl Fn(ClientKey) -> bool) -> Vec<Arc<Slot>> {
        let registry = self.registry.lock();
        let callers = registry.callers.iter().filter(|(key, _)| holds(**key));
        let sids = callers.flat_map(|(_, sids)| sids);
        sids.filter_map(|sid| registry.slots.get(sid).cloned()).collect()
    }

    fn slot(&self, sid: &str) -> Option<Arc<Slot>> {
        self.registry.lock().slots.get(sid).cloned()
    }

    fn if_known(&self, owner: &Owner, change: impl FnOnce(&mut Session)) {
        if let Some(slot) = owner.client_id.as_deref().and_then(|sid| self.slot(sid)) {
            let _ = self.change(&slot, change);
        }
    }

    /// Changes the session of a `clientId`, a new one if it has none.
    fn with_session(&self, sid: &Arc<str>, change: impl FnOnce(&mut Session)) {
        let mut change = Some(change);
        // A slot that is removed between the two locks is gone from the registry, so that the next
        // round finds another or makes one.
        while let Some(apply) = change.take() {
            let slot = match self.slot(sid) {
                Some(slot) => slot,
                None => self.enter(sid),
            };
            change = self.change(&slot, apply).err();
        }
    }

    fn enter(&self, sid: &Arc<str>) -> Arc<Slot> {
        let mut registry = self.registry.lock();
        let slot = registry.enter_away(sid);
        self.evict(&mut registry);
        slot
    }

    /// Changes a session, wakes its socket, and keeps the account of those that are away. Gives the
    /// change back when the session is no longer in the registry.
    fn change<F: FnOnce(&mut Session)>(&self, slot: &Arc<Slot>, change: F) -> Result<(), F> {
        let mut state = slot.state.lock();
        if state.removed {
            return Err(change);
        }
        change(&mut state.session);
        if let Some(live) = &state.live {
            live.wake.notify_one();
            return Ok(());
        }
        self.count(&mut state);
        let useless = state.session.is_useless(self.now());
        drop(state);
        if useless || self.away_bytes.load(Relaxed) > AWAY_BYTES {
            self.tidy(slot);
        }
        Ok(())
    }

    /// Counts what an away session costs.
    fn count(&self, state: &mut State) {
        let cost = if state.live.is_none() && !state.removed { state.session.cost() } else { 0 };
        self.away_bytes.fetch_add(cost, Relaxed);
        self.away_bytes.fetch_sub(state.counted, Relaxed);
        state.counted = cost;
    }

    /// Removes a session that is of no use, then the oldest until the rest is within the bounds.
    fn tidy(&self, slot: &Arc<Slot>) {
        let mut registry = self.registry.lock();
        let mut state = slot.state.lock();
        if state.away.is_some() && state.session.is_useless(self.now()) {
            self.remove(&mut registry, slot, &mut state);
        }
        drop(state);
        self.evict(&mut registry);
    }

    fn evict(&self, registry: &mut Registry) {
        loop {
            let slot = if self.away_bytes.load(Relaxed) > AWAY_BYTES {
                registry.oldest_that(|state| state.counted >= WEIGHTY).or_else(|| registry.oldest())
            } else if registry.away.len() > AWAY {
                registry.oldest()
            } else {
                None
            };
            let Some(slot) = slot else { return };
            self.remove(registry, &slot, &mut slot.state.lock());
        }
    }

    fn remove(&self, registry: &mut Registry, slot: &Slot, state: &mut MutexGuard<'_, State>) {
        state.removed = true;
        if let Some(order) = state.away.take() {
            registry.away.remove(&order);
        }
        registry.slots.remove(&slot.sid);
        self.count(state);
    }

    /// A socket has come; it hears events from now on, and one that did before no longer does.
    pub(super) fn attach(self: &Arc<Self>, sid: &Arc<str>, client: &ClientInfo) -> (Seat, Reader) {
        self.sweep();
        let now = self.now();
        let wake = Arc::new(Notify::new());
        let mut registry = self.registry.lock();
        registry.counter += 1;
        let number = registry.counter;
        let slot = registry.slots.get(sid).cloned().unwrap_or_else(|| registry.enter_away(sid));
        let mut state = slot.state.lock();
        if let Some(order) = state.away.take() {
            registry.away.remove(&order);
        }
        let (queue_remaining, reader) = self.board.subscribe(now);
        let events = *self.events.lock();
        let attach = Attach { sid, queue_remaining, events, has_origin: client.has_origin };
        state.session.attached(now, &attach);
        if let Some(old) = state.live.replace(Live { number, key: client.key, wake: wake.clone() })
        {
            registry.forget_caller(old.key, sid);
            old.wake.notify_one();
        }
        registry.callers.entry(client.key).or_default().insert(Arc::clone(sid));
        self.count(&mut state);
        drop(state);
        (Seat::new(self, slot, number, wake), reader)
    }

    pub(super) fn board(&self) -> &Board {
        &self.board
    }

    pub(super) fn features(&self) -> Value {
        (self.features)()
    }

    pub(super) fn detach(&self, slot: &Arc<Slot>, number: u64, abnormal: bool) {
        let mut registry = self.registry.lock();
        let mut state = slot.state.lock();
        let Some(live) = state.live.take_if(|live| live.number == number) else { return };
        registry.forget_caller(live.key, &slot.sid);
        state.session.detached(abnormal, self.now());
        registry.leave(slot, &mut state);
        self.count(&mut state);
        if state.session.is_useless(self.now()) {
            self.remove(&mut registry, slot, &mut state);
        }
        drop(state);
        self.evict(&mut registry);
        drop(registry);
        self.sweep();
    }
}
