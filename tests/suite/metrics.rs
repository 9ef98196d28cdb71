//! Metrics of a real gateway: they agree with the load that was put on it, and with the tools and
//! files of Prometheus.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![allow(clippy::float_cmp, reason = "what is compared are whole numbers")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use comfygate::sim::Sim;
use futures_util::StreamExt;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Gateway, PATIENCE, Setup, client, eventually, farm, is_full};

/// Everything that spec.md promises, after `comfygate_`.
const PROMISED: [&str; 22] = [
    "requests_total",
    "request_duration_seconds",
    "backend_up",
    "backend_queue",
    "backend_state",
    "backend_sessions",
    "backend_connections",
    "backend_ejections_total",
    "backend_success_ratio",
    "queue_age_seconds",
    "sessions",
    "websockets",
    "tasks_total",
    "tasks_queued",
    "task_wait_seconds",
    "eta_error_seconds",
    "task_run_seconds",
    "failovers_total",
    "retries_total",
    "rejections_total",
    "cache_requests_total",
    "config_last_reload_success",
];

/// A gateway process whose metrics are looked at.
struct Running {
    setup: Setup,
    gateway: Gateway,
}

impl Running {
    async fn start(keys: Value) -> Self {
        let setup =
            Setup::plain(json!({"server": {"threads": 2}, "limits": {"body_size": "100KB"}}));
        let gateway = setup.clone().with(keys).start().await;
        Self { setup, gateway }
    }

    /// Writes another configuration and has it read.
    async fn reload(&self, keys: Value) {
        self.setup.clone().with(keys).write();
        self.gateway.signal("HUP").await;
    }

    async fn page(&self) -> Page {
        let response =
            reqwest::get(format!("http://{}/metrics", self.gateway.admin)).await.unwrap();
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        Page(response.text().await.unwrap())
    }

    /// The page once it is as wanted: counts follow the last byte of an answer by a moment.
    async fn page_when(&self, wanted: impl Fn(&Page) -> bool) -> Page {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.page().await;
            if wanted(&page) || Instant::now() > deadline {
                return page;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What `/metrics` shows.
struct Page(String);

impl Page {
    /// Series with their values.
    fn series(&self) -> BTreeMap<&str, f64> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(name, value)| (name, value.parse().unwrap()))
            .collect()
    }

    fn value(&self, series: &str) -> f64 {
        let found = self.series().get(series).copied();
        found.unwrap_or_else(|| panic!("no {series} in\n{}", self.0))
    }

    fn sum(&self, start: &str) -> f64 {
        self.series().iter().filter(|(name, _)| name.starts_with(start)).map(|(_, v)| v).sum()
    }

    /// `requests_total` by backend, method and code.
    fn requests(&self) -> Tally {
        let start = "comfygate_requests_total{";
        let series = self.series();
        let counts = series.iter().filter_map(|(name, count)| {
            let labels = name.strip_prefix(start)?.strip_suffix('}')?;
            let mut values = labels
                .split(',')
                .map(|label| label.split_once('=').unwrap().1.trim_matches('"').to_owned());
            let mut next = || values.next().unwrap();
            Some(((next(), next(), next()), *count as u64))
        });
        counts.collect()
    }

    /// Names of families, without the prefix.
    fn families(&self) -> BTreeSet<&str> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE comfygate_"));
        types.map(|rest| rest.split(' ').next().unwrap()).collect()
    }
}

/// Answers by backend, method and code.
type Tally = BTreeMap<(String, String, String), u64>;

fn note(tally: &mut Tally, backend: &str, method: &str, code: u16) {
    *tally.entry((backend.into(), method.into(), code.to_string())).or_default() += 1;
}

/// What the load generator asks for; the last one is refused at the front door.
const ASKED: [(&str, &str, &str); 7] = [
    ("GET", "/", ""),
    ("GET", "/prompt", ""),
    ("GET", "/no/such/thing", ""),
    ("HEAD", "/", ""),
    ("POST", "/prompt", "no json"),
    ("BREW", "/prompt", ""),
    ("GET", "/queue", "foreign"),
];

fn backends(sims: &[Sim]) -> Value {
    let named = ["a", "b", "c", "d"].iter().zip(sims);
    named.map(|(name, sim)| json!({"name": name, "url": sim.url()})).collect()
}

fn config(sims: &[Sim]) -> Value {
    let check = json!({"interval": "200ms", "timeout": "10s"});
    json!({"backends": backends(sims), "health_check": check})
}

