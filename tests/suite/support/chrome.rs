//! Chromium without a window, driven through chromedriver. A [`Chrome`] owns both processes: its
//! port is chosen by chromedriver, its profile is its own, and dropping it ends everything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use fantoccini::wd::{WebDriverCompatibleCommand, WindowHandle};
use fantoccini::{Client, ClientBuilder, Locator};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use url::{ParseError, Url};

use super::PATIENCE;

/// No name but the loopback's is looked up, so that nothing depends on the network.
const FLAGS: [&str; 12] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1280,900",
    "--host-resolver-rules=MAP gate.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE localhost, \
     EXCLUDE 127.0.0.1",
];

/// The two programs that it takes.
pub(crate) struct Programs {
    chromium: PathBuf,
    chromedriver: PathBuf,
}

impl Programs {
    /// Both; `None`, said aloud, when one is missing and may be.
    pub(crate) fn find() -> Option<Self> {
        found(Self::look())
    }

    pub(crate) fn look() -> Result<Self, &'static str> {
        let chromium = in_path("chromium").ok_or("chromium is missing (apt: chromium)")?;
        let chromedriver =
            in_path("chromedriver").ok_or("chromedriver is missing (apt: chromium-driver)")?;
        Ok(Self { chromium, chromedriver })
    }
}

/// What a browser test needs; `None`, said aloud, when something is missing and may be.
pub(crate) fn found<T>(needed: Result<T, &'static str>) -> Option<T> {
    if let Err(missing) = &needed {
        assert!(
            std::env::var_os("COMFYGATE_REQUIRE_BROWSER").is_none_or(|value| value != "1"),
            "COMFYGATE_REQUIRE_BROWSER=1, but {missing}"
        );
        // Not by the macro: that one is swallowed unless the test fails.
        let _ = writeln!(std::io::stderr(), "browser test skipped: {missing}");
    }
    needed.ok()
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A browser with one tab.
pub(crate) struct Chrome {
    pub(crate) client: Client,
    _driver: Child,
    profile: TempDir,
}

impl Chrome {
    pub(crate) async fn start(programs: &Programs) -> Self {
        Self::believing(programs, None).await
    }

    /// One that takes the certificate of a key for good, given as the base64 of its SHA-256.
    pub(crate) async fn believing(programs: &Programs, key: Option<&str>) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new(&programs.chromedriver)
            .arg("--port=0")
            // Killed, they leave their temporary files behind.
            .env("TMPDIR", profile.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts");
        let port = port_of(&mut driver).await;
        let mut flags = FLAGS.map(str::to_owned).to_vec();
        flags.extend(key.map(|key| format!("--ignore-certificate-errors-spki-list={key}")));
        flags.push(format!("--user-data-dir={}/profile", profile.path().display()));
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": programs.chromium, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "timeouts": {"script": PATIENCE.as_millis(), "pageLoad": PATIENCE.as_millis()},
        });
        let Value::Object(wanted) = wanted else { unreachable!() };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(wanted)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("chromium starts");
        Self { client, _driver: driver, profile }
    }

    /// Opens one more tab, which is then the one that is driven and seen.
    pub(crate) async fn new_tab(&self) -> WindowHandle {
        let tab = self.client.new_window(true).await.unwrap().handle;
        self.show(&tab).await;
        tab
    }

    /// Drives and shows a tab: a hidden page draws nothing.
    pub(crate) async fn show(&self, tab: &WindowHandle) {
        self.client.switch_to_window(tab.clone()).await.unwrap();
        let to_front = json!({"cmd": "Page.bringToFront", "params": {}});
        self.client.issue_cmd(Vendor("goog/cdp/execute", to_front)).await.unwrap();
    }

    /// Runs the body of an async function in the page and gives what it returns.
    pub(crate) async fn run(&self, body: &str) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             (async () => {{ {body} }})().then(value => done({{value}}),
                 error => done({{error: String(error) + error.stack}}));"
        );
        let mut reply = self.client.execute_async(&script, Vec::new()).await.unwrap();
        assert!(reply["error"].is_null(), "{body}: {}", reply["error"]);
        reply["value"].take()
    }

    /// Lays the page out at a width, whatever the window's least width is.
    pub(crate) async fn be_wide(&self, width: u32) {
        let screen =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": screen});
        self.client.issue_cmd(Vendor("goog/cdp/execute", command)).await.unwrap();
    }

    pub(crate) async fn click(&self, selector: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().click().await.unwrap();
    }

    pub(crate) async fn fill(&self, selector: &str, text: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().send_keys(text).await.unwrap();
    }

    /// The value of an expression in the page.
    pub(crate) async fn value(&self, expression: &str) -> Value {
        self.client.execute(&format!("return {expression}"), Vec::new()).await.unwrap()
    }

    /// Waits until an expression is neither null nor false, and gives it.
    pub(crate) async fn until(&self, expression: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.value(&format!("({expression}) || null")).await;
            if !value.is_null() {
                return value;
            }
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {expression}");
            // Each look disturbs the page.
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let log = self.client.issue_cmd(Vendor("se/log", json!({"type": kind}))).await.unwrap();
        log.as_array().cloned().unwrap_or_default()
    }

    /// What the console warned or complained of since the last call of this or of
    /// [`complaints`](Self::complaints); violations of a page's policy stand there.
    pub(crate) async fn warnings(&self) -> Vec<String> {
        let lines = self.log("browser").await;
        let bad =
            lines.iter().filter(|line| line["level"] == "SEVERE" || line["level"] == "WARNING");
        bad.map(|line| line["message"].to_string()).collect()
    }

    /// What went wrong on loopback since the last call, as the browser saw it.
    pub(crate) async fn complaints(&self) -> Complaints {
        let mut found = Complaints::default();
        for line in self.log("browser").await {
            // A request that failed is in the other log, with its status.
            if line["level"] == "SEVERE" && line["source"] != "network" {
                found.console.push(line["message"].to_string());
            }
        }
        let mut urls = BTreeMap::new();
        for line in self.log("performance").await {
            let event: Value = serde_json::from_str(line["message"].as_str().unwrap()).unwrap();
            found.take(&event["message"], &mut urls);
        }
        found
    }
}

