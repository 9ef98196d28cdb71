//! What goes wrong: one fault after another, drawn from a seed, one backend at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::time::sleep;

use super::Farm;
use crate::support::Fault;

/// Draws faults and brings them about.
pub(crate) struct Havoc {
    random: StdRng,
    done: BTreeMap<&'static str, u32>,
}

impl Havoc {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), done: BTreeMap::new() }
    }

    /// How much has gone wrong.
    pub(crate) fn strikes(&self) -> u32 {
        self.done.values().sum()
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.random_range(least..=most))
    }

    /// One fault from its beginning until its backend is well again.
    pub(crate) async fn strike(&mut self, farm: &mut Farm) {
        let n = self.random.random_range(0..farm.sims.len());
        let long = self.between(500, 4000);
        let after = self.random.random_range(0..2000);
        let name = match self.random.random_range(0..10) {
            0 => {
                farm.sims[n].kill();
                sleep(long).await;
                farm.sims[n].revive().await;
                "kill -9"
            }
            1 => {
                farm.sims[n].signal("TERM").await;
                farm.sims[n].revive().await;
                "restart"
            }
            2 | 3 => {
                farm.sims[n].signal("STOP").await;
                sleep(long).await;
                farm.sims[n].signal("CONT").await;
                "SIGSTOP"
            }
            4 => {
                for _ in 0..5 {
                    farm.lines[n].reset_all();
                    sleep(Duration::from_millis(50)).await;
                }
                "reset"
            }
            5 => self.over(farm, n, long, Fault::Reset(after), "reset within").await,
            6 => self.over(farm, n, long, Fault::Cut(after), "truncate").await,
            7 => self.over(farm, n, long, Fault::Silent(after), "silence").await,
            8 => {
                let slow = Fault::Drip(64, Duration::from_millis(2));
                self.over(farm, n, long, slow, "drip").await
            }
            _ => {
                let strategy = ["least_busy", "round_robin", "least_wait"];
                let strategy = strategy[self.random.random_range(0..strategy.len())];
                let weight = self.random.random_range(1..5);
                let keys = json!({"scheduler": {"strategy": strategy, "zone_spill": weight}});
                farm.setup.clone().with(keys).write();
                farm.gateway.signal("HUP").await;
                "reload"
            }
        };
        *self.done.entry(name).or_default() += 1;
        farm.until_well(n).await;
        sleep(self.between(100, 1000)).await;
    }

    /// Connections to a backend have a fault for a while, and end with it.
    async fn over(
        &mut self,
        farm: &Farm,
        n: usize,
        long: Duration,
        fault: Fault,
        name: &'static str,
    ) -> &'static str {
        farm.lines[n].set(Fault::None, fault);
        farm.lines[n].reset_all();
        sleep(long).await;
        farm.lines[n].heal();
        farm.lines[n].reset_all();
        name
    }
}

impl fmt::Display for Havoc {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} faults: {:?}", self.strikes(), self.done)
    }
}
