//! A plain aiohttp server, ComfyUI's own HTTP stack, that remembers what it read.

use std::net::SocketAddr;
use std::process::Stdio;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{exchange, http};

/// A request as aiohttp read it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Read {
    pub(crate) method: String,
    /// Decoded.
    pub(crate) path: String,
    /// As it came.
    pub(crate) raw: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Read {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).collect()
    }
}

/// The running server.
pub(crate) struct Recorder {
    address: SocketAddr,
    _child: Child,
}

impl Recorder {
    /// Starts one; `None` where there is no aiohttp, unless tools are required.
    pub(crate) async fn start() -> Option<Self> {
        let own = std::env::var("COMFYGATE_PYTHON").ok();
        let known = ["python3".to_owned(), "/usr/bin/python3".to_owned()];
        for python in own.into_iter().chain(known) {
            if let Some(recorder) = Self::on(&python).await {
                return Some(recorder);
            }
        }
        let required = std::env::var_os("COMFYGATE_REQUIRE_TOOLS").is_some_and(|v| v == "1");
        assert!(!required, "aiohttp is missing: apt-get install python3-aiohttp");
        eprintln!("skipped: aiohttp is missing (apt-get install python3-aiohttp)");
        None
    }

    async fn on(python: &str) -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/support/recorder.py");
        let mut command = Command::new(python);
        command.arg(script).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn().ok()?;
        let mut lines = BufReader::new(child.stdout.take()?).lines();
        let port: u16 = lines.next_line().await.ok()??.parse().ok()?;
        Some(Self { address: ([127, 0, 0, 1], port).into(), _child: child })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has read since it was asked last.
    pub(crate) async fn recorded(&self) -> Vec<Read> {
        let reply = exchange(self.address, &http::get("/recorded", &[])).await;
        serde_json::from_slice(&reply.body).unwrap()
    }
}
