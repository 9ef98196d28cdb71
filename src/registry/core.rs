//! The registry as a pure state: who is registered, who takes the next request. Time is passed in,
//! nothing here waits or connects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;

use super::instance::Instance;
use super::registration::Registration;
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::config::Endpoint;
use crate::retry::Failure;

/// Instances at most.
pub const MAX_INSTANCES: usize = 1024;
/// Numbers of instances have this bit, numbers of backends do not.
const INSTANCE_BIT: u32 = 1 << 31;
/// Characters of a label's first part.
const MAX_SLUG: usize = 48;

/// What became of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// The endpoint was not known.
    New(BackendId),
    /// The endpoint was known; what is said of it now replaces what was said.
    Updated(BackendId),
}

impl Registered {
    /// The instance.
    pub fn id(self) -> BackendId {
        match self {
            Self::New(id) | Self::Updated(id) => id,
        }
    }
}

/// There is no room for another instance.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// Why nobody takes a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Nobody {
    /// No instance does this kind of work.
    UnknownType,
    /// Those who do are out; the first is tried again after this time.
    AllOut(Duration),
}

/// The instances.
#[derive(Debug, Default)]
pub struct Core {
    instances: BTreeMap<BackendId, Instance>,
    by_endpoint: HashMap<Endpoint, BackendId>,
    by_type: BTreeMap<String, BTreeSet<BackendId>>,
    next: u32,
}

impl Core {
    /// Registers an instance, or renews what is known of its endpoint; calls and health stay.
    pub fn register(
        &mut self,
        wanted: Registration,
        now: Moment,
        at: Timestamp,
    ) -> Result<Registered, Full> {
        if let Some(&id) = self.by_endpoint.get(&wanted.endpoint) {
            self.renew(id, wanted, now, at);
            return Ok(Registered::Updated(id));
        }
        if self.instances.len() >= MAX_INSTANCES {
            return Err(Full);
        }
        let id = self.next_id();
        let label = self.label(&wanted.service_id);
        self.insert(Instance::new(id, label, wanted, now, at));
        Ok(Registered::New(id))
    }

    /// Puts back an instance of an earlier process; `None` when it does not fit. One whose name has
    /// yet to be resolved gets nothing before it was tried.
    pub fn restore(
        &mut self,
        kept: Registration,
        (label, calls): (String, u64),
        resolved: bool,
        now: Moment,
        at: Timestamp,
    ) -> Option<BackendId> {
        let known = self.by_endpoint.contains_key(&kept.endpoint);
        if known || self.instances.len() >= MAX_INSTANCES || self.has_label(&label) {
            return None;
        }
        let id = self.next_id();
        let mut instance = Instance::new(id, label, kept, now, at);
        instance.calls = calls;
        if !resolved {
            instance.unresolved();
        }
        self.insert(instance);
        Some(id)
    }

    /// Takes a heartbeat.
    pub fn beat(&mut self, endpoint: &Endpoint, now: Moment, at: Timestamp) -> Option<BackendId> {
        let id = *self.by_endpoint.get(endpoint)?;
        self.instances.get_mut(&id)?.seen(now, at);
        Some(id)
    }

    /// Forgets an instance.
    pub fn remove(&mut self, endpoint: &Endpoint) -> Option<Instance> {
        let id = *self.by_endpoint.get(endpoint)?;
        self.remove_id(id)
    }

    /// Forgets whoever has not been heard of in time.
    pub fn expire(&mut self, now: Moment) -> Vec<Instance> {
        let late = |instance: &&Instance| instance.expires.is_some_and(|expires| expires <= now);
        let late: Vec<_> = self.instances.values().filter(late).map(|late| late.id).collect();
        late.into_iter().filter_map(|id| self.remove_id(id)).collect()
    }

