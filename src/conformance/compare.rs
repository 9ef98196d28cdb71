//! Compares what was recorded with what a server did, and says the differences in words. Pure.
//!
//! Per listener: the same `status` transitions and as many frames of them, the same frames in the
//! same order for every prompt, the prompts begun in the same order, nothing that was for somebody
//! else. `status` frames may fall anywhere between the others.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::farm;
use super::heard::{Heard, label};
use super::normalise::Names;
use super::recording::{Frame, Post, RECONNECTED, Scenario, Transcript};
use super::steps::fold;

/// Differences told per scenario; what follows the first ones rarely says more.
const MOST_TOLD: usize = 20;
/// Characters shown of a value.
const MOST_SHOWN: usize = 160;

/// One way in which a server differs from the recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The scenario or exchange.
    pub scenario: String,
    /// The place: the listener and frame, or the path in a reply.
    #[serde(rename = "where")]
    pub place: String,
    /// What the recording has.
    pub expected: String,
    /// What the server did.
    pub got: String,
}

/// Collects differences of one check.
pub(super) struct Findings {
    scenario: String,
    list: Vec<Difference>,
}

impl Findings {
    pub(super) fn new(scenario: &str) -> Self {
        Self { scenario: scenario.to_owned(), list: Vec::new() }
    }

    pub(super) fn add(&mut self, place: &str, expected: impl Into<String>, got: impl Into<String>) {
        if self.list.len() < MOST_TOLD {
            self.list.push(Difference {
                scenario: self.scenario.clone(),
                place: place.to_owned(),
                expected: expected.into(),
                got: got.into(),
            });
        }
    }

    /// Findings of the same check that are not told yet.
    pub(super) fn apart(&self) -> Self {
        Self::new(&self.scenario)
    }

