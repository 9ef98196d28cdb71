//! In which order a socket may hear of prompts: a small automaton for each of them, and the rules
//! for previews that name none.
//!
//! A socket that was there from the beginning of a prompt hears all of it. One that came later
//! begins anywhere, and from there on misses nothing but progress.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::ear::{Note, Session};

/// How far a prompt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Unheard,
    Started,
    /// `execution_cached` has come: nodes run.
    Running,
    Terminal,
    Ended,
}

/// One prompt as one socket hears of it.
#[derive(Debug)]
struct Follower {
    stage: Stage,
    /// Nothing is known of what came before.
    late: bool,
    node: Option<String>,
    progress: u64,
    /// Nodes whose output may come without their having run.
    cached: BTreeSet<String>,
    outputs: BTreeSet<String>,
}

impl Follower {
    fn new(late: bool) -> Self {
        Self {
            stage: Stage::Unheard,
            late,
            node: None,
            progress: 0,
            cached: BTreeSet::new(),
            outputs: BTreeSet::new(),
        }
    }

    /// Takes the next message, or says what is wrong with it.
    fn take(&mut self, note: &Note) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{what}: {note:?}"));
        let Note::Event { name, data } = note else {
            let Note::Binary { metadata, .. } = note else { return Ok(()) };
            self.reach(Stage::Running, note)?;
            return match &self.node {
                Some(node) if metadata["node_id"] != node.as_str() => wrong("another node's"),
                None if !self.late => wrong("no node runs"),
                _ => Ok(()),
            };
        };
        let node = || data["node"].as_str().unwrap_or_default().to_owned();
        match name.as_str() {
            "execution_start" => self.step(Stage::Unheard, Stage::Started, note),
            "execution_cached" => {
                let nodes = data["nodes"].as_array().into_iter().flatten();
                self.cached.extend(nodes.filter_map(Value::as_str).map(str::to_owned));
                self.step(Stage::Started, Stage::Running, note)
            }
            "executing" if data["node"].is_null() => self.step(Stage::Terminal, Stage::Ended, note),
            "executing" => {
                (self.node, self.progress) = (Some(node()), 0);
                self.reach(Stage::Running, note)
            }
            "progress_state" => self.reach(Stage::Running, note),
            "progress" => {
                let value = data["value"].as_u64().unwrap_or_default();
                if self.node.as_ref().is_some_and(|running| *running != node())
                    || (self.node.is_none() && !self.late)
                {
                    return wrong("progress of a node that does not run");
                }
                if value <= self.progress || data["max"].as_u64().is_none_or(|max| value > max) {
                    return wrong("progress goes backwards");
                }
                self.node.get_or_insert_with(node);
                self.progress = value;
                self.reach(Stage::Running, note)
            }
            "executed" => {
                let ran = self.node.as_ref() == Some(&node()) || self.cached.contains(&node());
                if !ran && !self.late {
                    return wrong("the output of a node that did not run");
                }
                if !self.outputs.insert(node()) {
                    return wrong("an output twice");
                }
                self.reach(Stage::Running, note)
            }
            "execution_success" | "execution_error" | "execution_interrupted" => {
                self.step(Stage::Running, Stage::Terminal, note)
            }
            // What else there may be has no place in the order.
            _ => Ok(()),
        }
    }

    /// From this stage to that one, the only way there is.
    fn step(&mut self, from: Stage, to: Stage, note: &Note) -> Result<(), String> {
        if self.stage != from && !self.begins() {
            return Err(format!("after {:?}: {note:?}", self.stage));
        }
        self.stage = to;
        Ok(())
    }

    /// Being at this stage.
    fn reach(&mut self, at: Stage, note: &Note) -> Result<(), String> {
        if self.stage != at && !self.begins() {
            return Err(format!("after {:?}: {note:?}", self.stage));
        }
        self.stage = at;
        Ok(())
    }

    /// Whether this is the first that a late socket hears.
    fn begins(&self) -> bool {
        self.late && self.stage == Stage::Unheard
    }
}

/// What there is to know for judging a socket.
pub(crate) struct Rules<'a> {
    /// Whether a prompt was heard of from its beginning, if it is one of the socket's own.
    pub(crate) whole: &'a dyn Fn(&str) -> bool,
    /// Whether a prompt belongs to nobody, so that only its progress is told.
    pub(crate) anonymous: &'a dyn Fn(&str) -> bool,
    /// Whether it is told of one prompt after another.
    pub(crate) serial: bool,
    /// Whether it is the client's first socket, which has missed nothing.
    pub(crate) first: bool,
}

