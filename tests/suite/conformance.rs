//! The comparison must accept each recording and catch every mutant of it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod pooled;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use comfygate::conformance::{
    CheckResult, Expectation, Frame, Names, Options, Outcome, RECONNECTED, Scenario, Transcript,
    check, compare, compare_exchange, exchanges, scenarios,
};
use comfygate::sim::{ReplyTap, Sim, SimConfig, Tap, TapFrame};
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

#[test]
fn every_recording_conforms_to_itself() {
    for scenario in scenarios().unwrap() {
        let differences = compare(&scenario, &scenario);
        assert!(differences.is_empty(), "{}: {differences:#?}", scenario.scenario);
    }
    let names = Names::default().lenient();
    for exchange in exchanges().unwrap() {
        let differences = compare_exchange(&exchange, &exchange.response, (&names, &names));
        assert!(differences.is_empty(), "{}: {differences:#?}", exchange.name);
    }
}

/// A run has other ids, times, seeds, numbers and counters, and `status` falls elsewhere.
#[test]
fn a_run_at_another_time_conforms() {
    for recorded in scenarios().unwrap() {
        let later = displaced(&recorded);
        let differences = compare(&recorded, &later);
        assert!(differences.is_empty(), "{}: {differences:#?}", recorded.scenario);
    }
}

#[test]
fn every_swap_of_two_neighbours_is_caught() {
    let mut ran = 0;
    for recorded in scenarios().unwrap().iter().map(with_small_pictures) {
        let expectation = Expectation::of(&recorded);
        for (listener, frames) in recorded.listeners() {
            for index in 1..frames.len() {
                if !is_telling_swap(&frames[index - 1], &frames[index]) {
                    continue;
                }
                let mut swapped = frames.clone();
                swapped.swap(index - 1, index);
                let mutant = with_frames(&recorded, &listener, swapped);
                assert_caught(
                    &expectation,
                    &mutant,
                    &format!("{listener}: swap {} and {index}", index - 1),
                );
                ran += 1;
            }
        }
    }
    println!("{ran} swaps");
    assert!(ran > 200, "{ran}");
}

/// Every frame of every listener goes to each other one instead, and to one who was not there.
#[test]
fn every_change_of_addressee_is_caught() {
    let mut ran = 0;
    for recorded in scenarios().unwrap().iter().map(with_small_pictures) {
        let expectation = Expectation::of(&recorded);
        let listeners = recorded.listeners();
        let others: BTreeSet<String> =
            listeners.keys().cloned().chain(["stranger".to_owned()]).collect();
        for (listener, frames) in &listeners {
            for index in 0..frames.len() {
                for other in others.iter().filter(|other| *other != listener) {
                    let mut kept = frames.clone();
                    let moved = kept.remove(index);
                    let mut mutant = with_frames(&recorded, listener, kept);
                    let mut theirs = listeners.get(other).cloned().unwrap_or_default();
                    let at = theirs.iter().take_while(|frame| frame.t_ms <= moved.t_ms).count();
                    theirs.insert(at, moved);
                    mutant = with_frames(&mutant, other, theirs);
                    assert_caught(&expectation, &mutant, &format!("{listener} {index} → {other}"));
                    ran += 1;
                }
            }
        }
    }
    println!("{ran} changed addressees");
    assert!(ran > 500, "{ran}");
}

#[test]
fn every_dropped_field_is_caught() {
    let ran = mutate_every_value(&|value| match value {
        Value::Object(map) => map
            .keys()
            .map(|key| {
                let mut less = map.clone();
                less.remove(key);
                (key.clone(), Value::Object(less))
            })
            .collect(),
        _ => Vec::new(),
    });
    println!("{ran} dropped fields");
    assert!(ran > 1000, "{ran}");
}

#[test]
fn every_changed_type_is_caught() {
    let ran = mutate_every_value(&|value| {
        let others = match value {
            Value::Null => vec![json!(0)],
            Value::Bool(b) => vec![json!(i32::from(*b))],
            Value::Number(n) if n.is_f64() => vec![json!(n.as_f64().unwrap() as i64)],
            Value::Number(n) => vec![json!(n.as_f64().unwrap()), json!(n.to_string())],
            Value::String(_) => vec![json!(1)],
            Value::Array(_) => vec![json!({})],
            Value::Object(_) => vec![Value::Null],
        };
        others.into_iter().map(|other| (format!("→ {other}"), other)).collect()
    });
    println!("{ran} changed types");
    assert!(ran > 2000, "{ran}");
}

