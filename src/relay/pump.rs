//! One direction of a relay: reads from one stream, writes to the other, follows the frames.
//!
//! An idle direction holds no buffer. It reads into scratch space that belongs to the thread and is
//! borrowed within one poll only, and writes from there; what the other side does not take at once
//! moves to an owned buffer, at most one read's worth, and nothing more is read until that is gone.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Traffic;
use super::frames::{FrameCursor, FrameError};

/// The most read at once, and so the most a direction ever holds.
pub(super) const READ_CHUNK: usize = 64 * 1024;
/// Reads in one poll before other tasks get their turn. Tokio's own sockets yield by themselves,
/// other streams may always be ready.
const ROUNDS_PER_POLL: usize = 16;

thread_local! {
    /// Taken while in use: a stream that polls another relay inside finds it empty and makes its own.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How a direction came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A Close frame was read; what followed it is not passed on.
    Closed,
    /// The source ended, properly or not, without a Close.
    Ended,
    /// The sink takes no more.
    Lost,
    /// The source's frames cannot be followed; nothing of the bad one's header is passed on, unless
    /// its beginning had come in an earlier read.
    Refused(FrameError),
    /// The frame under way was finished, as [`Direction::stop_at_boundary`] asked.
    Boundary,
}

/// The state of one direction.
#[derive(Debug)]
pub(super) struct Direction {
    cursor: FrameCursor,
    pending: Bytes,
    unflushed: bool,
    stop_at_boundary: bool,
    outcome: Option<Outcome>,
    /// The outcome holds for the sink too: all that was read has been flushed into it, or it is lost.
    settled: bool,
    bytes: u64,
}

impl Direction {
    /// A direction whose source has already given `prefix`.
    pub(super) fn new(max_frame: Option<u64>, mut prefix: Bytes) -> Self {
        let mut new = Self {
            cursor: FrameCursor::new(max_frame),
            pending: Bytes::new(),
            unflushed: false,
            stop_at_boundary: false,
            outcome: None,
            settled: false,
            bytes: 0,
        };
        prefix.truncate(new.follow(&prefix));
        new.pending = prefix;
        new
    }

