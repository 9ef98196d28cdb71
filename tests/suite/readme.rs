//! The README and the handbook say what is there: every option, command, endpoint, target, metric
//! and alert, and none besides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use comfygate::config::known_keys;
use serde_json::json;
use serde_yaml::Value;

use crate::support::{Setup, farm};

const README: &str = include_str!("../../README.md");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// The text of a `##` section.
fn section(of: &'static str, title: &str) -> &'static str {
    let start = of.find(&format!("\n## {title}\n")).expect(title);
    let rest = &of[start + 4..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

/// The rows of a section's tables whose first cell is code: that code and the second cell.
fn rows_of(text: &'static str, title: &str) -> Vec<(&'static str, &'static str)> {
    let row = |line: &'static str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.strip_suffix('`')?, cells.next()?))
    };
    section(text, title).lines().filter_map(row).collect()
}

fn rows(title: &str) -> Vec<(&'static str, &'static str)> {
    rows_of(README, title)
}

#[test]
fn every_option_is_in_the_readme_and_none_besides() {
    let told: Vec<&str> = rows("Options").iter().map(|(key, _)| *key).collect();
    let known: BTreeSet<String> = known_keys().into_iter().collect();
    let set: BTreeSet<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), set.len(), "an option stands twice: {told:?}");
    let lacking: Vec<_> = known.difference(&set).collect();
    let invented: Vec<_> = set.difference(&known).collect();
    assert!(
        lacking.is_empty() && invented.is_empty(),
        "lacking {lacking:?}, not known {invented:?}"
    );
}

/// The values of `conf/comfygate.yaml` by key. Another test holds that they are the defaults; of
/// the backends, the ones after the endpoint are.
fn defaults() -> BTreeMap<String, Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/comfygate.yaml");
    let tree: Value = serde_yaml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut values = BTreeMap::new();
    let known: BTreeSet<String> = known_keys().into_iter().collect();
    collect(&tree, "", &known, &mut values);
    for sample in ["name", "host", "port", "url"] {
        values.remove(&format!("backends[].{sample}"));
    }
    values
}

fn collect(value: &Value, key: &str, known: &BTreeSet<String>, into: &mut BTreeMap<String, Value>) {
    match value {
        _ if known.contains(key) => {
            into.insert(key.to_owned(), value.clone());
        }
        Value::Mapping(map) => {
            for (name, value) in map {
                let dot = if key.is_empty() { "" } else { "." };
                collect(value, &format!("{key}{dot}{}", name.as_str().unwrap()), known, into);
            }
        }
        Value::Sequence(items) => {
            for item in items {
                collect(item, &format!("{key}[]"), known, into);
            }
        }
        _ => {}
    }
}

#[test]
fn the_readme_tells_the_defaults() {
    let defaults = defaults();
    assert!(defaults.len() > 40, "{defaults:?}");
    for (key, told) in rows("Options") {
        let told = told.strip_prefix('`').and_then(|told| told.strip_suffix('`'));
        let told: Option<Value> = told.map(|told| serde_yaml::from_str(told).unwrap());
        assert_eq!(told.as_ref(), defaults.get(key), "default of {key}");
    }
}

#[test]
fn every_command_is_in_the_readme_and_none_besides() {
    let help = Command::new(env!("CARGO_BIN_EXE_comfygate")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let there: BTreeSet<&str> = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    let told = rows("Commands");
    let told: BTreeSet<&str> =
        told.iter().filter_map(|(name, _)| name.strip_prefix("comfygate ")).collect();
    assert_eq!(told, there);
}

#[test]
fn every_closed_route_is_in_the_readme_with_its_reason() {
    let told: BTreeMap<&str, &str> = rows("Who may come in").into_iter().collect();
    let closed = comfygate::auth::preset::all().map(|closed| (closed.rule, closed.why));
    let closed: BTreeMap<&str, &str> = closed.collect();
    let told: BTreeMap<&str, &str> =
        told.into_iter().map(|(rule, why)| (rule, why.trim_end_matches(" |"))).collect();
    assert_eq!(told, closed);
}

/// What the README names and no OpenAPI document does, and why not.
const UNDOCUMENTED: &[(&str, &str)] = &[
    ("GET /metrics", "the format is Prometheus' own"),
    ("GET /lb/session", "the data port's, for everybody"),
    ("POST /lb/session", "the data port's, for everybody"),
    ("GET /lb/login", "a page of the data port"),
    ("POST /lb/login", "its form"),
    ("POST /lb/logout", "its other form"),
    ("POST /infer/{task_type}", "the data port's, answered by a service"),
    ("GET /", "a page"),
    ("GET /login", "a page"),
    ("GET /lb/events", "a stream, which the page listens to"),
];

#[tokio::test]
async fn every_endpoint_is_in_the_readme_and_none_besides() {
    let gateway = Setup::bare(json!({"backends": ["http://127.0.0.1:1"]})).start().await;
    let document = gateway.admin("/lb/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    let documented = paths.iter().flat_map(|(path, verbs)| {
        let verbs = verbs.as_object().unwrap();
        verbs.keys().map(move |verb| format!("{} {path}", verb.to_uppercase()))
    });
    let undocumented = UNDOCUMENTED.iter().map(|(endpoint, _)| (*endpoint).to_owned());
    let there: BTreeSet<String> = documented.chain(undocumented).collect();
    let rows = rows("Endpoints");
    let told: Vec<&str> =
        rows.iter().map(|(code, _)| *code).filter(|code| code.contains(" /")).collect();
    let set: BTreeSet<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), set.len(), "an endpoint stands twice: {told:?}");
    let lacking: Vec<_> = there.difference(&set).collect();
    let invented: Vec<_> = set.difference(&there).collect();
    assert!(
        lacking.is_empty() && invented.is_empty(),
        "lacking {lacking:?}, not served {invented:?}"
    );
}

#[tokio::test]
async fn every_metric_is_in_the_handbook_and_none_besides() {
    let sims = farm(1).await;
    let gateway = Setup::of(&sims).start().await;
    gateway.until_state("comfy-1", "up").await;
    // Requests are counted once there was one.
    gateway.get("10.0.0.1", "/prompt").await;
    let page = gateway.admin("/metrics").await.text();
    let there: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let rows = rows_of(OPERATIONS, "Metrics");
    let told: BTreeSet<&str> = rows.iter().filter_map(|(code, _)| code.split('{').next()).collect();
    assert_eq!(told, there);
}

#[test]
fn every_alert_has_its_runbook() {
    let rules = include_str!("../../docker/prometheus/alerts.yml");
    let there: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let told: BTreeSet<&str> = section(OPERATIONS, "Runbooks")
        .lines()
        .filter_map(|line| line.strip_prefix("### Comfygate"))
        .filter_map(|line| line.split([' ', ',']).next())
        .collect();
    let told: BTreeSet<String> = told.iter().map(|name| format!("Comfygate{name}")).collect();
    assert_eq!(told, there.into_iter().map(str::to_owned).collect());
}

#[test]
fn every_target_of_make_that_the_readme_names_exists() {
    let makefile = include_str!("../../Makefile");
    let named: BTreeSet<&str> = README
        .split(['`', '\n'])
        .filter_map(|text| text.strip_prefix("make "))
        .filter_map(|text| text.split_whitespace().next())
        .collect();
    assert!(named.contains("run") && named.contains("test"), "{named:?}");
    for target in named {
        assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (text, folder) in [(README, root.to_owned()), (OPERATIONS, root.join("docs"))] {
        check_links(text, &folder);
    }
}

fn check_links(text: &str, folder: &Path) {
    let heading = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect::<String>()
    };
    let anchors: BTreeSet<String> =
        text.lines().filter(|line| line.starts_with('#')).map(heading).collect();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.starts_with("http")) {
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        assert!(folder.join(path).exists(), "{link}");
        if path.is_empty() {
            assert!(anchors.contains(anchor), "#{anchor} of {anchors:?}");
        }
    }
}