/// Binary frames have no fields: their id, format and image stand for them.
#[test]
fn every_damaged_preview_is_caught() {
    let mut ran = 0;
    for recorded in scenarios().unwrap().iter().map(with_small_pictures) {
        let expectation = Expectation::of(&recorded);
        for (listener, frames) in recorded.listeners() {
            for (index, frame) in frames.iter().enumerate() {
                let Some(base64) = &frame.binary_base64 else { continue };
                let bytes = STANDARD.decode(base64).unwrap();
                let change = |at: usize, to: u8| {
                    let mut bytes = bytes.clone();
                    bytes[at] = to;
                    bytes
                };
                let cut = bytes[..bytes.len() / 4].to_vec();
                for damaged in [change(3, 2), change(3, 7), change(7, 1), cut, Vec::new()] {
                    let mut mutated = frames.clone();
                    mutated[index].binary_base64 = Some(STANDARD.encode(damaged));
                    let mutant = with_frames(&recorded, &listener, mutated);
                    assert_caught(&expectation, &mutant, &format!("{listener}: preview {index}"));
                    ran += 1;
                }
            }
        }
    }
    println!("{ran} damaged previews");
    assert!(ran > 200, "{ran}");
}

#[test]
fn every_field_of_a_flagged_preview_counts() {
    let recorded = &scenarios().unwrap()[1];
    let expectation = Expectation::of(recorded);
    let frames = &recorded.frames["owner"];
    let index = frames.iter().position(|frame| frame.binary_base64.is_some()).unwrap();
    let bytes = STANDARD.decode(frames[index].binary_base64.as_ref().unwrap()).unwrap();
    let length = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let metadata: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(metadata.len(), 6);
    for key in metadata.keys() {
        let mut less = metadata.clone();
        less.remove(key);
        let json = serde_json::to_vec(&less).unwrap();
        let mut mutated = bytes[..4].to_vec();
        mutated.extend((json.len() as u32).to_be_bytes());
        mutated.extend(json);
        mutated.extend(&bytes[8 + length..]);
        let mut frames = frames.clone();
        frames[index].binary_base64 = Some(STANDARD.encode(mutated));
        assert_caught(&expectation, &with_frames(recorded, "owner", frames), key);
    }
}

/// A simulated server quick enough for a test, and slow enough that what the scenarios do while a
/// prompt runs is done in time on a busy machine.
const SPEED: f64 = 4.0;

fn options(filter: &str) -> Options {
    Options { filter: Some(filter.to_owned()), timeout: Duration::from_secs(30) }
}

fn failures(results: &[CheckResult]) -> String {
    let failed = results.iter().filter(|result| result.is_failed());
    failed.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Twice, since one run must not be in the way of the next.
#[tokio::test]
async fn the_simulator_conforms() {
    let sim = Sim::start(SimConfig { speed: SPEED, ..SimConfig::default() }).await.unwrap();
    let report = check(&sim.url(), &options("")).await.unwrap();
    assert!(report.is_ok(), "{}", failures(&report.results));
    let is_ok = |result: &&CheckResult| matches!(result.outcome, Outcome::Ok);
    assert!(report.results.iter().filter(is_ok).count() >= 10 + 49, "{}", report.summary());
    let report = check(&sim.url(), &options("http ")).await.unwrap();
    assert!(report.is_ok(), "{}", failures(&report.results));
}

#[tokio::test]
async fn what_needs_the_test_node_is_skipped_where_it_is_missing() {
    let bare: ReplyTap = Arc::new(|path, reply| {
        if path.ends_with("/object_info/PacedImage") {
            *reply = json!({});
        }
    });
    let config = SimConfig { reply_tap: Some(bare), ..SimConfig::default() };
    let sim = Sim::start(config).await.unwrap();
    let report = check(&sim.url(), &options("")).await.unwrap();
    assert!(report.is_ok(), "{}", failures(&report.results));
    let skipped = "skipped: ws run_ok: the server has no node PacedImage";
    assert!(report.results.iter().any(|result| result.to_string() == skipped));
    let ran = |name: &str| report.results.iter().any(|r| r.to_string() == format!("ok {name}"));
    assert!(ran("http prompt_missing_image") && !ran("http history_item"));
}

#[tokio::test]
async fn an_address_without_a_server_is_named_with_the_cure() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let error = check(&url, &Options::default()).await.unwrap_err().to_string();
    assert!(error.contains(&url) && error.contains("--url"), "{error}");
    assert!(!error.contains('\n'));
    for wrong in ["127.0.0.1:8188", "https://127.0.0.1:8188"] {
        let error = check(wrong, &Options::default()).await.unwrap_err().to_string();
        assert!(error.contains("http://"), "{error}");
    }
}

