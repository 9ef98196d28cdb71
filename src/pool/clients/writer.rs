//! The writing half of a socket: its session's frames, `status`, pings.

use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use futures_util::stream::SplitSink;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as WireFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::seat::{Seat, Turn};
use super::socket::Ended;
use super::status::Reader;
use crate::clock::Moment;
use crate::pool::frame::Frame;

/// Messages leave in pieces of this size.
pub const FRAGMENT: usize = 32 << 10;
/// A ping leaves at least this often.
pub const PING_EVERY: Duration = Duration::from_secs(25);
/// Frames that matter are to be confirmed after this.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// How often a writer that waits for its reader looks whether to go on waiting.
const LOOK: Duration = Duration::from_secs(1);
/// How long the reading half has to find a Close when writing has failed.
const LAST_WORD: Duration = Duration::from_millis(100);

/// What the reading and the writing half share.
pub(super) struct Link {
    seat: Seat,
    /// When the client was last heard of.
    heard: AtomicU64,
    /// How long it may be silent.
    silent: Duration,
}

impl Link {
    pub(super) fn new(seat: Seat, silent: Duration) -> Self {
        Self { heard: AtomicU64::new(seat.hub().now().0), silent, seat }
    }

    pub(super) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Gives the seat up; `abnormal`: without a close frame from the client.
    pub(super) fn leave(&mut self, abnormal: bool) {
        self.seat.leave(abnormal);
    }

    /// The client has said something.
    pub(super) fn heard(&self) {
        self.heard.store(self.now().0, Relaxed);
    }

    /// The client has answered a ping.
    pub(super) fn confirmed(&self, number: &[u8]) {
        if let Ok(number) = number.try_into() {
            self.seat.session(|session| session.confirmed(u64::from_be_bytes(number)));
        }
    }

    fn now(&self) -> Moment {
        self.seat.hub().now()
    }

    fn is_silent(&self) -> bool {
        self.now().since(Moment(self.heard.load(Relaxed))) >= self.silent
    }
}

pub(super) type Sink<S> = SplitSink<WebSocketStream<S>, Message>;

/// The writing half.
pub(super) struct Writer<'a> {
    link: &'a Link,
    statuses: Reader,
    pinged: Instant,
    /// The number that the last ping carried.
    asked: u64,
    /// Another socket hears the events.
    is_replaced: bool,
    /// Messages written, but for pings.
    pub(super) messages: u64,
    /// Bytes in them.
    pub(super) bytes: u64,
}

/// What a writer does next.
enum Step {
    Write(Frame),
    Ping,
    Wait,
    End(Ended),
}

impl<'a> Writer<'a> {
    pub(super) fn new(link: &'a Link, statuses: Reader) -> Self {
        let pinged = Instant::now();
        Self { link, statuses, pinged, asked: 0, is_replaced: false, messages: 0, bytes: 0 }
    }

    /// Writes until there is a reason to end.
    pub(super) async fn run<S>(&mut self, sink: &mut Sink<S>) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let written = match self.step() {
                Step::Write(frame) => self.write(sink, frame).await,
                Step::Ping => {
                    let ping = self.ping();
                    self.send(sink, ping).await
                }
                Step::Wait => {
                    self.wait().await;
                    Ok(())
                }
                Step::End(ended) => Err(ended),
            };
            if let Err(ended) = written {
                return ended;
            }
        }
    }

    fn step(&mut self) -> Step {
        if self.link.is_silent() {
            return Step::End(Ended::Silent);
        }
        if Instant::now() >= self.ping_at() {
            return Step::Ping;
        }
        if self.is_replaced {
            return Step::Wait;
        }
        // The greeting comes before any other `status`.
        let own_word = self.link.seat.own_word();
        let status = || self.statuses.next(self.link.now());
        if let Some(frame) = own_word.or_else(status) {
            return Step::Write(frame);
        }
        match self.link.seat.turn() {
            Turn::Frame(frame) => Step::Write(frame),
            Turn::Wait => Step::Wait,
            Turn::Cut => Step::End(Ended::Standing),
            Turn::Replaced => {
                self.is_replaced = true;
                Step::Wait
            }
        }
    }

    /// The number that the next ping is to carry, if something is to be confirmed.
    fn to_confirm(&self) -> Option<u64> {
        let now = self.link.now();
        let number = self.link.seat.session(|session| session.to_confirm(now)).flatten();
        number.filter(|number| *number > self.asked)
    }

    fn ping_at(&self) -> Instant {
        let after = if self.to_confirm().is_some() { CONFIRM_AFTER } else { PING_EVERY };
        self.pinged + after
    }

    fn ping(&mut self) -> Message {
        self.pinged = Instant::now();
        self.asked = self.to_confirm().unwrap_or(self.asked);
        Message::Ping(Bytes::copy_from_slice(&self.asked.to_be_bytes()))
    }

    async fn wait(&mut self) {
        let ping_at = self.ping_at();
        let held_back = self.statuses.held_back(self.link.now());
        if self.is_replaced {
            return sleep_until(ping_at).await;
        }
        tokio::select! {
            () = self.link.seat.woken() => {}
            () = self.statuses.changed() => {}
            () = sleep(held_back.unwrap_or_default()), if held_back.is_some() => {}
            () = sleep_until(ping_at) => {}
        }
    }

    async fn write<S>(&mut self, sink: &mut Sink<S>, frame: Frame) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.messages += 1;
        self.bytes += frame.bytes.len() as u64;
        for message in fragments(frame) {
            self.send(sink, message).await?;
            let now = self.link.now();
            self.link.seat.session(|session| session.taken(now));
        }
        Ok(())
    }

    /// Sends one message, while looking whether the reader should be given up.
    async fn send<S>(&self, sink: &mut Sink<S>, message: Message) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let watch = async {
            loop {
                sleep(LOOK).await;
                let now = self.link.now();
                if self.link.seat.session(|session| session.must_cut(now)) == Some(true) {
                    return Ended::Standing;
                }
                if self.link.is_silent() {
                    return Ended::Silent;
                }
            }
        };
        tokio::select! {
            biased;
            sent = sink.send(message) => match sent {
                Ok(()) => Ok(()),
                // The client has closed; the reading half says so.
                Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_)) => {
                    pending().await
                }
                Err(_) => {
                    // Its Close may still lie unread before the end of the connection.
                    sleep(LAST_WORD).await;
                    Err(Ended::Gone)
                }
            },
            ended = watch => Err(ended),
        }
    }
}

/// A frame as messages for the wire.
fn fragments(frame: Frame) -> impl Iterator<Item = Message> {
    let Frame { binary, mut bytes } = frame;
    let mut opcode = if binary { Data::Binary } else { Data::Text };
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let piece = bytes.split_to(bytes.len().min(FRAGMENT));
        is_over = bytes.is_empty();
        let opcode = OpCode::Data(std::mem::replace(&mut opcode, Data::Continue));
        Some(Message::Frame(WireFrame::message(piece, opcode, is_over)))
    })
}
