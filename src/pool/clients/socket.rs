//! One client's WebSocket, from behind the 101 to its end.
//!
//! The caller reads the handshake, writes [`response_head`] and hands the stream to [`serve`]. The
//! socket reads and writes at its own pace; whoever delivers to it only adds to its session.
//!
//! - Messages of more than [`FRAGMENT`] bytes leave in fragments: so a socket's buffer stays small,
//!   a ping passes between them, and a slow reader costs no more than a fast one.
//! - A ping leaves every [`PING_EVERY`], so that middleboxes stay awake, and soon after frames that
//!   matter, for its answer confirms them.
//! - A page whose answers are missing for [`PAGE_SILENT`] is gone: browsers answer by themselves,
//!   whatever the page does. Programs answer only while they read, and many read only while they
//!   wait for a prompt; `ComfyUI` has no heartbeat, so they have [`PROGRAM_SILENT`], and TCP finds
//!   out sooner when their host is gone.

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame as WireFrame};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::hub::{Hub, Seat, Turn};
use super::status::Reader;
use crate::clock::Moment;
use crate::identity::ClientKey;
use crate::pool::frame::Frame;
use crate::relay::StopReason;
use crate::relay::handshake::{accept_key, write_response_head};

/// The longest `clientId`; a handshake with a longer one is for the caller to refuse.
pub const MAX_SID: usize = 256;
/// Messages leave in pieces of this size.
pub const FRAGMENT: usize = 32 << 10;
/// A ping leaves at least this often.
pub const PING_EVERY: Duration = Duration::from_secs(25);
/// A page that says nothing for so long, not even a pong, is gone.
pub const PAGE_SILENT: Duration = Duration::from_secs(75);
/// The same for clients that are no page.
pub const PROGRAM_SILENT: Duration = Duration::from_hours(1);

/// What clients may send at once, as `ComfyUI`.
const MAX_INBOUND: usize = 4 << 20;
/// Clients send a few flags and pongs; thousands of sockets have such a buffer.
const READ_BUFFER: usize = 2 << 10;
/// Frames that matter are to be confirmed after this.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// How often a writer that waits for its reader looks whether to go on waiting.
const LOOK: Duration = Duration::from_secs(1);
/// How long the reading half has to find a Close when writing has failed.
const LAST_WORD: Duration = Duration::from_millis(100);
/// How long the last words to a client, or its answer to them, may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Who opened a socket.
#[derive(Debug, Clone)]
pub struct ClientInfo {
    /// The `clientId` of the handshake, at most [`MAX_SID`] bytes. Missing or empty: one is made.
    pub sid: Option<String>,
    /// The caller.
    pub key: ClientKey,
    /// The caller for people.
    pub caller: Arc<str>,
    /// The handshake had an `Origin`: it is a page.
    pub has_origin: bool,
}

/// Why a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The client sent a Close (1005: without a code).
    ByClient(u16),
    /// Its connection ended without one.
    Gone,
    /// It did not answer pings any more.
    Silent,
    /// It did not read what was sent to it.
    Standing,
    /// It sent what cannot be a message; the close code that it got.
    Refused(u16),
    /// The gateway ended it.
    Stopped(StopReason),
}

impl Ended {
    /// A word out of a small fixed set, for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::ByClient(_) => "client_closed",
            Self::Gone => "client_gone",
            Self::Silent => "client_silent",
            Self::Standing => "client_not_reading",
            Self::Refused(_) => "malformed_frame",
            Self::Stopped(_) => "gateway_shutdown",
        }
    }
}

/// What is to be told of a socket when it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketEnd {
    /// Its `clientId`.
    pub sid: Arc<str>,
    /// Why.
    pub ended: Ended,
    /// Messages that it was sent.
    pub messages: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// A new `clientId`, as `ComfyUI` makes them: 32 hex digits.
pub fn mint_sid() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// The head of the 101 that accepts a client's key.
pub fn response_head(key: &str) -> Bytes {
    let accept = accept_key(key);
    let headers = [
        ("Upgrade", &b"websocket"[..]),
        ("Connection", b"Upgrade"),
        ("Sec-WebSocket-Accept", accept.as_bytes()),
    ];
    // A key's accept is Base64, which is always writable.
    Bytes::from(write_response_head(101, "Switching Protocols", headers).unwrap_or_default())
}

