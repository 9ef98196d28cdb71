//! Which clients have a companion socket, and where: to their home backend, under their own sid.
//!
//! A custom node's own route may answer by a message to the sid that the page named, and the
//! terminal's lines go to the sids that subscribed; both are known only at the backend that was
//! asked. So a client gets a companion ([`links`](super::links)) once it may need one, and not
//! before, since idle pages are thousands: when its caller asks its home for a custom node's route
//! (a page may do that before its socket is there, so that is remembered for a while), or when it
//! subscribes to the terminal. From then on it is open while the client's own socket is, and moves
//! with the home: at the next request, or soon after the home has gone down.
//!
//! The subscription to the terminal is kept here and told to each backend that becomes the home, as
//! `ComfyUI` forgets a sid whose socket is not there.
//!
//! Bounds: [`MAX`] clients have one; of a caller with many clients, those that a request names and
//! [`OF_ONE_CALLER`] more. Of callers [`ASKERS`] are remembered at most; of clients that left, none
//! once there are [`KEPT`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::Pool;
use super::links::Companion;
use super::merged::fetch::{Bounds, Question};
use super::way::is_a_custom_nodes;
use crate::backend::{Backend, BackendId};
use crate::clock::Moment;
use crate::comfy::routes::query_value;
use crate::identity::ClientKey;

/// Companion sockets at most.
const MAX: usize = 4096;
/// Of the clients of one caller, so many get one when a request does not say whose it is.
const OF_ONE_CALLER: usize = 16;
/// Callers at most who are remembered for having asked a custom node.
const ASKERS: usize = 10_000;
/// How long a caller is remembered, and a client after its socket ended.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Homes are looked at again no more often than this.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a client that subscribes waits for its home's word.
const SUBSCRIBING: Duration = Duration::from_secs(5);
/// A subscription that failed is tried again after this, so many times; a companion that is opened
/// anew begins anew.
const AGAIN: Duration = Duration::from_secs(1);
const TRIES: u32 = 10;
/// Clients at most of which one that left is remembered.
const KEPT: usize = 20_000;

/// How requests to custom nodes name the sid that is to hear of them.
const NAMES: [&str; 3] = ["clientId", "client_id", "sid"];

/// The clients that have, or may get, a companion.
pub(super) struct Companions {
    table: Mutex<Table>,
    /// A subscription was told to a home.
    told: watch::Sender<()>,
    /// Somebody wants a companion where there is none.
    wanted: Notify,
}

#[derive(Default)]
struct Table {
    clients: HashMap<Arc<str>, Client>,
    askers: HashMap<ClientKey, Moment>,
    open: usize,
}

/// A client with a socket, or one that had one a while ago and wanted a companion.
struct Client {
    key: ClientKey,
    zone: Option<Box<str>>,
    sockets: usize,
    left: Moment,
    /// It gets a companion while it has a socket.
    wants: bool,
    /// It has subscribed to the terminal.
    logs: bool,
    /// Where the last word on that was heard.
    told: Option<(BackendId, bool)>,
    companion: Option<(BackendId, Companion)>,
}

/// A client's socket; it has ended when this is dropped.
pub struct Present {
    pool: Weak<Pool>,
    sid: Arc<str>,
}

impl Drop for Present {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.companions.table.lock().left(&self.sid, Moment::now());
        }
    }
}

impl Default for Companions {
    fn default() -> Self {
        let told = watch::Sender::new(());
        Self { table: Mutex::default(), told, wanted: Notify::new() }
    }
}

impl Table {
    /// A socket has come. Another caller's under the same sid inherits nothing.
    fn came(&mut self, sid: &Arc<str>, key: ClientKey, zone: Option<&str>, now: Moment) -> bool {
        let asked = self.askers.get(&key).is_some_and(|at| now.since(*at) < REMEMBERED);
        if self.clients.get(sid).is_some_and(|client| client.key != key) {
            self.close(sid);
        }
        let sockets = self.clients.get(sid).map_or(0, |client| client.sockets);
        let client = match self.clients.entry(Arc::clone(sid)) {
            Entry::Occupied(known) if known.get().key == key => known.into_mut(),
            Entry::Occupied(mut other) => {
                other.insert(Client::new(key, zone, sockets));
                other.into_mut()
            }
            Entry::Vacant(free) => free.insert(Client::new(key, zone, 0)),
        };
        client.sockets += 1;
        client.wants |= asked;
        client.wants
    }

    fn left(&mut self, sid: &str, now: Moment) {
        let Some(client) = self.clients.get_mut(sid) else { return };
        client.sockets = client.sockets.saturating_sub(1);
        if client.sockets > 0 {
            return;
        }
        client.left = now;
        let keeps = client.wants && self.clients.len() <= KEPT;
        self.close(sid);
        if !keeps {
            self.clients.remove(sid);
        }
    }