/// One request of one client; what it was answered is noted.
async fn ask(
    http: &Client,
    to: SocketAddr,
    asked: (&str, &str, &str),
    from: usize,
    tally: &mut Tally,
) {
    let (method, path, body) = asked;
    let mut request = http
        .request(Method::from_bytes(method.as_bytes()).unwrap(), format!("http://{to}{path}"))
        .header("x-forwarded-for", client(from));
    if body == "foreign" {
        request = request.header("origin", "http://evil.example");
    } else if !body.is_empty() {
        request = request.body(body.to_owned());
    }
    let response = request.send().await.unwrap();
    let code = response.status().as_u16();
    let backend = response.headers().get("x-comfygate-backend").cloned();
    response.bytes().await.unwrap();
    let method = if method == "BREW" { "OTHER" } else { method };
    note(tally, backend.as_ref().map_or("", |name| name.to_str().unwrap()), method, code);
}

/// Clients of these numbers ask for everything, or for one thing, four at a time.
async fn load(
    to: SocketAddr,
    clients: std::ops::Range<usize>,
    asked: &'static [(&str, &str, &str)],
) -> Tally {
    let http = Client::builder().no_proxy().build().unwrap();
    let workers = (0..4).map(|worker| {
        let http = http.clone();
        let mine: Vec<usize> = clients.clone().filter(|number| number % 4 == worker).collect();
        tokio::spawn(async move {
            let mut tally = Tally::new();
            for from in mine {
                for &request in asked {
                    ask(&http, to, request, from, &mut tally).await;
                }
            }
            tally
        })
    });
    let mut all = Tally::new();
    for worker in workers.collect::<Vec<_>>() {
        add(&mut all, worker.await.unwrap());
    }
    all
}

