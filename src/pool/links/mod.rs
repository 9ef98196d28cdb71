//! The gateway's own sockets to its backends.
//!
//! [`Links`] keeps two event sockets to each backend, one of each [`Flavour`], under sids that stay
//! the same over restarts ([`Sids`]); what they hear goes to a [`Listener`]. [`Companion`]s carry
//! what a backend addresses to one client. For each backend:
//!
//! ```text
//! link     keeps an event socket open: waits for the backend, connects, lives, pauses (backoff)
//! connect  the handshake               life     one socket from its handshake to its end
//! vitals   whether it really hears     turns    one socket per sid at a time
//! companion, filter, echo              a client's socket, and what of it is for that client
//! ```
//!
//! Hazards: `ComfyUI` forgets a new socket when the old one under the same sid ends, so an old one is
//! always closed and heard out first; while a socket is away its events are gone for good, and the
//! core has to ask. Bounds: a message has 256 MiB at most; nothing is queued here, a listener that
//! takes its time holds that socket up.

mod backoff;
mod companion;
mod connect;
mod echo;
mod filter;
mod life;
mod link;
mod sids;
#[cfg(test)]
mod tests;
mod turns;
mod vitals;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use companion::{Companion, OnFrame, OnOpen};
pub use connect::Options;
pub use sids::Sids;

use super::events::Flavour;
use super::frame::Frame;
use crate::backend::{Backend, BackendId};
use crate::clock::Moment;
use crate::fleet::{Fleet, View};
use link::Link;
use turns::Turns;

/// Hears what backends say. Called from the task that reads the socket, in its order, so it must
/// be quick and must not block; the two sockets of a backend call independently of each other.
pub trait Listener: Send + Sync {
    /// A message.
    fn heard(&self, backend: BackendId, flavour: Flavour, frame: Frame);

    /// The server has shown that it knows the socket. Its first messages may have come before.
    fn opened(&self, backend: BackendId, flavour: Flavour);

    /// A socket has ended, whether it had been reported open or not; another one will follow while
    /// the backend is there. What was sent meanwhile is lost.
    fn lost(&self, backend: BackendId, flavour: Flavour);
}

/// The sockets to all backends. Dropping it ends them.
pub struct Links {
    shared: Arc<Shared>,
}

/// What all sockets share.
struct Shared {
    fleet: Arc<Fleet>,
    sids: Sids,
    options: ArcSwap<Options>,
    listener: Arc<dyn Listener>,
    links: Mutex<HashMap<BackendId, Arc<Link>>>,
    turns: Turns,
    tasks: TaskTracker,
    stop: Mutex<CancellationToken>,
}

impl Links {
    /// Opens sockets to every backend of the fleet, now and later.
    pub fn start(
        fleet: Arc<Fleet>,
        sids: Sids,
        options: Options,
        listener: Arc<dyn Listener>,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            fleet,
            sids,
            options: ArcSwap::from_pointee(options),
            listener,
            links: Mutex::default(),
            turns: Turns::default(),
            tasks: TaskTracker::new(),
            stop: Mutex::new(CancellationToken::new()),
        });
        shared.tasks.spawn(follow_all(Arc::clone(&shared)));
        Arc::new(Self { shared })
    }

    /// Opens sockets differently from now on.
    pub fn set_options(&self, options: Options) {
        self.shared.options.store(Arc::new(options));
    }

    /// The sids that prompts are posted under.
    pub fn sids(&self) -> &Sids {
        &self.shared.sids
    }

    /// Whether both sockets to a backend are open, so that it may get prompts.
    pub fn is_ready(&self, backend: BackendId) -> bool {
        let link = self.shared.link(backend);
        link.is_some_and(|link| Flavour::ALL.into_iter().all(|flavour| link.is_open(flavour)))
    }

    /// Closes a backend's event sockets and opens them again: something shows that it speaks and
    /// is not heard, such as a prompt that its queue tells of and no event does.
    pub fn reopen(&self, backend: BackendId) {
        if let Some(link) = self.shared.link(backend) {
            link.reopen();
        }
    }

    /// Opens a socket for a client under its own sid to its home. `None` when the backend is not
    /// there or the sid cannot be a client's.
    pub fn companion(
        &self,
        backend: BackendId,
        sid: &str,
        on_frame: OnFrame,
        on_open: OnOpen,
    ) -> Option<Companion> {
        let shared = &self.shared;
        let is_a_clients = !sid.is_empty() && sid.len() <= companion::MAX_SID;
        if !is_a_clients || shared.sids.flavour(sid).is_some() || shared.stop().is_cancelled() {
            return None;
        }
        let link = shared.link(backend)?;
        let stop = shared.stop().child_token();
        let companion = Companion::new(stop.clone());
        let keeping =
            companion::keep(link, sid.to_owned(), (on_frame, on_open), stop, Arc::clone(shared));
        shared.tasks.spawn(keeping);
        Some(companion)
    }

    /// Closes every socket and waits for their ends, some seconds at most; afterwards another
    /// process may use the sids.
    pub async fn close(&self) {
        self.shared.stop().cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Links {
    /// Opens sockets again after a [`close`](Self::close).
    pub fn reopen_all(&self) {
        let shared = &self.shared;
        *shared.stop.lock() = CancellationToken::new();
        shared.links.lock().clear();
        shared.tasks.reopen();
        shared.tasks.spawn(follow_all(Arc::clone(shared)));
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.stop().cancel();
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let followed = self.shared.links.lock().len();
        f.debug_struct("Links").field("followed", &followed).finish_non_exhaustive()
    }
}

impl Shared {
    /// Ends what there is of sockets now.
    fn stop(&self) -> CancellationToken {
        self.stop.lock().clone()
    }

    fn link(&self, backend: BackendId) -> Option<Arc<Link>> {
        self.links.lock().get(&backend).cloned()
    }
}

async fn follow_all(shared: Arc<Shared>) {
    let mut changed = shared.fleet.watch();
    let mut seen: Option<Arc<View>> = None;
    loop {
        // The fleet also tells of every reading; only another set of backends matters here.
        let view = shared.fleet.view().clone();
        if !seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &view)) {
            follow(&shared, &view);
            seen = Some(view);
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = shared.stop().cancelled_owned() => return,
        }
    }
}

/// Starts to follow what is new; what is gone ends by itself.
fn follow(shared: &Arc<Shared>, view: &View) {
    let mut links = shared.links.lock();
    links.retain(|&id, _| view.get(id).is_some());
    for backend in &view.backends {
        let known = links.get(&backend.id);
        // A name that went and came back has another live part.
        if known.is_some_and(|known| Arc::ptr_eq(&known.live, &backend.live)) {
            continue;
        }
        let link = Arc::new(Link::new(backend));
        links.insert(backend.id, Arc::clone(&link));
        for flavour in Flavour::ALL {
            shared.tasks.spawn(link::keep(Arc::clone(&link), flavour, Arc::clone(shared)));
        }
    }
}

/// Takes the `queue_remaining` of a status event, for the choice of backends and for readers.
pub fn took_depth(backend: &Backend, fleet: &Fleet, remaining: u32, now: Moment) {
    let live = &backend.live;
    live.depth.pushed(remaining, now);
    live.saw_depth(remaining, now);
    live.moved.notify_one();
    fleet.touch();
}

/// Takes the loss of a socket: the backend may have restarted, and is looked at soon.
pub fn took_loss(backend: &Backend) {
    backend.live.broke();
    backend.live.poke.notify_one();
}