    fn close(&mut self, sid: &str) {
        if let Some(client) = self.clients.get_mut(sid) {
            client.told = None;
            self.open -= usize::from(client.companion.take().is_some());
        }
    }

    /// A caller has asked its home for a custom node's route.
    fn asked(&mut self, key: ClientKey, now: Moment) {
        if self.askers.len() >= ASKERS && !self.askers.contains_key(&key) {
            self.askers.retain(|_, at| now.since(*at) < REMEMBERED);
            if self.askers.len() >= ASKERS {
                self.askers.clear();
            }
        }
        self.askers.insert(key, now);
    }

    /// Marks a caller's client as one that wants a companion.
    fn want(&mut self, sid: &str, key: ClientKey) -> bool {
        let client = self.clients.get_mut(sid).filter(|client| client.key == key);
        client.map(|client| client.wants = true).is_some()
    }

    /// Those that want one now, and where theirs is.
    fn wanting(&self) -> Vec<Wish> {
        let here = self.clients.iter().filter(|(_, client)| client.wants && client.sockets > 0);
        here.map(|(sid, client)| Wish {
            sid: Arc::clone(sid),
            key: client.key,
            zone: client.zone.clone(),
            at: client.companion.as_ref().map(|(at, _)| *at),
        })
        .collect()
    }

    /// Forgets those who left long ago.
    fn sweep(&mut self, now: Moment) {
        self.clients.retain(|_, client| client.sockets > 0 || now.since(client.left) < REMEMBERED);
        self.askers.retain(|_, at| now.since(*at) < REMEMBERED);
    }
}

/// What a client wants.
struct Wish {
    sid: Arc<str>,
    key: ClientKey,
    zone: Option<Box<str>>,
    at: Option<BackendId>,
}

impl Client {
    fn new(key: ClientKey, zone: Option<&str>, sockets: usize) -> Self {
        let zone = zone.map(Into::into);
        let left = Moment::default();
        let (wants, logs, told, companion) = (false, false, None, None);
        Self { key, zone, sockets, left, wants, logs, told, companion }
    }
}

impl Pool {
    /// A client's socket has come under this sid.
    pub fn came(self: &Arc<Self>, sid: &str, key: ClientKey, zone: Option<&str>) -> Present {
        let sid: Arc<str> = sid.into();
        if self.companions.table.lock().came(&sid, key, zone, Moment::now()) {
            self.companions.wanted.notify_one();
        }
        Present { pool: Arc::downgrade(self), sid }
    }

    /// A request goes to its caller's home: one for a custom node's route may be answered by a
    /// message to the caller's client.
    pub fn goes_home(
        self: &Arc<Self>,
        method: &Method,
        target: &str,
        key: ClientKey,
        home: BackendId,
    ) {
        if is_a_custom_nodes(method, target) {
            let named = NAMES.into_iter().find_map(|name| query_value(target, name));
            self.asked_home(key, named, home);
        }
    }

    /// A caller asks its home, perhaps naming a sid, for what a custom node answers.
    fn asked_home(self: &Arc<Self>, key: ClientKey, named: Option<&str>, home: BackendId) {
        let sids = self.hub.sids_of(key, OF_ONE_CALLER);
        let mut wanting = Vec::new();
        {
            let mut table = self.companions.table.lock();
            table.asked(key, Moment::now());
            let sids = sids.into_iter().chain(named.map(Arc::from));
            wanting.extend(sids.filter(|sid| table.want(sid, key)));
        }
        for sid in wanting {
            self.accompany(&sid, home);
        }
    }

    /// Has a client's companion open at this backend, and nowhere else.
    fn accompany(self: &Arc<Self>, sid: &Arc<str>, home: BackendId) {
        let mut table = self.companions.table.lock();
        let Some(client) = table.clients.get(sid).filter(|client| client.sockets > 0) else {
            return;
        };
        if client.companion.as_ref().is_some_and(|(at, _)| *at == home) {
            return;
        }
        table.close(sid);
        if table.open >= MAX {
            return;
        }
        let (hub, to) = (Arc::clone(&self.hub), Arc::clone(sid));
        let on_frame = Box::new(move |frame| hub.pass(&to, frame));
        let (pool, of) = (Arc::downgrade(self), Arc::clone(sid));
        let on_open = Box::new(move || {
            if let Some(pool) = pool.upgrade() {
                pool.accompanied(&of, home);
            }
        });
        let opened = self.links.companion(home, sid, on_frame, on_open);
        table.open += usize::from(opened.is_some());
        if let Some(client) = table.clients.get_mut(sid) {
            client.companion = opened.map(|companion| (home, companion));
        }
    }

