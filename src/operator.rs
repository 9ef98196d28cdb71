//! Changes at run time: one place through which every change of the fleet goes, whether it comes
//! from the admin API, from a reload or from a backend that has emptied.
//!
//! A change is decided by the [`Roster`], kept in the state, and only then put in place, so that
//! what was answered survives a restart. Requests in flight are not touched: they hold their
//! backend; the next request sees the new fleet. Every change leaves an audit line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::admin::endpoint_policy::{self, EndpointPolicy};
use crate::backend::{Backend, Wanted};
use crate::config::{self, Config, Endpoint, Strategy};
use crate::gateway::Gateway;
use crate::logging::TARGET;
use crate::pace::Learnt;
use crate::rejection::{Kind, Rejection};
use crate::roster::{Changes, Refusal, Roster};
use crate::state::State;

/// Name of the changes among the state's settings.
const SETTING: &str = "roster";
/// Pause between two looks at draining backends.
const DRAIN_PAUSE: Duration = Duration::from_secs(1);

/// Who makes a change, for the audit log.
#[derive(Debug, Clone)]
pub struct Actor {
    /// Who: `token`, `no token` or `gateway`.
    pub who: &'static str,
    /// From where.
    pub from: String,
}

impl Actor {
    /// The gateway itself.
    pub fn gateway(why: &str) -> Self {
        Self { who: "gateway", from: why.to_owned() }
    }
}

/// Writes the audit line of a change.
pub fn audit(actor: &Actor, what: &str, before: &str, after: &str) {
    let Actor { who, from } = actor;
    info!(target: TARGET, "audit: {who} ({from}) changed {what}: {before} → {after}");
}

type LearntOf = Box<dyn Fn(&str) -> Learnt + Send + Sync>;

/// Makes changes.
pub struct Operator {
    gateway: Arc<Gateway>,
    state: Option<Arc<State>>,
    learnt: LearntOf,
    /// What the file overrides, as it was told last.
    told: parking_lot::Mutex<Vec<String>>,
    /// Held while a change is kept and put in place: changes come one after another.
    roster: Mutex<Roster>,
}

/// A change that was made.
struct Change<'a> {
    what: &'a str,
    before: String,
    after: String,
}

impl Operator {
    /// The operator of a gateway whose fleet is still empty; puts the first fleet in place.
    pub async fn start(
        gateway: Arc<Gateway>,
        state: Option<Arc<State>>,
        learnt: impl Fn(&str) -> Learnt + Send + Sync + 'static,
    ) -> Arc<Self> {
        let changes = state.as_deref().and_then(|state| match state.setting::<Changes>(SETTING) {
            Ok(changes) => changes,
            Err(error) => {
                warn!(target: TARGET, "changes made at run time could not be read: {error}");
                None
            }
        });
        let file = gateway.config.load().backends.clone();
        let roster = Roster::new(file, changes.unwrap_or_default());
        let operator = Arc::new(Self {
            gateway,
            state,
            learnt: Box::new(learnt),
            told: parking_lot::Mutex::default(),
            roster: Mutex::new(Roster::default()),
        });
        let mut current = operator.roster.lock().await;
        *current = roster;
        operator.put_in_place(&current);
        operator.choose_strategy(&current);
        drop(current);
        operator
    }

    /// Brings a reloaded configuration in place.
    pub async fn reload(&self, mut config: Config) {
        let mut roster = self.roster.lock().await;
        roster.set_file(config.backends.clone());
        if let Some(strategy) = chosen_strategy(&roster) {
            config.scheduler.strategy = strategy;
        }
        self.gateway.config.store(Arc::new(config));
        self.put_in_place(&roster);
    }

    /// Adds a backend in the words of an API call.
    pub async fn add(&self, words: Value, actor: &Actor) -> Result<Arc<Backend>, Rejection> {
        let spec = config::backend_of(&words)
            .map_err(|problems| Rejection::new(Kind::InvalidValue, problems.to_string()))?;
        self.allow(&spec.endpoint).await?;
        let after = spec.endpoint.url();
        self.change(
            actor,
            &Change { what: &spec.name, before: "absent".into(), after },
            |roster| roster.add(words, &spec),
        )
        .await?;
        self.named(&spec.name)
    }

    /// Refuses an endpoint that operators may not add.
    async fn allow(&self, endpoint: &Endpoint) -> Result<(), Rejection> {
        let policy = EndpointPolicy::new(&self.gateway.config.load().admin.allow_endpoints);
        let found = endpoint_policy::resolve(endpoint).await?;
        let addresses: Vec<_> = found.iter().map(SocketAddr::ip).collect();
        endpoint_policy::check(endpoint, &addresses, &policy)
    }

    /// Removes a backend at once.
    pub async fn remove(&self, name: &str, actor: &Actor) -> Result<(), Rejection> {
        let before = self.named(name)?.spec.endpoint.url();
        let change = Change { what: name, before, after: "absent".into() };
        self.change(actor, &change, |roster| roster.remove(name)).await
    }

    /// Removes a backend once its last client is gone.
    pub async fn leave(&self, name: &str, actor: &Actor) -> Result<Arc<Backend>, Rejection> {
        let before = self.named(name)?.live.standing().label().to_owned();
        let change = Change { what: name, before, after: "drain, then absent".into() };
        self.change(actor, &change, |roster| roster.leave(name)).await?;
        self.named(name)
    }

