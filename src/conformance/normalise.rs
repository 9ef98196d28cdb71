//! Makes a recording and a run comparable: what must differ between them (ids, times, counters,
//! tracebacks) becomes the same stable name on both sides, everything else stays, the difference
//! between `0` and `0.0` included.
//!
//! `Names::of` learns the ids, seeds, queue numbers and file names ([`super::outputs`]) of one or
//! more scenarios from their posts and outputs; `Names::apply` rewrites a value with them. Nothing here does I/O.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::outputs::Outputs;
use super::recording::{Post, Scenario};

/// Milliseconds of a time in this century; anything lower in a time field is not a time.
const FIRST_MILLISECOND: u64 = 946_684_800_000;

/// The names that stand for what differs from run to run.
#[derive(Debug, Default, Clone)]
pub struct Names {
    /// Texts to replace wherever they occur: prompt ids and file names.
    texts: Vec<(String, String)>,
    seeds: HashMap<u64, String>,
    numbers: HashMap<i64, String>,
    /// Queue numbers that a post asked for, with their names.
    asked: Vec<(f64, String)>,
    /// Whether ids and numbers of other prompts are anonymous rather than left to differ.
    lenient: bool,
    outputs: Outputs,
}

impl Names {
    /// Learns from scenarios, which must be given in the same order on both sides.
    pub fn of<'a>(scenarios: impl IntoIterator<Item = &'a Scenario>) -> Self {
        let scenarios: Vec<&Scenario> = scenarios.into_iter().collect();
        let mut names = Self::default();
        let mut numbers = BTreeSet::new();
        for scenario in &scenarios {
            for (index, post) in scenario.posts.iter().enumerate() {
                names.learn_prompt(&scenario.scenario, index + 1, post);
                names.learn_seeds(&post.request);
                let asked = post.request.get("number").and_then(Value::as_f64);
                names
                    .asked
                    .extend(asked.map(|n| (n, format!("<number asked for in {}>", index + 1))));
                numbers.extend(automatic_number(post));
            }
        }
        names.rank_numbers(&numbers);
        names.outputs = Outputs::of(scenarios);
        names.texts.extend(names.outputs.names());
        names
    }

    /// The same, but ids and numbers that no scenario made are anonymous: for HTTP exchanges,
    /// which make prompts of their own.
    #[must_use]
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    fn learn_prompt(&mut self, scenario: &str, index: usize, post: &Post) {
        let Some(id) = post.body.get("prompt_id").and_then(Value::as_str) else { return };
        if id.is_empty() {
            return;
        }
        let asked = post.request.get("prompt_id").and_then(Value::as_str);
        let flaw = match asked {
            Some(asked) if asked != id => ", not the id asked for",
            _ if !is_uuid(id) => ", not a UUID",
            _ => "",
        };
        self.texts.push((id.to_owned(), format!("<prompt {index} of {scenario}{flaw}>")));
    }

    fn learn_seeds(&mut self, request: &Value) {
        let nodes = request.get("prompt").and_then(Value::as_object);
        let seeds = nodes.into_iter().flat_map(Map::values);
        for seed in seeds.filter_map(|node| node.get("inputs")?.get("seed")?.as_u64()) {
            let next = format!("<seed {}>", self.seeds.len() + 1);
            self.seeds.entry(seed).or_insert(next);
        }
    }

    /// The order of the queue numbers a server gave matters, their size depends on its past.
    fn rank_numbers(&mut self, sizes: &BTreeSet<u64>) {
        for (rank, size) in sizes.iter().enumerate() {
            let Ok(number) = i64::try_from(*size) else { continue };
            self.numbers.insert(-number, format!("<number -{rank}>"));
            self.numbers.insert(number, format!("<number +{rank}>"));
        }
    }

    /// The same for a gateway in pool mode, whatever its scenarios were.
    #[must_use]
    pub(super) fn of_a_farm(mut self, farm: bool) -> Self {
        self.outputs.of_a_farm(farm);
        self
    }

    /// Whether a gateway in pool mode answered.
    pub(super) fn is_of_a_farm(&self) -> bool {
        self.outputs.is_of_a_farm()
    }

    /// The stable names of the output files, in the order in which the server counted them up.
    pub(super) fn files_by_counter(&self) -> Value {
        self.outputs.by_counter().into()
    }

    /// The stable form of a value.
    pub fn apply(&self, value: &Value) -> Value {
        self.rewrite("", value)
    }

    /// The stable form of a text.
    pub fn text(&self, text: &str) -> String {
        if self.lenient && is_uuid(text) && !self.texts.iter().any(|(raw, _)| raw == text) {
            return "<uuid>".to_owned();
        }
        let mut text = text.to_owned();
        for (raw, name) in &self.texts {
            if text.contains(raw.as_str()) {
                text = text.replace(raw, name);
            }
        }
        text
    }

    fn rewrite(&self, key: &str, value: &Value) -> Value {
        match (key, value) {
            ("timestamp" | "create_time" | "execution_start_time" | "execution_end_time", _) => {
                milliseconds(value)
            }
            ("traceback", Value::Array(lines)) if all_strings(lines) => "<traceback>".into(),
            ("max_upload_size", Value::Number(n)) if n.is_u64() => "<size>".into(),
            ("sid", Value::String(sid)) if is_made_sid(sid) => "<sid made by the server>".into(),
            // What extensions announce is theirs.
            ("extension", Value::Object(_)) => "<extensions>".into(),
            ("seed", Value::Number(n)) => named(n.as_u64().and_then(|n| self.seeds.get(&n)), value),
            ("number" | "priority", _) => self.number(value),
            // Sets on the server's side, in no order.
            ("executed" | "current_outputs", Value::Array(nodes)) if all_strings(nodes) => {
                sorted(nodes)
            }
            (_, Value::String(text)) => self.text(text).into(),
            (_, Value::Array(items)) => self.list(key, items),
            (_, Value::Object(map)) => self.map(map),
            _ => value.clone(),
        }
    }

    fn list(&self, key: &str, items: &[Value]) -> Value {
        let mut list: Vec<Value> = items.iter().map(|item| self.rewrite(key, item)).collect();
        if is_queue_item(items)
            && let (Some(first), Some(number)) = (list.first_mut(), items.first())
        {
            *first = self.number(number);
        }
        list.into()
    }

    fn map(&self, map: &Map<String, Value>) -> Value {
        let bare = self.outputs.bare(map);
        let map = bare.as_ref().unwrap_or(map);
        map.iter().map(|(key, value)| (self.text(key), self.rewrite(key, value))).collect()
    }

    fn number(&self, value: &Value) -> Value {
        if let Some(number) = value.as_i64() {
            return match self.numbers.get(&number) {
                None if self.lenient => "<number>".into(),
                found => named(found, value),
            };
        }
        // A number asked for comes back as a float, and exactly.
        let same =
            |asked: &&(f64, String)| value.as_f64().map(f64::to_bits) == Some(asked.0.to_bits());
        named(self.asked.iter().find(same).map(|(_, name)| name), value)
    }
}

