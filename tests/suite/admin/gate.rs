//! A gateway as a child process, set up by a configuration file, and clients of both its ports.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use comfygate::sim::Sim;
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

const BINARY: &str = env!("CARGO_BIN_EXE_comfygate");
/// How long anything may take; ample, for machines that are busy.
const PATIENCE: Duration = Duration::from_mins(1);

/// The admin token of gateways that have one.
pub(super) const TOKEN: &str = "a-long-admin-token-of-tests";

/// Waits until a condition holds.
pub(super) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A configuration in a directory of its own, which outlives the gateways started of it.
pub(super) struct Setup {
    directory: TempDir,
    config: Value,
}

impl Setup {
    pub(super) fn of(farm: &[Sim]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = json!({
            "server": {"host": "127.0.0.1", "port": 0, "trusted_proxies": ["127.0.0.0/8"]},
            "admin": {"listen": "127.0.0.1:0"},
            "state_dir": directory.path().join("state"),
            "health_check": {"interval": 0.5, "timeout": 10.0},
            "backends": [],
        });
        Self { directory, config }.with_backends(farm)
    }

    pub(super) fn with_backends(mut self, farm: &[Sim]) -> Self {
        self.config["backends"] = farm.iter().map(Sim::url).collect();
        self
    }

    pub(super) fn with_token(mut self) -> Self {
        self.config["admin"]["token"] = TOKEN.into();
        self
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.directory().join("state")
    }

    /// Starts a gateway and waits until it listens.
    pub(super) async fn start(&self) -> Gate {
        let file = self.directory().join("gate.yaml");
        std::fs::write(&file, self.config.to_string()).unwrap();
        let mut child = command().arg("-c").arg(file).spawn().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (lines, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
        tokio::spawn(async move {
            let mut reader = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                lines.lock().push(line);
            }
        });
        let line = logged(&log, "listening on ").await;
        let addresses = line.split("listening on ").nth(1).unwrap();
        let (data, admin) = addresses.split_once(", admin on ").unwrap();
        Gate {
            child,
            data: data.trim().parse().unwrap(),
            admin: admin.trim().parse().unwrap(),
            token: self.config["admin"]["token"].as_str().map(str::to_owned),
            log,
            http: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap(),
        }
    }
}

async fn logged(log: &Mutex<Vec<String>>, part: &str) -> String {
    let start = Instant::now();
    loop {
        let found = log.lock().iter().find(|line| line.contains(part)).cloned();
        match found {
            Some(line) => return line,
            None => assert!(start.elapsed() < PATIENCE, "no {part:?} in {:#?}", log.lock()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The binary without the environment of whoever runs the tests.
fn command() -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().contains("COMFYGATE") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// How a command ended, and all it printed.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) text: String,
}

/// Runs the binary to its end.
pub(super) async fn run(words: &[String]) -> Ended {
    let ended = timeout(PATIENCE, command().args(words).output()).await.expect("it ends").unwrap();
    let text = [ended.stdout, ended.stderr].concat();
    Ended { code: ended.status.code(), text: String::from_utf8_lossy(&text).into_owned() }
}

/// Status and JSON of an answer; null when it has none.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

/// A running gateway.
pub(super) struct Gate {
    child: Child,
    pub(super) data: SocketAddr,
    pub(super) admin: SocketAddr,
    token: Option<String>,
    log: Arc<Mutex<Vec<String>>>,
    http: reqwest::Client,
}

impl Gate {
    /// A call of the admin API, with the token if there is one.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let mut request = self.http.request(method, format!("http://{}{path}", self.admin));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        answer(request).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, None).await
    }

    /// A POST; null is no body.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(Method::POST, path, Some(body).filter(|body| !body.is_null())).await
    }

    /// A GET of either port with or without a token.
    pub(super) async fn plain(&self, port: SocketAddr, path: &str, token: Option<&str>) -> Answer {
        let mut request = self.http.get(format!("http://{port}{path}"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        answer(request).await
    }

    /// A GET through the gateway by the client of an address: the status and who answered.
    pub(super) async fn through(&self, client: &str, path: &str) -> reqwest::Result<(u16, String)> {
        let request = self.http.get(format!("http://{}{path}", self.data));
        let response = request.header("x-forwarded-for", client).send().await?;
        let backend = response.headers().get("x-comfygate-backend");
        let backend = backend.map_or("", |name| name.to_str().unwrap()).to_owned();
        let status = response.status().as_u16();
        response.bytes().await?;
        Ok((status, backend))
    }

    /// A WebSocket through the gateway by the client of an address.
    pub(super) async fn socket(&self, client: &str) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
        let url = format!("ws://{}/ws?clientId=test", self.data);
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("x-forwarded-for", client.parse().unwrap());
        connect_async(request).await.unwrap().0
    }

    /// A backend as the admin API shows it.
    pub(super) async fn backend(&self, name: &str) -> Value {
        self.get(&format!("/lb/backends/{name}")).await.body
    }

    pub(super) async fn until_state(&self, name: &str, state: &str) {
        let what = format!("{name} is {state}");
        eventually(&what, async || self.backend(name).await["state"] == state).await;
    }

    pub(super) async fn until_logged(&self, part: &str) -> String {
        logged(&self.log, part).await
    }

    /// `kill -9`.
    pub(super) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    Answer { status, body: response.json().await.unwrap_or(Value::Null) }
}

/// Runs curl, or sends what it would where there is none.
pub(super) async fn curl(words: &[&str], url: &str) -> Answer {
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "-w", "\n%{http_code}"]).args(words).arg(url);
    let Ok(ended) = timeout(PATIENCE, command.output()).await.expect("curl ends") else {
        return as_curl(words, url).await;
    };
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let text = String::from_utf8(ended.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    Answer { status: status.parse().unwrap(), body }
}

async fn as_curl(words: &[&str], url: &str) -> Answer {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let value = |flag: &str| {
        let at = words.iter().position(|word| *word == flag);
        at.map(|at| words[at + 1])
    };
    let method = value("-X").unwrap_or("GET").parse().unwrap();
    let mut request = client.request(method, url);
    if let Some(body) = value("-d") {
        let form = "Content-Type: application/x-www-form-urlencoded";
        let (name, content) = value("-H").unwrap_or(form).split_once(": ").unwrap();
        request = request.header(name, content).body(body.to_owned());
    }
    answer(request).await
}
