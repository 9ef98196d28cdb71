//! Looks after registered services: tries connections to those whose turn it is, resolving their
//! names anew, and forgets those that have gone silent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use log::info;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Registry;
use crate::admin::endpoint_policy::{self, EndpointPolicy};
use crate::backend::{Backend, BackendId};
use crate::clock::Moment;
use crate::gateway::Gateway;
use crate::health::Health;
use crate::logging::TARGET;

/// How exactly times are kept.
const TICK: Duration = Duration::from_millis(250);
/// Connections tried at once.
const MAX_PROBES: usize = 64;

/// Looks after a gateway's services for as long as the process lives.
pub async fn watch(gateway: Arc<Gateway>) {
    let registry = &gateway.registry;
    let mut probes = JoinSet::new();
    loop {
        if !registry.is_in_use() {
            registry.wake.notified().await;
            continue;
        }
        registry.expire();
        for backend in registry.due(MAX_PROBES.saturating_sub(probes.len())) {
            let config = gateway.config.load();
            let policy = EndpointPolicy::new(&config.admin.allow_endpoints);
            let limit = config.health_check.timeout;
            probes
                .spawn(async move { (backend.id, try_connection(&backend, &policy, limit).await) });
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = registry.wake.notified() => {}
            Some(Ok((id, outcome))) = probes.join_next(), if !probes.is_empty() => {
                registry.probed(id, outcome, gateway.config.load().health_check.interval);
            }
        }
    }
}

/// Connects and hangs up; what is at fault otherwise. Says where the name leads now.
async fn try_connection(
    backend: &Backend,
    policy: &EndpointPolicy,
    limit: Duration,
) -> Result<SocketAddr, String> {
    let endpoint = &backend.spec.endpoint;
    let said = |refused: crate::rejection::Rejection| refused.message;
    let found = endpoint_policy::resolve(endpoint).await.map_err(said)?;
    let addresses: Vec<_> = found.iter().map(SocketAddr::ip).collect();
    endpoint_policy::check(endpoint, &addresses, policy).map_err(said)?;
    // A name with several addresses keeps the one in use while it is among them.
    let current = backend.live.address.load().as_deref().copied();
    let address = current.filter(|a| found.contains(a)).or_else(|| found.first().copied());
    let address = address.ok_or_else(|| "its name does not resolve".to_owned())?;
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(address),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("a connection took too long".to_owned()),
    }
}

impl Registry {
    fn expire(&self) {
        let mut inner = self.inner.lock();
        for silent in inner.core.expire(Moment::now()) {
            info!(target: TARGET, "service {} is forgotten: no heartbeat came", silent.label);
            inner.dismiss(silent);
        }
    }

    fn due(&self, limit: usize) -> Vec<Arc<Backend>> {
        let mut inner = self.inner.lock();
        let due = inner.core.due(Moment::now(), limit);
        due.iter().filter_map(|id| inner.backends.get(id).cloned()).collect()
    }

    fn probed(&self, id: BackendId, outcome: Result<SocketAddr, String>, interval: Duration) {
        let mut inner = self.inner.lock();
        let connected = outcome.is_ok();
        inner.core.probed(id, connected, interval, Moment::now());
        let healthy = inner.core.get(id).is_some_and(super::instance::Instance::is_healthy);
        let Some(backend) = inner.backends.get(&id) else { return };
        backend.live.note(|notes| notes.last_check = Some(jiff::Timestamp::now()));
        match outcome {
            Ok(address) => backend.live.address.store(Some(Arc::new(address))),
            Err(why) => backend.live.note(|notes| notes.last_error = Some(why)),
        }
        super::set_health(backend, if healthy { Health::Up } else { Health::Down });
    }
}
