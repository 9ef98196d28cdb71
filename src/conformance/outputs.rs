//! Output files: their stable names, and the one place where pool mode's reserved prefix is taken
//! off.
//!
//! In pool mode the outputs of backend NAME stand under the subfolder `@NAME`, so that equal names
//! on two backends are two files. A file is named by the first prompt that lists it, in the order
//! of the posts, since that order is the same on one server and on a farm. Nothing is taken off
//! where no farm ran: there a subfolder `@x` is a subfolder.

use serde_json::{Map, Value};

use super::recording::Scenario;

/// Shown instead of the prefix where a farm names an output without it.
const BARE: &str = "<without its backend>";
/// Bytes of a backend's name at most.
const MAX_NAME: usize = 64;

/// The output files of one or more scenarios.
#[derive(Debug, Default, Clone)]
pub(super) struct Outputs {
    pooled: bool,
    files: Vec<File>,
}

#[derive(Debug, Clone)]
struct File {
    backend: String,
    name: String,
    prefix: String,
    counter: u64,
    stable: String,
}

impl Outputs {
    /// The files of scenarios, which must be given in the same order on both sides.
    pub(super) fn of<'a>(scenarios: impl IntoIterator<Item = &'a Scenario>) -> Self {
        let mut outputs = Self::default();
        for scenario in scenarios {
            outputs.pooled |= scenario.farm > 0;
            let ids = scenario.posts.iter().filter_map(|post| post.body.get("prompt_id")?.as_str());
            let listed = ids.filter_map(|id| scenario.history.get(id));
            let heard = scenario.frames.values().flatten().filter_map(|frame| frame.text.as_ref());
            listed.chain(heard).for_each(|value| outputs.learn(value));
        }
        outputs
    }

    /// Says whether a farm ran.
    pub(super) fn of_a_farm(&mut self, farm: bool) {
        self.pooled |= farm;
    }

    /// Whether a farm ran.
    pub(super) fn is_of_a_farm(&self) -> bool {
        self.pooled
    }

    fn learn(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.learn(item)),
            Value::Object(map) => {
                if let Some(name) = map.get("filename").and_then(Value::as_str)
                    && let Some((prefix, counter)) = counted(name)
                {
                    let backend = self.split(map).map_or("", |(backend, _)| backend).to_owned();
                    self.add(backend, name, prefix, counter);
                }
                map.values().for_each(|item| self.learn(item));
            }
            _ => {}
        }
    }

    fn add(&mut self, backend: String, name: &str, prefix: &str, counter: u64) {
        if self.files.iter().any(|file| file.backend == backend && file.name == name) {
            return;
        }
        let rank = self.files.iter().filter(|file| file.prefix == prefix).count() + 1;
        let suffix = name.rsplit('_').next().unwrap_or_default();
        let stable = format!("{prefix}_#{rank}_{suffix}");
        let (name, prefix) = (name.to_owned(), prefix.to_owned());
        self.files.push(File { backend, name, prefix, counter, stable });
    }

    /// The raw names with their stable ones, for texts that name no backend.
    pub(super) fn names(&self) -> impl Iterator<Item = (String, String)> {
        self.files.iter().map(|file| (file.name.clone(), file.stable.clone()))
    }

    /// The stable names in the order in which a server counted the files up.
    pub(super) fn by_counter(&self) -> Vec<&str> {
        let mut files: Vec<&File> = self.files.iter().collect();
        files.sort_by(|a, b| (&a.prefix, a.counter).cmp(&(&b.prefix, b.counter)));
        files.into_iter().map(|file| file.stable.as_str()).collect()
    }

    /// An object without the reserved prefix, if a farm ran and it names an output.
    pub(super) fn bare(&self, map: &Map<String, Value>) -> Option<Map<String, Value>> {
        if !self.pooled || !is_output(map) {
            return None;
        }
        let mut bare = map.clone();
        let Some((backend, subfolder)) = self.split(map) else {
            let subfolder = map.get("subfolder")?.as_str()?;
            bare.insert("subfolder".to_owned(), format!("{BARE}{subfolder}").into());
            return Some(bare);
        };
        bare.insert("subfolder".to_owned(), subfolder.into());
        let name = map.get("filename")?.as_str()?;
        let known = |file: &&File| file.backend == backend && file.name == name;
        if let Some(file) = self.files.iter().find(known) {
            bare.insert("filename".to_owned(), file.stable.clone().into());
        }
        Some(bare)
    }

    /// The backend and its own subfolder, where a farm ran and an output is marked.
    fn split<'a>(&self, map: &'a Map<String, Value>) -> Option<(&'a str, &'a str)> {
        let subfolder = map.get("subfolder")?.as_str()?;
        (self.pooled && is_output(map)).then(|| split(subfolder))?
    }
}