/// A queue item: `[number, prompt_id, prompt, extra_data, outputs_to_execute]`.
fn is_queue_item(items: &[Value]) -> bool {
    matches!(items, [_, Value::String(_), Value::Object(_), Value::Object(_), Value::Array(_)])
}

fn named(name: Option<&String>, value: &Value) -> Value {
    name.map_or_else(|| value.clone(), |name| name.clone().into())
}

fn automatic_number(post: &Post) -> Option<u64> {
    match post.request.get("number") {
        None => post.body.get("number")?.as_i64().map(i64::unsigned_abs),
        Some(_) => None,
    }
}

fn milliseconds(value: &Value) -> Value {
    match value.as_u64() {
        Some(time) if time >= FIRST_MILLISECOND => "<milliseconds>".into(),
        _ => value.clone(),
    }
}

fn all_strings(values: &[Value]) -> bool {
    values.iter().all(Value::is_string)
}

fn sorted(nodes: &[Value]) -> Value {
    let set: BTreeSet<&str> = nodes.iter().filter_map(Value::as_str).collect();
    let mut list: Vec<Value> = set.iter().map(|node| Value::from(*node)).collect();
    // A set has no repetitions; keep them visible.
    list.extend((list.len()..nodes.len()).map(|_| Value::from("<repeated>")));
    list.into()
}

/// Whether this is a UUID in the form ComfyUI makes.
fn is_uuid(text: &str) -> bool {
    uuid::Uuid::parse_str(text).is_ok_and(|id| id.hyphenated().to_string() == text)
}

/// Whether this is a session id that the server made: 32 hex digits.
pub(super) fn is_made_sid(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::conformance::recording::scenarios;

    fn names(index: usize) -> Names {
        Names::of([&scenarios().unwrap()[index]])
    }

    #[test]
    fn what_varies_gets_stable_names() {
        let run = &scenarios().unwrap()[0];
        let id = run.posts[0].body["prompt_id"].as_str().unwrap();
        let stable = names(0).apply(&run.history[id]);
        let entry = &stable["<prompt 1 of run_ok>"];
        assert_eq!(entry["prompt"][0], "<number +0>");
        assert_eq!(entry["prompt"][2]["1"]["inputs"]["seed"], "<seed 1>");
        assert_eq!(entry["prompt"][3]["create_time"], "<milliseconds>");
        assert_eq!(entry["outputs"]["2"]["images"][0]["filename"], "rec_#1_.png");
    }

    #[test]
    fn wrong_kinds_stay_visible() {
        let names = names(0);
        for value in [json!({"timestamp": "1795193886109"}), json!({"timestamp": 1_795_193_886.5})]
        {
            assert_eq!(names.apply(&value), value);
        }
        assert_eq!(names.apply(&json!({"seed": 11.0})), json!({"seed": 11.0}));
        assert_eq!(names.apply(&json!({"number": 0.0})), json!({"number": 0.0}));
        assert_eq!(names.apply(&json!({"traceback": "x"})), json!({"traceback": "x"}));
    }

    #[test]
    fn numbers_keep_sign_and_order_and_those_asked_for_are_told_apart() {
        let front = &scenarios().unwrap()[8];
        let names = Names::of([front]);
        let replies: Vec<Value> =
            front.posts.iter().map(|p| names.apply(&p.body)["number"].clone()).collect();
        assert_eq!(
            json!(replies),
            json!([
                "<number +0>",
                "<number +1>",
                "<number -2>",
                "<number asked for in 4>",
                "<number +3>"
            ])
        );
    }

    #[test]
    fn only_canonical_uuids_and_made_sids_pass() {
        assert!(is_uuid("cb0c2d14-b2dc-448b-9bd7-8975f8b25aea"));
        assert!(!is_uuid("CB0C2D14-b2dc-448b-9bd7-8975f8b25aea"));
        assert!(is_made_sid("679aa46728394fadbc3ac73f8d36b3f8"));
        assert!(!is_made_sid("A"));
    }
}
