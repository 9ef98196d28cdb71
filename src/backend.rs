//! One backend: what the configuration says of it, and what is known of it now.
//!
//! A [`Backend`] is cheap to replace when its configuration changes; its [`Live`] part stays the
//! same for as long as the name exists, so that counters, readings and guards survive a reload.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::clock::Moment;
use crate::config;
use crate::connections::Connections;
use crate::depth::Depth;
use crate::health::{Change, Health, ramp};
use crate::inventory::Inventory;
use crate::metrics::Traffic;
use crate::outlier::warden::Track;
use crate::pace::{Learnt, Pace};
use crate::relay::StopReason;
use crate::selection::Candidate;
use crate::tasks::line::Outlook;

/// A backend's number, given to its name for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub u32);

/// What an operator wants of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It serves.
    Enabled,
    /// It keeps its clients and gets no new ones.
    Draining,
    /// It gets nothing.
    Disabled,
}

impl Wanted {
    /// Its name in the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Draining => "drain",
            Self::Disabled => "disabled",
        }
    }
}

/// Everything that decides who may be sent to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What its probes say.
    pub health: Health,
    /// Its running prompt has shown no life for long.
    pub suspect: bool,
    /// It failed real requests, and is out for a time (see [`outlier`](crate::outlier)).
    pub ejected: bool,
    /// What the operator wants.
    pub wanted: Wanted,
    /// It is no longer part of the fleet.
    pub removed: bool,
}

impl Standing {
    /// Whether new clients may go there.
    pub fn takes_new(&self) -> bool {
        self.keeps_old() && self.wanted == Wanted::Enabled
    }

    /// Whether clients that belong there may stay.
    pub fn keeps_old(&self) -> bool {
        self.may_be_asked() && !self.ejected
    }

    /// Whether what it alone can answer may be asked of it: what lies on an ejected backend is
    /// worth a try.
    pub fn may_be_asked(&self) -> bool {
        self.health != Health::Down && self.wanted != Wanted::Disabled && !self.removed
    }

    /// Whether it answers its probes and is not disabled.
    pub fn is_healthy(&self) -> bool {
        self.keeps_old() && self.health == Health::Up
    }

    /// Why open sockets must end, when they must.
    pub fn stop_reason(&self) -> Option<StopReason> {
        if self.removed {
            Some(StopReason::BackendRemoved)
        } else if self.wanted == Wanted::Disabled {
            Some(StopReason::BackendDisabled)
        } else if self.health == Health::Down {
            Some(StopReason::BackendDown)
        } else if self.ejected {
            Some(StopReason::BackendEjected)
        } else {
            None
        }
    }

    /// The state's name in the admin API and in metrics.
    pub fn label(&self) -> &'static str {
        match (self.wanted, self.health) {
            (Wanted::Disabled, _) => "disabled",
            (_, Health::Down) => "down",
            _ if self.ejected => "ejected",
            (Wanted::Draining, _) => "drain",
            (_, Health::Unknown) => "unknown",
            (_, Health::Up) if self.suspect => "suspect",
            (_, Health::Up) => "up",
        }
    }
}

/// A member of the fleet.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Its number.
    pub id: BackendId,
    /// What the configuration says.
    pub spec: config::Backend,
    /// What is known now.
    pub live: Arc<Live>,
}

impl Backend {
    /// The backend as the choice sees it, for a client without a zone and work of no special kind.
    pub fn candidate(&self, fresh_clients: u32, stale_after: std::time::Duration) -> Candidate {
        let live = &self.live;
        let standing = live.standing();
        let now = Moment::now();
        let prompts = live.depth.prompts();
        Candidate {
            eligible: standing.takes_new() && live.connections.count() < self.spec.max_connections,
            serves: true,
            in_zone: true,
            backup: self.spec.backup,
            suspect: standing.suspect,
            stale: live.depth.is_stale(now, stale_after),
            prompts,
            fresh_clients,
            weight: self.spec.weight,
            max_queue: self.spec.max_queue,
            calls: live.calls.load(Relaxed),
            prompt_seconds: live.seconds_each(prompts, now),
            ramp: live.ramp(now),
        }
    }

    /// Whether it does a kind of work; one that lists none does any.
    pub fn serves(&self, task_type: &str) -> bool {
        let listed = &self.spec.task_types;
        listed.is_empty() || listed.iter().any(|listed| listed == task_type)
    }

