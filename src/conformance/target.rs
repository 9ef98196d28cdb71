//! The server under test: its address, the names of this run, and plain requests to it.
//!
//! Ids and file names carry a token of the run, so that runs don't disturb each other; it is taken
//! out of every answer at once, so that everything later sees the recording's own names.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

/// A number below all but those of prompts posted with `front`: the recorded one is that only on
/// a server that has counted further than its size.
const LOW_NUMBER: f64 = -0.5;
/// Larger bodies than this are not read.
const MOST_BODY: usize = 64 * 1024 * 1024;
/// The header with which a gateway names the server whose answer it passes on.
const BACKEND: &str = "x-comfygate-backend";
/// What a gateway never answers itself.
const ONE_ANSWERS: &str = "/i18n";
/// How often a condition that no event tells is asked for.
const POLL: Duration = Duration::from_millis(20);

/// A server and the names of one run against it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    base: String,
    http: reqwest::Client,
    token: String,
    seed_base: u64,
    timeout: Duration,
    farm: usize,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: reqwest::header::HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Target {
    /// A target at an `http://` URL, which may have a path.
    pub(super) fn new(url: &str, timeout: Duration) -> anyhow::Result<Self> {
        let parsed = url::Url::parse(url).context("this is no URL; write http://HOST:PORT")?;
        if parsed.scheme() != "http" {
            bail!("only http:// is spoken here; address the server without TLS");
        }
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(timeout)
            .build()?;
        Ok(Self {
            base: url.trim_end_matches('/').to_owned(),
            http,
            token: format!("cg{:08x}-", rand::random::<u32>()),
            seed_base: u64::from(rand::random_range(1_000_000..2_000_000_000_u32)),
            timeout,
            farm: 0,
        })
    }

    /// How many servers stand behind it, if it is a gateway in pool mode; else 0.
    pub(super) fn farm(&self) -> usize {
        self.farm
    }

    /// Asks whether this is a gateway in pool mode: it names the server that answered where one
    /// did, and none where it speaks for all. Each server of its farm has a device at least.
    pub(super) async fn find_farm(&mut self) -> anyhow::Result<()> {
        let page = self.send(self.request(Method::GET, ONE_ANSWERS)).await?;
        let depth = self.send(self.request(Method::GET, "/prompt")).await?;
        if page.headers.contains_key(BACKEND) && !depth.headers.contains_key(BACKEND) {
            let stats = self.get_json("/system_stats").await?;
            let devices = stats.get("devices").and_then(Value::as_array).map_or(0, Vec::len);
            self.farm = devices.max(1);
        }
        Ok(())
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A name of the recording as this run's own.
    pub(super) fn own(&self, name: &str) -> String {
        format!("{}{name}", self.token)
    }

    /// A text of the server with the recording's names.
    pub(super) fn clean(&self, text: &str) -> String {
        text.replace(&self.token, "")
    }

    /// The WebSocket's URL for a client id of the recording.
    pub(super) fn ws_url(&self, client: Option<&str>) -> String {
        let base = self.base.replacen("http", "ws", 1);
        match client {
            Some(client) => format!("{base}/ws?clientId={}", self.own(client)),
            None => format!("{base}/ws"),
        }
    }

    /// A recorded `/prompt` body with this run's client id, its seeds, so that nothing is cached,
    /// and a queue number that gives the recorded order on a fresh server too.
    pub(super) fn own_prompt(&self, body: &Value, attempt: u64) -> Value {
        let mut body = body.clone();
        if let Some(client) = body.get_mut("client_id")
            && let Some(name) = client.as_str()
        {
            *client = self.own(name).into();
        }
        if let Some(number) = body.get_mut("number") {
            *number = LOW_NUMBER.into();
        }
        let nodes = body.get_mut("prompt").and_then(Value::as_object_mut);
        for node in nodes.into_iter().flat_map(|nodes| nodes.values_mut()) {
            if let Some(seed) = node.pointer_mut("/inputs/seed")
                && let Some(recorded) = seed.as_u64()
            {
                *seed = (self.seed_base + attempt * 1000 + recorded).into();
            }
        }
        body
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Answer> {
        let mut response = request.send().await.map_err(reqwest::Error::without_url)?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > MOST_BODY {
                bail!("the body is larger than {MOST_BODY} bytes");
            }
        }
        Ok(Answer { status, headers, body })
    }

    pub(super) async fn get_json(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.send(self.request(Method::GET, path)).await?;
        self.json(&answer).with_context(|| format!("GET {path}: status {}", answer.status))
    }

    /// An answer's JSON with the recording's names.
    pub(super) fn json(&self, answer: &Answer) -> anyhow::Result<Value> {
        let text = self.clean(&String::from_utf8_lossy(&answer.body));
        serde_json::from_str(&text).context("not JSON")
    }

    pub(super) async fn post_json(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Waits until the server has nothing to do: what others run there would show in ours.
    pub(super) async fn wait_idle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let reply = self.get_json("/prompt").await?;
            let remaining = reply.pointer("/exec_info/queue_remaining").and_then(Value::as_u64);
            if remaining == Some(0) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("an idle server is needed, but GET /prompt says {reply}");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
