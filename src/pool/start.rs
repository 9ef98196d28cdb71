//! Puts pool mode together: [`open`] does everything that can fail, [`Opened::start`] the rest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use log::{info, warn};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::ask::Ask;
use super::clients::Hub;
use super::core::{Core, Input, Options, Outcome};
use super::errands::VERDICT_TIMEOUT;
use super::files::copies::{self, Copies};
use super::files::uploads::Uploads;
use super::files::{Files, Remote};
use super::hearing::Ear;
use super::journal::{Bounds, Finished, Journal, Restored};
use super::links::{self, Links, Sids};
use super::merged::Merged;
use super::merged::fetch::Fetcher;
use super::retell::{self, Subject};
use super::submission::Counter;
use super::userdata::UserData;
use super::{Pool, Routers, foresee, lanes, own};
use crate::config::{Config, Isolation};
use crate::fleet::Fleet;
use crate::gateway::Gateway;
use crate::logging::TARGET;
use crate::selection::Rule;
use crate::state::State;
use crate::tasks::{self, Past, THE_LINE, TaskState};

/// The setting under which the sids of the event sockets are kept.
const SIDS: &str = "pool.sids";
/// How long an interrupt has to help, at most.
const INTERRUPT_GRACE: Duration = Duration::from_secs(30);

/// Jobs that ended within this time before the last process did are told again...
const RETOLD_MS: u64 = 10_000;
/// ...so many at most.
const MOST_RETOLD: usize = 1000;

/// What servers can do changes with their version at most.
const FEATURES_EVERY: Duration = Duration::from_mins(1);

/// What is on the disk, opened.
pub struct Opened {
    journal: Journal,
    restored: Restored,
    uploads: Arc<Uploads>,
    outputs: Option<Arc<Uploads>>,
    userdata: Arc<UserData>,
    sids: Sids,
    fleet: Arc<Fleet>,
}

/// Opens what pool mode keeps under `state_dir`.
pub fn open(config: &Config, state: Option<&State>, fleet: &Arc<Fleet>) -> Result<Opened> {
    let directory = &config.state_dir;
    let names = Arc::clone(fleet);
    let name_of = move |id| names.name_of(id);
    let (journal, restored) = Journal::open(directory, bounds(config), Arc::new(name_of))?;
    let uploads = Uploads::open(&directory.join("uploads"), config.pool.uploads_size)
        .with_context(|| format!("{}", directory.join("uploads").display()))?;
    let outputs = copies::open(&directory.join("outputs"), config.pool.keep_outputs)
        .with_context(|| format!("{}", directory.join("outputs").display()))?;
    let userdata = UserData::open(directory, config.limits.body_size)
        .with_context(|| format!("{}", directory.join("users").display()))?;
    let (sids, fleet) = (sids(state), Arc::clone(fleet));
    Ok(Opened { journal, restored, uploads, outputs, userdata, sids, fleet })
}

fn bounds(config: &Config) -> Bounds {
    let history = &config.pool.history;
    Bounds { max_jobs: history.max_jobs, max_bytes: history.max_bytes, max_age: history.max_age }
}

/// The same sids as before a restart, so that events of running prompts come on.
fn sids(state: Option<&State>) -> Sids {
    let kept = state.and_then(|state| state.setting::<String>(SIDS).ok().flatten());
    let base = kept.unwrap_or_else(|| {
        let base = uuid::Uuid::new_v4().simple().to_string();
        if let Some(Err(error)) = state.map(|state| state.set_setting(SIDS, &base)) {
            warn!(target: TARGET, "the event sockets' ids could not be kept: {error}");
        }
        base
    });
    Sids { base }
}

/// What the core goes by.
pub(super) fn options(config: &Config) -> Options {
    let scheduler = &config.scheduler;
    Options {
        max_size: config.queue.max_size,
        retry_interval: config.queue.retry_interval,
        max_retries: config.queue.max_retries,
        fairness: config.queue.fairness,
        running_per_caller: config.limits.per_user.running,
        prefetch: config.pool.prefetch,
        rule: Rule {
            strategy: scheduler.strategy,
            prefer_idle: scheduler.prefer_idle,
            queue_weight: scheduler.queue_weight,
            zone_spill: scheduler.zone_spill,
        },
        warm_slack: Duration::from_secs(2),
        verdict_timeout: VERDICT_TIMEOUT,
        declared_dead_after: config.pool.declared_dead_after,
        silence: config.pool.suspect_after,
        interrupt_grace: INTERRUPT_GRACE.min(config.pool.suspect_after),
    }
}