    /// Adds findings taken apart.
    pub(super) fn join(&mut self, others: Self) {
        for found in others.list {
            self.add(&found.place, found.expected, found.got);
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    pub(super) fn into_list(self) -> Vec<Difference> {
        self.list
    }

    /// Adds every place at which two normalised values differ.
    pub(super) fn values(&mut self, place: &str, want: &Value, got: &Value) {
        match (want, got) {
            (Value::Object(want), Value::Object(got)) => self.maps(place, want, got),
            (Value::Array(want), Value::Array(got)) => self.lists(place, want, got),
            _ if want == got => {}
            _ => self.add(place, shown(want), shown(got)),
        }
    }

    fn maps(&mut self, place: &str, want: &Map<String, Value>, got: &Map<String, Value>) {
        for (key, value) in want {
            let place = format!("{place}.{key}");
            match got.get(key) {
                Some(other) => self.values(&place, value, other),
                None => self.add(&place, shown(value), "nothing"),
            }
        }
        for (key, value) in got.iter().filter(|(key, _)| !want.contains_key(*key)) {
            self.add(&format!("{place}.{key}"), "nothing", shown(value));
        }
    }

    fn lists(&mut self, place: &str, want: &[Value], got: &[Value]) {
        if want.len() != got.len() {
            return self.add(place, shown(&want.into()), shown(&got.into()));
        }
        for (index, (want, got)) in want.iter().zip(got).enumerate() {
            self.values(&format!("{place}[{index}]"), want, got);
        }
    }
}

/// What a run did differently from the recording of its scenario; empty when it conforms.
pub fn compare(recorded: &Scenario, observed: &Transcript) -> Vec<Difference> {
    Expectation::of(recorded).compare(observed)
}

/// A recording made ready to be compared with many runs.
#[derive(Debug)]
pub struct Expectation {
    scenario: String,
    told: Told,
    /// The rest as a farm tells it, which lists its queue in the order in which prompts will run.
    rest_of_farm: Value,
}

/// All that a scenario's participants were told, normalised.
#[derive(Debug)]
pub(super) struct Told {
    replies: Vec<Value>,
    pub(super) listeners: Listeners,
    pub(super) rest: Value,
    /// The output files in the order of their counters.
    files: Value,
}

impl Expectation {
    /// From the recording.
    pub fn of(recorded: &Scenario) -> Self {
        let mut sorted = recorded.clone();
        farm::sort_pending(&mut sorted.extra);
        farm::as_handed_in(&mut sorted.extra);
        Self {
            scenario: recorded.scenario.clone(),
            told: Told::of(recorded),
            rest_of_farm: rest(&sorted, &Names::of([&sorted])),
        }
    }

    /// What the run did differently; empty when it conforms.
    pub fn compare(&self, observed: &Transcript) -> Vec<Difference> {
        let mut findings = Findings::new(&self.scenario);
        if let Some(why) = &observed.incomplete {
            findings.add("the run", "to reach its end", why);
        }
        let (want, got) = (&self.told, Told::of(observed));
        findings.values(
            "reply to prompt",
            &want.replies.clone().into(),
            &got.replies.clone().into(),
        );
        if observed.farm > 1 {
            farm::compare(want, &got, &self.rest_of_farm, observed, &mut findings);
            return findings.into_list();
        }
        let pooled = observed.farm > 0;
        listeners(&want.listeners, &got.listeners, pooled, &mut findings);
        let rest = if pooled { &self.rest_of_farm } else { &want.rest };
        findings.values("then", rest, &got.rest);
        findings.values("files by their counters", &want.files, &got.files);
        findings.into_list()
    }
}

impl Told {
    fn of(scenario: &Scenario) -> Self {
        let names = Names::of([scenario]);
        let heard = |(name, frames): (String, Vec<Frame>)| {
            let folding = Folding::of(scenario, &name);
            (name, (folding, Heard::new(&frames, &names)))
        };
        let reply = |post: &Post| json!({"status": post.status, "body": names.apply(&post.body)});
        Self {
            replies: scenario.posts.iter().map(reply).collect(),
            listeners: scenario.listeners().into_iter().map(heard).collect(),
            rest: if scenario.farm > 0 {
                let mut listed = scenario.clone();
                farm::as_handed_in(&mut listed.extra);
                rest(&listed, &names)
            } else {
                rest(scenario, &names)
            },
            files: names.files_by_counter(),
        }
    }
}

/// What is neither a reply nor a frame.
fn rest(scenario: &Scenario, names: &Names) -> Value {
    names.apply(&json!({"extra": extra(scenario), "history": history(scenario)}))
}

/// Everything in `extra` but the frames, which are a listener's.
fn extra(scenario: &Scenario) -> Value {
    let mut extra = scenario.extra.clone();
    if let Some(map) = extra.as_object_mut() {
        map.remove("reconnected_frames");
    }
    extra
}

fn history(scenario: &Scenario) -> Value {
    let entries = scenario.history.iter().map(|(id, entry)| (id.clone(), entry.clone()));
    Value::Object(entries.collect())
}

pub(super) type Listeners = BTreeMap<String, (Folding, Heard)>;

fn listeners(want: &Listeners, got: &Listeners, pooled: bool, findings: &mut Findings) {
    for (name, (folding, expected)) in want {
        match got.get(name) {
            Some((_, heard)) => one_listener(name, *folding, (expected, heard), pooled, findings),
            None => findings.add(name, "a listener", "nobody of that name"),
        }
    }
    strangers(want, got, findings);
}

/// Whoever has nothing to hear of a prompt.
pub(super) fn strangers(want: &Listeners, got: &Listeners, findings: &mut Findings) {
    // Listeners without a recording own no prompt: they may hear `status` and nothing else.
    for (name, (_, heard)) in got.iter().filter(|(name, _)| !want.contains_key(*name)) {
        let prompts = heard.prompts.iter().flat_map(|(_, frames)| frames);
        for frame in prompts.chain(&heard.connection) {
            findings.add(name, "nothing but status", label(frame));
        }
    }
}

/// How the steps of a listener's prompts are compared.
#[derive(Debug, Clone, Copy)]
pub(super) enum Folding {
    Exact,
    OpenEnd,
    Window,
}

impl Folding {
    fn of(scenario: &Scenario, listener: &str) -> Self {
        let did = |key: &str| scenario.extra.get(key).is_some();
        match (did("interrupt"), did("reconnected_frames")) {
            (_, true) if listener == RECONNECTED => Self::Window,
            (false, false) => Self::Exact,
            _ => Self::OpenEnd,
        }
    }

    pub(super) fn apply(self, frames: &[Value]) -> Vec<Value> {
        match self {
            Self::Exact => frames.to_vec(),
            Self::OpenEnd => fold(frames, false),
            Self::Window => fold(frames, true),
        }
    }
}

fn one_listener(
    name: &str,
    folding: Folding,
    both: (&Heard, &Heard),
    pooled: bool,
    findings: &mut Findings,
) {
    let (want, got) = both;
    statuses(name, want, got, pooled, findings);
    greeting(name, want, got, findings);
    sequence(&format!("{name}, connection"), &want.connection, &got.connection, findings);
    let order =
        |heard: &Heard| heard.prompts.iter().map(|(p, _)| Value::from(p.as_str())).collect();
    let orders: (Value, Value) = (order(want), order(got));
    findings.values(&format!("{name}, order of the prompts"), &orders.0, &orders.1);
    for (prompt, frames) in &want.prompts {
        let own = got.prompts.iter().find(|(other, _)| other == prompt);
        let own = own.map_or(&[][..], |(_, frames)| frames);
        let place = format!("{name}, {prompt}");
        sequence(&place, &folding.apply(frames), &folding.apply(own), findings);
    }
}

/// The depths told. A gateway in pool mode need not tell the same one twice.
fn statuses(name: &str, want: &Heard, got: &Heard, pooled: bool, findings: &mut Findings) {
    let place = format!("{name}, status frames");
    let (expected, heard) = (want.transitions(), got.transitions());
    if expected != heard {
        let differ = expected.iter().zip(&heard).find(|(want, got)| want != got);
        match differ.filter(|(want, got)| label(want) == label(got)) {
            Some((want, got)) => findings.values(&place, want, got),
            None => findings.add(&place, labels(&expected), labels(&heard)),
        }
    } else if !pooled && want.statuses.len() != got.statuses.len() {
        let count = |n: usize| format!("{n} of them");
        findings.add(&place, count(want.statuses.len()), count(got.statuses.len()));
    }
}

/// The `status` that names the listener's sid.
pub(super) fn greeting(name: &str, want: &Heard, got: &Heard, findings: &mut Findings) {
    if want.greeting_at != got.greeting_at {
        findings.add(&format!("{name}, the status with sid"), "first of all", "later or never");
    }
}

fn labels(frames: &[&Value]) -> String {
    frames.iter().map(|frame| label(frame)).collect::<Vec<_>>().join(", ")
}

/// Two sequences of frames: the first place where the order differs, or the fields that differ.
pub(super) fn sequence(place: &str, want: &[Value], got: &[Value], findings: &mut Findings) {
    for (index, expected) in want.iter().enumerate() {
        let at = format!("{place}, frame {} ({})", index + 1, label(expected));
        match got.get(index) {
            None => return findings.add(&at, label(expected), "nothing more"),
            Some(own) if kind(own) != kind(expected) => {
                return findings.add(&at, label(expected), label(own));
            }
            Some(own) => findings.values(&at, expected, own),
        }
    }
    if let Some(more) = got.get(want.len()) {
        let count = got.len() - want.len();
        findings.add(place, "nothing more", format!("{count} more frames, first {}", label(more)));
    }
}

fn kind(frame: &Value) -> (Option<&Value>, Option<&Value>) {
    (frame.get("type"), frame.get("binary"))
}

/// A value, shortened for a message.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MOST_SHOWN) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