impl Drop for Chrome {
    /// Chromium outlives a killed chromedriver, so it is looked up by its profile.
    fn drop(&mut self) {
        let profile = self.profile.path().to_string_lossy().into_owned();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&profile) {
                let id = entry.file_name();
                let _ = std::process::Command::new("kill").arg("-KILL").arg(id).status();
            }
        }
    }
}

/// The port that chromedriver prints; the rest of what it says is read and dropped.
async fn port_of(driver: &mut Child) -> u16 {
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let port = line.rsplit_once("on port ").and_then(|(_, rest)| rest.strip_suffix('.'));
        if let Some(port) = port {
            let port = port.parse().unwrap();
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return port;
        }
    }
    panic!("chromedriver told no port");
}

/// What went wrong: console errors, and requests to loopback as `STATUS METHOD PATH`, tabs'
/// prefixes and queries taken off.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    pub(crate) console: Vec<String>,
    pub(crate) requests: BTreeSet<String>,
    /// Requests of a page under a tab's prefix that lack it.
    pub(crate) unprefixed: BTreeSet<String>,
}

impl Complaints {
    /// Takes one event of the `DevTools` protocol.
    fn take(&mut self, event: &Value, seen: &mut BTreeMap<String, (String, String)>) {
        let told = &event["params"];
        let id = told["requestId"].as_str().unwrap_or_default().to_owned();
        match event["method"].as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => {
                let Some((path, prefixed)) = loopback_path(&told["request"]["url"]) else { return };
                let method = told["request"]["method"].as_str().unwrap_or_default();
                let page = loopback_path(&told["documentURL"]);
                if page.is_some_and(|(_, page_prefixed)| page_prefixed) && !prefixed {
                    self.unprefixed.insert(path.clone());
                }
                seen.insert(id, (method.to_owned(), path));
            }
            "Network.webSocketCreated" => {
                if let Some((path, _)) = loopback_path(&told["url"]) {
                    seen.insert(id, ("WS".to_owned(), path));
                }
            }
            "Network.webSocketFrameError" => {
                // "Error during WebSocket handshake: Unexpected response code: 403"
                let message = told["errorMessage"].as_str().unwrap_or_default();
                let why = message.rsplit(": ").next().unwrap_or_default();
                if let Some((method, path)) = seen.get(&id) {
                    self.requests.insert(format!("{why} {method} {path}"));
                }
            }
            "Network.responseReceived" => {
                let status = told["response"]["status"].as_u64().unwrap_or_default();
                if let Some((method, path)) = seen.get(&id).filter(|_| status >= 400) {
                    self.requests.insert(format!("{status} {method} {path}"));
                }
            }
            "Network.loadingFailed" if told["canceled"] != true => {
                if let Some((method, path)) = seen.get(&id) {
                    self.requests.insert(format!("{} {method} {path}", told["errorText"]));
                }
            }
            _ => {}
        }
    }
}

/// The path of an address on loopback without a tab's prefix, and whether it had one.
fn loopback_path(url: &Value) -> Option<(String, bool)> {
    let url = Url::parse(url.as_str()?).ok()?;
    matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "gate.example")).then_some(())?;
    let path = url.path();
    let rest = path.strip_prefix("/@").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    Some((rest.unwrap_or(path).to_owned(), rest.is_some()))
}

/// A command of chromedriver's own.
#[derive(Debug)]
struct Vendor(&'static str, Value);

impl WebDriverCompatibleCommand for Vendor {
    fn endpoint(&self, base_url: &Url, session_id: Option<&str>) -> Result<Url, ParseError> {
        base_url.join(&format!("session/{}/{}", session_id.unwrap_or_default(), self.0))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.1.to_string()))
    }
}