fn add(all: &mut Tally, more: Tally) {
    for (key, count) in more {
        *all.entry(key).or_default() += count;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_agree_with_the_load_to_the_request() {
    let mut sims = farm(3).await;
    let running = Running::start(config(&sims)).await;
    let mut tally = load(running.gateway.data, 0..60, &ASKED).await;
    for (bytes, method) in [
        ("nonsense\r\n\r\n", "OTHER"),
        ("GET / HTTP/1.1\r\n\r\n", "GET"),
        ("POST /prompt HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n", "POST"),
        ("GET /lb/stats HTTP/1.1\r\nhost: x\r\n\r\n", "GET"),
        ("GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", "GET"),
    ] {
        note(&mut tally, "", method, running.gateway.raw(bytes.as_bytes()).await.status);
    }
    let mut sockets = Vec::new();
    for number in 0..20 {
        let url = format!("ws://{}/ws?clientId=c{number}", running.gateway.data);
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("x-forwarded-for", client(number).parse().unwrap());
        let (mut socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
        let backend = response.headers()["x-comfygate-backend"].to_str().unwrap();
        note(&mut tally, backend, "GET", 101);
        socket.next().await.unwrap().unwrap();
        sockets.push(socket);
    }
    let page = running.page_when(|page| page.requests() == tally).await;
    assert_eq!(page.requests(), tally);
    let all = tally.values().sum::<u64>() as f64;
    assert!((all - 445.0).abs() < 0.5, "{all} requests");
    assert!(tally.keys().filter(|key| key.2 == "101").count() > 1, "more than one backend");
    assert_eq!(page.sum("comfygate_request_duration_seconds_count"), all);
    assert_eq!(page.sum("comfygate_websockets{"), 20.0);
    assert_eq!(page.value("comfygate_sessions"), 60.0);
    assert_eq!(page.sum("comfygate_backend_sessions"), 60.0);
    assert_eq!(page.value("comfygate_rejections_total{reason=\"forbidden\"}"), 60.0);
    assert_eq!(page.value("comfygate_rejections_total{reason=\"not_found\"}"), 1.0);
    assert_eq!(page.value("comfygate_rejections_total{reason=\"body_too_large\"}"), 1.0);
    assert_eq!(page.sum("comfygate_backend_up"), 3.0);
    drop(sockets);
    let page = running.page_when(|page| page.sum("comfygate_websockets{") == 0.0).await;
    assert_eq!(page.sum("comfygate_websockets{"), 0.0);

    // A backend dies: its clients go elsewhere, and every request still counts once.
    sims.remove(0).kill().await;
    add(&mut tally, load(running.gateway.data, 0..60, &ASKED[1..2]).await);
    let page = running.page_when(|page| page.requests() == tally).await;
    assert_eq!(page.requests(), tally);
    assert!(page.value("comfygate_failovers_total") > 0.0);
    let down = "comfygate_backend_state{backend=\"a\",state=\"down\"}";
    let page = running.page_when(|page| page.value(down) == 1.0).await;
    assert_eq!(page.value(down), 1.0);
    assert_eq!(page.sum("comfygate_backend_state{backend=\"a\""), 1.0);
    assert_eq!(page.sum("comfygate_backend_up"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_make_no_series_of_their_own() {
    let sims = farm(3).await;
    let running = Running::start(config(&sims)).await;
    let few = load(running.gateway.data, 0..100, &ASKED[..2]).await;
    let before = running.page_when(|page| page.requests() == few).await.0;
    let mut tally = few;
    let clients = if is_full() { 10_000 } else { 1100 };
    add(&mut tally, load(running.gateway.data, 100..clients, &ASKED[1..2]).await);
    let after = running.page_when(|page| page.requests() == tally).await;
    assert_eq!(after.value("comfygate_sessions"), clients as f64);
    let names = |page: &Page| page.series().keys().map(|&name| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(&Page(before)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_backend_takes_its_series_along() {
    let sims = farm(3).await;
    let running = Running::start(config(&sims)).await;
    load(running.gateway.data, 0..30, &ASKED[..1]).await;
    let of_c = |page: &Page| page.0.matches("backend=\"c\"").count();
    assert!(of_c(&running.page().await) > 10);
    running.reload(config(&sims[..2])).await;
    let page = running.page_when(|page| of_c(page) == 0).await;
    assert_eq!(of_c(&page), 0, "{}", page.0);

    let reloaded = "comfygate_config_last_reload_success";
    assert_eq!(page.value(reloaded), 1.0);
    running.reload(json!({"backends": "nonsense"})).await;
    let page = running.page_when(|page| page.value(reloaded) == 0.0).await;
    assert_eq!(page.value(reloaded), 0.0);
    running.reload(config(&sims)).await;
    let page = running.page_when(|page| page.value(reloaded) == 1.0).await;
    assert_eq!((page.value(reloaded), of_c(&page) > 0), (1.0, true));

    // The token guards this page as it does the others.
    let token = json!({"token": "s3cret"});
    running.reload(json!({"backends": backends(&sims), "admin": token})).await;
    let url = format!("http://{}/metrics", running.gateway.admin);
    eventually("the token is asked for", PATIENCE, async || {
        reqwest::get(&url).await.unwrap().status() == 401
    })
    .await;
    let shown = Client::new().get(&url).bearer_auth("s3cret").send().await.unwrap();
    assert_eq!(shown.status(), 200);
}

fn in_repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs promtool; without one on this machine there is nothing to run, unless tools are required.
fn promtool(arguments: &[&str], input: &str) {
    let directory = in_repo("docker/prometheus");
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(directory).stdin(Stdio::piped());
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        let required = std::env::var_os("COMFYGATE_REQUIRE_TOOLS").is_some_and(|v| v == "1");
        assert!(!required, "promtool is missing: apt-get install prometheus");
        return eprintln!("skipped: promtool is missing (apt-get install prometheus)");
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    // `check metrics` tells its advice with a status of its own; an empty page would be silent too.
    assert!(!input.is_empty() || said.contains("SUCCESS"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_has_what_is_promised_and_promtool_is_content() {
    let sims = farm(2).await;
    let running = Running::start(config(&sims)).await;
    load(running.gateway.data, 0..10, &ASKED).await;
    let page = running.page().await;
    let promised: BTreeSet<&str> = PROMISED.into_iter().collect();
    assert_eq!(page.families(), promised);
    promtool(&["check", "metrics"], &page.0);
}

#[test]
fn promtool_is_content_with_rules_and_configuration() {
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["check", "config", "prometheus.yml"], "");
    promtool(&["test", "rules", "alerts.test.yml"], "");
}

/// Names of our metrics in a text, as families: without the suffixes of histograms.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter_map(|word| word.strip_prefix("comfygate_"));
    ours.map(|name| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        base.filter(|base| base.ends_with("_seconds")).unwrap_or(name).to_owned()
    })
    .collect()
}

#[test]
fn dashboard_and_rules_name_only_metrics_that_exist() {
    let promised: BTreeSet<String> = PROMISED.into_iter().map(str::to_owned).collect();
    let read = |path: &str| std::fs::read_to_string(in_repo(path)).unwrap();
    let rules: serde_yaml::Value =
        serde_yaml::from_str(&read("docker/prometheus/alerts.yml")).unwrap();
    let rules = rules["groups"][0]["rules"].as_sequence().unwrap();
    let in_rules: BTreeSet<String> =
        rules.iter().flat_map(|rule| named(rule["expr"].as_str().unwrap())).collect();
    let board: Value = serde_json::from_str(&read("docker/grafana/comfygate.json")).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let in_board: BTreeSet<String> =
        targets.flat_map(|target| named(target["expr"].as_str().unwrap())).collect();
    assert!(in_rules.len() >= 5 && in_rules.is_subset(&promised), "{in_rules:?}");
    assert_eq!(in_board, promised, "the dashboard shows each of them");
}
