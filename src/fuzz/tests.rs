//! The corpora as ordinary tests: `tests/corpus/fuzz/TARGET.txt`, an input in base64 on each line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{TARGETS, Target};

fn in_repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn names(dir: &str, ending: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(in_repo(dir)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(ending).map(str::to_owned)).collect()
}

/// Runs one input after the other; the one that breaks a promise is named.
fn run(name: &str, target: Target, inputs: &[Vec<u8>]) {
    for input in inputs {
        let outcome = std::panic::catch_unwind(|| target(input));
        assert!(outcome.is_ok(), "{name} fails on {}", STANDARD.encode(input));
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(in_repo(&format!("tests/corpus/fuzz/{name}.txt"))).unwrap();
    text.lines().map(|line| STANDARD.decode(line).unwrap()).collect()
}

#[test]
fn every_corpus_keeps_every_promise() {
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        assert!(inputs.len() >= 5, "{name} has {} inputs", inputs.len());
        run(name, *target, &inputs);
    }
}

/// Inputs that are cut off and run into each other, as a fuzzer's first steps are.
#[test]
fn halves_of_inputs_keep_every_promise() {
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        let halves = inputs.iter().map(|input| input[..input.len() / 2].to_vec());
        let joined =
            inputs.windows(2).map(|pair| [&pair[0][pair[0].len() / 2..], &pair[1]].concat());
        run(name, *target, &halves.chain(joined).step_by(7).collect::<Vec<_>>());
    }
}

/// The hand-written cases of other tests are inputs, too.
#[test]
fn files_that_other_tests_read_keep_every_promise() {
    for (dir, name) in [("config", "config"), ("frames", "frames")] {
        let dir = in_repo(&format!("tests/corpus/{dir}"));
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let inputs: Vec<_> = files.map(|path| std::fs::read(path).unwrap()).collect();
        assert!(inputs.len() > 10);
        let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
        run(name, *target, &inputs);
    }
}

#[test]
fn targets_programs_and_corpora_have_the_same_names() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(targets.len(), TARGETS.len(), "a name stands twice");
    assert_eq!(names("fuzz/fuzz_targets", ".rs"), targets);
    assert_eq!(names("tests/corpus/fuzz", ".txt"), targets);
    let manifest = std::fs::read_to_string(in_repo("fuzz/Cargo.toml")).unwrap();
    for name in &targets {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is no program");
    }
}
