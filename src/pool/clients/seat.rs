//! A socket's place at its session.

use std::sync::Arc;

use tokio::sync::Notify;

use super::hub::Hub;
use super::registry::Slot;
use super::session::{Next, Session};
use super::words;
use crate::pool::frame::Frame;

/// What a socket is to write.
pub(super) enum Turn {
    /// This.
    Frame(Frame),
    /// Nothing for now.
    Wait,
    /// Another socket hears the events.
    Replaced,
    /// End.
    Cut,
}

/// A socket's place at its session. Dropped, it counts as a broken connection.
pub(super) struct Seat {
    hub: Arc<Hub>,
    slot: Arc<Slot>,
    number: u64,
    wake: Arc<Notify>,
    is_over: bool,
}

impl Seat {
    pub(super) fn new(hub: &Arc<Hub>, slot: Arc<Slot>, number: u64, wake: Arc<Notify>) -> Self {
        Self { hub: Arc::clone(hub), slot, number, wake, is_over: false }
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Does something with the session, if this socket is still the one that hears it.
    pub(super) fn session<T>(&self, ask: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let mut state = self.slot.state.lock();
        let mine = state.live.as_ref().is_some_and(|live| live.number == self.number);
        mine.then(|| ask(&mut state.session))
    }

    /// What to write next of what the gateway itself says.
    pub(super) fn own_word(&self) -> Option<Frame> {
        self.session(Session::next_own_word).flatten()
    }

    /// What to write next.
    pub(super) fn turn(&self) -> Turn {
        let now = self.hub.now();
        match self.session(|session| session.next(now)) {
            Some(Next::Frame(frame)) => Turn::Frame(frame),
            Some(Next::Wait) => Turn::Wait,
            Some(Next::Cut) => Turn::Cut,
            None => Turn::Replaced,
        }
    }

    /// Takes a client's text; true when no further one counts.
    pub(super) fn hear(&self, line: &str) -> bool {
        let first = words::first(line);
        let answer = || words::features(&self.hub.features());
        let heard = self.session(|session| session.heard(first, answer)).unwrap_or(true);
        self.wake.notify_one();
        heard
    }

    /// Resolves when there may be something to write.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The socket has ended; `abnormal`: without a close frame from the client.
    pub(super) fn leave(&mut self, abnormal: bool) {
        if !self.is_over {
            self.is_over = true;
            self.hub.detach(&self.slot, self.number, abnormal);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave(true);
    }
}
