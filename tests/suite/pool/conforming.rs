//! The recorded contract through a gateway in pool mode.

use std::time::Duration;

use comfygate::conformance::{CheckResult, Options, Outcome, check};
use comfygate::sim::{Sim, SimConfig};

use super::pool;

/// Quick enough for a test, and slow enough for what the scenarios do while a prompt runs.
const SPEED: f64 = 4.0;

async fn conforms(servers: usize) {
    let mut farm = Vec::new();
    for _ in 0..servers {
        farm.push(Sim::start(SimConfig { speed: SPEED, ..SimConfig::default() }).await.unwrap());
    }
    let gateway = pool(&farm).await;
    let options = Options { filter: None, timeout: Duration::from_secs(30) };
    // Twice, since one run must not be in the way of the next.
    for _ in 0..2 {
        let report = check(&gateway.data, &options).await.unwrap();
        let failed: Vec<String> =
            report.results.iter().filter(|r| r.is_failed()).map(ToString::to_string).collect();
        assert!(report.is_ok(), "{}", failed.join("\n"));
        let is_ok = |result: &&CheckResult| matches!(result.outcome, Outcome::Ok);
        assert!(report.results.iter().filter(is_ok).count() >= 10 + 49, "{}", report.summary());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_of_one_is_a_comfyui() {
    conforms(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_of_three_is_one_for_each_prompt() {
    conforms(3).await;
}
