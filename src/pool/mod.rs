//! Pool mode: the farm as one big ComfyUI.
//!
//! The way of a prompt: `own` takes the POST, [`submission`] reads it, and it becomes a [`job`]
//! that waits here, not in a server, until a server is free for it. [`core`] decides, as a pure
//! state machine: what happened goes in as an [`Input`](core::Input), what is to be done comes out
//! as [`Action`](core::Action)s, which `dispatch` performs: on the network by `errands`, which
//! speak to backends through [`ask`]; on the disk by the [`journal`].
//!
//! The way of an event: [`links`] hold two sockets to each backend, `hearing` tells by [`events`]
//! what a message means and whose it is; [`clients`] has the sockets of those who are to hear it.
//! [`frame`] is what passes between. What nobody heard of a job's end is told by [`retell`]; what a
//! backend says to a client itself comes by `companions`.
//!
//! Everything else of ComfyUI: [`route`] tells who answers a request. `own` knows queue, history
//! and jobs; [`merged`] asks all servers and makes one answer; [`userdata`] keeps what belongs to
//! users; [`files`] knows where files are; [`way`] finds the one server for the rest.
//!
//! `lanes` and `look` tell the core what the fleet looks like, `foresee` tells users when
//! their jobs will have ended, [`wanted`] tells operators what jobs asked for in vain.

mod allowance;
mod announced;
pub mod ask;
mod cancel;
pub mod clients;
mod companions;
pub mod core;
mod dispatch;
mod errands;
pub mod eta;
pub mod events;
pub mod files;
mod forecast;
mod foresee;
pub mod frame;
mod hearing;
mod hook;
pub mod job;
pub mod journal;
mod lanes;
pub mod line;
pub mod links;
mod look;
mod made;
pub mod merged;
mod needs;
mod own;
mod posted;
mod release;
pub mod retell;
pub mod route;
mod start;
pub mod submission;
pub mod userdata;
pub mod visit;
pub mod wanted;
pub mod way;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

pub use companions::Present;
pub use start::{Opened, open};

use crate::backend::{Backend, BackendId};
use crate::config::Config;
use crate::fleet::Fleet;
use crate::gateway::Gateway;
use crate::metrics::Durations;
use crate::tasks::Tasks;
use job::JobId;

/// Pool mode's parts, as they share them.
pub struct Pool {
    fleet: Arc<Fleet>,
    config: Arc<ArcSwap<Config>>,
    tasks: Arc<Tasks>,
    core: Mutex<core::Core>,
    /// What the core would hear, while a successor may have its jobs.
    frozen: Mutex<Option<Vec<core::Input>>>,
    tenure: watch::Sender<release::Tenure>,
    /// The clients that wait for a verdict.
    verdicts: Mutex<HashMap<JobId, oneshot::Sender<own::prompt::Answer>>>,
    flights: own::prompt::InFlight,
    per_user: own::limits::PerUser,
    posted: posted::AllPosted,
    /// Jobs that must not run twice are posted when these say that it is written where.
    written: Mutex<HashMap<JobId, journal::Ticket>>,
    /// What was fetched of jobs that are about to end.
    entries: Mutex<HashMap<JobId, Fetched>>,
    /// By which open jobs are known again when they are posted twice.
    fingerprints: Mutex<HashMap<JobId, [u8; 32]>>,
    /// What jobs need, shared by those that need the same.
    needs: needs::Shared,
    /// What jobs asked for that no backend has.
    wanted: wanted::Wanted,
    /// Bytes of the prompts that are held.
    held: AtomicU64,
    /// Keeps the uploads that open jobs name.
    pins: Mutex<HashMap<JobId, Vec<Arc<files::uploads::Pins>>>>,
    /// Open jobs that a backend was given another body of than the client's.
    rewritten: Mutex<HashSet<JobId>>,
    made: made::Made,
    /// Node types that end a workflow, on any server.
    outputs: ArcSwap<BTreeSet<Box<str>>>,
    /// The last words on jobs whose history entry is being fetched.
    ends: Mutex<HashMap<JobId, Vec<frame::Delivery>>>,
    /// What the owners of open jobs were told.
    retell: Mutex<retell::Retell>,
    hooks: hook::Hooks,
    /// Another one of them has come.
    end_heard: Notify,
    journal: journal::Journal,
    ask: ask::Ask,
    ear: Arc<hearing::Ear>,
    links: Arc<links::Links>,
    hub: Arc<clients::Hub>,
    companions: companions::Companions,
    gateway: Weak<Gateway>,
    /// What clients that announce their features are answered with.
    features: Arc<Mutex<serde_json::Value>>,
    files: Arc<files::Files>,
    /// Copies of what jobs made, if they are kept.
    copies: Option<Arc<files::copies::Copies>>,
    merged: Arc<merged::Merged>,
    fetcher: Arc<merged::fetch::Fetcher>,
    routers: OnceLock<Routers>,
    counter: submission::Counter,
    next_job: AtomicU64,
    /// Backends whose queue was read since their sockets opened.
    read: Mutex<HashSet<BackendId>>,
    /// Backends whose queue is about to be read.
    looking: Mutex<HashSet<BackendId>>,
    /// The core has another time to be woken at.
    alarm: Notify,
    /// A socket to a backend has opened or ended.
    links_changed: Notify,
    forecasts: Mutex<forecast::Forecasts>,
    /// How far off the first reckoning of a job's beginning was.
    eta_error: Arc<Durations>,
    /// The line, or what runs, has changed.
    line_moved: Notify,
}

/// A history entry, and what was read out of it before anybody had to wait for that.
struct Fetched {
    entry: Bytes,
    summary: Bytes,
}

/// The services that answer in this process.
struct Routers {
    own: axum::Router,
    userdata: axum::Router,
    merged: axum::Router,
    files: axum::Router,
}

impl Pool {
    /// Whether callers see and touch their own jobs only.
    fn is_isolated(&self) -> bool {
        self.hub.is_isolated()
    }

    /// Whether a backend gets jobs.
    pub fn is_open(&self, backend: &Backend) -> bool {
        self.core.lock().takes_jobs(backend.id)
    }

    /// Whether any backend gets jobs.
    pub fn is_ready(&self) -> bool {
        let core = self.core.lock();
        self.fleet.view().backends.iter().any(|backend| core.takes_jobs(backend.id))
    }

    /// Waits until a backend gets jobs, at most so long.
    pub async fn first_lane(&self, limit: Duration) {
        let mut changes = self.fleet.watch();
        let opened = async { while !self.is_ready() && changes.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(limit, opened).await;
    }

    /// Jobs that wait in the gateway.
    pub fn waiting(&self) -> usize {
        self.core.lock().waiting()
    }

    fn is_output(&self, class: &str) -> bool {
        self.outputs.load().contains(class)
    }

    /// Whether a sid is one of those that the gateway itself uses at the backends.
    pub fn is_own_sid(&self, sid: &str) -> bool {
        self.links.sids().flavour(sid).is_some()
    }

    /// The sockets of clients.
    pub fn hub(&self) -> &Arc<clients::Hub> {
        &self.hub
    }
}