    /// Moves bytes as long as both sides allow; ready once the direction is over and flushed.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut R,
        sink: &mut W,
    ) -> Poll<Outcome>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS_PER_POLL {
            if let Some(outcome) = self.outcome() {
                return Poll::Ready(outcome);
            }
            if self.outcome.is_some() {
                ready!(self.poll_deliver(cx, sink));
                self.settled = true;
                continue;
            }
            ready!(self.poll_drain(cx, sink));
            if self.outcome.is_none() && self.poll_read(cx, source, sink).is_pending() {
                let _ = self.poll_flush(cx, sink);
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes and flushes what is held; a sink that fails is [`Outcome::Lost`].
    pub(super) fn poll_deliver<W>(&mut self, cx: &mut Context<'_>, sink: &mut W) -> Poll<()>
    where
        W: AsyncWrite + Unpin,
    {
        ready!(self.poll_drain(cx, sink));
        self.poll_flush(cx, sink)
    }

    /// Reads and forgets what the source sends until its Close or its end.
    pub(super) fn poll_discard<R>(&mut self, cx: &mut Context<'_>, source: &mut R) -> Poll<()>
    where
        R: AsyncRead + Unpin,
    {
        for _ in 0..ROUNDS_PER_POLL {
            if self.cursor.closed() || self.outcome == Some(Outcome::Ended) {
                return Poll::Ready(());
            }
            ready!(with_scratch(|scratch| {
                let read = ready!(poll_read_into(cx, source, scratch));
                self.skim(&scratch[..read]);
                if read == 0 {
                    self.outcome = Some(Outcome::Ended);
                }
                Poll::Ready(())
            }));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Puts a frame of our own behind what is held. Only where [`accepts_frame`](Self::accepts_frame).
    pub(super) fn inject(&mut self, frame: &Bytes) {
        let mut joined = BytesMut::with_capacity(self.pending.len() + frame.len());
        joined.extend_from_slice(&self.pending);
        joined.extend_from_slice(frame);
        self.pending = joined.freeze();
    }

    /// Forgets what is held, when nobody is left to take it.
    pub(super) fn forget(&mut self) {
        self.pending = Bytes::new();
    }

    /// Reads on only to the end of the current frame.
    pub(super) fn stop_at_boundary(&mut self) {
        self.stop_at_boundary = true;
    }

    /// Whether a frame of our own may follow what was passed on: between frames, before any Close.
    pub(super) fn accepts_frame(&self) -> bool {
        self.cursor.at_boundary()
            && !self.cursor.closed()
            && !matches!(self.outcome, Some(Outcome::Lost))
    }

    /// Whether reading could still bring the current frame to its end.
    pub(super) fn is_mid_frame(&self) -> bool {
        self.outcome.is_none() && !self.cursor.at_boundary()
    }

    /// The outcome, once it holds for the sink too.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.outcome.filter(|_| self.settled)
    }

    /// Whether the source gives nothing more, though the sink may still have to take some.
    pub(super) fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    /// The code of the Close that the source sent.
    pub(super) fn close_code(&self) -> Option<u16> {
        self.cursor.close_code()
    }

    /// What was passed on so far.
    pub(super) fn traffic(&self) -> Traffic {
        Traffic { bytes: self.bytes, frames: self.cursor.frames() }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.pending.len()
    }

    /// One read and the write of what it gave. Ready means that another round makes sense.
    fn poll_read<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W) -> Poll<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        with_scratch(|scratch| {
            let read = ready!(poll_read_into(cx, source, scratch));
            if read == 0 {
                self.outcome = Some(Outcome::Ended);
                return Poll::Ready(());
            }
            let mut rest = &scratch[..self.follow(&scratch[..read])];
            while !rest.is_empty() {
                match Pin::new(&mut *sink).poll_write(cx, rest) {
                    Poll::Ready(Ok(written)) if written > 0 => rest.advance(written),
                    Poll::Ready(_) => {
                        self.lose();
                        return Poll::Ready(());
                    }
                    Poll::Pending => break,
                }
                self.unflushed = true;
            }
            if !rest.is_empty() {
                self.pending = Bytes::copy_from_slice(rest);
            }
            Poll::Ready(())
        })
    }

    fn poll_drain<W>(&mut self, cx: &mut Context<'_>, sink: &mut W) -> Poll<()>
    where
        W: AsyncWrite + Unpin,
    {
        while !self.pending.is_empty() {
            match ready!(Pin::new(&mut *sink).poll_write(cx, &self.pending)) {
                Ok(written) if written > 0 => self.pending.advance(written),
                _ => self.lose(),
            }
            self.unflushed = true;
        }
        // An empty `Bytes` that was advanced still owns its memory.
        self.pending = Bytes::new();
        Poll::Ready(())
    }

    fn poll_flush<W>(&mut self, cx: &mut Context<'_>, sink: &mut W) -> Poll<()>
    where
        W: AsyncWrite + Unpin,
    {
        if self.unflushed && self.outcome != Some(Outcome::Lost) {
            if ready!(Pin::new(sink).poll_flush(cx)).is_err() {
                self.lose();
            }
            self.unflushed = false;
        }
        Poll::Ready(())
    }

    /// Follows `bytes` and says how many of them to pass on.
    fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() && self.outcome.is_none() {
            match self.cursor.step(&bytes[used..]) {
                Ok(step) => used += step,
                Err(error) => self.outcome = Some(Outcome::Refused(error)),
            }
            if self.cursor.closed() {
                self.outcome = Some(Outcome::Closed);
            } else if self.stop_at_boundary && self.cursor.at_boundary() {
                self.outcome.get_or_insert(Outcome::Boundary);
            }
        }
        self.bytes += used as u64;
        used
    }

    /// Looks for the Close in bytes that go nowhere; after a bad frame there is none to be found.
    fn skim(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.cursor.closed() {
            if matches!(self.outcome, Some(Outcome::Refused(_))) {
                return;
            }
            match self.cursor.step(bytes) {
                Ok(step) => bytes.advance(step),
                Err(error) => self.outcome = Some(Outcome::Refused(error)),
            }
        }
    }

    fn lose(&mut self) {
        self.outcome = Some(Outcome::Lost);
        self.settled = true;
        self.forget();
    }
}

/// Reads once; an error counts as the end, which is 0.
fn poll_read_into<R>(cx: &mut Context<'_>, source: &mut R, scratch: &mut [u8]) -> Poll<usize>
where
    R: AsyncRead + Unpin,
{
    let mut buffer = ReadBuf::new(scratch);
    let result: io::Result<()> = ready!(Pin::new(source).poll_read(cx, &mut buffer));
    Poll::Ready(result.map_or(0, |()| buffer.filled().len()))
}

fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut scratch = SCRATCH.take();
    scratch.resize(READ_CHUNK, 0);
    let result = use_it(&mut scratch);
    SCRATCH.set(scratch);
    result
}
