//! A farm of real processes that can be killed, and a gateway that can too.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Gateway, PATIENCE, Setup, SimProcess, eventually};

/// Simulators as processes, and the gateway in front of them.
pub(crate) struct Farm {
    pub(crate) sims: Vec<SimProcess>,
    gateway: Option<Gateway>,
    setup: Setup,
    /// Where the simulators keep what they made.
    files: tempfile::TempDir,
}

impl Farm {
    /// So many simulators in real time and a gateway with these settings, ready for jobs.
    pub(crate) async fn start(count: usize, keys: Value) -> Self {
        let files = tempfile::tempdir().unwrap();
        let mut sims = Vec::new();
        for n in 0..count {
            let directory = files.path().join(n.to_string());
            let directory = directory.to_str().unwrap();
            sims.push(SimProcess::with(&["--directory", directory]).await);
        }
        let urls: Vec<String> = sims.iter().map(SimProcess::url).collect();
        let setup = Setup::new(&urls).with(json!({"mode": "pool"})).with(keys);
        let gateway = setup.start().await;
        // Its clients shall find it where it was.
        let setup = setup.with(json!({"server": {"port": gateway.data.port()}}));
        let farm = Self { sims, gateway: Some(gateway), setup, files };
        farm.ready(count).await;
        farm
    }

    /// The folder of a simulator.
    pub(crate) fn folder(&self, at: usize) -> std::path::PathBuf {
        self.files.path().join(at.to_string()).join("0")
    }

    /// The gateway's state.
    pub(crate) fn state_dir(&self) -> std::path::PathBuf {
        self.setup.state_dir()
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    /// Where clients connect.
    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.gateway().data)
    }

    /// Waits until so many backends take jobs.
    pub(crate) async fn ready(&self, count: usize) {
        eventually("the backends take jobs", PATIENCE, async || {
            let list = self.gateway().admin("/lb/backends").await.json();
            let takes = |one: &&Value| one["takes_jobs"] == true;
            list["backends"].as_array().unwrap().iter().filter(takes).count() == count
        })
        .await;
    }

    /// `kill -9` of the gateway.
    pub(crate) async fn kill_gateway(&mut self) {
        self.gateway.take().unwrap().kill().await;
    }

    /// SIGTERM to the gateway.
    pub(crate) async fn terminate_gateway(&mut self) {
        let (code, _) = self.gateway.take().unwrap().terminate().await;
        assert_eq!(code, Some(0));
    }

    /// The gateway again, on the same state and port.
    pub(crate) async fn start_gateway(&mut self) {
        self.gateway = Some(self.setup.start().await);
    }

    /// Prompts that each simulator has ended since it was started.
    pub(crate) async fn finished(&self) -> Vec<u64> {
        let mut finished = Vec::new();
        for sim in &self.sims {
            let state = sim.state().await;
            finished.push(state.map_or(0, |state| state["finished"].as_u64().unwrap()));
        }
        finished
    }

    /// The task of a prompt.
    pub(crate) async fn task(&self, prompt: &str) -> Value {
        self.gateway().admin(&format!("/lb/tasks/{prompt}")).await.json()
    }

    /// When the task of a prompt was made.
    pub(crate) async fn created(&self, prompt: &str) -> jiff::Timestamp {
        self.task(prompt).await["created_at"].as_str().unwrap().parse().unwrap()
    }

    /// Where a prompt runs, once it does.
    pub(crate) async fn runs_at(&self, prompt: &str) -> usize {
        let mut at = None;
        eventually("the prompt runs", PATIENCE, async || {
            let task = self.task(prompt).await;
            let name = task["backend"].as_str().filter(|_| task["state"] == "running");
            let number = name.and_then(|name| name.strip_prefix("comfy-"));
            at = number.and_then(|number| number.parse::<usize>().ok());
            at.is_some()
        })
        .await;
        at.unwrap() - 1
    }

    /// Kills a simulator and starts it again after a while.
    pub(crate) async fn bounce(&mut self, at: usize, away: Duration) {
        self.sims[at].kill();
        tokio::time::sleep(away).await;
        self.sims[at].revive().await;
    }
}
