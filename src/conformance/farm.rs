//! A farm of several servers against the recording of one, prompt by prompt. Pure.
//!
//! Several prompts run at once there, so how deep the queue is when, in which order the prompts
//! begin and what of them waits is the farm's; what each prompt's owner is told of it, in which
//! order, and that nobody else is, is as recorded. A prompt that one server ran from its cache may
//! run afresh on another, and one that was deleted while it waited may have found a server free:
//! such a prompt is told of like the scenario's first.
//!
//! A preview of type 1 bears no prompt id, so with several prompts under one sid it is only
//! counted.

use serde_json::{Map, Value, json};

use super::compare::{Findings, Folding, Told, greeting, sequence, strangers};
use super::heard::{Heard, label};
use super::recording::Scenario;

/// Compares what everybody was told.
pub(super) fn compare(
    want: &Told,
    got: &Told,
    rest: &Value,
    observed: &Scenario,
    findings: &mut Findings,
) {
    let ran = ran_though_deleted(observed, got);
    for (name, (folding, expected)) in &want.listeners {
        let Some((_, heard)) = got.listeners.get(name) else {
            findings.add(name, "a listener", "nobody of that name");
            continue;
        };
        let listener = Listener { name, folding: *folding, scenario: &observed.scenario };
        listener.connection(expected, heard, observed.posts.len(), findings);
        listener.prompts(expected, heard, ran.as_deref(), findings);
    }
    strangers(&want.listeners, &got.listeners, findings);
    queues(&rest["extra"], &got.rest["extra"], ran.is_some(), findings);
    in_order(&observed.extra, findings);
    histories(rest, &got.rest, (&observed.scenario, ran.as_deref()), findings);
}

/// The prompt that the scenario deletes while it waits, when it did not wait.
fn ran_though_deleted(observed: &Scenario, got: &Told) -> Option<String> {
    let last = format!("<prompt {} of {}>", observed.posts.len(), observed.scenario);
    let running = got.rest.pointer("/extra/queue_before/queue_running")?.as_array()?;
    running.iter().any(|item| item[1] == last.as_str()).then_some(last)
}

struct Listener<'a> {
    name: &'a str,
    folding: Folding,
    scenario: &'a str,
}

impl Listener<'_> {
    fn connection(&self, want: &Heard, got: &Heard, posts: usize, findings: &mut Findings) {
        let place = format!("{}, connection", self.name);
        sequence(&place, &want.connection, &got.connection, findings);
        greeting(self.name, want, got, findings);
        let place = format!("{}, status frames", self.name);
        for status in &got.statuses {
            let remaining = status.pointer("/data/status/exec_info/queue_remaining");
            if remaining.and_then(Value::as_u64).is_none_or(|n| n > posts as u64) {
                findings.add(&place, format!("a depth of at most {posts}"), label(status));
            }
        }
        let last = |heard: &Heard| heard.statuses.last().cloned().unwrap_or_default();
        let idle = last(want).pointer("/data/status/exec_info/queue_remaining") == Some(&json!(0));
        if idle {
            findings.values(&place, &last(want), &last(got));
        }
    }

    fn prompts(&self, want: &Heard, got: &Heard, ran: Option<&str>, findings: &mut Findings) {
        let mut previews = (0, 0);
        for (prompt, frames) in &got.prompts {
            previews.1 += count_previews(frames);
            let own = want.prompts.iter().find(|(other, _)| other == prompt);
            let own = own.map(|(_, frames)| frames.clone());
            let first = want.prompts.first().filter(|_| own.is_some() || ran == Some(prompt));
            let first = first.and_then(|(first, frames)| renamed(frames, first, prompt));
            let place = format!("{}, {prompt}", self.name);
            let tries = own.into_iter().chain(first).map(|expected| {
                let mut tried = findings.apart();
                let both = (self.folded(&expected), self.folded(frames));
                sequence(&place, &both.0, &both.1, &mut tried);
                (tried, count_previews(&expected))
            });
            match tries.min_by_key(|(tried, _)| tried.count()) {
                Some((tried, count)) => {
                    previews.0 += count;
                    findings.join(tried);
                }
                None => findings.add(&place, "nothing", "frames of another's prompt"),
            }
        }
        for (prompt, _) in &want.prompts {
            if !got.prompts.iter().any(|(other, _)| other == prompt) {
                let place = format!("{}, {prompt}", self.name);
                findings.add(&place, "its frames", "nothing");
            }
        }
        if matches!(self.folding, Folding::Exact) && previews.0 != previews.1 {
            let place = format!("{} of {}, previews of type 1", self.name, self.scenario);
            findings.add(&place, previews.0.to_string(), previews.1.to_string());
        }
    }

    /// Frames without the previews that name no prompt, unless those are part of a folded step.
    fn folded(&self, frames: &[Value]) -> Vec<Value> {
        match self.folding {
            Folding::Exact => frames.iter().filter(|f| !is_anonymous(f)).cloned().collect(),
            folding => folding.apply(frames),
        }
    }
}

fn is_anonymous(frame: &Value) -> bool {
    frame.get("binary") == Some(&json!(1))
}

