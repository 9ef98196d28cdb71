//! Companion sockets: to a client's home backend under the client's own sid, for what is addressed
//! to that sid there: the terminal's lines, custom nodes' messages.
//!
//! Of what comes on it only that passes (see [`filter`](super::filter)); what the client says stays
//! at the gateway. It is reopened like any other socket, and a new one for the same sid waits for
//! the old one's end.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

use super::Shared;
use super::backoff::Backoff;
use super::connect::connect;
use super::filter::{Filter, Way, way};
use super::life::{Ear, Manner, live};
use super::link::Link;
use crate::clock::Moment;
use crate::pool::events::{Flavour, parse};
use crate::pool::frame::Frame;

/// A longer sid would not fit into a request to `ComfyUI`.
pub(super) const MAX_SID: usize = 1024;

/// Gets what is for the client. It must not block.
pub type OnFrame = Box<dyn Fn(Frame) + Send + Sync>;

/// Hears that the backend has shown that it knows the socket: once for each that was opened. It
/// must not block.
pub type OnOpen = Box<dyn Fn() + Send + Sync>;

/// A companion socket; it ends when this is dropped.
#[derive(Debug)]
pub struct Companion {
    _stop: DropGuard,
}

impl Companion {
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { _stop: stop.drop_guard() }
    }
}

/// Keeps a companion socket open until it is stopped.
pub(super) async fn keep(
    link: Arc<Link>,
    sid: String,
    (on_frame, on_open): (OnFrame, OnOpen),
    stop: CancellationToken,
    shared: Arc<Shared>,
) {
    let turn = tokio::select! {
        turn = shared.turns.take(link.id, &sid) => turn,
        () = stop.cancelled() => return,
    };
    let comparing = link.echo.compare();
    let filter = Filter::default();
    let mut ear = CompanionEar { link: &link, filter, on_frame: &on_frame, on_open: &on_open };
    let (mut backoff, mut doubtful) = (Backoff::default(), false);
    loop {
        let connecting = async {
            let backend = link.up(&shared).await?;
            let options = shared.options.load_full();
            Some((connect(&backend, &sid, &options).await, backend))
        };
        let connected = tokio::select! {
            connected = connecting => connected,
            () = stop.cancelled() => None,
        };
        let Some((socket, backend)) = connected else { break };
        if let Some(socket) = socket {
            let manner = Manner { sid: &sid, flags: false, doubtful };
            let until = async {
                tokio::select! {
                    () = link.left(&backend, &shared) => {}
                    () = stop.cancelled() => {}
                }
            };
            let ended = live(socket, manner, &mut ear, link.live.watch(), until).await;
            doubtful = !ended.confirmed;
            if ended.was_well {
                backoff.reset();
            }
        }
        tokio::select! {
            () = link.pause(&mut backoff, &shared) => {}
            () = stop.cancelled() => break,
        }
    }
    drop((comparing, turn));
}

struct CompanionEar<'a> {
    link: &'a Link,
    filter: Filter,
    on_frame: &'a OnFrame,
    on_open: &'a OnOpen,
}

impl CompanionEar<'_> {
    /// While no event socket is there to compare with, nothing that needs it passes.
    fn can_compare(&self) -> bool {
        Flavour::ALL.into_iter().any(|flavour| self.link.is_open(flavour))
    }
}

impl Ear for CompanionEar<'_> {
    fn opened(&mut self) {
        (self.on_open)();
    }

    fn heard(&mut self, frame: Frame, now: Moment) {
        match way(&parse(&frame)) {
            Way::Pass => (self.on_frame)(frame),
            Way::Drop => {}
            Way::Hold if !self.can_compare() => {}
            Way::Hold => {
                let hash = self.link.echo.hash(&frame);
                self.filter.hold(frame, hash, now);
            }
        }
    }

    fn due(&mut self, now: Moment) -> Option<Moment> {
        let can_compare = self.can_compare();
        let known = |hash, at| !can_compare || self.link.echo.knows(hash, at);
        for frame in self.filter.release(now, known) {
            (self.on_frame)(frame);
        }
        self.filter.next()
    }
}
