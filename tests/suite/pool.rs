//! Pool mode: the farm as one ComfyUI, with real sockets between clients, gateway and simulators.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod actor;
mod agreement;
mod answers;
mod asking;
mod breach;
mod companions;
mod conforming;
mod ear;
mod eligible;
pub(crate) mod failover;
mod fair;
mod files;
mod full;
mod idle;
mod ledger;
mod order;
mod outputs;
pub(crate) mod painter;
mod random;
mod shared;
mod sockets;
mod step;
mod stopping;
mod users;

use comfygate::sim::{Sim, SimConfig};
use serde_json::json;

use crate::support::{Embedded, Setup};

/// Simulators whose pictures take a tenth of their seconds.
async fn quick_farm(count: usize) -> Vec<Sim> {
    let mut farm = Vec::new();
    for _ in 0..count {
        farm.push(Sim::start(SimConfig { speed: 10.0, ..SimConfig::default() }).await.unwrap());
    }
    farm
}

fn setup(farm: &[Sim]) -> Setup {
    Setup::of(farm).with(json!({"mode": "pool"}))
}

/// A gateway in pool mode in front of these, ready to dispatch to all of them.
async fn pool(farm: &[Sim]) -> Embedded {
    ready(setup(farm).embed().await, farm.len()).await
}

/// Waits until every backend is open for jobs.
async fn ready(gateway: Embedded, backends: usize) -> Embedded {
    gateway.takes_jobs_on(backends).await;
    gateway
}