    /// Its zone, if it is labelled with one.
    pub fn zone(&self) -> Option<&str> {
        let label = self.spec.labels.iter().find(|(name, _)| name == "zone");
        label.map(|(_, zone)| zone.as_str())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }
}

/// What is known of a backend now.
#[derive(Debug)]
pub struct Live {
    /// Its queue.
    pub depth: Arc<Depth>,
    /// What it is made of.
    pub inventory: Inventory,
    /// Requests handed to it.
    pub calls: AtomicU64,
    /// Probes that ended.
    pub checks: AtomicU64,
    /// Requests that failed on it.
    pub failures: AtomicU64,
    /// Requests and sockets that it holds now.
    pub connections: Arc<Connections>,
    /// What its answers tell of it.
    pub outlier: Track,
    /// Client WebSockets open through it.
    pub sockets: AtomicU32,
    /// What it answered, for metrics.
    pub traffic: Traffic,
    /// Set when its queue may have moved.
    pub moved: Notify,
    /// Set to have it probed soon.
    pub poke: Notify,
    /// Where its name resolved to last.
    pub address: ArcSwapOption<SocketAddr>,
    standing: watch::Sender<Standing>,
    /// `Standing::keeps_old`, for the path of every request.
    keeps_old: AtomicBool,
    /// When it came back from being down; 0 when it never was.
    returned_at: AtomicU64,
    /// When it went down last; 0 when it never did.
    down_at: AtomicU64,
    last_event: AtomicU64,
    /// A prompt there showed no life, and an interrupt did not help.
    hung: AtomicBool,
    /// Bits of an f64. Two writers at once may lose a sample, which a mean survives.
    response_seconds: AtomicU64,
    pace: Mutex<Pace>,
    /// Seconds per prompt as tasks taught them, bits of an f64; 0 while they have not.
    taught: AtomicU64,
    outlook: Mutex<Option<Outlook>>,
    breaks: AtomicU64,
    notes: Mutex<Notes>,
}

/// What people want to read about a backend.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// When the last probe ended.
    pub last_check: Option<Timestamp>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it comes back from its ejection.
    pub ejected_until: Option<Timestamp>,
}

impl Live {
    /// A backend nobody has looked at yet.
    pub fn new(wanted: Wanted, learnt: Learnt) -> Self {
        let standing = Standing {
            health: Health::Unknown,
            suspect: false,
            ejected: false,
            wanted,
            removed: false,
        };
        Self {
            depth: Arc::default(),
            inventory: Inventory::default(),
            calls: AtomicU64::new(0),
            checks: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            connections: Arc::default(),
            outlier: Track::default(),
            sockets: AtomicU32::new(0),
            traffic: Traffic::default(),
            moved: Notify::new(),
            poke: Notify::new(),
            address: ArcSwapOption::empty(),
            keeps_old: AtomicBool::new(standing.keeps_old()),
            standing: watch::Sender::new(standing),
            returned_at: AtomicU64::new(0),
            down_at: AtomicU64::new(0),
            last_event: AtomicU64::new(0),
            hung: AtomicBool::new(false),
            response_seconds: AtomicU64::new(0),
            pace: Mutex::new(Pace::new(learnt)),
            taught: AtomicU64::new(0),
            outlook: Mutex::default(),
            breaks: AtomicU64::new(0),
            notes: Mutex::default(),
        }
    }

    /// Whether a prompt there hangs, as pool mode found; the backend is suspect for as long.
    pub fn hangs(&self, hung: bool) {
        self.hung.store(hung, Relaxed);
        self.alter(|standing| standing.suspect = hung);
    }

