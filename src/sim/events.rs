//! The WebSocket side: who listens under which `clientId`, and how frames reach them.
//!
//! Every frame passes the [`Hub`], in one order for all. Each socket has a bounded queue; one
//! whose reader does not keep up is dropped instead of delaying everybody, which is where the
//! simulator is kinder than ComfyUI.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{OriginalUri, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Core;
use super::reply::{Query, object, python_json, text};

/// What clients may send at once, as aiohttp's default.
const MAX_INBOUND: usize = 4 << 20;

/// A frame on its way to one socket.
#[derive(Debug, Clone, PartialEq)]
pub enum TapFrame {
    /// A JSON frame.
    Text(Value),
    /// A binary frame.
    Binary(Vec<u8>),
}

/// A hook that sees every outgoing frame with its addressee and says what is delivered, to whom,
/// instead: nothing, the frame, several. With it a test makes a server that breaks the contract.
/// It runs while frames are being sent, and must not call the simulator.
pub type Tap = Arc<dyn Fn(&str, TapFrame) -> Vec<(String, TapFrame)> + Send + Sync>;

/// A registered socket.
struct Listener {
    connection: u64,
    frames: mpsc::Sender<Message>,
    flags: Map<String, Value>,
    gone: CancellationToken,
}

#[derive(Default)]
struct Registry {
    listeners: HashMap<String, Listener>,
    log_subscribers: HashSet<String>,
    connections: u64,
}

/// All registered sockets.
pub(super) struct Hub {
    registry: Mutex<Registry>,
    tap: Option<Tap>,
    capacity: usize,
    reconnect_bug: bool,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("listeners", &self.count()).finish_non_exhaustive()
    }
}

impl Hub {
    /// No sockets yet; each may have `capacity` frames waiting.
    pub(super) fn new(tap: Option<Tap>, capacity: usize, reconnect_bug: bool) -> Self {
        Self { registry: Mutex::default(), tap, capacity: capacity.max(1), reconnect_bug }
    }

    /// How many sockets are registered.
    pub(super) fn count(&self) -> usize {
        self.registry.lock().listeners.len()
    }

    /// Sends `{"type", "data"}` to one client, or to all when `to` is none.
    pub(super) fn send(&self, to: Option<&str>, kind: &str, data: Value) {
        let mut frame = Map::new();
        frame.insert("type".to_owned(), kind.into());
        frame.insert("data".to_owned(), data);
        self.deliver(to, TapFrame::Text(Value::Object(frame)));
    }

    /// Sends a binary frame to one client, or to all.
    pub(super) fn send_binary(&self, to: Option<&str>, bytes: Vec<u8>) {
        self.deliver(to, TapFrame::Binary(bytes));
    }

    /// Sends a log line to those who subscribed.
    pub(super) fn send_log(&self, data: &Value) {
        let subscribers: Vec<String> =
            self.registry.lock().log_subscribers.iter().cloned().collect();
        for sid in subscribers {
            self.send(Some(&sid), "logs", data.clone());
        }
    }

    /// Adds or removes a subscriber to the log; false when that sid has no socket.
    pub(super) fn subscribe_log(&self, sid: &str, enabled: bool) {
        let mut registry = self.registry.lock();
        if enabled && registry.listeners.contains_key(sid) {
            registry.log_subscribers.insert(sid.to_owned());
        } else {
            registry.log_subscribers.remove(sid);
        }
    }

    /// Whether this client asked for previews with metadata.
    pub(super) fn wants_metadata(&self, sid: Option<&str>) -> bool {
        let registry = self.registry.lock();
        let listener = sid.and_then(|sid| registry.listeners.get(sid));
        listener.is_some_and(|l| l.flags.get("supports_preview_metadata") == Some(&json!(true)))
    }

    /// Closes every socket, without a close frame.
    pub(super) fn drop_all(&self) {
        let mut registry = self.registry.lock();
        registry.log_subscribers.clear();
        for (_, listener) in registry.listeners.drain() {
            listener.gone.cancel();
        }
    }

    fn deliver(&self, to: Option<&str>, frame: TapFrame) {
        let mut registry = self.registry.lock();
        let sids: Vec<String> = match to {
            Some(sid) => vec![sid.to_owned()],
            None => registry.listeners.keys().cloned().collect(),
        };
        let Some(tap) = &self.tap else {
            let message = message(frame);
            for sid in sids {
                registry.push(&sid, message.clone());
            }
            return;
        };
        for sid in &sids {
            if !registry.listeners.contains_key(sid) {
                continue;
            }
            for (sid, frame) in tap(sid, frame.clone()) {
                registry.push(&sid, message(frame));
            }
        }
    }

