//! How a gateway is set up: by a configuration file in a directory of its own. It is then started
//! as a process, which can be killed, or inside the test's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use comfygate::sim::Sim;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A gateway's configuration and the directory it lives in.
#[derive(Clone)]
pub(crate) struct Setup {
    directory: Arc<TempDir>,
    config: Value,
}

impl Setup {
    /// Backends `comfy-1`, `comfy-2`, … at these addresses. Peers on the loopback are believed, so
    /// that a test can be many clients.
    pub(crate) fn new<S: AsRef<str>>(urls: &[S]) -> Self {
        let backends: Vec<Value> = urls
            .iter()
            .enumerate()
            .map(|(i, url)| {
                json!({"name": format!("comfy-{}", i + 1), "url": url.as_ref(), "max_queue": 1000})
            })
            .collect();
        Self::bare(json!({"backends": backends}))
    }

    /// The same over simulators.
    pub(crate) fn of(farm: &[Sim]) -> Self {
        Self::new(&farm.iter().map(Sim::url).collect::<Vec<_>>())
    }

    /// Only where to listen, quick looks at the backends, and these keys.
    pub(crate) fn bare(keys: Value) -> Self {
        let quick = json!({"health_check": {"interval": 0.5, "timeout": 3.0}});
        Self::plain(quick).with(keys)
    }

    /// Only where to listen, and these keys; the rest is as it comes.
    pub(crate) fn plain(keys: Value) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let config = json!({
            "server": {"host": "127.0.0.1", "port": 0, "trusted_proxies": ["127.0.0.0/8"]},
            "admin": {"listen": "127.0.0.1:0"},
            "state_dir": directory.path().join("state"),
        });
        Self { directory, config }.with(keys)
    }

    /// Sets keys, section by section.
    pub(crate) fn with(mut self, keys: Value) -> Self {
        merge(&mut self.config, keys);
        self
    }

    /// The admin token, if one is set.
    pub(crate) fn token(&self) -> Option<&str> {
        self.config["admin"]["token"].as_str()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory().join("state")
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.directory().join("gate.yaml")
    }

    /// Writes the configuration where a gateway reads it.
    pub(crate) fn write(&self) {
        std::fs::write(self.file(), self.config.to_string()).unwrap();
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
