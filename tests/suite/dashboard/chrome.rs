//! Chromium without a window, driven through chromedriver. A [`Chrome`] owns both processes: its
//! port is chosen by chromedriver, its profile is its own, and dropping it ends everything.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use url::{ParseError, Url};

use super::{PATIENCE, until};

/// No name but the loopback's is looked up, so that nothing depends on the network.
const FLAGS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
];

/// The two programs; `None`, said aloud, when one is missing and may be.
pub(super) fn programs() -> Option<(PathBuf, PathBuf)> {
    let found = in_path("chromium").zip(in_path("chromedriver"));
    if found.is_none() {
        let missing = "chromium or chromedriver is missing (apt: chromium chromium-driver)";
        let required = std::env::var_os("COMFYGATE_REQUIRE_BROWSER");
        assert!(required.is_none_or(|value| value != "1"), "{missing}");
        // Not by the macro: that one is swallowed unless the test fails.
        let _ = writeln!(std::io::stderr(), "browser test skipped: {missing}");
    }
    found
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A browser with one tab.
pub(super) struct Chrome {
    pub(super) client: Client,
    _driver: Child,
    profile: TempDir,
}

impl Chrome {
    pub(super) async fn start((chromium, chromedriver): &(PathBuf, PathBuf)) -> Self {
        let mut driver = Command::new(chromedriver)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts");
        let port = port_of(&mut driver).await;
        let profile = tempfile::tempdir().unwrap();
        let mut flags = FLAGS.map(str::to_owned).to_vec();
        flags.push(format!("--user-data-dir={}", profile.path().display()));
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
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

    /// Lays the page out at a width, whatever the window's least width is.
    pub(super) async fn be_wide(&self, width: u32) {
        let screen =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": screen});
        self.client.issue_cmd(Vendor("goog/cdp/execute", command)).await.unwrap();
    }

    /// The value of an expression in the page.
    pub(super) async fn value(&self, expression: &str) -> Value {
        self.client.execute(&format!("return {expression}"), Vec::new()).await.unwrap()
    }

    /// Waits until an expression is neither null nor false, and gives it.
    pub(super) async fn until(&self, expression: &str) -> Value {
        until(expression, || async {
            let value = self.value(&format!("({expression}) || null")).await;
            (!value.is_null()).then_some(value)
        })
        .await
    }

    pub(super) async fn click(&self, selector: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().click().await.unwrap();
    }

    pub(super) async fn fill(&self, selector: &str, text: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().send_keys(text).await.unwrap();
    }

    /// What the console complained of since the last call; violations of the policy stand there.
    pub(super) async fn complaints(&self) -> Vec<String> {
        let log = json!({"type": "browser"});
        let log = self.client.issue_cmd(Vendor("se/log", log)).await.unwrap();
        let lines = log.as_array().cloned().unwrap_or_default();
        lines
            .iter()
            .filter(|line| line["level"] == "SEVERE" || line["level"] == "WARNING")
            .map(|line| line["message"].to_string())
            .collect()
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
