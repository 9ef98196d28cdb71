//! What of the registry outlives the process: the setting `services` of the state. That it is
//! there at all says that services registered once, so that `/infer/…` stays the registry's.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use jiff::Timestamp;
use log::warn;
use serde::{Deserialize, Serialize};

use super::Registry;
use super::registration::{Registration, Wanted};
use crate::admin::endpoint_policy::{self, EndpointPolicy};
use crate::clock::Moment;
use crate::logging::TARGET;
use crate::state::{State, StateError};

const SETTING: &str = "services";

/// One instance as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    label: String,
    registration: Wanted,
    calls: u64,
    last_seen: Timestamp,
}

/// Puts the instances of an earlier process back. Each has its whole heartbeat to be heard of, and
/// one that `policy` no longer allows is left out.
pub fn restore(registry: &Registry, state: &State, policy: &EndpointPolicy) {
    let kept: Vec<Kept> = match state.setting(SETTING) {
        Ok(Some(kept)) => kept,
        Ok(None) => return,
        Err(error) => return warn!(target: TARGET, "services could not be read: {error}"),
    };
    registry.in_use.store(true, Relaxed);
    for kept in kept {
        let label = kept.label.clone();
        if let Err(why) = put_back(registry, kept, policy) {
            warn!(target: TARGET, "service {label} is not put back: {why}");
        }
    }
}

fn put_back(registry: &Registry, kept: Kept, policy: &EndpointPolicy) -> Result<(), String> {
    let registration = Registration::try_from(kept.registration).map_err(|r| r.message)?;
    let endpoint = registration.endpoint.clone();
    // Names are resolved by the watch, off the start's path; addresses can be used at once.
    let address = endpoint.host.parse().ok().map(|ip| SocketAddr::new(ip, endpoint.port));
    if let Some(address) = address {
        endpoint_policy::check(&endpoint, &[address.ip()], policy).map_err(|r| r.message)?;
    }
    let mut inner = registry.inner.lock();
    let what = (kept.label, kept.calls);
    let now = Moment::now();
    let id = inner.core.restore(registration, what, address.is_some(), now, kept.last_seen);
    let id = id.ok_or_else(|| "another one has its place".to_owned())?;
    inner.enlist(id, address);
    Ok(())
}

/// Stores what changed. Calls alone are stored only `with_counts`: they change all the time.
pub fn save(registry: &Registry, state: &State, with_counts: bool) -> Result<(), StateError> {
    let Some(kept) = registry.take_changes(with_counts) else { return Ok(()) };
    let saved = state.set_setting(SETTING, &kept);
    if saved.is_err() {
        registry.inner.lock().changed = true;
    }
    saved
}

impl Registry {
    fn take_changes(&self, with_counts: bool) -> Option<Vec<Kept>> {
        let mut inner = self.inner.lock();
        if !(inner.changed || with_counts && inner.counted) {
            return None;
        }
        (inner.changed, inner.counted) = (false, false);
        let keep = |instance: &super::Instance| Kept {
            label: instance.label.clone(),
            registration: instance.registration.to_wanted(),
            calls: instance.calls,
            last_seen: instance.last_seen,
        };
        Some(inner.core.all().map(keep).collect())
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn registration(endpoint: &str) -> Registration {
        let wanted = Wanted {
            service_id: "yolo11x".into(),
            name: Some("YOLOv11x人头检测".into()),
            task_types: vec!["人数统计".into()],
            endpoint: endpoint.into(),
            version: Some("1.0.0".into()),
            heartbeat_seconds: Some(9.5),
        };
        wanted.try_into().unwrap()
    }

    fn summary(registry: &Registry) -> Vec<(String, Registration, u64, bool)> {
        let services = registry.services().into_iter();
        services
            .map(|s| {
                let healthy = s.instance.is_healthy();
                (s.instance.label, s.instance.registration, s.instance.calls, healthy)
            })
            .collect()
    }

    fn filled() -> Registry {
        let registry = Registry::default();
        let address = "10.0.0.1:7901".parse().unwrap();
        registry.register(registration("http://10.0.0.1:7901/infer/"), address).unwrap();
        registry.register(registration("http://10.0.0.1:7902/infer"), address).unwrap();
        registry.destination("人数统计", &[]).unwrap();
        registry
    }

    #[test]
    fn instances_come_back_with_their_calls() {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let registry = filled();
        save(&registry, &state, false).unwrap();
        let again = Registry::default();
        restore(&again, &state, &EndpointPolicy::default());
        assert!(again.is_in_use());
        assert_eq!(summary(&again), summary(&registry));
        assert_eq!(summary(&again).iter().map(|s| s.2).sum::<u64>(), 1);
    }

    #[test]
    fn counts_alone_are_written_at_their_own_rhythm() {
        let registry = filled();
        assert!(registry.take_changes(false).is_some());
        registry.destination("人数统计", &[]).unwrap();
        assert!(registry.take_changes(false).is_none());
        assert!(registry.take_changes(true).is_some());
        assert!(registry.take_changes(true).is_none(), "nothing is new");
    }

    #[test]
    fn an_empty_registry_that_was_used_stays_in_use() {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let fresh = Registry::default();
        save(&fresh, &state, true).unwrap();
        restore(&fresh, &state, &EndpointPolicy::default());
        assert!(!fresh.is_in_use(), "nothing ever registered");
        let registry = filled();
        for service in registry.services() {
            registry.unregister(&service.instance.registration.endpoint).unwrap();
        }
        save(&registry, &state, false).unwrap();
        let again = Registry::default();
        restore(&again, &state, &EndpointPolicy::default());
        assert!(again.is_in_use() && again.services().is_empty());
    }

    #[test]
    fn names_wait_for_their_resolution_and_forbidden_places_stay_out() {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let registry = filled();
        let address = "10.0.0.9:1".parse().unwrap();
        registry.register(registration("http://gpu.example:1/x"), address).unwrap();
        save(&registry, &state, false).unwrap();
        let again = Registry::default();
        let policy = EndpointPolicy::new(&["10.0.0.0/30".parse().unwrap()]);
        restore(&again, &state, &policy);
        let healthy: Vec<_> = summary(&again).into_iter().map(|s| s.3).collect();
        assert_eq!(healthy, [true, true, false]);
        let again = Registry::default();
        restore(&again, &state, &EndpointPolicy::new(&["192.168.0.0/16".parse().unwrap()]));
        assert_eq!(summary(&again).len(), 1, "the name alone is judged when it is resolved");
    }
}