impl Opened {
    /// Starts pool mode for a gateway.
    pub fn start(self, gateway: &Arc<Gateway>) -> Result<Arc<Pool>> {
        let config = Arc::clone(&gateway.config);
        let now = config.load_full();
        let fleet = self.fleet;
        let fetcher = Arc::new(Fetcher::new(&now.health_check)?);
        let listed = Arc::clone(&self.uploads);
        let merged = Merged::new(
            Arc::clone(&fleet),
            Arc::clone(&fetcher),
            Arc::new(move || Arc::new(listed.listed(&[]))),
            now.limits.body_size,
        );
        let remote = Arc::new(Remote::new()?);
        remote.set_headers(&now.health_check.headers);
        let members = Arc::clone(&fleet);
        let members = move || super::merged::fetch::reachable(&members.view());
        let kept = now.pool.keep_outputs;
        let copies = self.outputs.map(|store| Copies::new(store, kept, Arc::clone(&remote)));
        let files = Files::new(self.uploads, remote, Arc::new(members));
        let ask = Ask::new()?.told_to(Arc::clone(&gateway.warden));
        let features = Arc::new(Mutex::new(json!({"supports_preview_metadata": true})));
        let told = Arc::clone(&features);
        let features_told = move || told.lock().clone();
        let (restored, sids) = (self.restored, self.sids);
        let pool = Arc::new_cyclic(|pool| {
            let ear = Arc::new(Ear::new(pool.clone()));
            let sockets = links::Options::from(&now.health_check);
            let events = now.pool.client_events;
            let hub = if now.pool.isolation == Isolation::None {
                Hub::new(events, features_told)
            } else {
                let pool: Weak<Pool> = pool.clone();
                let open = move |key| pool.upgrade().map_or(0, |pool| pool.open_of(key));
                Hub::isolated(events, features_told, open)
            };
            Pool {
                core: Mutex::new(Core::new(options(&now))),
                frozen: Mutex::default(),
                tenure: watch::Sender::new(super::release::Tenure::Here),
                verdicts: Mutex::default(),
                flights: own::prompt::InFlight::default(),
                per_user: own::limits::PerUser::default(),
                posted: super::posted::AllPosted::default(),
                written: Mutex::default(),
                entries: Mutex::default(),
                fingerprints: Mutex::default(),
                needs: super::needs::Shared::default(),
                wanted: super::wanted::Wanted::default(),
                held: AtomicU64::new(0),
                pins: Mutex::default(),
                rewritten: Mutex::default(),
                ends: Mutex::default(),
                retell: Mutex::default(),
                hooks: super::hook::Hooks::default(),
                end_heard: Notify::new(),
                made: super::made::Made::default(),
                outputs: arc_swap::ArcSwap::default(),
                journal: self.journal,
                ask,
                links: Links::start(Arc::clone(&fleet), sids, sockets, Arc::clone(&ear) as _),
                ear,
                hub,
                companions: super::companions::Companions::default(),
                gateway: Arc::downgrade(gateway),
                features,
                routers: OnceLock::new(),
                files,
                copies,
                merged,
                fetcher: Arc::clone(&fetcher),
                counter: Counter::starting_at(i64::try_from(restored.counter).unwrap_or_default()),
                next_job: AtomicU64::new(restored.next_job_id.0),
                looking: Mutex::default(),
                read: Mutex::default(),
                alarm: Notify::new(),
                links_changed: Notify::new(),
                line_moved: Notify::new(),
                forecasts: Mutex::default(),
                eta_error: Arc::clone(&gateway.metrics.eta_error),
                tasks: Arc::clone(&gateway.tasks),
                fleet: Arc::clone(&fleet),
                config,
            }
        });
        let _ = pool.routers.set(Routers {
            own: own::router(&pool),
            userdata: self.userdata.router(),
            merged: pool.merged.router(),
            files: pool.files.router(now.limits.body_size),
        });
        pool.tasks.keep_at_least(now.queue.max_size + 10_000);
        pool.recall_tasks();
        pool.retell_latest();
        pool.take_up(&restored);
        pool.spawn_all(&self.userdata, fetcher);
        Ok(pool)
    }
}

