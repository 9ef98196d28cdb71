//! Listeners: each writes down what its WebSocket brings, in the form of the recordings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::recording::Frame;
use super::script::{Seat, Until};
use super::target::Target;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The largest message taken; a full-size image is below.
const MOST_MESSAGE: usize = 64 * 1024 * 1024;
/// The most messages kept per listener: far above any scenario, so only a flood meets it.
const MOST_FRAMES: usize = 10_000;
/// How long a server may take to end a closed socket.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Tells waiters that some listener heard something.
#[derive(Debug, Clone)]
pub(super) struct Bell {
    count: Arc<watch::Sender<u64>>,
    started: Instant,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self { count: Arc::new(watch::Sender::new(0)), started: Instant::now() }
    }

    pub(super) fn milliseconds(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Waits until `is` holds, looking again whenever something was heard; false at the deadline.
    pub(super) async fn wait(&self, deadline: Instant, mut is: impl FnMut() -> bool) -> bool {
        let mut heard = self.count.subscribe();
        loop {
            if is() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || tokio::time::timeout(left, heard.changed()).await.is_err() {
                return is();
            }
        }
    }
}

/// What a listener has written down.
#[derive(Debug, Default)]
struct Log {
    frames: Vec<Frame>,
    lost: bool,
}

/// One open socket.
#[derive(Debug)]
pub(super) struct Listener {
    label: String,
    log: Arc<Mutex<Log>>,
    leave: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Listener {
    /// Connects and announces the flags.
    pub(super) async fn open(target: &Target, seat: &Seat, bell: &Bell) -> anyhow::Result<Self> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MOST_MESSAGE))
            .max_frame_size(Some(MOST_MESSAGE));
        let url = target.ws_url(seat.client.as_deref());
        let connecting = tokio_tungstenite::connect_async_with_config(url, Some(config), true);
        let connected = tokio::time::timeout(target.timeout(), connecting).await;
        let (mut socket, _) = connected.context("connecting /ws took too long")?.context("/ws")?;
        if seat.flags {
            let flags =
                json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}});
            socket.send(Message::text(flags.to_string())).await?;
        }
        let log = Arc::new(Mutex::new(Log::default()));
        let (leave, told) = oneshot::channel();
        let pen = Pen { log: log.clone(), bell: bell.clone(), target: target.clone() };
        let task = tokio::spawn(listen(socket, pen, told, seat.until));
        Ok(Self { label: seat.label.clone(), log, leave: Some(leave), task: Some(task) })
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn frames(&self) -> Vec<Frame> {
        self.log.lock().frames.clone()
    }

    /// Whether the server ended the socket.
    pub(super) fn is_lost(&self) -> bool {
        self.log.lock().lost
    }

    /// How many frames heard are such ones.
    pub(super) fn count(&self, is: impl Fn(&Frame) -> bool) -> usize {
        self.log.lock().frames.iter().filter(|frame| is(frame)).count()
    }

    /// Leaves, and waits until the server has ended its side too: only then may the same id come
    /// back, since a server forgets an id when its old socket ends.
    pub(super) async fn close(mut self) -> Vec<Frame> {
        drop(self.leave.take());
        self.left().await;
        self.frames()
    }

    /// Waits until the listener has left by itself.
    pub(super) async fn left(&mut self) {
        let Some(mut task) = self.task.take() else { return };
        if tokio::time::timeout(CLOSE_TIMEOUT, &mut task).await.is_err() {
            task.abort();
        }
    }
}

struct Pen {
    log: Arc<Mutex<Log>>,
    bell: Bell,
    target: Target,
}

impl Pen {
    /// Writes a message down; true when it is time to leave.
    fn write(&self, message: &Message, until: Until) -> bool {
        let mut frame = Frame { t_ms: self.bell.milliseconds(), text: None, binary_base64: None };
        match message {
            Message::Text(text) => frame.text = Some(self.parse(text)),
            Message::Binary(bytes) => frame.binary_base64 = Some(STANDARD.encode(bytes)),
            _ => return false,
        }
        let binary = frame.binary_base64.is_some();
        let mut log = self.log.lock();
        log.frames.push(frame);
        let count = log.frames.len();
        drop(log);
        self.bell.count.send_modify(|count| *count += 1);
        count >= MOST_FRAMES
            || match until {
                Until::Told => false,
                Until::FirstPreview => binary,
                Until::Count(limit) => count >= limit,
            }
    }

    fn parse(&self, text: &str) -> Value {
        let text = self.target.clean(text);
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    fn lost(&self) {
        self.log.lock().lost = true;
        self.bell.count.send_modify(|count| *count += 1);
    }
}

async fn listen(mut socket: Socket, pen: Pen, mut told: oneshot::Receiver<()>, until: Until) {
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            _ = &mut told => break,
        };
        match message {
            Some(Ok(Message::Close(_)) | Err(_)) | None => return pen.lost(),
            Some(Ok(message)) => {
                if pen.write(&message, until) {
                    break;
                }
            }
        }
    }
    // Errors mean that the other side has gone already.
    let _ = socket.close(None).await;
    let drain = async { while let Some(Ok(_)) = socket.next().await {} };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, drain).await;
}
