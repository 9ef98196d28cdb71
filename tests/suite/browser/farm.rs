//! Simulated servers and a gateway in front of them, in this process, on free ports.

use std::path::Path;

use comfygate::sim::{Sim, SimConfig};
use serde_json::{Value, json};

use crate::support::tls::{Authority, GATE};
use crate::support::{Embedded, Setup, numbered};

pub(crate) struct Farm {
    pub(crate) sims: Vec<Sim>,
    /// The gateway's address, `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    gateway: Embedded,
}

impl Farm {
    /// Starts `count` servers with the page of `web_root`, or their own small one, and a gateway.
    pub(crate) async fn start(count: u64, affinity: &str, web_root: Option<&Path>) -> Self {
        // Without push, else the servers count the gateway's own sockets.
        let keys = json!({"session": {"affinity": affinity}, "health_check": {"push": false}});
        Self::with(count, web_root, keys).await
    }

    /// The same in pool mode, ready to dispatch to all of them.
    pub(crate) async fn pool(count: u64, web_root: &Path) -> Self {
        let farm = Self::with(count, Some(web_root), json!({"mode": "pool"})).await;
        farm.gateway.takes_jobs_on(farm.sims.len()).await;
        farm
    }

    /// The same in the mode of `keys`, by https under a public name. Also what Chromium calls the
    /// certificate's key.
    pub(crate) async fn secure(web_root: &Path, keys: Value) -> (Self, String) {
        let directory = tempfile::tempdir().unwrap();
        let certificate = Authority::new("browsers").issue(&[GATE]);
        let tls = certificate.write(directory.path(), "server");
        let pooled = keys["mode"] == "pool";
        let mut keys = keys;
        keys["server"] = json!({"tls": tls, "public_names": [GATE]});
        let mut farm = Self::with(2, Some(web_root), keys).await;
        farm.url = farm.url.replace("http://127.0.0.1", &format!("https://{GATE}"));
        if pooled {
            farm.gateway.takes_jobs_on(2).await;
        }
        (farm, certificate.spki_hash())
    }

    pub(super) async fn with(count: u64, web_root: Option<&Path>, keys: Value) -> Self {
        let mut sims = Vec::new();
        for seed in 0..count {
            let web_root = web_root.map(Path::to_owned);
            let config = SimConfig { seed, speed: 10.0, web_root, ..SimConfig::default() };
            sims.push(Sim::start(config).await.unwrap());
        }
        let gateway = Setup::plain(json!({
            "backends": numbered("comfy", &sims.iter().collect::<Vec<_>>()),
        }))
        .with(keys)
        .embed()
        .await;
        Self { sims, url: gateway.data.clone(), gateway }
    }

    /// The server behind a backend's name: `comfy-1` is the first.
    pub(crate) fn sim(&self, name: &str) -> &Sim {
        let number: usize = name.strip_prefix("comfy-").unwrap().parse().unwrap();
        &self.sims[number - 1]
    }

    /// How many requests with this method and path (query left out) a server has seen.
    pub(crate) fn seen(sim: &Sim, method: &str, path: &str) -> usize {
        let same = |(seen, target): &(String, String)| {
            seen == method && target.split('?').next() == Some(path)
        };
        sim.requests().iter().filter(|request| same(request)).count()
    }
}