    /// Whether a prompt there hangs.
    pub fn is_hung(&self) -> bool {
        self.hung.load(Relaxed)
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    /// Whether clients that belong there may stay.
    pub fn keeps_old(&self) -> bool {
        self.keeps_old.load(Relaxed)
    }

    /// Hears of every change of standing.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Changes the standing and says whether that changed anything.
    pub fn alter(&self, change: impl FnOnce(&mut Standing)) -> bool {
        self.standing.send_if_modified(|standing| {
            let before = *standing;
            change(standing);
            self.keeps_old.store(standing.keeps_old(), Relaxed);
            before != *standing
        })
    }

    /// Takes a verdict of its judge.
    pub fn judged(&self, change: &Change, now: Moment) {
        if change.to == Health::Down {
            self.down_at.store(now.0, Relaxed);
            self.broke();
            self.depth.lost();
            self.pace.lock().lost();
        } else if change.from == Health::Down {
            self.returned_at.store(now.0, Relaxed);
        }
        self.alter(|standing| standing.health = change.to);
        if change.to == Health::Down {
            // Its probes speak from now on.
            self.taken_back(now);
        }
    }

    /// Takes it out for failing real requests.
    pub fn ejected(&self, now: Moment) {
        self.down_at.store(now.0, Relaxed);
        self.alter(|standing| standing.ejected = true);
    }

    /// Ends its ejection; whether there was one.
    pub fn taken_back(&self, now: Moment) -> bool {
        self.outlier.release();
        let was_out = self.alter(|standing| standing.ejected = false);
        if was_out {
            self.returned_at.store(now.0, Relaxed);
            self.note(|notes| notes.ejected_until = None);
        }
        was_out
    }

    /// Share of new clients it may take, while it starts slowly.
    pub fn ramp(&self, now: Moment) -> f64 {
        let at = self.returned_at.load(Relaxed);
        ramp((at > 0).then_some(Moment(at)), now)
    }

    /// For how long it has been down or ejected, if it is.
    pub fn down_for(&self, now: Moment) -> std::time::Duration {
        now.since(Moment(self.down_at.load(Relaxed)))
    }

    /// Something moved on it.
    pub fn event(&self, now: Moment) {
        self.last_event.store(now.0, Relaxed);
    }

    /// When something moved on it last.
    pub fn last_event(&self) -> Moment {
        Moment(self.last_event.load(Relaxed))
    }

    /// Takes a depth into the pace.
    pub fn saw_depth(&self, depth: u32, now: Moment) {
        self.pace.lock().saw(depth, now);
    }

    /// Takes the time a response's head took, into an exponentially weighted mean.
    pub fn answered_in(&self, took: std::time::Duration) {
        let took = took.as_secs_f64();
        let mut mean = f64::from_bits(self.response_seconds.load(Relaxed));
        mean += if mean == 0.0 { took } else { 0.1 * (took - mean) };
        self.response_seconds.store(mean.to_bits(), Relaxed);
    }

    /// Mean time of a response's head in seconds; 0 when unknown.
    pub fn response_seconds(&self) -> f64 {
        f64::from_bits(self.response_seconds.load(Relaxed))
    }

    /// Goes on from what an earlier process learnt; nonsense counts as nothing.
    pub fn set_response_seconds(&self, seconds: f64) {
        let seconds = if seconds.is_finite() && seconds > 0.0 { seconds } else { 0.0 };
        self.response_seconds.store(seconds.to_bits(), Relaxed);
    }

    /// What was learnt of its pace: from tasks where they taught it, else from its depth.
    pub fn learnt(&self) -> Learnt {
        let learnt = self.pace.lock().learnt();
        let taught = f64::from_bits(self.taught.load(Relaxed));
        let prompt_seconds = if taught > 0.0 { taught } else { learnt.prompt_seconds };
        Learnt { prompt_seconds, ..learnt }
    }

    /// Takes the seconds per prompt that tasks have taught.
    pub fn teach(&self, seconds: Option<f64>) {
        if let Some(seconds) = seconds.filter(|seconds| seconds.is_finite()) {
            // Nothing took no time at all; zero would mean that nothing is known.
            self.taught.store(seconds.max(0.001).to_bits(), Relaxed);
        }
    }

    /// Takes what its queue will need, prompt by prompt, or that this is not known.
    pub fn set_outlook(&self, outlook: Option<Outlook>) {
        *self.outlook.lock() = outlook;
    }

    /// Seconds per prompt for the `prompts` it holds now: by their kinds where those are known,
    /// else the mean.
    fn seconds_each(&self, prompts: u32, now: Moment) -> f64 {
        let mean = self.learnt().prompt_seconds;
        match *self.outlook.lock() {
            Some(outlook) if prompts > 0 => outlook.wait(prompts, mean, now) / f64::from(prompts),
            _ => mean,
        }
    }

    /// How often it broke off in a way that may have been a restart: prompts that vanish across a
    /// break were lost, not deleted.
    pub fn breaks(&self) -> u64 {
        self.breaks.load(Relaxed)
    }

    /// Counts a break.
    pub fn broke(&self) {
        self.breaks.fetch_add(1, Relaxed);
    }

    /// What people want to read about it.
    pub fn notes(&self) -> Notes {
        self.notes.lock().clone()
    }

    /// Writes down what people want to read.
    pub fn note(&self, write: impl FnOnce(&mut Notes)) {
        write(&mut self.notes.lock());
    }
}