/// One way in which a simulated server breaks the contract.
#[derive(Debug, Clone, Copy)]
enum Breach {
    /// None: the control, which must conform under the same load.
    None,
    /// The frame of this number comes after the next one.
    Swap(usize),
    /// It goes to somebody else.
    Misdirect(usize),
    /// It lacks a field.
    Drop(usize),
    /// One of its values has another type.
    Retype(usize),
    /// `status` lacks a field.
    DropInStatus,
    /// The reply to `POST /prompt` lacks a field.
    DropInReply,
    /// A number in a history entry has another type.
    RetypeInHistory,
}

const BREACHES: [Breach; 12] = [
    Breach::None,
    Breach::Swap(0),
    Breach::Swap(5),
    Breach::Misdirect(1),
    Breach::Misdirect(6),
    Breach::Drop(0),
    Breach::Drop(3),
    Breach::Retype(2),
    Breach::Retype(4),
    Breach::DropInStatus,
    Breach::DropInReply,
    Breach::RetypeInHistory,
];

/// Breaks the contract once, for the client A, and remembers that it did.
struct Breaker {
    breach: Breach,
    /// How many frames other than `status` A was sent.
    sent: usize,
    held: Option<TapFrame>,
    other: Option<String>,
    done: bool,
    reconnects: bool,
}

impl Breaker {
    fn new(scenario: &str, breach: Breach) -> Self {
        let reconnects = scenario.starts_with("reconnect");
        Self { breach, sent: 0, held: None, other: None, done: false, reconnects }
    }

    fn frame(&mut self, sid: &str, mut frame: TapFrame) -> Vec<(String, TapFrame)> {
        let is = |kind| matches!(&frame, TapFrame::Text(value) if value["type"] == kind);
        let (is_status, is_flags) = (is("status"), is("feature_flags"));
        if !sid.ends_with("-A") {
            self.other = Some(sid.to_owned());
            return vec![(sid.to_owned(), frame)];
        }
        if is_status || is_flags {
            // A greeting: the scenario is begun again, if its own reconnect is none.
            let is_greeting = matches!(&frame, TapFrame::Text(v) if v["data"]["sid"].is_string());
            if is_greeting && !self.reconnects {
                (self.sent, self.held, self.done) = (0, None, false);
            }
            if let (Breach::DropInStatus, true, false, TapFrame::Text(value)) =
                (self.breach, is_status, self.done, &mut frame)
            {
                value["data"].as_object_mut().unwrap().remove("status");
                self.done = true;
            }
            return vec![(sid.to_owned(), frame)];
        }
        let number = self.sent;
        self.sent += 1;
        let mut to = sid.to_owned();
        match (self.breach, &mut frame) {
            (Breach::Swap(at), _) if at == number => {
                self.held = Some(frame);
                return Vec::new();
            }
            (Breach::Misdirect(at), _) if at == number => {
                to = self.other.clone().unwrap();
                self.done = true;
            }
            (Breach::Drop(at), TapFrame::Text(value)) if number >= at && !self.done => {
                let data = value["data"].as_object_mut().unwrap();
                let last = data.keys().next_back().cloned().unwrap();
                data.remove(&last);
                self.done = true;
            }
            (Breach::Retype(at), TapFrame::Text(value)) if number >= at && !self.done => {
                self.done = retype(value.get_mut("data").unwrap());
            }
            _ => {}
        }
        let mut frames = vec![(to, frame)];
        if let Some(held) = self.held.take() {
            frames.push((sid.to_owned(), held));
            self.done = true;
        }
        frames
    }

