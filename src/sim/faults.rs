//! Faults on demand: the handle of the library, and the control endpoint `/sim` (its contract
//! stands in the module doc of [`super`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Core;
use super::queue::Board;
use super::reply::{Answer, Refusal, ok_json};

/// Size of the `huge` reply to `GET /queue`.
const HUGE: u64 = 200 << 20;
/// Time for what was written to leave before the connection is cut.
const GRACE: Duration = Duration::from_millis(50);
const CHUNK: usize = 64 << 10;

/// What `GET /queue` sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueueReply {
    /// The queue.
    #[default]
    Real,
    /// Not JSON.
    Broken,
    /// Valid JSON of 200 MiB.
    Huge,
    /// A list that never ends.
    Endless,
    /// Fewer bytes than announced, then the connection is cut.
    Truncated,
    /// JSON of other types.
    WrongType,
}

impl QueueReply {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "real" => Self::Real,
            "broken" => Self::Broken,
            "huge" => Self::Huge,
            "endless" => Self::Endless,
            "truncated" => Self::Truncated,
            "wrong_type" => Self::WrongType,
            _ => return None,
        })
    }

    /// The faulty reply, if it is to be one.
    pub(super) fn response(self) -> Option<Response> {
        let head = "{\"queue_running\": [], \"queue_pending\": [";
        let body = match self {
            Self::Real => return None,
            Self::Broken => Body::from("{\"queue_running\": [], \"queue_pend"),
            Self::WrongType => Body::from("{\"queue_running\": 3, \"queue_pending\": \"none\"}"),
            Self::Endless => flood(head, u64::MAX),
            Self::Huge => flood(head, HUGE),
            Self::Truncated => Body::from_stream(stream::unfold(false, move |begun| async move {
                if !begun {
                    return Some((Ok(Bytes::from(head)), true));
                }
                // An error right away would keep the head from being sent.
                tokio::time::sleep(GRACE).await;
                Some((Err(std::io::Error::other("cut")), true))
            })),
        };
        let mut response = Response::new(body);
        let json = HeaderValue::from_static(super::reply::JSON);
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if self == Self::Truncated {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("9999"));
        }
        Some(response)
    }
}

/// Queue items without end, or until about `size` bytes are there and the JSON is closed.
fn flood(head: &'static str, size: u64) -> Body {
    let item = "[1, \"00000000-0000-4000-8000-000000000000\", {}, {}, []], ";
    let chunk = Bytes::from(item.repeat(CHUNK / item.len()));
    let last = Bytes::from("[1, \"last\", {}, {}, []]]}");
    let chunks = size / chunk.len() as u64;
    let body = stream::unfold(0, move |sent| {
        let next = if sent == 0 {
            Some(Bytes::from(head))
        } else if sent <= chunks {
            Some(chunk.clone())
        } else {
            (sent == chunks + 1).then(|| last.clone())
        };
        async move { next.map(|bytes| (Ok::<_, std::io::Error>(bytes), sent + 1)) }
    });
    Body::from_stream(body)
}

/// The faults in force.
#[derive(Debug)]
pub(super) struct Fault {
    /// Whether the listener shall be closed.
    pub(super) refusing: watch::Sender<bool>,
    /// Whether it is.
    pub(super) closed: watch::Sender<bool>,
    hanging: watch::Sender<bool>,
    latency_ms: AtomicU64,
    /// Whether every request fails.
    pub(super) errors: AtomicBool,
    /// Whether JSON replies are cut.
    pub(super) broken_json: AtomicBool,
    abrupt: AtomicBool,
    die_at_step: AtomicI64,
    /// Whether running prompts take no notice of interrupts.
    pub(super) deaf: AtomicBool,
    queue: Mutex<QueueReply>,
    connections: Mutex<CancellationToken>,
}

impl Default for Fault {
    fn default() -> Self {
        Self {
            refusing: watch::Sender::new(false),
            closed: watch::Sender::new(false),
            hanging: watch::Sender::new(false),
            latency_ms: AtomicU64::new(0),
            errors: AtomicBool::new(false),
            broken_json: AtomicBool::new(false),
            abrupt: AtomicBool::new(false),
            die_at_step: AtomicI64::new(-1),
            deaf: AtomicBool::new(false),
            queue: Mutex::default(),
            connections: Mutex::default(),
        }
    }
}

