//! A simulated ComfyUI 0.8.0: the recorded protocol over HTTP and WebSocket, without a model.
//!
//! As a command it is `comfygate sim`; as a library a test starts servers on free ports and
//! breaks them on demand:
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use comfygate::sim::{Sim, SimConfig};
//!
//! let sim = Sim::start(SimConfig { speed: 100.0, ..SimConfig::default() }).await?;
//! println!("{}", sim.url());
//! sim.faults().phantom_queue(1, 4); // reports five prompts
//! sim.kill().await; // as `kill -9`: every connection is reset
//! # Ok(())
//! # }
//! ```
//!
//! Nodes: `EmptyImage`, `LoadImage`, `SaveImage`, `PreviewImage` and the recording server's
//! `PacedImage`, which sleeps `seconds` (divided by [`SimConfig::speed`]) in `steps`, reports
//! each, raises before step `fail_at`, and yields the 64×64 image of its `seed`
//! ([`image_of_seed`] gives the bytes that `SaveImage` writes for it). Servers can be made to
//! differ: [`SimConfig::without_nodes`] lacks some of them, [`SimConfig::models`] adds a
//! `CheckpointLoaderSimple` whose `model` output `PacedImage` takes.
//!
//! # The control endpoint
//!
//! `GET /sim` tells `{"requests", "sockets", "finished", "faults"}`. `POST /sim/faults` takes a
//! JSON object with any of these keys, replies with the state afterwards, and is itself never
//! affected; the same are methods of [`Faults`]:
//!
//! | Key | Value | Fault |
//! |---|---|---|
//! | `refuse_seconds` | number | listener closed and connections reset, for so long |
//! | `hang` | bool | connections are accepted, requests get no answer until it is lifted |
//! | `latency_ms` | number | every answer waits |
//! | `errors` | bool | every request gets the text 500 |
//! | `broken_json` | bool | every JSON reply is cut in the middle |
//! | `queue` | `"real"`, `"broken"`, `"huge"`, `"endless"`, `"truncated"`, `"wrong_type"` | what `GET /queue` sends |
//! | `phantoms` | `{"running", "pending"}` | prompts reported on top of the real ones |
//! | `die_at_step` | number or null | dies when a `PacedImage` comes to that step, counted from 0 |
//! | `deaf` | bool | running prompts take no notice of interrupts |
//! | `die` | true | dies now: connections reset, listener closed, worker gone |
//! | `drop_sockets` | true | every WebSocket is cut without a close frame |
//! | `drop_connections` | true | every connection is reset |
//! | `forget` | true | queue, running prompt, history, cache and counter are lost, sockets cut |
//! | `file` | `{"name", "size"}` | makes a (sparse) output file for download tests |
//!
//! # Where it differs from ComfyUI
//!
//! A WebSocket whose reader falls [`SimConfig::socket_queue`] frames behind is dropped, it does
//! not delay the others; PNGs carry no metadata; WebP previews are lossless.

mod cli;
mod events;
mod faults;
mod files;
mod graph;
mod info;
mod jobs;
mod net;
mod nodes;
mod perform;
mod picture;
mod progress;
mod prompt;
mod queue;
mod server;
mod trace;
mod upload;
mod userdata;
mod validate;
mod view;
mod worker;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::comfy::reply;

pub use cli::{Args, run, start_farm};
pub use events::{Tap, TapFrame};
pub use faults::{Faults, QueueReply};
pub use picture::image_of_seed;
pub use trace::{Mark, Traced};

use events::Hub;
use faults::Fault;
use files::Files;
use nodes::Nodes;
use queue::{Board, Finished, Item};
use trace::Trace;

/// How many requests and log lines are remembered.
const MAX_REQUESTS: usize = 10_000;
const MAX_LOG_LINES: usize = 300;

/// A hook that may alter every JSON reply; it gets the request's path.
pub type ReplyTap = Arc<dyn Fn(&str, &mut Value) + Send + Sync>;

