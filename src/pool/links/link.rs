//! The two event sockets of one backend, kept open for as long as it is part of the fleet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;

use super::backoff::Backoff;
use super::connect::connect;
use super::echo::Echo;
use super::life::{Ear, Manner, live};
use super::{Listener, Shared};
use crate::backend::{Backend, BackendId, Live, Standing};
use crate::clock::Moment;
use crate::health::Health;
use crate::pool::events::Flavour;
use crate::pool::frame::Frame;

/// A backend as its sockets see it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: BackendId,
    pub(super) live: Arc<Live>,
    pub(super) echo: Echo,
    sides: [Side; 2],
}

/// One of its event sockets.
#[derive(Debug, Default)]
struct Side {
    open: AtomicBool,
    /// When it heard a broadcast last.
    status: AtomicU64,
    reopen: Notify,
}

impl Link {
    pub(super) fn new(backend: &Backend) -> Self {
        Self {
            id: backend.id,
            live: Arc::clone(&backend.live),
            echo: Echo::default(),
            sides: Default::default(),
        }
    }

    pub(super) fn is_open(&self, flavour: Flavour) -> bool {
        self.side(flavour).open.load(Relaxed)
    }

    pub(super) fn reopen(&self) {
        for side in &self.sides {
            side.reopen.notify_waiters();
        }
    }

    fn side(&self, flavour: Flavour) -> &Side {
        &self.sides[flavour.index()]
    }

    /// Waits until the backend is up, and gives it as it is now; `None` once it is gone.
    pub(super) async fn up(&self, shared: &Shared) -> Option<Arc<Backend>> {
        let mut standing = self.live.watch();
        loop {
            let up = standing.wait_for(|s| s.removed || s.health == Health::Up);
            let gone = tokio::select! {
                biased;
                () = shared.stop().cancelled_owned() => true,
                standing = up => standing.map_or(true, |standing| standing.removed),
            };
            if gone {
                return None;
            }
            if let Some(backend) = self.current(shared) {
                return Some(backend);
            }
            standing.changed().await.ok()?;
        }
    }

    /// The backend as it is now, unless another has taken its name.
    fn current(&self, shared: &Shared) -> Option<Arc<Backend>> {
        let backend = shared.fleet.view().get(self.id).cloned()?;
        Arc::ptr_eq(&backend.live, &self.live).then_some(backend)
    }

    /// Ends when a socket to this backend must be closed: it is no longer there, or elsewhere, or
    /// the gateway ends. One that is down or disabled keeps its sockets: its prompts may run on.
    pub(super) async fn left(&self, backend: &Backend, shared: &Shared) {
        let mut standing = self.live.watch();
        let elsewhere = async {
            let is_there = |now: Option<Arc<Backend>>| {
                now.is_some_and(|now| now.spec.endpoint == backend.spec.endpoint)
            };
            while is_there(self.current(shared)) && standing.changed().await.is_ok() {}
        };
        tokio::select! {
            () = elsewhere => {}
            () = shared.stop().cancelled_owned() => {}
        }
    }

    /// Pauses after a failure; a backend that comes back ends the pause.
    pub(super) async fn pause(&self, backoff: &mut Backoff, shared: &Shared) {
        let mut standing = self.live.watch();
        let back = async {
            let down = |s: &Standing| s.removed || s.health != Health::Up;
            let up = |s: &Standing| s.removed || s.health == Health::Up;
            // They fail only when the backend is gone, which ends the pause as well.
            let _ = standing.wait_for(down).await;
            let _ = standing.wait_for(up).await;
        };
        let pause = backoff.pause(rand::random());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = back => backoff.reset(),
            () = shared.stop().cancelled_owned() => {}
        }
    }
}

/// Keeps one event socket open.
pub(super) async fn keep(link: Arc<Link>, flavour: Flavour, shared: Arc<Shared>) {
    let sid = shared.sids.of(flavour);
    let _turn = shared.turns.take(link.id, &sid).await;
    let side = link.side(flavour);
    let (mut backoff, mut doubtful) = (Backoff::default(), false);
    while let Some(backend) = link.up(&shared).await {
        let options = shared.options.load_full();
        let connected = tokio::select! {
            connected = connect(&backend, &sid, &options) => connected,
            () = link.left(&backend, &shared) => None,
        };
        if let Some(socket) = connected {
            let manner = Manner { sid: &sid, flags: flavour == Flavour::Flags, doubtful };
            let mut ear = EventEar { link: &link, flavour, listener: &*shared.listener };
            let until = async {
                tokio::select! {
                    () = link.left(&backend, &shared) => {}
                    () = side.reopen.notified() => {}
                }
            };
            let ended = live(socket, manner, &mut ear, link.live.watch(), until).await;
            shared.listener.lost(link.id, flavour);
            doubtful = !ended.confirmed;
            if ended.was_well {
                backoff.reset();
            }
        }
        link.pause(&mut backoff, &shared).await;
    }
}

struct EventEar<'a> {
    link: &'a Link,
    flavour: Flavour,
    listener: &'a dyn Listener,
}

impl EventEar<'_> {
    fn side(&self) -> &Side {
        self.link.side(self.flavour)
    }
}

impl Ear for EventEar<'_> {
    fn opened(&mut self) {
        self.side().open.store(true, Relaxed);
        self.listener.opened(self.link.id, self.flavour);
    }

    fn closing(&mut self) {
        self.side().open.store(false, Relaxed);
    }

    fn heard(&mut self, frame: Frame, now: Moment) {
        self.link.live.event(now);
        self.link.echo.heard(&frame, now);
        self.listener.heard(self.link.id, self.flavour, frame);
    }

    fn status(&mut self, now: Moment) {
        self.side().status.store(now.0, Relaxed);
    }

    fn sibling(&self) -> Moment {
        Moment(self.link.side(self.flavour.other()).status.load(Relaxed))
    }
}