    /// Registers a socket under its sid, replacing another without closing it.
    fn register(&self, sid: &str, gone: CancellationToken) -> (u64, mpsc::Receiver<Message>) {
        let (frames, queue) = mpsc::channel(self.capacity);
        let mut registry = self.registry.lock();
        registry.connections += 1;
        let connection = registry.connections;
        let listener = Listener { connection, frames, flags: Map::new(), gone };
        registry.listeners.insert(sid.to_owned(), listener);
        (connection, queue)
    }

    /// Ends a registration. With the upstream bug (issue 16010) whichever socket holds the sid
    /// by now loses it.
    fn unregister(&self, sid: &str, connection: u64) {
        let mut registry = self.registry.lock();
        let own = registry.listeners.get(sid).is_some_and(|l| l.connection == connection);
        if own || self.reconnect_bug {
            registry.listeners.remove(sid);
            registry.log_subscribers.remove(sid);
        }
    }

    fn set_flags(&self, sid: &str, flags: Map<String, Value>) {
        if let Some(listener) = self.registry.lock().listeners.get_mut(sid) {
            listener.flags = flags;
        }
    }
}

impl Registry {
    fn push(&mut self, sid: &str, message: Message) {
        let Some(listener) = self.listeners.get(sid) else { return };
        if listener.frames.try_send(message).is_err() {
            listener.gone.cancel();
            self.listeners.remove(sid);
        }
    }
}

fn message(frame: TapFrame) -> Message {
    match frame {
        TapFrame::Text(value) => Message::Text(Utf8Bytes::from(python_json(&value))),
        TapFrame::Binary(bytes) => Message::Binary(Bytes::from(bytes)),
    }
}

/// `GET /ws`.
pub(super) async fn connect(
    State(core): State<Arc<Core>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else { return not_an_upgrade(&headers) };
    let given = Query::of(&uri).get("clientId").unwrap_or_default().to_owned();
    let sid = if given.is_empty() { uuid::Uuid::new_v4().simple().to_string() } else { given };
    upgrade
        .max_message_size(MAX_INBOUND)
        .max_frame_size(MAX_INBOUND)
        .on_upgrade(move |socket| serve(core, sid, socket))
}

fn not_an_upgrade(headers: &HeaderMap) -> Response {
    let given =
        headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or("None");
    let line =
        format!("No WebSocket UPGRADE hdr: {given}\n Can \"Upgrade\" only to \"WebSocket\".");
    text(StatusCode::BAD_REQUEST, line)
}

async fn serve(core: Arc<Core>, sid: String, socket: WebSocket) {
    let gone = CancellationToken::new();
    let (connection, mut queue) = greet(&core, &sid, gone.clone());
    let (mut sink, mut stream) = socket.split();
    let writing = async {
        while let Some(message) = queue.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        // Another socket took the sid: this one hears nothing more but stays open.
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut first = true;
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Text(line) = message {
                first = first && !hear(&core, &sid, &line);
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
        () = gone.cancelled() => {}
    }
    core.hub.unregister(&sid, connection);
}

/// Registers a socket and sends what a new one gets, as one step against other events.
fn greet(core: &Core, sid: &str, gone: CancellationToken) -> (u64, mpsc::Receiver<Message>) {
    let board = core.board.lock();
    let current = core.current.lock();
    let registered = core.hub.register(sid, gone);
    core.hub.send(Some(sid), "status", json!({"status": board.info(), "sid": sid}));
    if current.client.as_deref() == Some(sid)
        && let Some(node) = &current.node
    {
        core.hub.send(Some(sid), "executing", json!({"node": node}));
    }
    registered
}

/// Takes a client's text; true when it was the first valid one, which alone may carry flags.
fn hear(core: &Core, sid: &str, line: &str) -> bool {
    let Ok(Value::Object(mut message)) = serde_json::from_str(line) else { return false };
    if message.get("type") == Some(&json!("feature_flags")) {
        let flags = message.remove("data").unwrap_or_default();
        core.hub.set_flags(sid, object(flags));
        core.hub.send(Some(sid), "feature_flags", core.features());
    }
    true
}
