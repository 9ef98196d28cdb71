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
//! [`table`] knows who wants what and has what; here it is done. Bounds: [`MAX`](table::MAX) clients
//! have a companion; of a caller with many clients, those that a request names and
//! [`OF_ONE_CALLER`] more.

mod table;

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
use table::{Table, Wish};

/// Of the clients of one caller, so many get one when a request does not say whose it is.
const OF_ONE_CALLER: usize = 16;
/// Homes are looked at again no more often than this.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a client that subscribes waits for its home's word.
const SUBSCRIBING: Duration = Duration::from_secs(5);
/// A subscription that failed is tried again after this, so many times; a companion that is opened
/// anew begins anew.
const AGAIN: Duration = Duration::from_secs(1);
const TRIES: u32 = 10;

/// How requests to custom nodes name the sid that is to hear of them.
const NAMES: [&str; 3] = ["clientId", "client_id", "sid"];

/// The clients that have, or may get, a companion.
pub(super) struct Companions {
    table: Mutex<Table<Companion>>,
    /// A subscription was told to a home.
    told: watch::Sender<()>,
    /// Somebody wants a companion where there is none.
    wanted: Notify,
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
            let mut sids = self.hub.sids_of(key, OF_ONE_CALLER);
            sids.extend(named.map(Arc::from));
            let wanting = self.companions.table.lock().asked(key, sids, Moment::now());
            for sid in wanting {
                self.accompany(&sid, home);
            }
        }
    }

    /// Has a client's companion open at this backend, and nowhere else.
    fn accompany(self: &Arc<Self>, sid: &Arc<str>, home: BackendId) {
        let mut table = self.companions.table.lock();
        let Some(key) = table.key_of(sid).filter(|_| table.makes_room(sid, home)) else {
            return;
        };
        let (hub, to) = (Arc::clone(&self.hub), Arc::clone(sid));
        let on_frame = Box::new(move |frame| hub.pass_from_home(key, &to, frame));
        let (pool, of) = (Arc::downgrade(self), Arc::clone(sid));
        let on_open = Box::new(move || {
            if let Some(pool) = pool.upgrade() {
                pool.accompanied(&of, home);
            }
        });
        if let Some(companion) = self.links.companion(home, sid, on_frame, on_open) {
            table.opened(sid, home, companion);
        }
    }

    /// A companion is open, for the first time or again: a subscription is to be told.
    fn accompanied(self: &Arc<Self>, sid: &Arc<str>, home: BackendId) {
        self.companions.table.lock().forgot(sid, home);
        tokio::spawn(Arc::clone(self).tell_subscription(Arc::clone(sid), home));
    }

    /// Tells a home what its client wants of the terminal, until it has heard.
    async fn tell_subscription(self: Arc<Self>, sid: Arc<str>, home: BackendId) {
        for _ in 0..TRIES {
            let untold = self.companions.table.lock().untold(&sid, home);
            let Some(enabled) = untold else { break };
            let Some(backend) = self.fleet.view().get(home).cloned() else { return };
            if self.patch_subscription(&backend, &sid, enabled).await {
                self.companions.table.lock().told(&sid, home, enabled);
            } else {
                sleep(AGAIN).await;
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
        let wish = self.companions.table.lock().subscribe(sid, key, enabled);
        let Some(Wish { sid, zone, .. }) = wish else { return };
        let mut told = self.companions.told.subscribe();
        if let Some(home) = self.home_of(key, zone.as_deref()) {
            self.accompany(&sid, home);
            // One that is not open yet tells when it is.
            if self.companions.table.lock().is_open_at(&sid, home) {
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