fn count_previews(frames: &[Value]) -> usize {
    frames.iter().filter(|frame| is_anonymous(frame)).count()
}

/// Values of one prompt as those of another, its file included. None when it is the same one.
fn renamed<T>(value: &T, from: &str, to: &str) -> Option<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let number = |name: &str| name.strip_prefix("<prompt ")?.split(' ').next()?.parse::<u32>().ok();
    let (old, new) = (number(from)?, number(to)?);
    let text = serde_json::to_string(value).ok()?.replace(from, to);
    let text = text.replace(&format!("_#{old}_"), &format!("_#{new}_"));
    (from != to).then(|| serde_json::from_str(&text).ok())?
}

/// Every listing of the queue as one list of all its items; what waits of them is the farm's.
fn queues(want: &Value, got: &Value, ran: bool, findings: &mut Findings) {
    let mut both = (united(want), united(got));
    if ran {
        // What runs is not deleted.
        for extra in [&mut both.0, &mut both.1] {
            extra.as_object_mut().map(|extra| extra.remove("queue_after"));
        }
    }
    findings.values("then.extra", &both.0, &both.1);
}

fn united(value: &Value) -> Value {
    let Value::Object(map) = value else { return value.clone() };
    let Some((running, pending)) = lists(map) else {
        return map.iter().map(|(key, value)| (key.clone(), united(value))).collect();
    };
    let mut items: Vec<&Value> = running.iter().chain(pending).collect();
    items.sort_by_key(|item| item[1].to_string());
    json!({ "queue": items })
}

fn lists(map: &Map<String, Value>) -> Option<(&Vec<Value>, &Vec<Value>)> {
    Some((map.get("queue_running")?.as_array()?, map.get("queue_pending")?.as_array()?))
}

/// What waits must be listed in the order in which it will run.
fn in_order(extra: &Value, findings: &mut Findings) {
    let Value::Object(map) = extra else { return };
    if let Some((_, pending)) = lists(map) {
        let numbers: Vec<f64> = pending.iter().filter_map(|item| item[0].as_f64()).collect();
        if !numbers.is_sorted() {
            findings.add("then.extra.queue_pending", "ascending numbers", format!("{numbers:?}"));
        }
    }
    map.values().for_each(|value| in_order(value, findings));
}

/// Sorts what waits in every listing of the queue as it will run: a ComfyUI lists its heap.
pub(super) fn sort_pending(extra: &mut Value) {
    let Value::Object(map) = extra else { return };
    if let Some(Value::Array(pending)) = map.get_mut("queue_pending") {
        let place = |item: &Value| item.get(0).and_then(Value::as_f64).unwrap_or(f64::INFINITY);
        pending.sort_by(|a, b| place(a).total_cmp(&place(b)));
    }
    map.values_mut().for_each(sort_pending);
}

/// Makes nothing of how a number in a queued graph is written: a gateway lists what waits with it
/// as it was handed in, a ComfyUI as its validation has converted it (`1` to `1.0` for a float).
pub(super) fn as_handed_in(extra: &mut Value) {
    let Value::Object(map) = extra else { return };
    for list in ["queue_running", "queue_pending"] {
        let items = map.get_mut(list).and_then(Value::as_array_mut);
        let graphs = items.into_iter().flatten().filter_map(|item| item.get_mut(2));
        graphs.for_each(whole_floats);
    }
    map.values_mut().for_each(as_handed_in);
}

fn whole_floats(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            *value = number.as_f64().into();
        }
        Value::Array(items) => items.iter_mut().for_each(whole_floats),
        Value::Object(map) => map
            .iter_mut()
            // Seeds have names by their whole number.
            .filter(|(key, _)| *key != "seed")
            .for_each(|(_, value)| whole_floats(value)),
        _ => {}
    }
}

/// History by prompt: as recorded, or like the scenario's first, but for what was asked.
fn histories(want: &Value, got: &Value, of: (&str, Option<&str>), findings: &mut Findings) {
    let (first, ran) = (format!("<prompt 1 of {}>", of.0), of.1);
    let empty = Map::new();
    let (want, got) = (&want["history"], got["history"].as_object().unwrap_or(&empty));
    for (prompt, entry) in got {
        let place = format!("then.history.{prompt}");
        let recorded = want.get(prompt);
        let has_run = recorded.is_some_and(|r| r.get(prompt).is_some()) || ran == Some(prompt);
        let like_first = renamed(&want[&first], &first, prompt).filter(|_| has_run);
        let like_first = like_first.map(|mut like| {
            like[prompt]["prompt"] = entry[prompt]["prompt"].clone();
            like
        });
        let tries = recorded.cloned().into_iter().chain(like_first).map(|expected| {
            let mut tried = findings.apart();
            tried.values(&place, &expected, entry);
            tried
        });
        match tries.min_by_key(Findings::count) {
            Some(tried) => findings.join(tried),
            None => findings.add(&place, "nothing", "an entry"),
        }
    }
    for prompt in want.as_object().unwrap_or(&empty).keys() {
        if !got.contains_key(prompt) {
            findings.add(&format!("then.history.{prompt}"), "an entry", "nothing");
        }
    }
}