    fn reply(&mut self, path: &str, reply: &mut Value) {
        match self.breach {
            Breach::DropInReply if reply.get("prompt_id").is_some() => {
                self.done |= reply.as_object_mut().unwrap().remove("node_errors").is_some();
            }
            Breach::RetypeInHistory if path.contains("/history/") => {
                self.done |= reply.as_object_mut().unwrap().values_mut().any(retype);
            }
            _ => {}
        }
    }
}

/// The first number inside becomes a text.
fn retype(value: &mut Value) -> bool {
    match value {
        Value::Number(number) => {
            *value = number.to_string().into();
            true
        }
        Value::Array(items) => items.iter_mut().any(retype),
        Value::Object(map) => map.values_mut().any(retype),
        _ => false,
    }
}

/// Whether the mutant of the simulator was caught; panics when it did not break anything.
async fn is_caught(scenario: &str, breach: Breach) -> bool {
    let breaker = Arc::new(Mutex::new(Breaker::new(scenario, breach)));
    let (of_frames, of_replies) = (breaker.clone(), breaker.clone());
    let tap: Tap = Arc::new(move |sid, frame| of_frames.lock().frame(sid, frame));
    let reply_tap: ReplyTap = Arc::new(move |path, reply| of_replies.lock().reply(path, reply));
    let config = SimConfig {
        speed: SPEED,
        tap: Some(tap),
        reply_tap: Some(reply_tap),
        ..SimConfig::default()
    };
    let sim = Sim::start(config).await.unwrap();
    let name = format!("ws {scenario}");
    let mut report = check(&sim.url(), &options(&name)).await.unwrap();
    report.results.retain(|result| result.name == name);
    assert_eq!(report.results.len(), 1);
    sim.stop().await;
    if let Breach::None = breach {
        assert!(report.is_ok(), "the control: {}", failures(&report.results));
        return true;
    }
    assert!(breaker.lock().done, "{scenario}: {breach:?} broke nothing");
    !report.is_ok()
}

#[tokio::test]
async fn every_breach_of_a_running_server_is_caught() {
    let names = scenarios().unwrap().into_iter().map(|scenario| scenario.scenario);
    let mutants: Vec<(String, Breach)> =
        names.flat_map(|name| BREACHES.map(|breach| (name.clone(), breach))).collect();
    let count = mutants.iter().filter(|(_, breach)| !matches!(breach, Breach::None)).count();
    let missed: Vec<String> = futures_util::stream::iter(mutants)
        .map(|(name, breach)| async move {
            let caught = is_caught(&name, breach).await;
            (!caught).then(|| format!("{name}: {breach:?}"))
        })
        .buffer_unordered(8)
        .filter_map(|missed| async move { missed })
        .collect()
        .await;
    assert!(missed.is_empty(), "{missed:#?}");
    println!("{count} breaches of a running server");
}

/// Every exchange with another status, without its content type, without any one field.
#[test]
fn every_mutant_of_an_exchange_is_caught() {
    let names = Names::default().lenient();
    let mut ran = 0;
    for exchange in exchanges().unwrap() {
        let mut mutants = vec![exchange.response.clone()];
        mutants[0].status += 1;
        if exchange.response.headers.contains_key("content-type") {
            let mut bare = exchange.response.clone();
            bare.headers.remove("content-type");
            mutants.push(bare);
        }
        let mut places = Vec::new();
        all_places("", &exchange.response.body, &mut places);
        for place in places.iter().filter(|place| !place.contains("/extension")) {
            let keys: Vec<String> = match exchange.response.body.pointer(place).unwrap() {
                Value::Object(map) => map.keys().cloned().collect(),
                _ => continue,
            };
            // Of a body kept by its head, the length stands for one that is no image.
            for key in keys.into_iter().filter(|key| key != "length" && key != "base64_head") {
                let mut less = exchange.response.clone();
                let map = less.body.pointer_mut(place).unwrap().as_object_mut().unwrap();
                map.remove(&key);
                mutants.push(less);
            }
        }
        for mutant in &mutants {
            let differences = compare_exchange(&exchange, mutant, (&names, &names));
            assert!(!differences.is_empty(), "{}: not caught: {mutant:?}", exchange.name);
        }
        ran += mutants.len();
    }
    println!("{ran} mutants of exchanges");
    assert!(ran > 300, "{ran}");
}