/// What is wrong with the order in which a socket heard things.
pub(crate) fn check(session: &Session, rules: &Rules<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut followers: BTreeMap<&str, Follower> = BTreeMap::new();
    let mut shown: Option<&str> = None;
    let (mut steps, mut previews) = (0, 0);
    for note in &session.notes {
        steps += usize::from(note.is("progress"));
        if matches!(note, Note::Binary { id: 1, .. }) {
            previews += 1;
            if rules.first && previews > steps {
                problems.push("a preview before the progress that it belongs to".to_owned());
            }
        }
        // When a prompt will run is told at any time.
        if note.is("comfygate_eta") {
            continue;
        }
        let Some(prompt) = note.prompt() else { continue };
        if (rules.anonymous)(prompt) {
            if !["progress_state", "progress", "execution_interrupted"].iter().any(|k| note.is(k)) {
                problems.push(format!("told though it names no client: {note:?}"));
            }
            continue;
        }
        if rules.serial {
            if shown.is_some_and(|shown| shown != prompt) {
                problems.push(format!("in the middle of another prompt: {note:?}"));
            }
            match note {
                note if note.is("execution_start") => shown = Some(prompt),
                note if note.is_end() => shown = None,
                _ => {}
            }
        }
        let follower =
            followers.entry(prompt).or_insert_with(|| Follower::new(!(rules.whole)(prompt)));
        if let Err(problem) = follower.take(note) {
            problems.push(problem);
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: Value) -> Note {
        let mut data = data;
        data["prompt_id"] = "p".into();
        Note::Event { name: name.to_owned(), data }
    }

    fn run() -> Vec<Note> {
        let preview = Note::Binary { id: 4, metadata: json!({"prompt_id": "p", "node_id": "1"}) };
        vec![
            event("execution_start", json!({})),
            event("execution_cached", json!({"nodes": []})),
            event("progress_state", json!({})),
            event("executing", json!({"node": "1"})),
            preview,
            event("progress", json!({"node": "1", "value": 1, "max": 2})),
            Note::Binary { id: 1, metadata: Value::Null },
            event("progress", json!({"node": "1", "value": 2, "max": 2})),
            event("executing", json!({"node": "2"})),
            event("executed", json!({"node": "2"})),
            event("execution_success", json!({})),
            event("executing", json!({"node": null})),
        ]
    }

    fn problems(notes: Vec<Note>, whole: bool) -> Vec<String> {
        let session = Session { notes, ..Session::default() };
        let rules = Rules { whole: &|_| whole, anonymous: &|_| false, serial: true, first: whole };
        check(&session, &rules)
    }

    #[test]
    fn a_run_is_in_order_from_its_beginning_and_from_anywhere_on() {
        assert_eq!(problems(run(), true), Vec::<String>::new());
        for begin in 0..run().len() {
            assert_eq!(problems(run().split_off(begin), false), Vec::<String>::new(), "{begin}");
        }
    }

    #[test]
    fn what_is_lost_doubled_or_swapped_shows() {
        for at in [0, 1, 3, 8, 10] {
            let mut lost = run();
            lost.remove(at);
            assert_ne!(problems(lost, true), Vec::<String>::new(), "{at} lost");
        }
        for at in [0, 1, 5, 7, 9, 10, 11] {
            let mut doubled = run();
            doubled.insert(at, doubled[at].clone());
            assert_ne!(problems(doubled, true), Vec::<String>::new(), "{at} doubled");
        }
        for at in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10] {
            // A preview may fall between two steps, and progress_state is not told apart.
            if matches!(at, 4 | 6) {
                continue;
            }
            let mut swapped = run();
            swapped.swap(at, at + 1);
            let caught = !problems(swapped, true).is_empty();
            assert_eq!(caught, at != 2, "{at} swapped");
        }
    }

    #[test]
    fn two_prompts_are_told_of_one_after_another_where_they_must_be() {
        let mut both = run();
        let mut other = event("progress_state", json!({}));
        if let Note::Event { data, .. } = &mut other {
            data["prompt_id"] = "q".into();
        }
        both.insert(5, other);
        let session = Session { notes: both, ..Session::default() };
        let mut rules = Rules {
            whole: &|prompt| prompt == "p",
            anonymous: &|_| false,
            serial: true,
            first: true,
        };
        assert_eq!(check(&session, &rules).len(), 1);
        rules.serial = false;
        assert_eq!(check(&session, &rules).len(), 0);
    }
}