impl Fault {
    /// Lets a request wait as long as it shall.
    pub(super) async fn wait(&self) {
        let latency = self.latency_ms.load(Ordering::Relaxed);
        if latency > 0 {
            tokio::time::sleep(Duration::from_millis(latency)).await;
        }
        // The sender lives as long as the server, so this ends only when the fault does.
        let _ = self.hanging.subscribe().wait_for(|hanging| !hanging).await;
    }

    /// What `GET /queue` shall send.
    pub(super) fn queue(&self) -> QueueReply {
        *self.queue.lock()
    }

    /// The token that ends today's connections.
    pub(super) fn connections(&self) -> CancellationToken {
        self.connections.lock().clone()
    }

    /// Ends all connections, by a reset when `abrupt`.
    pub(super) fn cut_connections(&self, abrupt: bool) {
        self.abrupt.store(abrupt, Ordering::Relaxed);
        let fresh = CancellationToken::new();
        std::mem::replace(&mut *self.connections.lock(), fresh).cancel();
    }

    /// Whether connections end by a reset.
    pub(super) fn is_abrupt(&self) -> bool {
        self.abrupt.load(Ordering::Relaxed)
    }
}

impl Core {
    /// Dies when the fault says so for this step.
    pub(super) fn die_if_due(&self, step: u64) {
        if i64::try_from(step) == Ok(self.fault.die_at_step.load(Ordering::Relaxed)) {
            self.end(true);
        }
    }
}

/// What can go wrong with a [`super::Sim`], as methods.
#[derive(Clone)]
pub struct Faults {
    core: Arc<Core>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faults").field("of", &self.core.addr).finish_non_exhaustive()
    }
}

impl Faults {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Closes the listener and resets all connections, or opens it again; returns when done.
    /// State is kept: it is as if the network were gone.
    pub async fn refuse(&self, on: bool) {
        let mut closed = self.core.fault.closed.subscribe();
        self.core.fault.refusing.send_replace(on);
        tokio::select! {
            _ = closed.wait_for(|closed| *closed == on) => {}
            () = self.core.life.cancelled() => {}
        }
        if on {
            self.core.hub.drop_all();
            self.core.fault.cut_connections(true);
        }
    }

    /// Accepts connections but answers nothing, until it is lifted.
    pub fn hang(&self, on: bool) {
        self.core.fault.hanging.send_replace(on);
    }

    /// Every answer waits so long.
    pub fn latency(&self, latency: Duration) {
        let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        self.core.fault.latency_ms.store(ms, Ordering::Relaxed);
    }

    /// Every request gets the text 500.
    pub fn errors(&self, on: bool) {
        self.core.fault.errors.store(on, Ordering::Relaxed);
    }

    /// Every JSON reply is cut in the middle.
    pub fn broken_json(&self, on: bool) {
        self.core.fault.broken_json.store(on, Ordering::Relaxed);
    }

    /// What `GET /queue` sends.
    pub fn queue_reply(&self, reply: QueueReply) {
        *self.core.fault.queue.lock() = reply;
    }

    /// Reports so many prompts on top of the real ones, and tells the sockets.
    pub fn phantom_queue(&self, running: usize, pending: usize) {
        let mut board = self.core.board.lock();
        board.phantoms = (running.min(10_000), pending.min(10_000));
        self.core.publish_status(&board);
    }

    /// Dies when a `PacedImage` comes to this step, counted from 0.
    pub fn die_at_step(&self, step: Option<u32>) {
        let step = step.map_or(-1, i64::from);
        self.core.fault.die_at_step.store(step, Ordering::Relaxed);
    }

    /// Running prompts take no notice of interrupts, like a node in a long computation.
    pub fn deaf(&self, on: bool) {
        self.core.fault.deaf.store(on, Ordering::Relaxed);
    }

    /// Dies now: connections are reset, the listener closes, the worker is gone.
    pub fn die(&self) {
        self.core.end(true);
    }

    /// Cuts every WebSocket without a close frame.
    pub fn drop_sockets(&self) {
        self.core.hub.drop_all();
    }

    /// Resets every connection; new ones are accepted.
    pub fn drop_connections(&self) {
        self.core.hub.drop_all();
        self.core.fault.cut_connections(true);
    }