    /// A companion is open, for the first time or again: a subscription is to be told.
    fn accompanied(self: &Arc<Self>, sid: &Arc<str>, home: BackendId) {
        if let Some(client) = self.companions.table.lock().clients.get_mut(sid) {
            client.told = None;
        }
        tokio::spawn(Arc::clone(self).tell_subscription(Arc::clone(sid), home));
    }

    /// Tells a home what its client wants of the terminal, until it has heard.
    async fn tell_subscription(self: Arc<Self>, sid: Arc<str>, home: BackendId) {
        for _ in 0..TRIES {
            let untold = self.companions.table.lock().untold(&sid, home);
            let Some(enabled) = untold else { break };
            let Some(backend) = self.fleet.view().get(home).cloned() else { return };
            if !self.patch_subscription(&backend, &sid, enabled).await {
                sleep(AGAIN).await;
            } else if let Some(client) = self.companions.table.lock().clients.get_mut(&sid) {
                client.told = Some((home, enabled));
            }
        }
        self.companions.told.send_replace(());
    }

    async fn patch_subscription(&self, home: &Arc<Backend>, sid: &str, enabled: bool) -> bool {
        let body = json!({"clientId": sid, "enabled": enabled}).to_string().into();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let path = "/internal/logs/subscribe";
        let question = Question { method: Method::PATCH, path, headers, body };
        let bounds = Bounds { bytes: 64 << 10, time: SUBSCRIBING, ..Bounds::default() };
        let answer = self.fetcher.ask(home, question, bounds).await;
        // A server that has no such route, or does not want it, is not asked again.
        answer.is_ok_and(|answer| !answer.status.is_server_error())
    }

    /// A client subscribes to its home's terminal, or no longer does. Returns when the home has
    /// heard of it, or after a while: it will hear of it then. One without a socket, or another
    /// caller's, is no subscriber.
    pub(super) async fn subscribe(self: &Arc<Self>, sid: &str, key: ClientKey, enabled: bool) {
        let zone = {
            let mut table = self.companions.table.lock();
            let known = table.clients.get_mut(sid);
            let Some(client) = known.filter(|c| c.key == key && c.sockets > 0) else { return };
            client.logs = enabled;
            client.wants |= enabled;
            if !client.wants {
                return;
            }
            client.zone.clone()
        };
        let sid: Arc<str> = sid.into();
        let mut told = self.companions.told.subscribe();
        if let Some(home) = self.home_of(key, zone.as_deref()) {
            self.accompany(&sid, home);
            let at = self.companions.table.lock().at(&sid);
            if at.is_some_and(|(at, open)| at == home && open) {
                tokio::spawn(Arc::clone(self).tell_subscription(Arc::clone(&sid), home));
            }
        }
        let heard = |(): &()| self.companions.table.lock().has_told(&sid, enabled);
        let _ = timeout(SUBSCRIBING, told.wait_for(heard)).await;
    }

    fn home_of(&self, key: ClientKey, zone: Option<&str>) -> Option<BackendId> {
        self.gateway.upgrade()?.home_of(key, zone).map(|home| home.id)
    }

    /// Moves companions along with their clients' homes, for as long as the process lives.
    pub(super) async fn keep_companions(self: Arc<Self>) {
        let mut changes = self.fleet.watch();
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.companions.wanted.notified() => {}
            }
            let wishes = self.companions.table.lock().wanting();
            for wish in wishes {
                if let Some(home) = self.home_of(wish.key, wish.zone.as_deref())
                    && wish.at != Some(home)
                {
                    self.accompany(&wish.sid, home);
                }
            }
            self.companions.table.lock().sweep(Moment::now());
            sleep(PAUSE).await;
        }
    }
}

impl Table {
    /// What a client's home still has to be told of its subscription.
    fn untold(&mut self, sid: &str, home: BackendId) -> Option<bool> {
        let client = self.clients.get_mut(sid)?;
        client.companion.as_ref().filter(|(at, _)| *at == home)?;
        // One that was never told of any has none.
        let told = client.told.get_or_insert((home, false));
        (*told != (home, client.logs)).then_some(client.logs)
    }

    /// Where a client's companion is, and whether it has been open there.
    fn at(&self, sid: &str) -> Option<(BackendId, bool)> {
        let client = self.clients.get(sid)?;
        let (at, _) = client.companion.as_ref()?;
        Some((*at, client.told.is_some()))
    }

    /// Whether a client's home knows what it wants of the terminal.
    fn has_told(&self, sid: &str, enabled: bool) -> bool {
        let told = self.clients.get(sid).and_then(|client| client.told);
        told.is_some_and(|(_, told)| told == enabled)
    }
}
