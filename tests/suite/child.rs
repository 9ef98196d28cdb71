//! A gateway as a process of its own, on free ports, for the tests of services and zones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use comfygate::state::State;
use reqwest::Client;
use serde_json::Value;
use tempfile::TempDir;

/// A running gateway; killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    directory: TempDir,
    /// `http://…` of the data port.
    pub(crate) data: String,
    /// `http://…` of the admin port.
    pub(crate) admin: String,
    /// Talks to it.
    pub(crate) client: Client,
}

impl Gateway {
    /// Starts a gateway on a configuration that names neither ports nor state.
    pub(crate) fn start(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listeners = format!(
            "state_dir: {}\nserver: {{host: 127.0.0.1, port: 0, trusted_proxies: [127.0.0.1]}}\n",
            directory.path().join("state").display()
        );
        let admin = if config.contains("admin:") { "" } else { "admin: {listen: 127.0.0.1:0}\n" };
        let file = directory.path().join("gateway.yaml");
        std::fs::write(&file, format!("{listeners}{admin}{config}")).unwrap();
        Self::run(directory)
    }

    /// Kills it as `kill -9` does and starts it again on the same state.
    pub(crate) fn kill_and_restart(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        Self::run(directory)
    }

    /// Waits until a setting of the state is on the disk as it should be, where `kill -9` cannot
    /// take it back. The file is locked while the gateway runs, so a copy is looked at; one made
    /// in the middle of a write is damaged or old, and the next is made.
    pub(crate) async fn stored(&self, setting: &str, right: impl Fn(&Value) -> bool) {
        let file = self.directory.path().join("state/state.redb");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(&file, copy.path().join("state.redb")).unwrap();
            let state = State::open(copy.path()).ok();
            let found = state.and_then(|state| state.setting(setting).ok().flatten());
            if found.as_ref().is_some_and(&right) {
                return;
            }
            assert!(Instant::now() < deadline, "{setting} stays {found:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn run(directory: TempDir) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_comfygate"))
            .arg("-c")
            .arg(directory.path().join("gateway.yaml"))
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = Vec::new();
        let addresses = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {seen:#?}")).unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.to_owned();
            }
            seen.push(line);
        };
        // Somebody must read on, or the child would wait for room in the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let (data, admin) = addresses.split_once(", admin on ").unwrap();
        let (data, admin) = (format!("http://{data}"), format!("http://{}", admin.trim()));
        let client = Client::builder().no_proxy().build().unwrap();
        Self { child, directory, data, admin, client }
    }

    /// A page of the admin port as JSON.
    pub(crate) async fn ask(&self, path: &str) -> Value {
        let reply = self.client.get(format!("{}{path}", self.admin)).send().await.unwrap();
        reply.json().await.unwrap()
    }

    /// Asks the admin port until the answer is right.
    pub(crate) async fn until(&self, path: &str, right: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self.ask(path).await;
            if right(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path} stays {answer:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