    /// Enables, drains or disables a backend.
    pub async fn want(
        &self,
        name: &str,
        wanted: Wanted,
        actor: &Actor,
    ) -> Result<Arc<Backend>, Rejection> {
        let before = self.named(name)?.live.standing().label().to_owned();
        let after = format!("{wanted:?}").to_lowercase();
        let change = Change { what: name, before, after };
        self.change(actor, &change, |roster| roster.want(name, wanted)).await?;
        self.named(name)
    }

    /// Chooses another strategy.
    pub async fn set_strategy(&self, strategy: Strategy, actor: &Actor) -> Result<(), Rejection> {
        let before = self.gateway.config.load().scheduler.strategy.name().to_owned();
        let after = strategy.name().to_owned();
        self.change(actor, &Change { what: "scheduler.strategy", before, after }, |roster| {
            roster.set_strategy(strategy.name());
            Ok(())
        })
        .await
    }

    /// Decides, keeps, puts in place, in this order.
    async fn change(
        &self,
        actor: &Actor,
        change: &Change<'_>,
        decide: impl FnOnce(&mut Roster) -> Result<(), Refusal>,
    ) -> Result<(), Rejection> {
        let mut roster = self.roster.lock().await;
        let mut changed = roster.clone();
        decide(&mut changed).map_err(refused)?;
        self.keep(changed.changes().clone()).await?;
        *roster = changed;
        self.put_in_place(&roster);
        self.choose_strategy(&roster);
        audit(actor, change.what, &change.before, &change.after);
        Ok(())
    }

    async fn keep(&self, changes: Changes) -> Result<(), Rejection> {
        let Some(state) = self.state.clone() else { return Ok(()) };
        let kept = tokio::task::spawn_blocking(move || state.set_setting(SETTING, &changes)).await;
        let error = match kept {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        warn!(target: TARGET, "a change was refused because it could not be kept: {error}");
        let message = "the change could not be kept and was not made";
        Err(Rejection::new(Kind::StorageUnavailable, message)
            .cure("look at the gateway's log; is state_dir writable, and its disk full?")
            .retry_after(5))
    }

    fn put_in_place(&self, roster: &Roster) {
        let (members, notes) = roster.members();
        self.tell(notes);
        let applied = self.gateway.fleet.apply(members, &self.learnt);
        for backend in &applied.added {
            self.gateway.prober.start(backend);
        }
        for name in &applied.removed {
            let id = self.gateway.fleet.id_of(name);
            self.gateway.affinity.remove_backend(id.0, self.gateway.clock.now());
        }
    }

    /// Warns of what the file overrides, once, not with every change.
    fn tell(&self, notes: Vec<String>) {
        let mut told = self.told.lock();
        for note in notes.iter().filter(|note| !told.contains(note)) {
            warn!(target: TARGET, "{note}");
        }
        *told = notes;
    }

    fn choose_strategy(&self, roster: &Roster) {
        let current = self.gateway.config.load_full();
        let Some(strategy) = chosen_strategy(roster) else { return };
        if current.scheduler.strategy != strategy {
            let mut config = Config::clone(&current);
            config.scheduler.strategy = strategy;
            self.gateway.config.store(Arc::new(config));
        }
    }

    /// The backend of a name.
    pub fn named(&self, name: &str) -> Result<Arc<Backend>, Rejection> {
        let view = self.gateway.fleet.view();
        let shown = || name.chars().take(80).collect();
        view.named(name).cloned().ok_or_else(|| refused(Refusal::Unknown(shown())))
    }

    /// Lets draining backends' idle clients go, and removes those that were to leave and are
    /// empty, for as long as the process lives.
    pub async fn tend(self: Arc<Self>) {
        loop {
            tokio::time::sleep(DRAIN_PAUSE).await;
            self.release_idle_clients();
            let leaving: Vec<String> =
                self.roster.lock().await.leaving().map(str::to_owned).collect();
            for name in leaving.iter().filter(|name| self.is_empty(name)) {
                let actor = Actor::gateway("its last client is gone");
                if let Err(error) = self.remove(name, &actor).await {
                    warn!(target: TARGET, "{name} could not be removed: {}", error.message);
                }
            }
        }
    }

    fn release_idle_clients(&self) {
        let view = self.gateway.fleet.view();
        let draining =
            view.backends.iter().filter(|b| b.live.standing().wanted == Wanted::Draining);
        for backend in draining {
            let now = self.gateway.clock.now();
            let idle = |key| self.gateway.may_leave(key);
            self.gateway.affinity.release(backend.id.0, now, idle);
        }
    }

    fn is_empty(&self, name: &str) -> bool {
        let Ok(backend) = self.named(name) else { return false };
        let sockets = backend.live.sockets.load(std::sync::atomic::Ordering::Relaxed);
        let given_up = backend.live.standing().wanted == Wanted::Disabled;
        sockets == 0 && (given_up || self.gateway.affinity.sessions(backend.id.0) == 0)
    }
}

fn chosen_strategy(roster: &Roster) -> Option<Strategy> {
    roster.changes().strategy.as_deref().and_then(Strategy::named)
}

#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
fn refused(refusal: Refusal) -> Rejection {
    let kind = match refusal {
        Refusal::Unknown(_) => Kind::NotFound,
        Refusal::NameTaken(_) | Refusal::EndpointTaken { .. } | Refusal::Full => Kind::Conflict,
    };
    Rejection::new(kind, refusal.to_string()).cure("GET /lb/backends lists the backends")
}