impl Pool {
    /// Takes up what an earlier process left.
    fn take_up(self: &Arc<Self>, restored: &Restored) {
        if restored.damaged > 0 {
            warn!(target: TARGET, "{} jobs of the journal could not be read", restored.damaged);
        }
        let mut kept = Vec::with_capacity(restored.open.len());
        for open in &restored.open {
            let one = open.kept(|name| self.fleet.id_of(name));
            self.enter(&one.job);
            self.tasks.set_created(THE_LINE, &one.job.prompt_id, one.job.created_ms);
            self.retell.lock().open(one.job.id);
            self.hub.expect(&one.job.owner);
            self.held.fetch_add(one.job.body.len() as u64, Relaxed);
            if let (Some(name), Some(remote)) = (open.at.backend(), &open.remote_id) {
                self.remember(self.fleet.id_of(name), Arc::clone(remote), &one.job);
            }
            if let Some(name) = open.at.backend() {
                let prompt_id = Arc::clone(&one.job.prompt_id);
                self.remember(self.fleet.id_of(name), prompt_id, &one.job);
            }
            kept.push(one);
        }
        if !kept.is_empty() {
            info!(target: TARGET, "{} jobs of an earlier run go on", kept.len());
            tokio::spawn(Arc::clone(self).look_after_restart());
        }
        self.restore(kept);
    }

    /// Puts the jobs that had ended back into the list of tasks.
    fn recall_tasks(&self) {
        for job in self.journal.newest(tasks::MAX_TASKS).into_iter().rev() {
            let (state, error) = match &job.outcome {
                Outcome::Completed => (TaskState::Completed, None),
                Outcome::Failed { error } => (TaskState::Failed, Some(error.clone())),
                Outcome::Cancelled => (TaskState::Cancelled, None),
            };
            let backend = job.backend.as_ref().map_or(THE_LINE, |name| self.fleet.id_of(name));
            self.tasks.remember(Past {
                accepted: tasks::Accepted {
                    id: job.prompt_id.to_string(),
                    key: job.owner.key,
                    caller: job.owner.caller.to_string(),
                    backend,
                    backend_name: job.backend.clone().unwrap_or_default(),
                    breaks: 0,
                },
                state,
                error,
                attempts: job.attempts,
                run_seconds: job.run_seconds,
                times_ms: (job.created_ms, job.finished_ms),
            });
        }
    }

    /// What was told of the jobs that ended last may not have reached their clients.
    fn retell_latest(&self) {
        let newest = self.journal.newest(MOST_RETOLD);
        let Some(last) = newest.first().map(|job| job.finished_ms) else { return };
        let late = |job: &&Arc<Finished>| last.saturating_sub(job.finished_ms) <= RETOLD_MS;
        for job in newest.iter().take_while(late).collect::<Vec<_>>().into_iter().rev() {
            if job.owner.client_id.is_none() {
                continue;
            }
            let entry = self.journal.entry_blocking(job.id).unwrap_or_default();
            self.hub.expect(&job.owner);
            for delivery in retell::whole(&Subject::from(&**job), &entry) {
                self.hub.deliver(delivery);
            }
            self.hub.ended(&job.owner, job.id);
        }
    }

    fn spawn_all(self: &Arc<Self>, userdata: &Arc<UserData>, fetcher: Arc<Fetcher>) {
        tokio::spawn(Arc::clone(self).tick());
        tokio::spawn(Arc::clone(self).look_round());
        tokio::spawn(lanes::follow(Arc::clone(self)));
        tokio::spawn(foresee::foresee(Arc::clone(self)));
        tokio::spawn(Arc::clone(self.merged.catalog()).keep_warm());
        tokio::spawn(Arc::clone(userdata).keep_importing(Arc::clone(&self.fleet), fetcher));
        tokio::spawn(Arc::clone(self).keep_features());
        tokio::spawn(Arc::clone(self).keep_companions());
    }

    /// Goes by another configuration.
    pub fn reload(self: &Arc<Self>, config: &Config) {
        self.tell(Input::Options(options(config)));
        self.hub.set_client_events(config.pool.client_events);
        self.links.set_options(links::Options::from(&config.health_check));
        self.fetcher.set_options(&config.health_check);
        self.merged.set_max_upload_size(config.limits.body_size);
        self.journal.set_bounds(bounds(config));
    }

    /// Gives sids and journal free for a successor. Running prompts run on.
    pub async fn close(self: &Arc<Self>) {
        self.links.close().await;
        let pool = Arc::clone(self);
        let _ = tokio::task::spawn_blocking(move || pool.journal.close()).await;
    }

    /// Keeps what `feature_flags` is answered with up to date.
    async fn keep_features(self: Arc<Self>) {
        let mut changes = self.fleet.watch();
        loop {
            if let Some(features) = self.merged.features().await {
                *self.features.lock() = features;
                sleep(FEATURES_EVERY).await;
            }
            if changes.changed().await.is_err() {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}
