//! One client's WebSocket, from behind the 101 to its end.
//!
//! The caller reads the handshake, writes [`response_head`] and hands the stream to [`serve`]. The
//! socket reads and writes at its own pace; whoever delivers to it only adds to its session.
//!
//! - Messages of more than [`FRAGMENT`](super::writer::FRAGMENT) bytes leave in fragments: so a socket's buffer stays small,
//!   a ping passes between them, and a slow reader costs no more than a fast one.
//! - A ping leaves every [`PING_EVERY`](super::writer::PING_EVERY), so that middleboxes stay awake, and soon after frames that
//!   matter, for its answer confirms them.
//! - A page whose answers are missing for [`PAGE_SILENT`] is gone: browsers answer by themselves,
//!   whatever the page does. Programs answer only while they read, and many read only while they
//!   wait for a prompt; `ComfyUI` has no heartbeat, so they have [`PROGRAM_SILENT`], and TCP finds
//!   out sooner when their host is gone.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::SplitStream;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::hub::Hub;
use super::writer::{Link, Sink, Writer};
use crate::identity::ClientKey;
use crate::relay::handshake::{accept_key, write_response_head};
use crate::relay::{EndCause, StopReason};

/// The longest `clientId`; a handshake with a longer one is for the caller to refuse.
pub const MAX_SID: usize = 256;
/// A page that says nothing for so long, not even a pong, is gone.
pub const PAGE_SILENT: Duration = Duration::from_secs(75);
/// The same for clients that are no page.
pub const PROGRAM_SILENT: Duration = Duration::from_hours(1);

/// Clients send a few flags and pongs; thousands of sockets have such a buffer.
const READ_BUFFER: usize = 2 << 10;
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
    /// Bytes that it may send at once.
    pub max_inbound: usize,
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
            Self::Stopped(reason) => EndCause::Stopped(reason).label(),
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
        .max_message_size(Some(client.max_inbound))
        .max_frame_size(Some(client.max_inbound));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (mut sink, mut stream) = socket.split();

    let sid = client.sid.clone().filter(|sid| !sid.is_empty()).unwrap_or_else(mint_sid);
    let sid: Arc<str> = sid.into();
    let (seat, statuses) = hub.attach(&sid, &client);
    let silent = if client.has_origin { PAGE_SILENT } else { PROGRAM_SILENT };
    let mut link = Link::new(seat, silent);
    let mut writer = Writer::new(&link, statuses);
    let ended = tokio::select! {
        ended = writer.run(&mut sink) => ended,
        ended = link.read(&mut stream) => ended,
        reason = stop => Ended::Stopped(reason),
    };
    let (messages, bytes) = (writer.messages, writer.bytes);
    link.leave(!matches!(ended, Ended::ByClient(_)));
    let _ = timeout(FAREWELL, farewell(&mut sink, &mut stream, ended)).await;
    if let Ok(socket) = sink.reunite(stream) {
        let _ = timeout(FAREWELL, socket.into_inner().shutdown()).await;
    }
    SocketEnd { sid, ended, messages, bytes }
}

impl Link {
    async fn read<S>(&self, stream: &mut SplitStream<WebSocketStream<S>>) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut listens = true;
        while let Some(message) = stream.next().await {
            self.heard();
            match message {
                Ok(Message::Text(line)) if listens => listens = !self.seat().hear(&line),
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