    /// Forgets queue, running prompt, history, cache and counter and cuts the sockets, as a
    /// restart does.
    pub fn forget(&self) {
        let core = &self.core;
        let mut board = core.board.lock();
        *board = Board::new(core.config.history_size);
        std::mem::take(&mut *core.era.lock()).cancel();
        drop(board);
        core.set_current(None, None);
        core.hub.drop_all();
    }

    /// Makes an output file of this size (sparse), to be had from
    /// `/view?filename=NAME&type=output`.
    pub fn large_file(&self, name: &str, size: u64) -> std::io::Result<()> {
        self.core.files.sparse(name, size)
    }

    fn state(&self) -> Value {
        let (fault, board) = (&self.core.fault, self.core.board.lock());
        json!({
            "hang": *fault.hanging.borrow(),
            "latency_ms": fault.latency_ms.load(Ordering::Relaxed),
            "errors": fault.errors.load(Ordering::Relaxed),
            "broken_json": fault.broken_json.load(Ordering::Relaxed),
            "queue": format!("{:?}", fault.queue()),
            "phantoms": {"running": board.phantoms.0, "pending": board.phantoms.1},
            "die_at_step": fault.die_at_step.load(Ordering::Relaxed),
            "deaf": fault.deaf.load(Ordering::Relaxed),
        })
    }

    /// Applies one key of the control endpoint.
    fn apply(&self, key: &str, value: &Value) -> Result<(), String> {
        let wrong = || format!("wrong value for {key}: {value}");
        let flag = || value.as_bool().ok_or_else(wrong);
        let number = |value: &Value| value.as_u64().ok_or_else(wrong);
        match key {
            "refuse_seconds" => self.refuse_for(value.as_f64().ok_or_else(wrong)?),
            "hang" => self.hang(flag()?),
            "latency_ms" => self.latency(Duration::from_millis(number(value)?)),
            "errors" => self.errors(flag()?),
            "broken_json" => self.broken_json(flag()?),
            "queue" => {
                let reply = value.as_str().and_then(QueueReply::named).ok_or_else(wrong)?;
                self.queue_reply(reply);
            }
            "phantoms" => self.phantom_queue(
                number(&value["running"])? as usize,
                number(&value["pending"])? as usize,
            ),
            "die_at_step" if value.is_null() => self.die_at_step(None),
            "die_at_step" => self.die_at_step(u32::try_from(number(value)?).ok()),
            "deaf" => self.deaf(flag()?),
            "die" | "drop_connections" => self.later(key == "die", flag()?),
            "drop_sockets" if flag()? => self.drop_sockets(),
            "forget" if flag()? => self.forget(),
            "drop_sockets" | "forget" => {}
            "file" => {
                let name = value["name"].as_str().ok_or_else(wrong)?;
                self.large_file(name, number(&value["size"])?)
                    .map_err(|error| error.to_string())?;
            }
            _ => return Err(format!("unknown key {key}")),
        }
        Ok(())
    }

    /// Cuts its own connections only once the reply has had time to leave.
    fn later(&self, die: bool, on: bool) {
        let faults = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            match (on, die) {
                (true, true) => faults.die(),
                (true, false) => faults.drop_connections(),
                (false, _) => {}
            }
        });
    }

    fn refuse_for(&self, seconds: f64) {
        let faults = self.clone();
        let pause = Duration::try_from_secs_f64(seconds.min(3600.0)).unwrap_or_default();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            faults.refuse(true).await;
            tokio::time::sleep(pause).await;
            faults.refuse(false).await;
        });
    }
}

/// `GET /sim`.
pub(super) async fn show(State(core): State<Arc<Core>>) -> Response {
    let (requests, finished) = (core.requests.lock().seen, core.board.lock().finished);
    let sockets = core.hub.count();
    let faults = Faults::new(core).state();
    ok_json(&json!({
        "requests": requests, "sockets": sockets, "finished": finished, "faults": faults,
    }))
}

/// `POST /sim/faults`.
pub(super) async fn set(State(core): State<Arc<Core>>, body: Bytes) -> Answer {
    let faults = Faults::new(core);
    let Ok(Value::Object(wanted)) = serde_json::from_slice(&body) else {
        return Err(super::reply::bad("a JSON object is wanted"));
    };
    for (key, value) in &wanted {
        faults.apply(key, value).map_err(|message| super::reply::bad(&message))?;
    }
    Ok::<_, Refusal>(ok_json(&faults.state()))
}
