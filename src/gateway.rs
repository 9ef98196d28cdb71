//! What every part of a running gateway shares, and the one decision they all need: which
//! backend a request goes to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use log::warn;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::affinity::{AffinityMap, Clock};
use crate::backend::{Backend, BackendId};
use crate::clock::Moment;
use crate::config::Config;
use crate::depth::Sending;
use crate::edge::envelope::Envelope;
use crate::fleet::{Fleet, View};
use crate::identity::address::TrustedProxies;
use crate::identity::crowd::{self, CrowdWatch};
use crate::identity::session::SigningKey;
use crate::logging::TARGET;
use crate::probe::Prober;
use crate::rejection::{Kind, Rejection};
use crate::retry::RetryBudget;
use crate::selection::{self, Client, Rule};
use crate::tasks::Tasks;

/// What every part of a running gateway shares.
pub struct Gateway {
    /// The configuration now.
    pub config: ArcSwap<Config>,
    /// The backends.
    pub fleet: Arc<Fleet>,
    /// Their probes.
    pub prober: Arc<Prober>,
    /// Which client belongs where.
    pub affinity: Arc<AffinityMap>,
    /// Whose `X-Forwarded-*` headers are believed.
    pub trusted: ArcSwap<TrustedProxies>,
    /// Signs cookies and tabs.
    pub signing_key: SigningKey,
    /// The prompts that passed.
    pub tasks: Tasks,
    /// Keeps retry storms away.
    pub budget: Arc<RetryBudget>,
    /// Time for placements.
    pub clock: Clock,
    /// When this process started.
    pub started: Moment,
    /// True once no more requests are taken.
    pub stopping: watch::Sender<bool>,
    /// True once open sockets must end.
    ending: watch::Sender<bool>,
    /// Client connections open.
    pub connections: AtomicU64,
    /// Held while a backend is chosen for a newcomer and its prompt is counted, so that a burst
    /// sees its own choices. Never across an await.
    placing: Mutex<()>,
    next_request: AtomicU64,
    request_prefix: u64,
    crowds: CrowdWatch,
}

/// Where a request goes.
pub struct Destination {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Counts its prompt, if it is one.
    pub sending: Option<Sending>,
}

impl Gateway {
    /// A gateway over a fleet.
    pub fn new(
        config: Config,
        fleet: Arc<Fleet>,
        prober: Arc<Prober>,
        signing_key: SigningKey,
    ) -> Self {
        let affinity = Arc::new(AffinityMap::new(config.session.ttl, config.session.max_clients));
        Self {
            trusted: ArcSwap::from_pointee(TrustedProxies::new(&config.server.trusted_proxies)),
            config: ArcSwap::from_pointee(config),
            fleet,
            prober,
            affinity,
            signing_key,
            tasks: Tasks::default(),
            budget: Arc::default(),
            clock: Clock::start(),
            started: Moment::now(),
            stopping: watch::Sender::new(false),
            ending: watch::Sender::new(false),
            connections: AtomicU64::new(0),
            placing: Mutex::new(()),
            next_request: AtomicU64::new(0),
            request_prefix: rand::random(),
            crowds: CrowdWatch::default(),
        }
    }

    /// A request id that no other request of any gateway has, in all likelihood.
    pub fn request_id(&self) -> String {
        let count = self.next_request.fetch_add(1, Relaxed);
        format!("{:016x}{count:08x}", self.request_prefix)
    }

    /// The backend for a request: the client's own while it may stay there, else a new one.
    /// `tried` have failed this request already.
    pub fn destination(
        &self,
        envelope: &Envelope,
        tried: &[BackendId],
    ) -> Result<Destination, Rejection> {
        let view = self.fleet.view();
        if let Some(id) = envelope.by_hand {
            return self.chosen_by_hand(&view, id, envelope, tried);
        }
        if tried.is_empty()
            && let Some(backend) = self.own_backend(&view, envelope)?
        {
            return Ok(self.towards(backend, envelope));
        }
        self.new_place(&view, envelope, tried)
    }

    fn chosen_by_hand(
        &self,
        view: &View,
        id: BackendId,
        envelope: &Envelope,
        tried: &[BackendId],
    ) -> Result<Destination, Rejection> {
        match view.get(id) {
            Some(backend) if backend.live.keeps_old() && tried.is_empty() => {
                Ok(self.towards(Arc::clone(backend), envelope))
            }
            _ => {
                Err(Rejection::new(Kind::NoBackend, "the backend chosen by hand is not in service")
                    .cure("choose another one, or leave the choice to the gateway")
                    .retry_after(self.retry_after()))
            }
        }
    }