/// How a simulated server behaves.
#[derive(Clone)]
pub struct SimConfig {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// `PacedImage` takes its seconds divided by this.
    pub speed: f64,
    /// Makes names that ComfyUI draws at random (of temporary files) repeatable.
    pub seed: u64,
    /// The static folder of the stock page; without it a small page of the simulator's own.
    pub web_root: Option<PathBuf>,
    /// Whether the end of a replaced socket deletes its successor's registration, as upstream.
    pub reconnect_bug: bool,
    /// Alters outgoing WebSocket frames.
    pub tap: Option<Tap>,
    /// Alters JSON replies.
    pub reply_tap: Option<ReplyTap>,
    /// Largest request body, as `--max-upload-size`; above it 413.
    pub max_upload_size: u64,
    /// Where its folders are; they stay when it ends, as a real server's do. Without: a directory of
    /// its own, that goes with it.
    pub directory: Option<PathBuf>,
    /// How many output files stay on disk.
    pub keep_outputs: usize,
    /// How many finished prompts history holds.
    pub history_size: usize,
    /// How many frames may wait for a slow WebSocket reader before it is dropped.
    pub socket_queue: usize,
    /// Nodes that this server lacks.
    pub without_nodes: Vec<String>,
    /// Checkpoints that this server has. With any, `CheckpointLoaderSimple` lists them, and
    /// `PacedImage` has an optional input `model` that takes what it loads.
    pub models: Vec<String>,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            speed: 1.0,
            seed: 0,
            web_root: None,
            reconnect_bug: true,
            tap: None,
            reply_tap: None,
            max_upload_size: 100 << 20,
            directory: None,
            keep_outputs: 10_000,
            history_size: 10_000,
            socket_queue: 10_000,
            without_nodes: Vec::new(),
            models: Vec::new(),
        }
    }
}

impl fmt::Debug for SimConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimConfig")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("speed", &self.speed)
            .finish_non_exhaustive()
    }
}

/// Whose prompt runs, and which node it told of last.
#[derive(Debug, Default)]
struct Current {
    client: Option<String>,
    node: Option<String>,
}

/// The requests that came, counted, and the last of them.
#[derive(Debug, Default)]
struct Requests {
    seen: u64,
    last: VecDeque<(String, String)>,
}

/// One server's state. Locks are taken in the order board, era or current, hub, and never across an
/// await.
struct Core {
    config: SimConfig,
    addr: SocketAddr,
    files: Arc<Files>,
    nodes: Nodes,
    hub: Hub,
    fault: Fault,
    board: Mutex<Board>,
    current: Mutex<Current>,
    requests: Mutex<Requests>,
    trace: Trace,
    settings: Mutex<Map<String, Value>>,
    log: Mutex<VecDeque<Value>>,
    era: Mutex<CancellationToken>,
    wake: Notify,
    life: CancellationToken,
    interrupt: AtomicBool,
    free_memory: AtomicBool,
    temp_suffix: String,
}

impl Core {
    fn new(config: SimConfig, addr: SocketAddr, files: Files) -> Self {
        Self {
            hub: Hub::new(config.tap.clone(), config.socket_queue, config.reconnect_bug),
            fault: Fault::default(),
            board: Mutex::new(Board::new(config.history_size)),
            current: Mutex::default(),
            requests: Mutex::default(),
            trace: Trace::default(),
            settings: Mutex::default(),
            log: Mutex::default(),
            era: Mutex::default(),
            wake: Notify::new(),
            life: CancellationToken::new(),
            interrupt: AtomicBool::new(false),
            free_memory: AtomicBool::new(false),
            temp_suffix: suffix(config.seed),
            files: Arc::new(files),
            nodes: Nodes::new(&config.without_nodes, &config.models),
            config,
            addr,
        }
    }

    fn speed(&self) -> f64 {
        self.config.speed.clamp(1e-3, 1e9)
    }

    /// Tells everybody the length of the queue.
    fn publish_status(&self, board: &Board) {
        self.hub.send(None, "status", json!({"status": board.info()}));
    }

    /// Queues a prompt; false when its number and id are those of another one.
    fn put(&self, item: Item) -> bool {
        let mut board = self.board.lock();
        if !board.pending.push(Arc::new(item)) {
            return false;
        }
        self.publish_status(&board);
        self.wake.notify_one();
        true
    }

    /// Takes the first prompt and makes it the running one; with it comes the token that says
    /// when it has been forgotten.
    fn take_next(&self) -> Option<(Arc<Item>, CancellationToken)> {
        let mut board = self.board.lock();
        let item = board.pending.pop()?;
        self.trace.note(Mark::Started, &item.id, Instant::now());
        board.running = Some(item.clone());
        self.publish_status(&board);
        Some((item, self.era.lock().clone()))
    }

    /// Moves the running prompt to history, unless it has been forgotten meanwhile.
    fn finish(&self, item: &Arc<Item>, finished: Finished) {
        let mut board = self.board.lock();
        if !board.running.as_ref().is_some_and(|running| Arc::ptr_eq(running, item)) {
            return;
        }
        board.running = None;
        board.finished += 1;
        board.history.insert(Arc::new(finished));
        self.publish_status(&board);
        self.trace.note(Mark::Finished, &item.id, Instant::now());
        if let Some(client) = item.client() {
            let data = json!({"node": null, "prompt_id": item.id});
            self.hub.send(Some(client), "executing", data);
        }
    }

    fn set_current(&self, client: Option<&str>, node: Option<&str>) {
        let mut current = self.current.lock();
        current.client = client.map(str::to_owned);
        current.node = node.map(str::to_owned);
    }

