//! The README says what is there: every option, command, endpoint and target, and none besides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use comfygate::config::known_keys;
use serde_yaml::Value;

const README: &str = include_str!("../../README.md");

/// The text of a `##` section.
fn section(title: &str) -> &'static str {
    let start = README.find(&format!("\n## {title}\n")).expect(title);
    let rest = &README[start + 4..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

/// The rows of a section's tables whose first cell is code: that code and the second cell.
fn rows(title: &str) -> Vec<(&'static str, &'static str)> {
    let row = |line: &'static str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.strip_suffix('`')?, cells.next()?))
    };
    section(title).lines().filter_map(row).collect()
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
fn every_endpoint_is_in_the_readme_and_none_besides() {
    let router = include_str!("../../src/admin/mod.rs");
    let there: BTreeSet<&str> =
        router.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let told = rows("Endpoints");
    let told: BTreeSet<&str> = told
        .iter()
        .filter_map(|(endpoint, _)| endpoint.split_once(' '))
        .map(|(_, path)| path)
        .collect();
    assert_eq!(told, there);
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
    let heading = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect::<String>()
    };
    let anchors: BTreeSet<String> =
        README.lines().filter(|line| line.starts_with('#')).map(heading).collect();
    let links = README.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.starts_with("http")) {
        match link.strip_prefix('#') {
            Some(anchor) => assert!(anchors.contains(anchor), "#{anchor} of {anchors:?}"),
            None => assert!(root.join(link).exists(), "{link}"),
        }
    }
}
