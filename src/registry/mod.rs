//! The service registry: inference services of any kind that register themselves, and whose
//! requests `POST /infer/{task_type}` on the data port hands to the instance with the fewest calls.
//!
//! [`api`] is how services register, on the admin port; [`Registry`] is what is shared: the pure
//! [`core`] behind a lock, and for each [`instance`] a [`Backend`] outside the fleet, so that the
//! proxy, its retries, the access log and the metrics treat it as they do ComfyUI servers. [`watch`]
//! tries connections in the background, [`store`] carries all of it into the next process.
//!
//! `POST /infer/{task_type}` belongs to the registry from the first registration on, also after a
//! restart and when the last instance is gone; before that the path is ComfyUI's like any other,
//! where a custom node may serve it. What follows `/infer/` is the task type, percent-encoded where
//! needed. The body streams to the path that the instance registered, with the request's query.
//!
//! | reply | when |
//! |---|---|
//! | the instance's, with its label (`yolo11x:1`) in `x-comfygate-backend` | it answered |
//! | 404 `not_found`, naming the task types there are | no instance does this |
//! | 405 `method_not_allowed` | not POST |
//! | 503 `no_backend` with `Retry-After` | all instances are out |
//!
//! The fewest calls are counted over an instance's whole life, so an instance that comes new to
//! others takes every request until it has caught up.

pub mod api;
pub mod core;
pub mod instance;
pub mod registration;
pub mod store;
pub mod watch;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use jiff::Timestamp;
use log::info;
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::core::{Core, Full, Nobody, Registered};
use crate::backend::{Backend, BackendId, Live, Wanted};
use crate::clock::Moment;
use crate::config::{self, Endpoint};
use crate::gateway::Destination;
use crate::health::Health;
use crate::logging::TARGET;
use crate::pace::Learnt;
use crate::rejection::{Kind, Rejection};
use crate::retry::Failure;
use instance::Instance;
use registration::Registration;

/// Task types that a 404 names at most.
const NAMED: usize = 20;
/// What stands in front of a task type.
const PREFIX: &str = "/infer/";

/// The services of a gateway.
#[derive(Default)]
pub struct Registry {
    inner: Mutex<Inner>,
    /// Whether anything ever registered.
    in_use: AtomicBool,
    /// Something is to be tried now.
    wake: Notify,
}

#[derive(Default)]
struct Inner {
    core: Core,
    /// The instances as the proxy sees them.
    backends: HashMap<BackendId, Arc<Backend>>,
    /// Instances came, went or changed since they were stored.
    changed: bool,
    /// Calls were counted since they were stored.
    counted: bool,
}

/// The task type that a target of the data port asks for, undecoded and without its query.
pub fn asked_for(target: &str) -> Option<&str> {
    target.strip_prefix(PREFIX)?.split(['?', '#']).next().filter(|rest| !rest.is_empty())
}

impl Registry {
    /// Whether `/infer/…` is the registry's.
    pub fn is_in_use(&self) -> bool {
        self.in_use.load(Relaxed)
    }

    /// Where a request for a task type goes. `tried` have failed it already.
    pub fn destination(
        &self,
        task_type: &str,
        tried: &[BackendId],
    ) -> Result<Destination, Rejection> {
        let mut inner = self.inner.lock();
        let Inner { core, backends, counted, .. } = &mut *inner;
        let id = core.choose(task_type, tried, Moment::now()).map_err(|nobody| match nobody {
            Nobody::UnknownType => unknown_type(core, task_type),
            Nobody::AllOut(wait) => all_out(task_type, wait),
        })?;
        *counted = true;
        let found = core.get(id).zip(backends.get(&id));
        let (instance, backend) =
            found.ok_or_else(|| all_out(task_type, Duration::from_secs(1)))?;
        backend.live.calls.store(instance.calls, Relaxed);
        Ok(Destination {
            backend: Arc::clone(backend),
            sending: None,
            service_path: Some(instance.registration.path.clone()),
            asked: None,
        })
    }

    /// An instance has answered a request.
    pub fn answered(&self, id: BackendId) {
        self.inner.lock().core.answered(id);
    }

    /// A request failed on an instance.
    pub fn failed(&self, id: BackendId, failure: Failure) {
        let mut inner = self.inner.lock();
        if inner.core.failed(id, failure, Moment::now())
            && let Some(backend) = inner.backends.get(&id)
        {
            set_health(backend, Health::Down);
            self.wake.notify_one();
        }
    }

    /// Registers an instance that is at `address`, or renews what is known of its endpoint.
    pub fn register(
        &self,
        wanted: Registration,
        address: SocketAddr,
    ) -> Result<(Registered, Service), Rejection> {
        let mut inner = self.inner.lock();
        let done = inner.core.register(wanted, Moment::now(), Timestamp::now());
        let registered = done.map_err(|Full| {
            let message = format!("there are {} instances already", core::MAX_INSTANCES);
            Rejection::new(Kind::Conflict, message).cure("unregister some")
        })?;
        inner.enlist(registered.id(), Some(address));
        inner.changed = true;
        self.in_use.store(true, Relaxed);
        self.wake.notify_one();
        let service = inner.service(registered.id());
        let service = service.ok_or_else(|| Rejection::new(Kind::Conflict, "it is gone again"))?;
        if matches!(registered, Registered::New(_)) {
            let instance = &service.instance;
            let registration = &instance.registration;
            info!(
                target: TARGET,
                "service {} registered: {} ({})",
                instance.label, registration.url(), registration.task_types.join(", ")
            );
        }
        Ok((registered, service))
    }

