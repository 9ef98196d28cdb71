//! What every part of a running gateway shares, and the one decision they all need: which
//! backend a request goes to.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use log::warn;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::affinity::Seconds;
use crate::affinity::{AffinityMap, Clock, whole_seconds};
use crate::auth::Auth;
use crate::backend::{Backend, BackendId, Wanted};
use crate::clock::Moment;
use crate::config::Config;
use crate::depth::Sending;
use crate::edge::envelope::Envelope;
use crate::fleet::{Fleet, View};
use crate::identity::address::TrustedProxies;
use crate::identity::crowd::{self, CrowdWatch};
use crate::identity::mark::Marks;
use crate::identity::session::{Session, SigningKey};
use crate::identity::{Caller, ClientKey};
use crate::logging::TARGET;
use crate::metrics::Metrics;
use crate::outlier::warden::Warden;
use crate::pool::Pool;
use crate::probe::Prober;
use crate::registry::Registry;
use crate::rejection::{Kind, Rejection};
use crate::retry::RetryBudget;
use crate::selection::{self, Candidate, Client, Rule};
use crate::tasks::Tasks;

/// A client asks for its results within this time after its last prompt ended.
const TIME_TO_FETCH: Duration = Duration::from_secs(5);

/// What every part of a running gateway shares.
pub struct Gateway {
    /// The configuration now.
    pub config: Arc<ArcSwap<Config>>,
    /// The backends.
    pub fleet: Arc<Fleet>,
    /// Their probes.
    pub prober: Arc<Prober>,
    /// Which client belongs where.
    pub affinity: Arc<AffinityMap>,
    /// Services that are no ComfyUI servers.
    pub registry: Arc<Registry>,
    /// Which clients asked for a special kind of work.
    marks: Marks,
    /// Whose `X-Forwarded-*` headers are believed.
    pub trusted: ArcSwap<TrustedProxies>,
    /// Signs cookies and tabs.
    pub signing_key: SigningKey,
    /// Who may come in.
    pub auth: Auth,
    /// The prompts that passed.
    pub tasks: Arc<Tasks>,
    /// The farm as one ComfyUI, in pool mode.
    pool: OnceLock<Arc<Pool>>,
    /// Takes out backends that fail real requests.
    pub warden: Arc<Warden>,
    /// Keeps retry storms away.
    pub budget: Arc<RetryBudget>,
    /// What Prometheus is told.
    pub metrics: Metrics,
    /// Time for placements.
    pub clock: Clock,
    /// When this process started.
    pub started: Moment,
    /// True once no more requests are taken.
    pub stopping: watch::Sender<bool>,
    /// Over how long sockets end then.
    pub spread: Arc<Spread>,
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
    /// The path that a registered service wants its requests at; `None` for ComfyUI servers.
    pub service_path: Option<String>,
    /// The target that is asked for in place of the client's, without the backend's base path.
    pub asked: Option<String>,
}

