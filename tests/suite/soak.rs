//! The soak: a farm of real processes under 60 % load, while one thing after another goes wrong.
//!
//! What is promised: no request fails that the retry rules cover. A GET is answered 200, unless its
//! answer had begun when the backend went; in pool mode every accepted prompt ends well. And the
//! gateway neither grows nor leaks: its memory and descriptors stand in a table.
//!
//! `COMFYGATE_SEED` draws the faults, `COMFYGATE_SOAK_SECONDS` says for how long; half a minute
//! without it, thirty minutes with `COMFYGATE_TEST_FULL=1`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod clients;
mod havoc;
mod pulse;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{FaultProxy, Gateway, PATIENCE, Setup, SimProcess, eventually, is_full};
use clients::Seen;
use havoc::Havoc;
use pulse::Pulse;

/// Backends; one at a time is in trouble.
const BACKENDS: usize = 3;
/// Seconds that a prompt takes.
const PROMPT_SECONDS: f64 = 0.5;
/// Pause between two prompts, at 60 % of what the farm gets done.
const PROMPT_EVERY: Duration =
    Duration::from_micros((PROMPT_SECONDS * 1e6 / (BACKENDS as f64 * 0.6)) as u64);

/// A seed to draw the faults from.
fn seed() -> u64 {
    std::env::var("COMFYGATE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7)
}

fn length() -> Duration {
    let asked = std::env::var("COMFYGATE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(if is_full() { 1800 } else { 30 }))
}

/// Simulators, each behind a proxy that breaks connections, and a gateway before them.
struct Farm {
    sims: Vec<SimProcess>,
    lines: Vec<FaultProxy>,
    gateway: Gateway,
    setup: Setup,
    _files: tempfile::TempDir,
}

impl Farm {
    async fn start(mode: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (mut sims, mut lines) = (Vec::new(), Vec::new());
        for n in 0..BACKENDS {
            let directory = files.path().join(n.to_string());
            let sim = SimProcess::with(&["--directory", directory.to_str().unwrap()]).await;
            lines.push(FaultProxy::to(sim.address).await);
            sims.push(sim);
        }
        let urls: Vec<String> = lines.iter().map(FaultProxy::url).collect();
        let setup = Setup::new(&urls).with(json!({
            "mode": mode,
            // Quick to come back, so that more happens in the time there is; slow to give up who is
            // merely slow, since machines that run tests have other things to do.
            "health_check": {"interval": 0.5, "timeout": 10.0},
            "outlier": {"interval": "200ms", "base_ejection_time": "2s"},
            "queue": {"max_retries": 10},
            "log": {"access": files.path().join("access.log")},
        }));
        let gateway = setup.start().await;
        let farm = Self { sims, lines, gateway, setup, _files: files };
        for n in 0..BACKENDS {
            farm.until_well(n).await;
        }
        farm
    }

    /// Waits until a backend serves again.
    async fn until_well(&self, n: usize) {
        let path = format!("/lb/backends/comfy-{}", n + 1);
        eventually("the backend serves", 3 * PATIENCE, async || {
            let backend = self.gateway.admin(&path).await.json();
            backend["state"] == "up" && backend["takes_jobs"] == true
        })
        .await;
    }
}

/// Runs clients and faults side by side; what the clients have seen, and the table.
async fn soak(mode: &str) {
    let (seed, length) = (seed(), length());
    println!("soak in {mode} mode for {length:?}; COMFYGATE_SEED={seed}");
    let mut farm = Farm::start(mode).await;
    let mut pulse = Pulse::start(&farm.gateway);
    let seen = Arc::new(Seen::default());
    let crowd = clients::start(&farm.gateway, mode, seed, &seen).await;
    let mut havoc = Havoc::new(seed);
    let end = Instant::now() + length;
    let mut row_due = Instant::now() + length / 20;
    while Instant::now() < end {
        havoc.strike(&mut farm).await;
        if Instant::now() >= row_due {
            row_due += length / 20;
            pulse.take(&farm.gateway, &seen, havoc.strikes());
        }
    }
    let failed = crowd.end(&seen).await;
    pulse.take(&farm.gateway, &seen, havoc.strikes());
    println!("{}\n{havoc}", pulse.table());
    assert!(failed.is_empty(), "{} failed: {:#?}", failed.len(), &failed[..failed.len().min(20)]);
    assert!(seen.served() > 100, "{} requests served", seen.served());
    assert!(havoc.strikes() >= 3, "{havoc}");
    pulse.assert_flat(length);
    pulse.assert_nothing_left(&farm.gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sticky_mode_fails_no_covered_request_for_as_long_as_it_is_shaken() {
    soak("sticky").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_mode_loses_no_prompt_for_as_long_as_it_is_shaken() {
    soak("pool").await;
}