    fn interrupt(&self, on: bool) {
        self.interrupt.store(on, Ordering::Relaxed);
    }

    fn interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed) && !self.fault.deaf.load(Ordering::Relaxed)
    }

    /// What `GET /features` and the `feature_flags` frame say.
    fn features(&self) -> Value {
        json!({
            "supports_preview_metadata": true,
            "max_upload_size": self.config.max_upload_size,
            "extension": {"manager": {"supports_v4": true}},
        })
    }

    fn log(&self, line: &str) {
        let entry = json!({"t": jiff::Timestamp::now().to_string(), "m": line});
        let data = json!({"entries": [entry], "size": {"cols": 80, "rows": 24}});
        let mut log = self.log.lock();
        if log.len() >= MAX_LOG_LINES {
            log.pop_front();
        }
        log.push_back(entry);
        drop(log);
        self.hub.send_log(&data);
    }

    fn count_request(&self, method: &str, path: &str) {
        let mut requests = self.requests.lock();
        requests.seen += 1;
        if requests.last.len() >= MAX_REQUESTS {
            requests.last.pop_front();
        }
        let path = path.chars().take(512).collect();
        requests.last.push_back((method.to_owned(), path));
    }

    /// Ends the server's life; `abrupt` resets its connections.
    fn end(&self, abrupt: bool) {
        self.life.cancel();
        self.fault.cut_connections(abrupt);
        self.hub.drop_all();
    }
}

/// A running simulated server. Dropping it ends it.
pub struct Sim {
    core: Arc<Core>,
    tasks: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("addr", &self.core.addr).finish_non_exhaustive()
    }
}

impl Sim {
    /// Starts a server; when this returns it is listening.
    pub async fn start(config: SimConfig) -> io::Result<Self> {
        let listener = net::bind(SocketAddr::new(config.host, config.port))?;
        let addr = listener.local_addr()?;
        let name = format!("comfygate-sim-{}-{}", std::process::id(), uuid::Uuid::new_v4());
        let (own, keep) = (config.directory.is_none(), config.keep_outputs);
        let root = config.directory.clone().unwrap_or_else(|| std::env::temp_dir().join(name));
        let made = tokio::task::spawn_blocking(move || Files::create(root, own, keep)).await;
        let files = made.map_err(io::Error::other)??;
        let core = Arc::new(Core::new(config, addr, files));
        let door = net::Door::new(core.clone(), listener);
        let app = server::app(core.clone());
        let life = core.life.clone();
        let serving = tokio::spawn(async move {
            tokio::select! {
                // It ends only with the life: accepting never gives up.
                _ = axum::serve(door, app) => {}
                () = life.cancelled() => {}
            }
        });
        let working = tokio::spawn(worker::work(core.clone()));
        Ok(Self { core, tasks: vec![serving, working] })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.core.addr
    }

    /// Its address as `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.core.addr)
    }

    /// What can go wrong with it. The handle may be kept longer than the server.
    pub fn faults(&self) -> Faults {
        Faults::new(self.core.clone())
    }

    /// How many requests came, those of the control endpoint left out.
    pub fn requests_seen(&self) -> u64 {
        self.core.requests.lock().seen
    }

    /// The last requests (at most 10,000), oldest first: method, and path with query.
    pub fn requests(&self) -> Vec<(String, String)> {
        self.core.requests.lock().last.iter().cloned().collect()
    }

    /// When prompts came, began and ended, oldest first (at most 100,000 marks).
    pub fn trace(&self) -> Vec<Traced> {
        self.core.trace.marks()
    }

    /// How many WebSockets are registered.
    pub fn sockets(&self) -> usize {
        self.core.hub.count()
    }

    /// How many prompts have ended, well or not.
    pub fn finished(&self) -> u64 {
        self.core.board.lock().finished
    }

    /// Whether it has died of `die` or `die_at_step`.
    pub fn is_dead(&self) -> bool {
        self.core.life.is_cancelled()
    }

    /// Ends the server; connections are closed. Its port can be bound again afterwards.
    pub async fn stop(self) {
        self.end(false).await;
    }

    /// Ends the server as `kill -9` would: connections are reset.
    pub async fn kill(self) {
        self.end(true).await;
    }

    async fn end(mut self, abrupt: bool) {
        self.core.end(abrupt);
        for task in self.tasks.drain(..) {
            // A panic in there has been printed; there is nothing left to end.
            let _ = task.await;
        }
        self.core.files.remove();
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.core.end(false);
        self.core.files.remove();
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Five letters, as ComfyUI appends to the names of temporary images.
fn suffix(seed: u64) -> String {
    let mut rest = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut letter = || {
        rest = rest.rotate_left(7).wrapping_add(0x632b_e59b);
        char::from(b'a' + (rest % 26) as u8)
    };
    (0..5).map(|_| letter()).collect()
}