impl Destination {
    /// What the backend is to be asked for when the client asked for `sent`, if that differs.
    pub fn target(&self, sent: &[u8]) -> Option<Vec<u8>> {
        let base = &self.backend.spec.endpoint.base;
        if let Some(asked) = &self.asked {
            return Some([base.as_bytes(), asked.as_bytes()].concat());
        }
        match &self.service_path {
            Some(path) => {
                let query = sent.iter().position(|&byte| byte == b'?').unwrap_or(sent.len());
                Some([path.as_bytes(), &sent[query..]].concat())
            }
            None => (!base.is_empty()).then(|| [base.as_bytes(), sent].concat()),
        }
    }
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
        let trusted = TrustedProxies::new(&config.server.trusted_proxies);
        let config = Arc::new(ArcSwap::from_pointee(config));
        Self {
            trusted: ArcSwap::from_pointee(trusted),
            auth: Auth::new(&config.load(), signing_key.clone()),
            warden: Warden::new(Arc::clone(&fleet), Arc::clone(&config)),
            config,
            fleet,
            prober,
            affinity,
            registry: Arc::default(),
            marks: Marks::default(),
            signing_key,
            tasks: Arc::default(),
            pool: OnceLock::new(),
            budget: Arc::default(),
            metrics: Metrics::default(),
            clock: Clock::start(),
            started: Moment::now(),
            stopping: watch::Sender::new(false),
            spread: Arc::default(),
            ending: watch::Sender::new(false),
            connections: AtomicU64::new(0),
            placing: Mutex::new(()),
            next_request: AtomicU64::new(0),
            request_prefix: rand::random(),
            crowds: CrowdWatch::default(),
        }
    }

    /// Pool mode's part, if that is the mode.
    pub fn pool(&self) -> Option<&Arc<Pool>> {
        self.pool.get()
    }

    /// Serves in pool mode from now on.
    pub fn set_pool(&self, pool: Arc<Pool>) {
        let _ = self.pool.set(pool);
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
        if let Some(task_type) = &envelope.service {
            return self.registry.destination(task_type, tried);
        }
        if let (Some(mark), []) = (&envelope.mark, tried)
            && mark.lasting
        {
            self.marks.set(envelope.key, &mark.task_type, envelope.now);
        }
        let view = self.fleet.view();
        if let Some(id) = envelope.by_hand {
            return self.chosen_by_hand(&view, id, envelope, tried);
        }
        let seeker = Seeker::of(envelope);
        if tried.is_empty()
            && let Some(backend) = self.own_backend(&view, seeker)?
        {
            return Ok(self.towards(backend, envelope));
        }
        let _placing = self.placing.lock();
        self.new_place(&view, seeker, tried).map(|backend| self.towards(backend, envelope))
    }

    /// The home of a client, without a request of it: a new one when it has none or cannot stay.
    pub fn home_of(&self, key: ClientKey, zone: Option<&str>) -> Option<Arc<Backend>> {
        let view = self.fleet.view();
        let seeker = Seeker { key, caller: None, now: self.clock.now(), zone, asked: None };
        if let Some(own) = self.own_backend(&view, seeker).ok()? {
            return Some(own);
        }
        let _placing = self.placing.lock();
        self.new_place(&view, seeker, &[]).ok()
    }

    /// Whether a client's home is this backend.
    pub fn is_home_of(&self, key: ClientKey, backend: BackendId) -> bool {
        let placed = self.affinity.peek(key, self.clock.now());
        placed.is_some_and(|placed| placed.backend == backend.0)
    }

    fn chosen_by_hand(
        &self,
        view: &View,
        id: BackendId,
        envelope: &Envelope,
        tried: &[BackendId],
    ) -> Result<Destination, Rejection> {
        match view.get(id) {
            Some(backend) if !serves(backend, asked(envelope)) => {
                Err(no_such_work(view, asked(envelope)).retry_after(self.retry_after()))
            }
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
        seeker: Seeker<'_>,
    ) -> Result<Option<Arc<Backend>>, Rejection> {
        let Some(id) = self.affinity.get(seeker.key, seeker.now) else { return Ok(None) };
        let Some(backend) = view.get(BackendId(id)) else { return Ok(None) };
        if backend.live.keeps_old() {
            // A marked request takes its client along to where such work is done.
            return Ok(serves(backend, seeker.asked).then(|| Arc::clone(backend)));
        }
        if backend.live.standing().wanted == Wanted::Disabled {
            return Ok(None);
        }
        let config = self.config.load();
        let waits = backend.live.down_for(Moment::now()) < config.session.failover_after;
        if !config.failover.enabled || waits {
            let message = "the backend of this session is down";
            return Err(Rejection::new(Kind::NoBackend, message).retry_after(self.retry_after()));
        }
        Ok(None)
    }

    /// Places a client that belongs nowhere, or cannot stay; under the lock of `placing`.
    fn new_place(
        &self,
        view: &View,
        seeker: Seeker<'_>,
        tried: &[BackendId],
    ) -> Result<Arc<Backend>, Rejection> {
        let task_type = self.task_type(seeker);
        let task_type = task_type.as_deref();
        let stays = |id: u32| {
            let backend = view.get(BackendId(id));
            !tried.contains(&BackendId(id))
                && backend.is_some_and(|b| b.live.keeps_old() && serves(b, seeker.asked))
        };
        let placed = self.affinity.get_or_place_with(seeker.key, seeker.now, |current| {
            current
                .filter(|&id| stays(id))
                .or_else(|| self.choose(view, seeker, task_type, tried))
                .or_else(|| {
                    // Better a doubtful backend than none.
                    let relented = self.warden.relent(|backend| serves(backend, task_type));
                    relented.then(|| self.choose(view, seeker, task_type, tried))?
                })
        });
        if placed.is_some_and(|placed| placed.has_moved()) {
            self.metrics.failed_over();
        }
        let backend = placed.and_then(|placed| view.get(BackendId(placed.backend)));
        match backend {
            Some(backend) => Ok(Arc::clone(backend)),
            None => Err(no_such_work(view, task_type).retry_after(self.retry_after())),
        }
    }

    /// The kind of work that a request asks for, or that its client has asked for: since its
    /// placement, or within the time a placement holds.
    fn task_type(&self, seeker: Seeker<'_>) -> Option<String> {
        if let Some(asked) = seeker.asked {
            return Some(asked.to_owned());
        }
        let (task_type, at) = self.marks.get(seeker.key)?;
        let ttl = whole_seconds(self.config.load().session.ttl);
        let counts =
            seeker.now.since(at) <= ttl || self.affinity.peek(seeker.key, seeker.now).is_some();
        counts.then_some(task_type)
    }

    fn choose(
        &self,
        view: &View,
        seeker: Seeker<'_>,
        task_type: Option<&str>,
        tried: &[BackendId],
    ) -> Option<u32> {
        let rule = self.rule();
        let zone = seeker.zone;
        let stale_after = self.prober.stale_after();
        let candidates: Vec<_> = view
            .backends
            .iter()
            .map(|b| Candidate {
                serves: serves(b, task_type),
                in_zone: zone.is_none() || b.zone() == zone,
                ..b.candidate(self.affinity.fresh(b.id.0, seeker.now), stale_after)
            })
            .collect();
        let tried: Vec<usize> = tried.iter().filter_map(|&id| view.position(id)).collect();
        let key = seeker.key.to_bytes();
        let client = Client { key: &key, turn: self.fleet.next_turn() };
        let choice = selection::choose(&candidates, &view.ring, rule, client, &tried)?;
        let backend = &view.backends[choice.position];
        if let Some(caller) = seeker.caller {
            let reason = choice.reason.as_str();
            log::debug!(target: TARGET, "{caller} → {} ({reason})", backend.name());
        }
        Some(backend.id.0)
    }

    fn rule(&self) -> Rule {
        let scheduler = &self.config.load().scheduler;
        Rule {
            strategy: scheduler.strategy,
            prefer_idle: scheduler.prefer_idle,
            queue_weight: scheduler.queue_weight,
            zone_spill: scheduler.zone_spill,
        }
    }

    /// A new session, of those that `make` makes one that the ring gives to the backend with most
    /// room: so its id alone tells any replica where it belongs.
    pub fn new_session(&self, now: Seconds, make: impl Fn() -> Session) -> Session {
        if self.rule().is_hash_only() {
            return make();
        }
        let view = self.fleet.view();
        let stale_after = self.prober.stale_after();
        let candidates: Vec<_> =
            view.backends.iter().map(|backend| backend.candidate(0, stale_after)).collect();
        let sessions = |position: usize| self.affinity.sessions(view.backends[position].id.0);
        let Some(home) = selection::roomiest(&candidates, sessions) else { return make() };
        let belongs = |session: &Session| {
            let key = ClientKey::of_session(&session.id).to_bytes();
            view.ring.first(&key, |position| candidates[position].eligible) == Some(home)
        };
        // Each id has a chance of about one in the number of backends.
        let tries = 32 * candidates.len();
        let session = (0..tries).map(|_| make()).find(belongs).unwrap_or_else(&make);
        let key = ClientKey::of_session(&session.id);
        self.affinity.place(key, view.backends[home].id.0, now, false);
        session
    }

    fn towards(&self, backend: Arc<Backend>, envelope: &Envelope) -> Destination {
        backend.live.calls.fetch_add(1, Relaxed);
        let sending = envelope.is_prompt.then(|| backend.live.depth.sending());
        if envelope.is_prompt {
            self.affinity.mark_prompted(envelope.key, envelope.now);
        }
        Destination { backend, sending, service_path: None, asked: None }
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

    /// Whether a client of a draining backend may be given another one: nothing of it is queued
    /// or running there, and what ended last has had time to be fetched.
    pub fn may_leave(&self, client: ClientKey) -> bool {
        let fetched = |ended: Moment| Moment::now().since(ended) >= TIME_TO_FETCH;
        self.tasks.open_of(client) == 0 && self.tasks.last_end_of(client).is_none_or(fetched)
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
        let (mut ending, spread) = (self.ending.subscribe(), Arc::clone(&self.spread));
        async move {
            let _ = ending.wait_for(|ending| *ending).await;
            spread.wait().await;
        }
    }

    /// Resolves when clients had better come to the next process.
    pub fn leaving(&self) -> impl Future<Output = ()> + use<> {
        let (mut stopping, spread) = (self.stopping.subscribe(), Arc::clone(&self.spread));
        async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
            spread.wait().await;
        }
    }
}

