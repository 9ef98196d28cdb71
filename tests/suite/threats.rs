//! The threat model names tests for what it promises, and those exist.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn in_repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The names of all functions of the sources and the tests.
fn functions(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let named = text.split("fn ").skip(1).filter_map(|rest| rest.split_once('('));
            found.extend(named.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_promise_of_the_threat_model_has_a_test_that_exists() {
    let mut known = BTreeSet::new();
    for dir in ["src", "tests"] {
        functions(&in_repo(dir), &mut known);
    }
    let text = std::fs::read_to_string(in_repo("docs/threat-model.md")).unwrap();
    let promises = text.split("## What is promised").nth(1).unwrap();
    let promises = promises.split("## What is not promised").next().unwrap();
    let mut named = 0;
    for row in promises.lines().filter(|line| line.starts_with("| ")) {
        let shown = row.rsplit(" | ").next().unwrap();
        let (tests, targets) = shown.split_once("fuzz target").unwrap_or((shown, ""));
        for (names, is_target) in [(tests, false), (targets, true)] {
            for name in names.split('`').skip(1).step_by(2).filter(|name| *name != "unsafe") {
                let target = in_repo(&format!("fuzz/fuzz_targets/{name}.rs"));
                let exists = if is_target { target.exists() } else { known.contains(name) };
                assert!(exists, "{name} is nowhere: {row}");
                named += 1;
            }
        }
        assert!(shown.contains('`') || shown.contains("Shown by"), "no test: {row}");
    }
    assert!(named > 40, "only {named} tests are named");
}
