//! Probes: what the gateway does to know how its backends are.
//!
//! Each backend has a task that polls its queue ([`poll`]) and, with `push`, one that listens to
//! its status events ([`push`]). What they see goes to the backend's [`Judge`] and its depth. The
//! [`Surveyor`] reads what the backend is made of.
//! All run independently: a backend that hangs delays nobody else's probes.

pub mod poll;
pub mod push;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use log::info;
use pingora_load_balancing::health_check::HealthCheck;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::backend::{Backend, BackendId};
use crate::clock::Moment;
use crate::config;
use crate::fleet::Fleet;
use crate::health::{Change, FAST_INTERVAL, Health, Judge, Outcome, Stall, Thresholds};
use crate::inventory::Surveyor;
use crate::logging::TARGET;
use poll::QueueCheck;

/// Probes every backend of a fleet.
pub struct Prober {
    fleet: Arc<Fleet>,
    options: ArcSwap<config::HealthCheck>,
    check: QueueCheck,
    surveyor: Arc<Surveyor>,
    /// See [`Prober::first_check_done`].
    checked_once: AtomicBool,
    /// Rounds that ended, over all backends.
    rounds: watch::Sender<u64>,
}

impl Prober {
    /// A prober that does nothing yet.
    pub fn new(fleet: Arc<Fleet>, options: config::HealthCheck) -> anyhow::Result<Arc<Self>> {
        let check = QueueCheck::new(Arc::clone(&fleet), &options)?;
        let surveyor = Arc::new(Surveyor::new(Arc::clone(&fleet), &options)?);
        let options = ArcSwap::from_pointee(options);
        Ok(Arc::new(Self {
            fleet,
            options,
            check,
            surveyor,
            checked_once: AtomicBool::new(false),
            rounds: watch::Sender::new(0),
        }))
    }

    /// Probes differently from now on.
    pub fn set_options(&self, options: config::HealthCheck) {
        self.check.set_options(&options);
        self.surveyor.set_options(&options);
        self.options.store(Arc::new(options));
    }

    /// A reading older than this ranks behind fresh ones: three intervals, and the time that the
    /// poll now under way may take. A poll that is merely slow makes no backend doubtful.
    pub fn stale_after(&self) -> Duration {
        let options = self.options.load();
        options.interval * 3 + options.timeout
    }

    /// Starts to probe a backend, until it is removed.
    pub fn start(self: &Arc<Self>, backend: &Backend) {
        tokio::spawn(Arc::clone(self).poll_for_ever(backend.id));
        tokio::spawn(push::listen_for_ever(Arc::clone(&self.fleet), backend.id, Arc::clone(self)));
        tokio::spawn(Arc::clone(&self.surveyor).follow(backend.id));
    }

    /// Reads what the backends are made of.
    pub fn surveyor(&self) -> &Surveyor {
        &self.surveyor
    }

    /// Whether status events are listened to, and how long connecting to them may take.
    fn push_options(&self) -> (bool, Duration, Vec<(String, config::Secret)>) {
        let options = self.options.load();
        (options.push, options.timeout, options.headers.clone())
    }