/// Over how long sockets end that end together, so that their clients do not all come at once.
#[derive(Debug, Default)]
pub struct Spread(AtomicU64);

impl Spread {
    /// Each waits for a part of this from now on.
    pub fn set(&self, over: Duration) {
        self.0.store(u64::try_from(over.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    async fn wait(&self) {
        let part = rand::random::<f64>() * self.0.load(Relaxed) as f64;
        tokio::time::sleep(Duration::from_millis(part as u64)).await;
    }
}

/// Who looks for a backend.
#[derive(Clone, Copy)]
struct Seeker<'a> {
    key: ClientKey,
    /// For the log, when a request brought it.
    caller: Option<&'a Caller>,
    now: Seconds,
    zone: Option<&'a str>,
    /// The kind of work that is asked for.
    asked: Option<&'a str>,
}

impl<'a> Seeker<'a> {
    fn of(envelope: &'a Envelope) -> Self {
        let (zone, asked) = (envelope.zone.as_deref(), asked(envelope));
        let caller = Some(&envelope.caller);
        Self { key: envelope.key, caller, now: envelope.now, zone, asked }
    }
}

/// The kind of work a request asks for.
fn asked(envelope: &Envelope) -> Option<&str> {
    envelope.mark.as_ref().map(|mark| mark.task_type.as_str()).filter(|asked| !asked.is_empty())
}

fn serves(backend: &Backend, task_type: Option<&str>) -> bool {
    task_type.is_none_or(|task_type| backend.serves(task_type))
}

/// The refusal when no backend can be had, which is another matter when none does such work.
fn no_such_work(view: &View, task_type: Option<&str>) -> Rejection {
    let Some(task_type) = task_type else {
        return Rejection::new(Kind::NoBackend, "no ComfyUI server is available at the moment");
    };
    let message = format!("no ComfyUI server for \"{task_type}\" is available at the moment");
    let refused = Rejection::new(Kind::NoBackend, message);
    if view.backends.is_empty() || view.backends.iter().any(|b| b.serves(task_type)) {
        return refused;
    }
    let mut known: Vec<_> = view.backends.iter().flat_map(|b| &b.spec.task_types).collect();
    known.sort();
    known.dedup();
    let known: Vec<_> = known.into_iter().map(String::as_str).take(20).collect();
    refused.cure(format!("none here does such work; there is: {}", known.join(", ")))
}