    /// Who takes a request: of the healthy instances that do this kind of work and have not failed
    /// on it (`tried`) the one with the fewest calls, the oldest among equals. Counts the call.
    pub fn choose(
        &mut self,
        task_type: &str,
        tried: &[BackendId],
        now: Moment,
    ) -> Result<BackendId, Nobody> {
        let ids = self.by_type.get(task_type).ok_or(Nobody::UnknownType)?;
        let all = || ids.iter().filter_map(|id| self.instances.get(id));
        let open = all().filter(|one| one.is_healthy() && !tried.contains(&one.id));
        let Some(id) = open.min_by_key(|one| (one.calls, one.id)).map(|one| one.id) else {
            let next = all().map(Instance::next_probe).min().unwrap_or(now);
            return Err(Nobody::AllOut(next.since(now)));
        };
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.calls += 1;
        }
        Ok(id)
    }

    /// An instance has answered.
    pub fn answered(&mut self, id: BackendId) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.answered();
        }
    }

    /// A request failed on an instance; true when that took it out.
    pub fn failed(&mut self, id: BackendId, failure: Failure, now: Moment) -> bool {
        self.instances.get_mut(&id).is_some_and(|instance| instance.failed(failure, now))
    }

    /// A connection to an instance was tried; true when that changed its health.
    pub fn probed(
        &mut self,
        id: BackendId,
        connected: bool,
        interval: Duration,
        now: Moment,
    ) -> bool {
        let instance = self.instances.get_mut(&id);
        instance.is_some_and(|instance| instance.probed(connected, interval, now))
    }

    /// At most `limit` instances that are to be tried now; each counts as being tried.
    pub fn due(&mut self, now: Moment, limit: usize) -> Vec<BackendId> {
        let due = self.instances.values_mut().filter_map(|i| i.take_probe(now).then_some(i.id));
        due.take(limit).collect()
    }

    /// An instance.
    pub fn get(&self, id: BackendId) -> Option<&Instance> {
        self.instances.get(&id)
    }

    /// All instances, the oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// The instances that do a kind of work; `None` when none does.
    pub fn of_type(&self, task_type: &str) -> Option<Vec<&Instance>> {
        let ids = self.by_type.get(task_type)?;
        Some(ids.iter().filter_map(|id| self.instances.get(id)).collect())
    }

    /// Every kind of work, in alphabetical order.
    pub fn task_types(&self) -> impl Iterator<Item = &str> {
        self.by_type.keys().map(String::as_str)
    }

    /// How many instances there are.
    pub fn len(&self) -> usize {
        self.instances.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    fn renew(&mut self, id: BackendId, wanted: Registration, now: Moment, at: Timestamp) {
        let Some(mut instance) = self.remove_id(id) else { return };
        if slug(&wanted.service_id) != slug(&instance.registration.service_id) {
            instance.label = self.label(&wanted.service_id);
        }
        instance.registration = wanted;
        instance.seen(now, at);
        self.insert(instance);
    }

    fn insert(&mut self, instance: Instance) {
        let id = instance.id;
        self.by_endpoint.insert(instance.registration.endpoint.clone(), id);
        for task_type in &instance.registration.task_types {
            self.by_type.entry(task_type.clone()).or_default().insert(id);
        }
        self.instances.insert(id, instance);
    }

    fn remove_id(&mut self, id: BackendId) -> Option<Instance> {
        let instance = self.instances.remove(&id)?;
        self.by_endpoint.remove(&instance.registration.endpoint);
        for task_type in &instance.registration.task_types {
            if let Some(ids) = self.by_type.get_mut(task_type) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_type.remove(task_type);
                }
            }
        }
        Some(instance)
    }

    fn next_id(&mut self) -> BackendId {
        loop {
            let id = BackendId(INSTANCE_BIT | self.next);
            self.next = self.next.wrapping_add(1) & !INSTANCE_BIT;
            if !self.instances.contains_key(&id) {
                return id;
            }
        }
    }

    /// The next free label of a service.
    fn label(&self, service_id: &str) -> String {
        let slug = slug(service_id);
        let mut number = 1;
        loop {
            let label = format!("{slug}:{number}");
            if !self.has_label(&label) {
                return label;
            }
            number += 1;
        }
    }

    fn has_label(&self, label: &str) -> bool {
        self.instances.values().any(|instance| instance.label == label)
    }
}

/// A service's id as headers and labels can carry it.
fn slug(service_id: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let slug: String = service_id.chars().take(MAX_SLUG).map(plain).collect();
    let slug = slug.trim_matches('-');
    if slug.is_empty() { "service".to_owned() } else { slug.to_owned() }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