fn all_places(place: &str, value: &Value, places: &mut Vec<String>) {
    places.push(place.to_owned());
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                all_places(&format!("{place}/{index}"), item, places);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                all_places(&format!("{place}/{key}"), item, places);
            }
        }
        _ => {}
    }
}

fn assert_caught(expectation: &Expectation, mutant: &Transcript, what: &str) {
    let caught = !expectation.compare(mutant).is_empty();
    assert!(caught, "{}: not caught: {what}", mutant.scenario);
}

/// Frames whose order is the contract: both of a prompt, and not alike.
fn is_telling_swap(a: &Frame, b: &Frame) -> bool {
    let apart = |frame: &Frame| matches!(frame.kind(), Some("status" | "feature_flags"));
    let prompt = |frame: &Frame| frame.data().and_then(|data| data.get("prompt_id").cloned());
    let same_prompt = match (prompt(a), prompt(b)) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    let differ = a.text != b.text || a.binary_base64 != b.binary_base64;
    !apart(a) && !apart(b) && same_prompt && differ
}

fn with_frames(scenario: &Scenario, listener: &str, frames: Vec<Frame>) -> Transcript {
    let mut mutant = scenario.clone();
    if listener == RECONNECTED {
        mutant.extra["reconnected_frames"] = serde_json::to_value(frames).unwrap();
    } else {
        mutant.frames.insert(listener.to_owned(), frames);
    }
    mutant
}

type Mutate<'a> = &'a dyn Fn(&Value) -> Vec<(String, Value)>;

/// Applies a mutation at every place that a server fills: frames, replies, extra, history.
/// Returns how many mutants ran; all must be caught.
fn mutate_every_value(mutate: Mutate<'_>) -> usize {
    let mut ran = 0;
    for recorded in scenarios().unwrap().iter().map(with_small_pictures) {
        let expectation = Expectation::of(&recorded);
        let whole = serde_json::to_value(&recorded).unwrap();
        let mut places = Vec::new();
        for root in ["frames", "posts", "extra", "history"] {
            collect(&format!("/{root}"), &whole[root], &mut places);
        }
        let mut seen = BTreeSet::new();
        places.retain(|place| seen.insert(likeness(&whole, place)));
        for place in places {
            for (what, mutated) in mutate(whole.pointer(&place).unwrap()) {
                if is_equivalent(&place, &what) {
                    continue;
                }
                let mut mutant = whole.clone();
                *mutant.pointer_mut(&place).unwrap() = mutated;
                let mutant: Transcript = serde_json::from_value(mutant).unwrap();
                assert_caught(&expectation, &mutant, &format!("{place} {what}"));
                ran += 1;
            }
        }
    }
    ran
}

/// Places that differ only in which of several frames of one type, structure and listener, or in
/// which entry of the history they are, count once: the steps of a run are many and alike.
fn likeness(whole: &Value, place: &str) -> (String, String, String) {
    let parts: Vec<&str> = place.split('/').collect();
    let (frame, rest) = match parts.as_slice() {
        ["", "frames", _, _, rest @ ..] | ["", "extra", "reconnected_frames", _, rest @ ..] => {
            (parts[..4].join("/"), rest.join("/"))
        }
        ["", "history", _, _, rest @ ..] => {
            return ("history".to_owned(), rest.join("/"), String::new());
        }
        _ => return (place.to_owned(), String::new(), String::new()),
    };
    let text = &whole.pointer(&frame).unwrap()["text"];
    let mut structure = Vec::new();
    collect("/frames/_/_/text", text, &mut structure);
    (parts[..3].join("/"), format!("{} {rest}", text["type"]), structure.join(" "))
}

