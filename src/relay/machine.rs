//! The state of one relay, and what follows from what.
//!
//! Three stages. *Open*: both directions flow; also while a closing handshake is under way or one
//! side has gone, with a timer set. *Settling*: the relay is to end, but the backend is in the
//! middle of a frame, which it gets a moment to finish. *Parting*: our own close frames are out or
//! on their way, the client's answer is awaited, then both connections are shut down.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use super::frames::{FrameError, close_frame, masked_close_frame};
use super::pump::{Direction, Outcome};
use super::{EndCause, Prefix, RelayEnd, RelayOptions, Side, StopReason};

/// A close frame for the client: code and reason.
type Farewell = (u16, &'static str);

const BACKEND_GONE: Farewell = (1012, "backend connection lost");
/// What a backend reads when its client is taken from it.
const CLIENT_LEFT: Farewell = (1001, "client gone");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    Settling(Farewell),
    Parting,
}

/// One relay; [`poll`](Self::poll) drives it.
pub(super) struct Relay<C, B> {
    client: C,
    backend: B,
    up: Direction,
    down: Direction,
    stage: Stage,
    cause: Option<EndCause>,
    told_client: Option<u16>,
    told_backend: bool,
    /// The client was sent a Close and has not answered it.
    awaits_answer: bool,
    client_done: bool,
    backend_done: bool,
    /// Made only when something has begun to end.
    timer: Option<Pin<Box<Sleep>>>,
    options: RelayOptions,
}