    /// Takes a heartbeat; `None` when the endpoint is not registered.
    pub fn beat(&self, endpoint: &Endpoint) -> Option<Service> {
        let mut inner = self.inner.lock();
        let id = inner.core.beat(endpoint, Moment::now(), Timestamp::now())?;
        self.wake.notify_one();
        inner.service(id)
    }

    /// Forgets an instance; requests under way end as they may.
    pub fn unregister(&self, endpoint: &Endpoint) -> Option<Service> {
        let mut inner = self.inner.lock();
        let instance = inner.core.remove(endpoint)?;
        info!(target: TARGET, "service {} unregistered", instance.label);
        inner.dismiss(instance)
    }

    /// All instances, the oldest first.
    pub fn services(&self) -> Vec<Service> {
        let inner = self.inner.lock();
        inner.core.all().filter_map(|instance| inner.service(instance.id)).collect()
    }

    /// The instances of a task type, or a refusal that names the types there are.
    pub fn services_of(&self, task_type: &str) -> Result<Vec<Service>, Rejection> {
        let inner = self.inner.lock();
        let instances = inner.core.of_type(task_type);
        let instances = instances.ok_or_else(|| unknown_type(&inner.core, task_type))?;
        Ok(instances.iter().filter_map(|instance| inner.service(instance.id)).collect())
    }
}

/// An instance with what is known of it now.
pub struct Service {
    /// What it said of itself, its calls and its health.
    pub instance: Instance,
    /// The same as the proxy sees it; its name is the label.
    pub backend: Arc<Backend>,
}

impl Inner {
    fn service(&self, id: BackendId) -> Option<Service> {
        let (instance, backend) = self.core.get(id).zip(self.backends.get(&id))?;
        Some(Service { instance: instance.clone(), backend: Arc::clone(backend) })
    }

    /// Gives an instance its backend, or the one it has its present words.
    fn enlist(&mut self, id: BackendId, address: Option<SocketAddr>) {
        let Some(instance) = self.core.get(id) else { return };
        let live = self.backends.get(&id).map(|known| Arc::clone(&known.live));
        let live = live.unwrap_or_else(|| Arc::new(Live::new(Wanted::Enabled, Learnt::default())));
        live.calls.store(instance.calls, Relaxed);
        if let Some(address) = address {
            live.address.store(Some(Arc::new(address)));
        }
        let spec = spec(&instance.label, &instance.registration);
        let backend = Arc::new(Backend { id, spec, live });
        set_health(&backend, if instance.is_healthy() { Health::Up } else { Health::Down });
        self.backends.insert(id, backend);
    }

    fn dismiss(&mut self, instance: Instance) -> Option<Service> {
        self.changed = true;
        let backend = self.backends.remove(&instance.id)?;
        backend.live.alter(|standing| standing.removed = true);
        Some(Service { instance, backend })
    }
}

fn set_health(backend: &Backend, health: Health) {
    let known = backend.live.standing().health;
    if backend.live.alter(|standing| standing.health = health) && known != Health::Unknown {
        let word = if health == Health::Up { "up" } else { "down" };
        let why = backend.live.notes().last_error.filter(|_| health == Health::Down);
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        info!(target: TARGET, "service {} is {word}{why}", backend.name());
    }
}

/// An instance as the configuration would have it.
fn spec(label: &str, registration: &Registration) -> config::Backend {
    config::Backend {
        name: label.to_owned(),
        endpoint: registration.endpoint.clone(),
        weight: 1,
        max_queue: u32::MAX,
        enabled: true,
        backup: false,
        max_connections: u32::MAX,
        headers: Vec::new(),
        labels: Vec::new(),
        task_types: registration.task_types.clone(),
        tls: config::BackendTls::default(),
    }
}

fn unknown_type(core: &Core, task_type: &str) -> Rejection {
    let names: Vec<_> = core.task_types().take(NAMED).collect();
    let more = core.task_types().nth(NAMED).map_or("", |_| ", …");
    let there = match names.as_slice() {
        [] => "no service is registered".to_owned(),
        names => format!("there are: {}{more}", names.join(", ")),
    };
    let shown: String = task_type.chars().take(registration::MAX_NAME).collect();
    Rejection::new(Kind::NotFound, format!("no service does \"{shown}\"")).cure(there)
}

fn all_out(task_type: &str, wait: Duration) -> Rejection {
    let message = format!("no instance that does \"{task_type}\" is available at the moment");
    let seconds = wait.as_secs_f64().ceil() as u32;
    Rejection::new(Kind::NoBackend, message)
        .retry_after(seconds.clamp(1, instance::LONGEST_OUT.as_secs() as u32))
}

#[cfg(test)]
mod asked_for_tests {
    use super::asked_for;

    #[test]
    fn a_task_type_is_what_follows_infer() {
        assert_eq!(asked_for("/infer/%E4%BA%BA?x=/infer/b"), Some("%E4%BA%BA"));
        assert_eq!(asked_for("/infer/a/b"), Some("a/b"));
        for other in ["/infer", "/infer/", "/infer/?a", "/inference/a", "/api/infer/a", "/"] {
            assert_eq!(asked_for(other), None, "{other}");
        }
    }
}