/// Decoding the pictures of every mutant would take most of the time.
fn with_small_pictures(scenario: &Scenario) -> Scenario {
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(1, 1).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let preview = [vec![0, 0, 0, 1, 0, 0, 0, 2], png.into_inner()].concat();
    let preview = STANDARD.encode(preview);
    let mut small = scenario.clone();
    for (listener, mut frames) in scenario.listeners() {
        for frame in frames.iter_mut().filter(|frame| frame.binary_base64.is_some()) {
            frame.binary_base64 = Some(preview.clone());
        }
        small = with_frames(&small, &listener, frames);
    }
    small
}

fn collect(place: &str, value: &Value, places: &mut Vec<String>) {
    if is_of_the_server(place) {
        places.push(place.to_owned());
    }
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(&format!("{place}/{index}"), item, places);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                collect(&format!("{place}/{key}"), item, places);
            }
        }
        _ => {}
    }
}

/// Not the parts that the transcript adds itself: times, requests, and its own structure.
fn is_of_the_server(place: &str) -> bool {
    let parts: Vec<&str> = place.split('/').skip(1).collect();
    match parts.as_slice() {
        ["frames", _, _, "text", ..]
        | ["extra", "reconnected_frames", _, "text", ..]
        | ["posts", _, "body", ..]
        | ["history", _, ..] => true,
        ["extra", first, ..] => *first != "reconnected_frames",
        _ => false,
    }
}

/// Mutants that mean the same: inside what extensions announce, and the lines of a traceback.
fn is_equivalent(place: &str, what: &str) -> bool {
    place.contains("/extension/") || (place.ends_with("/extension") && !what.starts_with('→'))
}

/// The scenario as another server would have run it.
fn displaced(recorded: &Scenario) -> Transcript {
    let mut text = serde_json::to_string(recorded).unwrap();
    for (index, post) in recorded.posts.iter().enumerate() {
        let id = post.body["prompt_id"].as_str().unwrap();
        text = text.replace(id, &format!("00000000-0000-4000-8000-0000000000{index:02}"));
    }
    let mut later: Value = serde_json::from_str(&text).unwrap();
    displace(&mut later);
    let mut later: Transcript = serde_json::from_value(later).unwrap();
    for (old, new) in recorded.posts.iter().zip(later.posts.clone()) {
        let ids = [&old.body, &new.body].map(|body| body["prompt_id"].as_str().unwrap().to_owned());
        for frame in later.frames.values_mut().flatten() {
            rename_in_preview(frame, &ids[0], &ids[1]);
        }
    }
    for frames in later.frames.values_mut() {
        let last = frames.len() - 1;
        if frames[last].is_end() && frames[last - 1].kind() == Some("status") {
            frames.swap(last - 1, last);
        }
    }
    later
}

/// A flagged preview names its prompt.
fn rename_in_preview(frame: &mut Frame, old: &str, new: &str) {
    let Some(base64) = &mut frame.binary_base64 else { return };
    let mut bytes = STANDARD.decode(&base64).unwrap();
    if let Some(at) = bytes.windows(old.len()).position(|part| part == old.as_bytes()) {
        bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
        *base64 = STANDARD.encode(bytes);
    }
}

fn displace(value: &mut Value) {
    match value {
        Value::Array(items) => {
            if let [Value::Number(number), Value::String(_), Value::Object(_), ..] =
                items.as_slice()
                && let Some(n) = number.as_i64()
            {
                items[0] = shifted(n);
            }
            items.iter_mut().for_each(displace);
        }
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let number = value.as_i64();
                match (key.as_str(), number) {
                    ("timestamp" | "create_time", Some(n)) => *value = json!(n + 86_400_000),
                    ("seed", Some(n)) => *value = json!(n + 1_000_000),
                    ("seed", None) => value[0] = json!(value[0].as_i64().unwrap() + 1_000_000),
                    ("number", Some(n)) => *value = shifted(n),
                    ("filename", _) => {
                        *value = value.as_str().unwrap().replace("_000", "_012").into();
                    }
                    ("traceback", _) => *value = json!(["elsewhere"]),
                    ("current_outputs", _) => value.as_array_mut().unwrap().reverse(),
                    _ => displace(value),
                }
            }
        }
        _ => {}
    }
}

fn shifted(number: i64) -> Value {
    json!(if number < 0 { number - 40 } else { number + 40 })
}
