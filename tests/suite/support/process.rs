//! The real binary as a child process: gateways and simulators that can be killed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use comfygate::state::State;
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::http::{self, Reply};
use super::{PATIENCE, Setup, eventually, exchange};

/// What is tested: as built beside the tests, or another build of it for long runs.
fn binary() -> std::ffi::OsString {
    std::env::var_os("COMFYGATE_TEST_BINARY")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_comfygate").into())
}

impl Setup {
    /// Starts a gateway and waits until it listens.
    pub(crate) async fn start(&self) -> Gateway {
        self.start_by(&[]).await
    }

    /// Starts one that takes over from the one that runs.
    pub(crate) async fn upgrade(&self) -> Gateway {
        self.start_by(&["run", "--upgrade"]).await
    }

    async fn start_by(&self, arguments: &[&str]) -> Gateway {
        let mut child = self.spawn(arguments);
        let log = Log::of(child.stderr.take().unwrap());
        let line = log.line_with("listening on ").await;
        let addresses = line.split("listening on ").nth(1).unwrap();
        let (data, admin) = addresses.split_once(", admin on ").unwrap();
        Gateway {
            pid: child.id().unwrap(),
            child,
            data: data.trim().parse().unwrap(),
            admin: admin.trim().parse().unwrap(),
            log,
            setup: self.clone(),
            http: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap(),
        }
    }

    /// Runs a gateway that is expected to end by itself.
    pub(crate) async fn run(&self) -> Ended {
        self.run_by(&[]).await
    }

    /// Runs one that is expected not to be able to take over.
    pub(crate) async fn run_upgrade(&self) -> Ended {
        self.run_by(&["run", "--upgrade"]).await
    }

    async fn run_by(&self, arguments: &[&str]) -> Ended {
        let child = self.spawn(arguments);
        let ended = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
        Ended::new(&ended)
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        self.write();
        command().args(arguments).arg("-c").arg(self.file()).spawn().unwrap()
    }
}

/// The binary without the environment of whoever runs the tests.
fn command() -> Command {
    let mut command = Command::new(binary());
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().contains("COMFYGATE"));
    for (name, _) in ours {
        command.env_remove(name);
    }
    command
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs the binary to its end with other arguments.
pub(crate) async fn run(arguments: &[&str], directory: &Path) -> Ended {
    let output = command().args(arguments).current_dir(directory).output();
    let ended = timeout(PATIENCE, output).await.expect("it ends").unwrap();
    Ended::new(&ended)
}

/// How a process ended, and what it printed.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    fn new(output: &Output) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Self { code: output.status.code(), stdout, stderr }
    }

    /// Whether it printed this, on either stream.
    pub(crate) fn told(&self, part: &str) -> bool {
        self.stdout.contains(part) || self.stderr.contains(part)
    }
}

