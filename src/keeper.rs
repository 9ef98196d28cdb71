//! Keeps what must outlive the process: reads it at start, writes what changed every half second,
//! on a thread of its own, never on the path of a request.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};

use crate::admin::endpoint_policy::EndpointPolicy;
use crate::affinity::Placement;
use crate::backend::BackendId;
use crate::gateway::Gateway;
use crate::identity::ClientKey;
use crate::logging::TARGET;
use crate::pace::Learnt;
use crate::registry;
use crate::state::{PlacementRecord, Rate, State, StateError};

/// Pause between two writes; `kill -9` costs this much.
const PAUSE: Duration = Duration::from_millis(500);
/// Placements written in one transaction.
const BATCH: usize = 50_000;
/// Rates are written every so many pauses.
const RATES_EVERY: u32 = 20;
/// Expired placements removed per pause.
const SWEEP: usize = 20_000;

/// Opens the state for sticky mode, where a second process may go on without it: what it would
/// lose is placements, not jobs.
pub fn open(state_dir: &Path) -> Result<Option<State>, StateError> {
    match State::open(state_dir) {
        Ok(state) => {
            if let Some(path) = state.set_aside() {
                warn!(
                    target: TARGET,
                    "the state was damaged and is kept aside as {}; starting with an empty one",
                    path.display()
                );
            }
            Ok(Some(state))
        }
        Err(error @ StateError::InUse(_)) => {
            warn!(target: TARGET, "{error}; until then placements do not survive a restart");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What an earlier process learnt of a backend's pace.
pub fn learnt(state: Option<&State>) -> impl Fn(&str) -> Learnt + use<> {
    let rates = state.and_then(|state| state.load_rates().ok()).unwrap_or_default();
    move |name| {
        let rate = rates.iter().find(|(known, _)| known == name);
        rate.map_or(Learnt::default(), |(_, rate)| Learnt {
            prompt_seconds: rate.seconds_per_prompt,
            longest_seconds: rate.longest_prompt,
        })
    }
}

/// The setting that holds what was learnt from tasks, by backend.
const TASK_RATES: &str = "task_rates";

/// Puts back what an earlier process learnt from tasks.
pub fn restore_rates(gateway: &Gateway, state: &State) {
    match state.setting(TASK_RATES) {
        Ok(records) => gateway.tasks.restore(&gateway.fleet, &records.unwrap_or_default()),
        Err(error) => warn!(target: TARGET, "learnt rates could not be read: {error}"),
    }
}

/// Puts the services and placements of an earlier process back.
pub fn restore(gateway: &Gateway, state: &State) {
    let config = gateway.config.load();
    let policy = EndpointPolicy::new(&config.admin.allow_endpoints);
    registry::store::restore(&gateway.registry, state, &policy);
    let now = gateway.clock.now();
    let oldest = now.minus(crate::affinity::whole_seconds(config.session.ttl));
    let records = match state.load_placements(config.session.max_clients, oldest) {
        Ok(records) => records,
        Err(error) => return warn!(target: TARGET, "placements could not be read: {error}"),
    };
    let restored = records
        .into_iter()
        .filter(|(key, record)| {
            let backend = gateway.fleet.id_of(&record.backend);
            gateway.affinity.restore(*key, backend.0, record.last_used, record.by_hand, now)
        })
        .count();
    if restored > 0 {
        info!(target: TARGET, "restored {restored} sessions");
    }
}

/// Writes changes until the gateway has stopped, then once more.
pub async fn keep(
    gateway: Arc<Gateway>,
    state: Option<Arc<State>>,
    done: impl Future<Output = ()>,
) {
    tokio::pin!(done);
    let mut round = 0u32;
    loop {
        let last = tokio::select! {
            () = tokio::time::sleep(PAUSE) => false,
            () = &mut done => true,
        };
        gateway.affinity.sweep(gateway.clock.now(), SWEEP);
        if let Some(state) = state.as_ref().filter(|state| !state.is_released()) {
            let with_rates = last || round.is_multiple_of(RATES_EVERY);
            let (gateway, state) = (Arc::clone(&gateway), Arc::clone(state));
            let written =
                tokio::task::spawn_blocking(move || write(&gateway, &state, with_rates)).await;
            if let Ok(Err(error)) = written {
                warn!(target: TARGET, "sessions could not be written: {error}");
            }
        }
        if last {
            return;
        }
        round = round.wrapping_add(1);
    }
}

/// Writes what has changed; blocks.
pub fn write(gateway: &Gateway, state: &State, with_rates: bool) -> Result<(), StateError> {
    loop {
        let changed = gateway.affinity.drain_dirty(BATCH);
        let more = changed.len() >= BATCH;
        let records: Vec<_> =
            changed.into_iter().map(|(key, placed)| record(gateway, key, placed)).collect();
        state.save_placements(&records)?;
        if !more {
            break;
        }
    }
    registry::store::save(&gateway.registry, state, with_rates)?;
    if with_rates {
        let view = gateway.fleet.view();
        let rates: Vec<_> = view
            .backends
            .iter()
            .map(|backend| (backend.name(), backend.live.learnt()))
            .filter(|(_, learnt)| learnt.prompt_seconds > 0.0)
            .map(|(name, learnt)| {
                let rate = Rate {
                    seconds_per_prompt: learnt.prompt_seconds,
                    longest_prompt: learnt.longest_seconds,
                    ..Rate::default()
                };
                (name, Some(rate))
            })
            .collect();
        state.save_rates(&rates)?;
        let records = gateway.tasks.records(&view);
        if !records.is_empty() {
            state.set_setting(TASK_RATES, &records)?;
        }
    }
    Ok(())
}

fn record(
    gateway: &Gateway,
    key: ClientKey,
    placed: Option<Placement>,
) -> (ClientKey, Option<PlacementRecord>) {
    let view = gateway.fleet.view();
    let record = placed.and_then(|placed| {
        let backend = view.get(BackendId(placed.backend))?;
        Some(PlacementRecord {
            backend: backend.name().to_owned(),
            last_used: placed.last_used,
            by_hand: placed.by_hand,
        })
    });
    (key, record)
}
