//! Fixtures: gateways in this process and as processes, simulators, misbehaving backends, clients,
//! a browser.
//!
//! Each owns its port (the system picks a free one) and ends with its value. A gateway is set up
//! as a user would, by a configuration file:
//!
//! ```ignore
//! let farm = farm(3).await;
//! let gateway = Setup::of(&farm).with(json!({"session": {"affinity": "tab"}})).start().await;
//! let reply = gateway.get(client(7), "/prompt").await;
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

pub(crate) mod chrome;
pub(crate) mod echo;
pub(crate) mod embedded;
pub(crate) mod fake;
pub(crate) mod fault_proxy;
pub(crate) mod http;
pub(crate) mod process;
pub(crate) mod recorder;
pub(crate) mod setup;
pub(crate) mod socket;
pub(crate) mod tls;

use std::time::{Duration, Instant};

use comfygate::sim::{Sim, SimConfig};
use serde_json::{Value, json};

pub(crate) use embedded::Embedded;
pub(crate) use fake::{Act, Fake, Request};
pub(crate) use fault_proxy::{Fault, FaultProxy};
pub(crate) use http::{Reply, exchange};
pub(crate) use process::{Ended, Gateway, SimProcess};
pub(crate) use setup::Setup;

/// How long anything may take that is not itself what a test is about; ample, for machines that
/// are busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Whether sizes and counts are to be those of the issue, for which there is more time.
pub(crate) fn is_full() -> bool {
    std::env::var_os("COMFYGATE_TEST_FULL").is_some()
}

/// Waits until a condition holds, and says how long that took.
pub(crate) async fn eventually(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> Duration {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

/// The n-th client's address, for `X-Forwarded-For`.
pub(crate) fn client(n: usize) -> String {
    format!("10.{}.{}.{}", 1 + n / 62_500, n / 250 % 250, 1 + n % 250)
}

/// A client whose requests a backend of an idle farm gets.
pub(crate) async fn client_of(gateway: &Gateway, backend: &str) -> String {
    for n in 0..10_000 {
        if gateway.get(client(n), "/prompt").await.backend() == backend {
            return client(n);
        }
    }
    panic!("nobody belongs to {backend}")
}

/// Simulated servers.
pub(crate) async fn farm(count: usize) -> Vec<Sim> {
    let mut farm = Vec::new();
    for _ in 0..count {
        farm.push(Sim::start(SimConfig::default()).await.unwrap());
    }
    farm
}

/// These simulators as a configuration lists them: `NAME-1`, `NAME-2`, …
pub(crate) fn numbered(name: &str, farm: &[&Sim]) -> Value {
    let items = (1..).zip(farm);
    items.map(|(n, sim)| json!({"name": format!("{name}-{n}"), "url": sim.url()})).collect()
}

/// A prompt that runs for a minute.
pub(crate) fn long_prompt() -> Value {
    let paced = json!({"class_type": "PacedImage", "inputs":
        {"seconds": 60.0, "steps": 1, "seed": 1, "fail_at": -1, "preview": false}});
    let save = json!({"class_type": "SaveImage", "inputs":
        {"images": ["1", 0], "filename_prefix": "test"}});
    json!({"prompt": {"1": paced, "2": save}})
}

/// What a simulator's own queue holds.
pub(crate) async fn real_queue(sim: &Sim) -> usize {
    let reply = exchange(sim.addr(), b"GET /queue HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let queue = reply.json();
    let length = |key: &str| queue[key].as_array().unwrap().len();
    length("queue_running") + length("queue_pending")
}

/// Queues prompts on a simulator, past any gateway.
pub(crate) async fn queue_prompts(sim: &Sim, count: usize) {
    for _ in 0..count {
        let reply = exchange(sim.addr(), &http::post("/prompt", &long_prompt())).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}
