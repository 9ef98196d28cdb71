//! Simulated servers and a gateway in front of them, in this process, on free ports.

use std::collections::BTreeMap;
use std::path::Path;

use comfygate::config::{self, Flags, Sources};
use comfygate::server::Server;
use comfygate::sim::{Sim, SimConfig};
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub(crate) struct Farm {
    pub(crate) sims: Vec<Sim>,
    /// The gateway's address, `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    running: JoinHandle<anyhow::Result<()>>,
    _state: TempDir,
}

impl Farm {
    /// Starts `count` servers with the page of `web_root`, or their own small one, and a gateway.
    pub(crate) async fn start(count: u64, affinity: &str, web_root: Option<&Path>) -> Self {
        let mut sims = Vec::new();
        for seed in 0..count {
            let web_root = web_root.map(Path::to_owned);
            let config = SimConfig { seed, speed: 10.0, web_root, ..SimConfig::default() };
            sims.push(Sim::start(config).await.unwrap());
        }
        let state = tempfile::tempdir().unwrap();
        let state_dir = state.path().join("state");
        let env = [
            ("COMFYGATE__STATE_DIR", state_dir.to_str().unwrap()),
            ("COMFYGATE__SESSION__AFFINITY", affinity),
            ("COMFYGATE__ADMIN__LISTEN", "127.0.0.1:0"),
            // Else the servers count the gateway's own sockets.
            ("COMFYGATE__HEALTH_CHECK__PUSH", "false"),
        ];
        let urls: Vec<String> = sims.iter().map(Sim::url).collect();
        let sources = Sources {
            file: None,
            env: BTreeMap::from(env.map(|(name, value)| (name.to_owned(), value.to_owned()))),
            flags: Flags {
                host: Some("127.0.0.1".to_owned()),
                port: Some(0),
                backends: Some(urls.join(",")),
            },
        };
        let loaded = config::load(&sources).unwrap();
        let server = Server::prepare(sources, loaded).unwrap();
        let url = format!("http://{}", server.data_address().unwrap());
        Self { sims, url, running: tokio::spawn(server.run()), _state: state }
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

impl Drop for Farm {
    fn drop(&mut self) {
        self.running.abort();
    }
}
