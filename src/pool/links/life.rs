//! One socket from its handshake to its end.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use super::vitals::{Due, Sign, Vitals};
use crate::backend::Standing;
use crate::clock::Moment;
use crate::pool::events::{Kind, parse};
use crate::pool::frame::Frame;

/// What a socket that wants previews with metadata says first.
const FLAGS: &str = r#"{"type":"feature_flags","data":{"supports_preview_metadata":true}}"#;
/// A ping goes out at once, or nothing does.
const SENDING: Duration = Duration::from_secs(10);
/// How long the server has to end a socket that we close.
const CLOSING: Duration = Duration::from_secs(2);
/// A socket that was open for so long was worth opening.
const WELL: Duration = Duration::from_secs(1);
/// Text above this is no status: it is not looked at while the socket is open.
const MAX_STATUS: usize = 1024;

/// Who listens to a socket. Called from the task that reads it: what takes long delays everything
/// that the backend sends.
pub(super) trait Ear {
    /// The server has shown that it knows the socket. Messages may have come before.
    fn opened(&mut self) {}

    /// It must not be relied on any more, although messages may still come.
    fn closing(&mut self) {}

    /// A message.
    fn heard(&mut self, frame: Frame, now: Moment);

    /// A `status`, which goes to all; its message comes next.
    fn status(&mut self, _: Moment) {}

    /// When a socket that hears the same broadcasts heard one last.
    fn sibling(&self) -> Moment {
        Moment::default()
    }

    /// Does what is due, and says when it wants to be asked again.
    fn due(&mut self, _: Moment) -> Option<Moment> {
        None
    }
}

/// How a socket is to be treated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner<'a> {
    /// Its sid.
    pub(super) sid: &'a str,
    /// Whether it announces flags.
    pub(super) flags: bool,
    /// Whether the end of its predecessor was not confirmed.
    pub(super) doubtful: bool,
}

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// Whether the server is known to have ended it too.
    pub(super) confirmed: bool,
    /// Whether it had been of use for a while.
    pub(super) was_well: bool,
}

struct Life<'a, S, E> {
    socket: WebSocketStream<S>,
    vitals: Vitals,
    sid: &'a str,
    /// It has been reported open.
    open: bool,
    /// The server has ended it.
    over: bool,
    ear: &'a mut E,
}

/// Lives until the socket ends, or `until` says so. Each change of standing has it pinged: a host
/// that died and came back answers with a reset.
pub(super) async fn live<S, E>(
    socket: WebSocketStream<S>,
    manner: Manner<'_>,
    ear: &mut E,
    mut standing: watch::Receiver<Standing>,
    until: impl Future<Output = ()>,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Ear,
{
    let vitals = Vitals::new(manner.flags, manner.doubtful, Moment::now());
    let mut life = Life { socket, vitals, sid: manner.sid, open: false, over: false, ear };
    tokio::pin!(until);
    if !manner.flags || life.send(Message::text(FLAGS)).await {
        tokio::select! {
            () = life.run(&mut standing) => {}
            () = &mut until => {}
        }
    }
    life.ear.closing();
    if !life.over {
        life.close().await;
    }
    let was_well = life.vitals.was_open_for(WELL, Moment::now());
    Ended { confirmed: life.over, was_well }
}

impl<S: AsyncRead + AsyncWrite + Unpin, E: Ear> Life<'_, S, E> {
    /// Runs until the socket has ended or is to be closed.
    async fn run(&mut self, standing: &mut watch::Receiver<Standing>) {
        standing.mark_unchanged();
        loop {
            let now = Moment::now();
            match self.vitals.due(self.ear.sibling(), now) {
                Due::Nothing => {}
                Due::End => return,
                Due::Open => {
                    self.open = true;
                    self.ear.opened();
                }
                Due::Ping => {
                    if !self.send(Message::Ping(Bytes::new())).await {
                        return;
                    }
                    continue;
                }
            }
            let next = self.vitals.next(now);
            let next = self.ear.due(now).map_or(next, |due| due.min(next));
            tokio::select! {
                message = self.message() => match message {
                    Some(message) => self.took(message),
                    None => return,
                },
                () = sleep(next.since(now)) => {}
                Ok(()) = standing.changed() => self.vitals.nudge(),
            }
        }
    }

    /// The next message; `None` when there will be no more.
    async fn message(&mut self) -> Option<Message> {
        match self.socket.next().await {
            Some(Ok(message)) => Some(message),
            Some(Err(error)) => {
                self.over = is_over(&error);
                None
            }
            None => {
                self.over = true;
                None
            }
        }
    }

    fn took(&mut self, message: Message) {
        let now = Moment::now();
        let frame = match message {
            Message::Text(text) => Frame { binary: false, bytes: text.into() },
            Message::Binary(bytes) => Frame { binary: true, bytes },
            Message::Pong(_) => return self.vitals.took(Sign::Pong, now),
            Message::Ping(_) | Message::Close(_) | Message::Frame(_) => {
                return self.vitals.took(Sign::Ping, now);
            }
        };
        let sign = self.sign(&frame, now);
        self.vitals.took(sign, now);
        self.ear.heard(frame, now);
    }

    fn sign(&mut self, frame: &Frame, now: Moment) -> Sign {
        if frame.binary || (self.open && frame.bytes.len() > MAX_STATUS) {
            return Sign::Message;
        }
        match parse(frame).kind {
            Kind::FeatureFlags => Sign::Answer,
            Kind::Status { sid: Some(sid), .. } if *sid == *self.sid => Sign::Greeting,
            Kind::Status { sid: None, .. } => {
                self.ear.status(now);
                Sign::Message
            }
            _ => Sign::Message,
        }
    }

    async fn send(&mut self, message: Message) -> bool {
        matches!(timeout(SENDING, self.socket.send(message)).await, Ok(Ok(())))
    }

    /// Says goodbye and hears the server out, for a bounded time.
    async fn close(&mut self) {
        let closing = async {
            // An error means that it has ended already, which reading tells as well.
            let _ = self.socket.close(None).await;
            while let Some(message) = self.message().await {
                self.took(message);
            }
        };
        let _ = timeout(CLOSING, closing).await;
    }
}

/// Whether an error says that the connection is gone, rather than that we gave it up.
fn is_over(error: &Error) -> bool {
    use tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
    matches!(
        error,
        Error::Io(_)
            | Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Protocol(ResetWithoutClosingHandshake)
    )
}