/// Serves a socket to its end. `stream` begins behind the handshake. `stop` may be a future that
/// never resolves. Dropping the future counts as a broken connection.
pub async fn serve<S>(
    stream: S,
    hub: &Arc<Hub>,
    client: ClientInfo,
    stop: impl Future<Output = StopReason>,
) -> SocketEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_INBOUND))
        .max_frame_size(Some(MAX_INBOUND));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (mut sink, mut stream) = socket.split();

    let sid = client.sid.clone().filter(|sid| !sid.is_empty()).unwrap_or_else(mint_sid);
    let sid: Arc<str> = sid.into();
    let (seat, statuses) = hub.attach(&sid, &client);
    let silent = if client.has_origin { PAGE_SILENT } else { PROGRAM_SILENT };
    let mut link = Link { heard: AtomicU64::new(seat.hub().now().0), silent, seat };
    let mut writer = Writer::new(&link, statuses);
    let ended = tokio::select! {
        ended = writer.run(&mut sink) => ended,
        ended = link.read(&mut stream) => ended,
        reason = stop => Ended::Stopped(reason),
    };
    let (messages, bytes) = (writer.messages, writer.bytes);
    link.seat.leave(!matches!(ended, Ended::ByClient(_)));
    let _ = timeout(FAREWELL, farewell(&mut sink, &mut stream, ended)).await;
    SocketEnd { sid, ended, messages, bytes }
}

/// What the reading and the writing half share.
struct Link {
    seat: Seat,
    /// When the client was last heard of.
    heard: AtomicU64,
    /// How long it may be silent.
    silent: Duration,
}

impl Link {
    fn now(&self) -> Moment {
        self.seat.hub().now()
    }

    fn is_silent(&self) -> bool {
        self.now().since(Moment(self.heard.load(Relaxed))) >= self.silent
    }

    async fn read<S>(&self, stream: &mut SplitStream<WebSocketStream<S>>) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut listens = true;
        while let Some(message) = stream.next().await {
            self.heard.store(self.now().0, Relaxed);
            match message {
                Ok(Message::Text(line)) if listens => listens = !self.seat.hear(&line),
                Ok(Message::Pong(number)) => self.confirmed(&number),
                Ok(Message::Close(close)) => {
                    return Ended::ByClient(close.map_or(1005, |close| close.code.into()));
                }
                Ok(_) => {}
                Err(error) => return refusal(&error).map_or(Ended::Gone, Ended::Refused),
            }
        }
        Ended::Gone
    }

    fn confirmed(&self, number: &[u8]) {
        if let Ok(number) = number.try_into() {
            self.seat.session(|session| session.confirmed(u64::from_be_bytes(number)));
        }
    }
}

/// The close code for what cannot be a message; none when the connection has ended.
fn refusal(error: &Error) -> Option<u16> {
    match error {
        Error::Capacity(_) => Some(1009),
        Error::Utf8(_) => Some(1007),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => Some(1002),
        _ => None,
    }
}

type Sink<S> = SplitSink<WebSocketStream<S>, Message>;

/// The writing half.
struct Writer<'a> {
    link: &'a Link,
    statuses: Reader,
    pinged: Instant,
    /// The number that the last ping carried.
    asked: u64,
    /// Another socket hears the events.
    is_replaced: bool,
    messages: u64,
    bytes: u64,
}

/// What a writer does next.
enum Step {
    Write(Frame),
    Ping,
    Wait,
    End(Ended),
}

impl<'a> Writer<'a> {
    fn new(link: &'a Link, statuses: Reader) -> Self {
        let pinged = Instant::now();
        Self { link, statuses, pinged, asked: 0, is_replaced: false, messages: 0, bytes: 0 }
    }

    async fn run<S>(&mut self, sink: &mut Sink<S>) -> Ended
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
        let status = || self.statuses.next(self.link.seat.board(), self.link.now());
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

/// The last words to a client, as far as it still listens.
async fn farewell<S>(sink: &mut Sink<S>, stream: &mut SplitStream<WebSocketStream<S>>, ended: Ended)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let close = match ended {
        // What is left is to send the answer to its Close.
        Ended::ByClient(_) => None,
        Ended::Gone | Ended::Silent => return,
        Ended::Standing => Some((CloseCode::Again, "too much to read is waiting")),
        Ended::Refused(code) => Some((code.into(), "not a message of at most 4 MiB")),
        Ended::Stopped(reason) => {
            let (code, text) = reason.close();
            Some((code.into(), text))
        }
    };
    if let Some((code, text)) = close {
        let reason = Utf8Bytes::from_static(text);
        let _ = sink.send(Message::Close(Some(CloseFrame { code, reason }))).await;
    }
    while let Some(Ok(_)) = stream.next().await {}
    let _ = sink.close().await;
}