    /// The backend that the client belongs to, if it may stay.
    fn own_backend(
        &self,
        view: &View,
        envelope: &Envelope,
    ) -> Result<Option<Arc<Backend>>, Rejection> {
        let Some(id) = self.affinity.get(envelope.key, envelope.now) else { return Ok(None) };
        let Some(backend) = view.get(BackendId(id)) else { return Ok(None) };
        if backend.live.keeps_old() {
            return Ok(Some(Arc::clone(backend)));
        }
        let config = self.config.load();
        let waits = backend.live.down_for(Moment::now()) < config.session.failover_after;
        if !config.failover.enabled || waits {
            let message = "the backend of this session is down";
            return Err(Rejection::new(Kind::NoBackend, message).retry_after(self.retry_after()));
        }
        Ok(None)
    }

    /// Places a client that belongs nowhere, or cannot stay.
    fn new_place(
        &self,
        view: &View,
        envelope: &Envelope,
        tried: &[BackendId],
    ) -> Result<Destination, Rejection> {
        let _placing = self.placing.lock();
        let stays = |id: u32| {
            let backend = view.get(BackendId(id));
            !tried.contains(&BackendId(id)) && backend.is_some_and(|b| b.live.keeps_old())
        };
        let placed = self.affinity.get_or_place_with(envelope.key, envelope.now, |current| {
            current.filter(|&id| stays(id)).or_else(|| self.choose(view, envelope, tried))
        });
        let backend = placed.and_then(|placed| view.get(BackendId(placed.backend)));
        match backend {
            Some(backend) => Ok(self.towards(Arc::clone(backend), envelope)),
            None => Err(self.no_backend()),
        }
    }

    fn choose(&self, view: &View, envelope: &Envelope, tried: &[BackendId]) -> Option<u32> {
        let scheduler = &self.config.load().scheduler;
        let rule = Rule {
            strategy: scheduler.strategy,
            prefer_idle: scheduler.prefer_idle,
            queue_weight: scheduler.queue_weight,
        };
        let stale_after = self.prober.stale_after();
        let candidates: Vec<_> = view
            .backends
            .iter()
            .map(|b| b.candidate(self.affinity.fresh(b.id.0, envelope.now), stale_after))
            .collect();
        let tried: Vec<usize> = tried.iter().filter_map(|&id| view.position(id)).collect();
        let key = envelope.key.to_bytes();
        let client = Client { key: &key, turn: self.fleet.next_turn() };
        let choice = selection::choose(&candidates, &view.ring, rule, client, &tried)?;
        let backend = &view.backends[choice.position];
        log::debug!(
            target: TARGET,
            "{} → {} ({})", envelope.caller, backend.name(), choice.reason.as_str()
        );
        Some(backend.id.0)
    }

    fn towards(&self, backend: Arc<Backend>, envelope: &Envelope) -> Destination {
        backend.live.calls.fetch_add(1, Relaxed);
        let sending = envelope.is_prompt.then(|| backend.live.depth.sending());
        if envelope.is_prompt {
            self.affinity.mark_prompted(envelope.key, envelope.now);
        }
        Destination { backend, sending }
    }

    fn no_backend(&self) -> Rejection {
        Rejection::new(Kind::NoBackend, "no ComfyUI server is available at the moment")
            .retry_after(self.retry_after())
    }

    /// When a backend that is down now may have been seen to be up.
    fn retry_after(&self) -> u32 {
        let interval = self.config.load().health_check.interval;
        (interval.as_secs_f64().ceil() as u32).clamp(1, 60)
    }

    /// Takes evidence from real traffic that a backend's connections fail.
    pub fn suspects(&self, backend: &Backend, why: &str) {
        backend.live.failures.fetch_add(1, Relaxed);
        backend.live.note(|notes| notes.last_error = Some(why.to_owned()));
        backend.live.poke.notify_one();
    }

    /// Takes a clientId seen on an address, and warns once when one address carries many.
    pub fn saw_client_id(&self, address: std::net::IpAddr, client_id: &str) {
        if self.crowds.saw(address, client_id) {
            warn!(target: TARGET, "{address} {}", crowd::WARNING);
        }
    }

    /// Whether a client of a draining backend may be given another one.
    pub fn may_leave(&self, _client: crate::identity::ClientKey) -> bool {
        true
    }

    /// Believes other peers from now on.
    pub fn trust(&self, proxies: &[ipnet::IpNet]) {
        self.trusted.store(Arc::new(TrustedProxies::new(proxies)));
    }

    /// Ends the sockets that are still open.
    pub fn stop_hard(&self) {
        self.ending.send_replace(true);
    }

    /// Resolves when open sockets must end.
    pub fn stopping_hard(&self) -> impl Future<Output = ()> + use<> {
        let mut ending = self.ending.subscribe();
        async move {
            let _ = ending.wait_for(|ending| *ending).await;
        }
    }
}