impl<C, B> Relay<C, B>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(client: C, backend: B, prefix: Prefix, options: RelayOptions) -> Self {
        Self {
            client,
            backend,
            up: Direction::new(options.max_client_frame, prefix.client),
            down: Direction::new(None, prefix.backend),
            stage: Stage::Open,
            cause: None,
            told_client: None,
            told_backend: false,
            awaits_answer: false,
            client_done: false,
            backend_done: false,
            timer: None,
            options,
        }
    }

    /// Drives everything; `stop` is asked only while nothing else has ended the relay.
    pub(super) fn poll<S>(&mut self, cx: &mut Context<'_>, mut stop: Pin<&mut S>) -> Poll<RelayEnd>
    where
        S: Future<Output = StopReason>,
    {
        loop {
            match self.stage {
                Stage::Open => ready!(self.poll_open(cx, stop.as_mut())),
                Stage::Settling(farewell) => ready!(self.poll_settling(cx, farewell)),
                Stage::Parting => {
                    ready!(self.poll_parting(cx));
                    return Poll::Ready(self.end());
                }
            }
        }
    }

    /// Ready when the stage has changed.
    fn poll_open<S>(&mut self, cx: &mut Context<'_>, stop: Pin<&mut S>) -> Poll<()>
    where
        S: Future<Output = StopReason>,
    {
        // Asked first, since busy streams use up the task's budget, without which Tokio's futures
        // are never ready; obeyed last, so that what has arrived is passed on.
        let stopped = stop.poll(cx);
        let _ = self.up.poll(cx, &mut self.client, &mut self.backend);
        let _ = self.down.poll(cx, &mut self.backend, &mut self.client);
        self.judge();
        if self.stage == Stage::Open && self.up.outcome() == Some(Outcome::Ended) {
            let _ = self.poll_part_backend(cx);
        }
        if self.stage == Stage::Open && self.poll_timer(cx).is_ready() {
            self.give_up();
        }
        if self.stage == Stage::Open
            && let Poll::Ready(reason) = stopped
        {
            self.decide(EndCause::Stopped(reason));
            self.tell_backend(CLIENT_LEFT);
            self.settle(reason.close());
        }
        if self.stage == Stage::Open { Poll::Pending } else { Poll::Ready(()) }
    }

    /// What the outcomes of the two directions mean together.
    fn judge(&mut self) {
        use Outcome::{Boundary, Closed, Ended, Lost, Refused};
        self.note_closes();
        match (self.up.outcome(), self.down.outcome()) {
            (Some(Refused(error)), _) => self.refuse(Side::Client, error),
            (_, Some(Refused(error))) => self.refuse(Side::Backend, error),
            (Some(Ended), down) => {
                self.decide(EndCause::ClientGone);
                self.tell_backend(CLIENT_LEFT);
                // A client that only shut down its sending half still gets the backend's answer.
                match down {
                    None => self.arm(self.options.linger),
                    Some(_) => self.part(None, self.options.linger),
                }
            }
            (_, Some(Ended)) => {
                self.decide(EndCause::BackendGone);
                self.part(Some(BACKEND_GONE), self.options.linger);
            }
            (Some(Closed | Lost), Some(Closed | Lost)) => {
                self.part(None, self.options.linger);
            }
            // Who cannot be written to may have said its last words already: read them first.
            (Some(Lost), None) | (None, Some(Lost)) => self.arm(self.options.frame_grace),
            (None | Some(Closed | Boundary), None | Some(Closed | Boundary))
            | (Some(Boundary), Some(Lost))
            | (Some(Lost), Some(Boundary)) => {
                if self.up.is_over() || self.down.is_over() {
                    self.arm(self.options.linger);
                }
            }
        }
    }

    /// The timer of an open stage ran out: the answer, or the last words, did not come.
    fn give_up(&mut self) {
        let backend_lost = self.up.outcome() == Some(Outcome::Lost);
        let client_lost = self.down.outcome() == Some(Outcome::Lost);
        if backend_lost {
            self.decide(EndCause::BackendGone);
        }
        if client_lost {
            self.decide(EndCause::ClientGone);
            self.tell_backend(CLIENT_LEFT);
        }
        let owed = backend_lost || self.up.close_code().is_some();
        let bound = if backend_lost { self.options.linger } else { self.options.answer_wait };
        self.part(owed.then_some(BACKEND_GONE), bound);
        // A client that let the backend's Close go unanswered has had its time.
        self.awaits_answer &= owed;
    }

    fn refuse(&mut self, from: Side, error: FrameError) {
        self.decide(EndCause::Refused { from, error });
        let farewell = (error.close_code(), "frame refused by the gateway");
        self.tell_backend(farewell);
        self.settle(farewell);
    }

    /// Ends the relay with a close frame for the client, after the frame under way if there is one.
    fn settle(&mut self, farewell: Farewell) {
        if self.down.is_mid_frame() {
            self.down.stop_at_boundary();
            self.timer = None;
            self.arm(self.options.frame_grace);
            self.stage = Stage::Settling(farewell);
        } else {
            self.part(Some(farewell), self.options.linger);
        }
    }

    fn poll_settling(&mut self, cx: &mut Context<'_>, farewell: Farewell) -> Poll<()> {
        let _ = self.up.poll_deliver(cx, &mut self.backend);
        if self.down.poll(cx, &mut self.backend, &mut self.client).is_pending() {
            let finished = !self.down.is_mid_frame();
            if !finished {
                ready!(self.poll_timer(cx));
            }
        }
        self.part(Some(farewell), self.options.linger);
        Poll::Ready(())
    }

    /// Starts the last stage, which takes `bound` at most. A client in the middle of a frame cannot
    /// be sent a Close: its connection just ends.
    fn part(&mut self, farewell: Option<Farewell>, bound: Duration) {
        if let Some((code, reason)) = farewell.filter(|_| self.down.accepts_frame()) {
            // A client that closes itself gets its own code back: that is how its closing
            // handshake ends, whatever became of the backend.
            let (code, reason) = self.up.close_code().map_or((code, reason), |own| (own, ""));
            self.down.inject(&close_frame(code, reason));
            self.told_client = Some(code);
        }
        let told = self.told_client.is_some() || self.down.close_code().is_some();
        let answered = self.up.close_code().is_some();
        self.awaits_answer = told && !answered;
        self.timer = None;
        self.arm(bound);
        self.stage = Stage::Parting;
    }

    fn poll_parting(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let client = self.poll_part_client(cx);
        let backend = self.poll_part_backend(cx);
        if client.is_ready() && backend.is_ready() {
            return Poll::Ready(());
        }
        ready!(self.poll_timer(cx));
        let _ = Pin::new(&mut self.client).poll_shutdown(cx);
        let _ = Pin::new(&mut self.backend).poll_shutdown(cx);
        Poll::Ready(())
    }

    /// Delivers what is held for the client, its Close last, and waits for the answer: a connection
    /// that is closed with unread input is reset, and the client would never see the code. Input is
    /// read from the start, for a client that reads only after it has written.
    fn poll_part_client(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.client_done {
            return Poll::Ready(());
        }
        if self.awaits_answer && self.up.poll_discard(cx, &mut self.client).is_ready() {
            self.awaits_answer = false;
        }
        ready!(self.down.poll_deliver(cx, &mut self.client));
        if self.awaits_answer && self.down.outcome() != Some(Outcome::Lost) {
            self.arm(self.options.answer_wait);
            return Poll::Pending;
        }
        let _ = ready!(Pin::new(&mut self.client).poll_shutdown(cx));
        self.client_done = true;
        Poll::Ready(())
    }

    fn poll_part_backend(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.backend_done {
            ready!(self.up.poll_deliver(cx, &mut self.backend));
            let _ = ready!(Pin::new(&mut self.backend).poll_shutdown(cx));
            self.backend_done = true;
        }
        Poll::Ready(())
    }

    /// Puts a Close for the backend on its way, once, if it can be written at all.
    fn tell_backend(&mut self, (code, reason): Farewell) {
        if self.told_backend {
            return;
        }
        self.told_backend = true;
        if self.up.accepts_frame() {
            self.up.inject(&masked_close_frame(code, reason));
        } else if self.up.close_code().is_none() {
            self.up.forget();
        }
    }

    /// The first cause is the one that counts.
    fn decide(&mut self, cause: EndCause) {
        self.cause.get_or_insert(cause);
    }

    fn note_closes(&mut self) {
        if let Some(code) = self.up.close_code() {
            self.decide(EndCause::ClientClosed { code });
        }
        if let Some(code) = self.down.close_code() {
            self.decide(EndCause::BackendClosed { code });
        }
    }

    /// Sets the timer, or brings it forward.
    fn arm(&mut self, wait: Duration) {
        let deadline = Instant::now() + wait;
        match &mut self.timer {
            Some(timer) if timer.deadline() <= deadline => {}
            Some(timer) => timer.as_mut().reset(deadline),
            None => self.timer = Some(Box::pin(sleep_until(deadline))),
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.timer {
            // A sleep needs some of the task's budget too; the clock does not.
            Some(timer) if timer.deadline() <= Instant::now() => Poll::Ready(()),
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    fn end(&self) -> RelayEnd {
        let lost_client = self.down.outcome() == Some(Outcome::Lost);
        let fallback = if lost_client { EndCause::ClientGone } else { EndCause::BackendGone };
        RelayEnd {
            cause: self.cause.unwrap_or(fallback),
            up: self.up.traffic(),
            down: self.down.traffic(),
            told_client: self.told_client,
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.up.held() + self.down.held()
    }
}