/// Whether an object has the form `{filename, subfolder, type}` of a file that a server made.
fn is_output(map: &Map<String, Value>) -> bool {
    let text = |name: &str| map.get(name).and_then(Value::as_str);
    let made = matches!(text("type"), Some("output" | "temp"));
    made && text("filename").is_some() && text("subfolder").is_some()
}

/// `@NAME` or `@NAME/old` as the backend and its own subfolder.
fn split(subfolder: &str) -> Option<(&str, &str)> {
    let (name, rest) = match subfolder.strip_prefix('@')?.split_once('/') {
        // Nothing after the slash is no form that a farm makes.
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (&subfolder[1..], ""),
    };
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    ((1..=MAX_NAME).contains(&name.len()) && is_name).then_some((name, rest))
}

/// `prefix_00001_.ext` as its prefix and counter.
fn counted(name: &str) -> Option<(&str, u64)> {
    let (stem, _) = name.rsplit_once("_.")?;
    let (prefix, counter) = stem.rsplit_once('_')?;
    let digits = counter.len() >= 5 && counter.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| counter.parse().ok().map(|counter| (prefix, counter)))?
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::conformance::recording::scenarios;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other}"),
        }
    }

    fn farm() -> Outputs {
        Outputs { pooled: true, files: Vec::new() }
    }

    #[test]
    fn only_a_whole_first_segment_of_an_output_is_taken_off() {
        let bare = |subfolder: &str, kind: &str| {
            let map = object(json!({"filename": "a.png", "subfolder": subfolder, "type": kind}));
            farm().bare(&map).map(|map| map["subfolder"].as_str().unwrap().to_owned())
        };
        assert_eq!(bare("@comfy-1", "output").unwrap(), "");
        assert_eq!(bare("@gpu_2.b/old/er", "temp").unwrap(), "old/er");
        assert_eq!(bare("@a", "input"), None);
        for wrong in ["", "old", "old/@a", "@", "@/old", "@a/", "@a b", " @a", "a@b"] {
            assert_eq!(bare(wrong, "output").unwrap(), format!("{BARE}{wrong}"), "{wrong}");
        }
    }

    #[test]
    fn other_objects_and_other_servers_outputs_stay_as_they_are() {
        let output = json!({"filename": "a.png", "subfolder": "@a", "type": "output"});
        assert_eq!(Outputs::default().bare(&object(output)), None);
        for other in [
            json!({"filename": "a.png", "type": "output"}),
            json!({"filename": 7, "subfolder": "@a", "type": "output"}),
            json!({"filename": "a.png", "subfolder": "@a", "type": "mask"}),
        ] {
            assert_eq!(farm().bare(&object(other)), None);
        }
    }

    #[test]
    fn equal_names_of_two_backends_are_two_files() {
        let mut outputs = farm();
        let made = |backend: &str| json!({"filename": "rec_00001_.png", "subfolder": format!("@{backend}"), "type": "output"});
        for backend in ["b", "a", "b"] {
            outputs.learn(&json!({"images": [made(backend)]}));
        }
        let stable = |backend| outputs.bare(&object(made(backend))).unwrap()["filename"].clone();
        assert_eq!((stable("b"), stable("a")), (json!("rec_#1_.png"), json!("rec_#2_.png")));
    }

    #[test]
    fn the_recordings_files_are_named_by_their_prompts_and_ordered_by_their_counters() {
        let all = scenarios().unwrap();
        let front = Outputs::of([&all[8]]);
        let named: Vec<_> = front.names().map(|(_, stable)| stable).collect();
        assert_eq!(named, (1..=5).map(|n| format!("rec_#{n}_.png")).collect::<Vec<_>>());
        let ran = ["rec_#1_.png", "rec_#3_.png", "rec_#4_.png", "rec_#2_.png", "rec_#5_.png"];
        assert_eq!(front.by_counter(), ran);
        assert_eq!(Outputs::of([&all[4]]).names().count(), 1, "a cached run lists the same file");
    }
}