    /// Waits until every backend has been looked at, at most `limit`.
    pub async fn first_round(&self, limit: Duration) {
        let mut rounds = self.rounds.subscribe();
        let done = async {
            while !self.all_known() {
                if rounds.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limit, done).await;
    }

    /// Looks at every backend now, and waits for it, at most a timeout and a second.
    pub async fn check_all(&self) {
        let view = self.fleet.view().clone();
        // A probe that is under way began before this was asked for: the one after it counts.
        let before: Vec<u64> = view.backends.iter().map(|b| b.live.checks.load(Relaxed)).collect();
        for backend in &view.backends {
            backend.live.poke.notify_one();
        }
        let mut rounds = self.rounds.subscribe();
        let limit = self.options.load().timeout + Duration::from_secs(1);
        let done = async {
            let unseen = |(backend, before): (&Arc<Backend>, &u64)| {
                backend.live.checks.load(Relaxed) <= *before && !backend.live.standing().removed
            };
            while view.backends.iter().zip(&before).any(unseen) {
                if rounds.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limit, done).await;
    }

    /// Whether every backend has been looked at.
    pub fn all_known(&self) -> bool {
        let view = self.fleet.view();
        view.backends.iter().all(|b| b.live.standing().health != Health::Unknown)
    }

    /// Whether there was a moment at which every backend had been looked at. Backends that are
    /// added later do not undo it.
    pub fn first_check_done(&self) -> bool {
        let done = self.checked_once.load(Relaxed) || self.all_known();
        self.checked_once.store(done, Relaxed);
        done
    }

    fn thresholds(&self) -> Thresholds {
        let options = self.options.load();
        Thresholds { unhealthy: options.unhealthy_threshold, healthy: options.healthy_threshold }
    }

    async fn poll_for_ever(self: Arc<Self>, id: BackendId) {
        let mut judge = Judge::new(self.thresholds());
        let mut stall = Stall::default();
        loop {
            let Some(backend) = self.fleet.view().get(id).cloned() else { return };
            judge.set_thresholds(self.thresholds());
            let started = Instant::now();
            resolve(&backend).await;
            let outcome = poll::outcome(self.check.check(&poll::target(id)).await);
            self.took(&backend, &mut judge, &mut stall, outcome);
            backend.live.checks.fetch_add(1, Relaxed);
            self.rounds.send_modify(|rounds| *rounds += 1);
            self.pause(&backend, &judge, started).await;
        }
    }

    fn took(&self, backend: &Backend, judge: &mut Judge, stall: &mut Stall, outcome: Outcome) {
        let now = Moment::now();
        let live = &backend.live;
        // Another address means another server: the judge starts over with it.
        if live.standing().health == Health::Unknown && judge.health() != Health::Unknown {
            *judge = Judge::new(self.thresholds());
        }
        let error = match &outcome {
            Outcome::Good => None,
            Outcome::Refused(reason) | Outcome::Bad(reason) => Some(reason.clone()),
        };
        live.note(|notes| {
            notes.last_check = Some(Timestamp::now());
            if error.is_some() {
                notes.last_error = error;
            }
        });
        if outcome == Outcome::Good {
            let depth = self.check.last_count(backend.id);
            let silent =
                stall.is_suspect(depth, live.last_event(), live.learnt().longest_seconds, now);
            let suspect = silent || live.is_hung();
            if live.alter(|standing| standing.suspect = suspect) && suspect {
                info!(target: TARGET, "backend {} is suspect: its running prompt shows no life", backend.name());
            }
        }
        if let Some(change) = judge.observe(outcome) {
            live.judged(&change, now);
            log_change(backend, &change);
        }
        self.fleet.touch();
    }

    /// Sleeps until the next poll is due or something asks for one, but never polls faster than
    /// [`FAST_INTERVAL`].
    async fn pause(&self, backend: &Backend, judge: &Judge, started: Instant) {
        let soonest = started + FAST_INTERVAL;
        if judge.wants_fast_probe() {
            return sleep_until(soonest).await;
        }
        // A tenth of jitter keeps 300 backends from being polled in step.
        let interval = self.options.load().interval;
        let due = started + interval.mul_f64(rand::rng().random_range(0.9..=1.0));
        tokio::select! {
            () = sleep_until(due.max(soonest)) => {}
            () = backend.live.poke.notified() => sleep_until(soonest).await,
        }
    }
}

fn log_change(backend: &Backend, change: &Change) {
    match (change.from, change.to) {
        (_, Health::Down) => {
            info!(target: TARGET, "backend {} is down: {}", backend.name(), change.reason);
        }
        (Health::Down, Health::Up) => info!(target: TARGET, "backend {} is up", backend.name()),
        _ => {}
    }
}

/// Refreshes what the backend's name resolves to; a failure keeps the last address.
async fn resolve(backend: &Backend) {
    let endpoint = &backend.spec.endpoint;
    let found = if let Ok(ip) = endpoint.host.parse() {
        Some(std::net::SocketAddr::new(ip, endpoint.port))
    } else {
        let name = (endpoint.host.as_str(), endpoint.port);
        let looked_up = tokio::time::timeout(Duration::from_secs(5), tokio::net::lookup_host(name));
        let addresses: Vec<_> = match looked_up.await {
            Ok(Ok(addresses)) => addresses.collect(),
            _ => return,
        };
        // A name with several addresses keeps the one in use while it is among them.
        let current = backend.live.address.load().as_deref().copied();
        current.filter(|a| addresses.contains(a)).or_else(|| addresses.first().copied())
    };
    if let Some(address) = found
        && backend.live.address.load().as_deref() != Some(&address)
    {
        backend.live.address.store(Some(Arc::new(address)));
    }
}