/// What a child has written, line by line.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn of(stream: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let log = Self(Arc::default());
        let lines = Arc::clone(&log.0);
        tokio::spawn(async move {
            let mut reader = BufReader::new(stream).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                lines.lock().push(line);
            }
        });
        log
    }

    fn find(&self, part: &str) -> Option<String> {
        self.0.lock().iter().find(|line| line.contains(part)).cloned()
    }

    async fn line_with(&self, part: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(line) = self.find(part) {
                return line;
            }
            assert!(start.elapsed() < PATIENCE, "no {part:?} in {:#?}", self.0.lock());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A running gateway.
pub(crate) struct Gateway {
    child: Child,
    pid: u32,
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: Log,
    setup: Setup,
    /// Talks to it.
    pub(crate) http: reqwest::Client,
}

impl Gateway {
    /// A GET by the client of an address; panics when no response comes.
    pub(crate) async fn get(&self, client: impl AsRef<str>, path: &str) -> Reply {
        self.try_get(client, path).await.expect("a response")
    }

    /// The same where it may fail.
    pub(crate) async fn try_get(
        &self,
        client: impl AsRef<str>,
        path: &str,
    ) -> reqwest::Result<Reply> {
        let request = self.http.get(format!("http://{}{path}", self.data));
        taken(request.header("x-forwarded-for", client.as_ref())).await
    }

    /// A POST of JSON by the client of an address.
    pub(crate) async fn post(&self, client: impl AsRef<str>, path: &str, body: &Value) -> Reply {
        let request = self.http.post(format!("http://{}{path}", self.data)).json(body);
        taken(request.header("x-forwarded-for", client.as_ref())).await.expect("a response")
    }

    /// Sends bytes to the data plane.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Reply {
        exchange(self.data, bytes).await
    }

    /// A GET of the admin plane, with the token if there is one.
    pub(crate) async fn admin(&self, path: &str) -> Reply {
        let bearer = self.setup.token().map(|token| format!("Bearer {token}"));
        let mut headers = vec![("Host", "localhost")];
        headers.extend(bearer.as_deref().map(|bearer| ("Authorization", bearer)));
        exchange(self.admin, &http::get(path, &headers)).await
    }

    /// Any call of the admin plane, with the token if there is one; null is no body.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &Value) -> Reply {
        let mut request = self.http.request(method, format!("http://{}{path}", self.admin));
        if let Some(token) = self.setup.token() {
            request = request.bearer_auth(token);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        taken(request).await.expect("a response")
    }

    /// The admin plane's answer to a GET, once it is right.
    pub(crate) async fn until(&self, path: &str, right: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let answer = self.admin(path).await.json();
            if right(&answer) {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "{path} stays {answer:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `GET /lb/backends/{name}`.
    pub(crate) async fn backend(&self, name: &str) -> Value {
        self.admin(&format!("/lb/backends/{name}")).await.json()
    }

    /// Waits until a backend is in a state, and says how long that took.
    pub(crate) async fn until_state(&self, name: &str, state: &str) -> Duration {
        eventually(&format!("{name} is {state}"), PATIENCE, async || {
            self.backend(name).await["state"] == state
        })
        .await
    }

    /// Waits until each backend shows a depth.
    pub(crate) async fn until_depths(&self, depths: &[usize]) {
        eventually(&format!("depths {depths:?}"), PATIENCE, async || {
            let all = self.admin("/lb/backends").await.json();
            let all = all["backends"].as_array().unwrap().iter();
            all.map(|b| b["queue"]["total"].as_u64().unwrap() as usize).eq(depths.iter().copied())
        })
        .await;
    }

    /// Waits for a line of the log.
    pub(crate) async fn until_logged(&self, part: &str) -> String {
        self.log.line_with(part).await
    }

    /// Whether a line has been logged so far.
    pub(crate) fn has_logged(&self, part: &str) -> bool {
        self.log.find(part).is_some()
    }

    /// Sends a signal, as `kill -NAME` does.
    pub(crate) async fn signal(&self, name: &str) {
        let script = format!("kill -{name} {}", self.pid);
        assert!(Command::new("sh").args(["-c", &script]).status().await.unwrap().success());
    }

    /// Waits for the end; the exit code and how long it took.
    pub(crate) async fn ended(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        (status.code(), start.elapsed())
    }

    /// Ends it by SIGTERM; the exit code and how long it took.
    pub(crate) async fn terminate(mut self) -> (Option<i32>, Duration) {
        self.signal("TERM").await;
        self.ended().await
    }

    /// Ends it by SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Ends it by SIGKILL and starts it again on the same state.
    pub(crate) async fn kill_and_restart(self) -> Self {
        let setup = self.setup.clone();
        self.kill().await;
        setup.start().await
    }

    /// Waits until a setting of the state is on the disk as it should be, where `kill -9` cannot
    /// take it back. The file is locked while the gateway runs, so a copy is looked at; one made
    /// in the middle of a write is damaged or old, and the next is made.
    pub(crate) async fn until_stored(&self, setting: &str, right: impl Fn(&Value) -> bool) {
        let file = self.setup.state_dir().join("state.redb");
        let start = Instant::now();
        loop {
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(&file, copy.path().join("state.redb")).unwrap();
            let state = State::open(copy.path()).ok();
            let found = state.and_then(|state| state.setting(setting).ok().flatten());
            if found.as_ref().is_some_and(&right) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{setting} stays {found:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// File descriptors that it holds.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count()
    }

    /// A number off the metrics page.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = self.admin("/metrics").await.text();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    /// A count off the metrics page.
    pub(crate) async fn count(&self, name: &str) -> u64 {
        self.metric(name).await as u64
    }

    /// A number of kilobytes out of `/proc/PID/status`.
    pub(crate) fn memory_kib(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// Sends a request and takes its response apart.
pub(crate) async fn taken(request: reqwest::RequestBuilder) -> reqwest::Result<Reply> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let text = |value: &reqwest::header::HeaderValue| {
        String::from_utf8_lossy(value.as_bytes()).into_owned()
    };
    let headers = response.headers().iter().map(|(n, v)| (n.to_string(), text(v))).collect();
    Ok(Reply::new(status, headers, response.bytes().await?.to_vec()))
}

/// A simulator in a process of its own, for real kills.
pub(crate) struct SimProcess {
    child: Child,
    arguments: Vec<String>,
    pub(crate) address: SocketAddr,
}

impl SimProcess {
    pub(crate) async fn start() -> Self {
        Self::with(&["--speed", "100"]).await
    }

    /// One that was started with these arguments besides its port.
    pub(crate) async fn with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        Self::on(0, arguments).await.expect("a simulator")
    }

    async fn on(port: u16, arguments: Vec<String>) -> Option<Self> {
        let port = port.to_string();
        let mut child = command().args(["sim", "-p", &port]).args(&arguments).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.expect("its address").unwrap()?;
        let address = line.split("http://").nth(1)?.trim().parse().ok()?;
        Some(Self { child, arguments, address })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets faults through its control endpoint.
    pub(crate) async fn faults(&self, faults: &Value) {
        let reply = exchange(self.address, &http::post("/sim/faults", faults)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// How many WebSockets it serves.
    pub(crate) async fn sockets(&self) -> u64 {
        let state = exchange(self.address, &http::get("/sim", &[])).await.json();
        state["sockets"].as_u64().unwrap()
    }

    /// What `GET /sim` says, or nothing when it is dead.
    pub(crate) async fn state(&self) -> Option<Value> {
        http::try_exchange(self.address, &http::get("/sim", &[])).await.ok().map(|r| r.json())
    }

    /// Sends a signal, as `kill -NAME` does.
    pub(crate) async fn signal(&self, name: &str) {
        let script = format!("kill -{name} {}", self.child.id().unwrap());
        assert!(Command::new("sh").args(["-c", &script]).status().await.unwrap().success());
    }

    /// `kill -9`, and a new process at once.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.revive().await;
    }

    /// `kill -9`; returns at once.
    pub(crate) fn kill(&mut self) {
        self.child.start_kill().unwrap();
    }

    /// A new process at the old one's address.
    pub(crate) async fn revive(&mut self) {
        let _ = self.child.wait().await;
        let port = self.address.port();
        // Somebody else may hold the port for a moment.
        for _ in 0..100 {
            if let Some(new) = Self::on(port, self.arguments.clone()).await {
                *self = new;
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("port {port} stays taken");
    }
}
