//! Meanings and attribution, against what a real server was heard to say.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::clock::Moment;
use crate::conformance::{self, Scenario};
use crate::identity::ClientKey;
use crate::pool::core::Input;
use crate::pool::frame::{Frame, Meaning};

const HERE: BackendId = BackendId(7);

fn text(value: &Value) -> Frame {
    Frame { binary: false, bytes: Bytes::from(value.to_string()) }
}

fn raw(text: &str) -> Frame {
    Frame { binary: false, bytes: Bytes::copy_from_slice(text.as_bytes()) }
}

fn binary(bytes: &[u8]) -> Frame {
    Frame { binary: true, bytes: Bytes::copy_from_slice(bytes) }
}

fn recorded(frame: &conformance::Frame) -> Frame {
    match (&frame.text, &frame.binary_base64) {
        (Some(value), _) => text(value),
        (None, Some(base64)) => binary(&STANDARD.decode(base64).unwrap()),
        (None, None) => panic!("a recorded frame is text or binary"),
    }
}

static SCENARIOS: LazyLock<Vec<Scenario>> = LazyLock::new(|| conformance::scenarios().unwrap());

fn scenario(name: &str) -> &'static Scenario {
    SCENARIOS.iter().find(|s| s.scenario == name).unwrap()
}

fn frames(scenario: &Scenario, listener: &str) -> Vec<Frame> {
    scenario.listeners()[listener].iter().map(recorded).collect()
}

/// Jobs by the id that the backend knows.
#[derive(Default)]
struct Jobs(HashMap<String, Known>);

impl Jobs {
    fn with(mut self, theirs: &str, job: u64, flavour: Flavour, client: Option<&str>) -> Self {
        let owner = Owner {
            key: ClientKey::of_address([127, 0, 0, 1].into()),
            caller: "someone".into(),
            client_id: client.map(Into::into),
        };
        let known = Known { job: JobId(job), owner, prompt_id: theirs.into(), flavour };
        self.0.insert(theirs.to_owned(), known);
        self
    }

    /// The prompts of a recording, as if each had been posted under the sid of this socket.
    fn of(scenario: &Scenario, flavour: Flavour, client: Option<&str>) -> Self {
        let ids = scenario.posts.iter().map(|post| post.body["prompt_id"].as_str().unwrap());
        ids.zip(0..).fold(Self::default(), |jobs, (id, n)| jobs.with(id, n, flavour, client))
    }
}

impl Directory for Jobs {
    fn job(&self, backend: BackendId, prompt_id: &str) -> Option<Known> {
        assert_eq!(backend, HERE);
        self.0.get(prompt_id).cloned()
    }
}

fn attribution() -> Attribution {
    Attribution::new(HERE, Arc::new(|_| {}))
}

fn hear(who: &mut Attribution, flavour: Flavour, frames: &[Frame], jobs: &Jobs) -> Vec<Verdict> {
    frames.iter().map(|frame| who.heard(flavour, frame, Moment(1000), jobs)).collect()
}

fn delivered(verdicts: &[Verdict]) -> Vec<Frame> {
    verdicts.iter().filter_map(|v| Some(v.delivery.as_ref()?.frame.clone())).collect()
}

fn names(frames: &[Frame]) -> Vec<(String, Meaning)> {
    frames.iter().map(parse).map(|heard| (heard.name.into_owned(), heard.meaning)).collect()
}

/// Whether a message is about a prompt, in a recording of a listener that is the only client.
fn of_a_prompt(frame: &Frame) -> bool {
    !matches!(parse(frame).kind, Kind::Status { .. } | Kind::FeatureFlags)
}

#[test]
fn messages_mean_what_the_contract_says() {
    let named = |name: &str, data: Value| text(&json!({"type": name, "data": data}));
    for (frame, kind, meaning, id) in [
        (named("execution_start", json!({"prompt_id": "p"})), Kind::Event, Meaning::Start, true),
        (named("execution_cached", json!({"prompt_id": "p"})), Kind::Event, Meaning::Cached, true),
        (named("executing", json!({"node": "1"})), Kind::Event, Meaning::Executing, false),
        (
            named("executing", json!({"node": null, "prompt_id": "p"})),
            Kind::Event,
            Meaning::End,
            true,
        ),
        (named("executed", json!({"prompt_id": "p"})), Kind::Event, Meaning::Output, true),
        (named("progress", json!({"prompt_id": "p"})), Kind::Event, Meaning::Progress, true),
        (
            named("progress_state", json!({"nodes": {"1": {"prompt_id": "q"}}, "prompt_id": "p"})),
            Kind::Event,
            Meaning::ProgressState,
            true,
        ),
        (
            named("execution_error", json!({"prompt_id": "p", "exception_type": "KeyError"})),
            Kind::Event,
            Meaning::Terminal,
            true,
        ),
        (
            named(
                "execution_error",
                json!({"prompt_id": "p", "exception_type": "ExecutionBlocked"}),
            ),
            Kind::Event,
            Meaning::Other,
            true,
        ),
        (named("logs", json!({"entries": []})), Kind::Logs, Meaning::Other, false),
        (named("my_nodes", json!([1, {"prompt_id": "p"}])), Kind::Custom, Meaning::Other, false),
        (named("my_nodes", json!({"prompt_id": "p"})), Kind::Custom, Meaning::Other, true),
        (named("my_nodes", json!({"prompt_id": 5})), Kind::Custom, Meaning::Other, false),
        (raw("not JSON"), Kind::Custom, Meaning::Other, false),
        (
            raw(r#"{"type": "executed", "data": {"output": {"a": NaN}, "prompt_id": "p"}}"#),
            Kind::Event,
            Meaning::Output,
            true,
        ),
        (
            raw(r#"{"data": {"prompt_id": "\u0070"}, "type": "execution_success"}"#),
            Kind::Event,
            Meaning::Terminal,
            true,
        ),
        (binary(&[0, 0, 0, 1, 0, 0, 0, 1]), Kind::Preview, Meaning::Preview, false),
        (binary(&[0, 0, 0, 3, 0, 0, 0, 1, b'1']), Kind::Text, Meaning::Other, false),
        (binary(&[0, 0, 0, 4, 0, 0]), Kind::PreviewWithMetadata, Meaning::Preview, false),
        (
            binary(b"\0\0\0\x04\0\0\0\x11{\"prompt_id\":\"p\"}image"),
            Kind::PreviewWithMetadata,
            Meaning::Preview,
            true,
        ),
        (binary(&[0, 0, 0, 99]), Kind::Custom, Meaning::Other, false),
        (binary(&[0]), Kind::Custom, Meaning::Other, false),
    ] {
        let heard = parse(&frame);
        assert_eq!((&heard.kind, heard.meaning), (&kind, meaning), "{frame:?}");
        assert_eq!(heard.prompt_id.as_deref(), id.then_some("p"), "{frame:?}");
    }
    let greeting = raw(
        r#"{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 2}}, "sid": "S"}}"#,
    );
    let kind = Kind::Status { remaining: Some(2), sid: Some("S".into()) };
    assert_eq!(parse(&greeting).kind, kind);
    let broken = raw(r#"{"type": "status", "data": 1}"#);
    assert_eq!(parse(&broken).kind, Kind::Status { remaining: None, sid: None });
}

#[test]
fn what_an_owner_was_recorded_to_hear_is_what_he_gets() {
    for scenario in SCENARIOS.iter() {
        if scenario.scenario == "run_no_client_id" {
            continue;
        }
        let flavour = match scenario.scenario.as_str() {
            "run_ok_flags" => Flavour::Flags,
            _ => Flavour::Plain,
        };
        let jobs = Jobs::of(scenario, flavour, Some("client"));
        for listener in scenario.listeners().keys() {
            let heard = frames(scenario, listener);
            let mut who = attribution();
            let verdicts = hear(&mut who, flavour, &heard, &jobs);
            let mut wanted: Vec<Frame> = heard.into_iter().filter(of_a_prompt).collect();
            if listener == conformance::RECONNECTED {
                wanted.remove(0);
            }
            assert_eq!(delivered(&verdicts), wanted, "{} {listener}", scenario.scenario);
        }
    }
}

/// The order in which prompts run of which the first found the server idle.
fn by_number(scenario: &Scenario) -> Vec<u64> {
    let mut all: Vec<u64> = (0..scenario.posts.len() as u64).collect();
    let number = |n: u64| scenario.posts[n as usize].body["number"].as_f64().unwrap();
    all[1..].sort_by(|&a, &b| number(a).total_cmp(&number(b)));
    all
}

#[test]
fn the_core_hears_of_each_prompts_start_and_end_once_and_in_order() {
    for (name, listener, ends) in [
        ("run_ok", "owner", vec![0]),
        ("run_error", "owner", vec![0]),
        ("run_cached", "owner", vec![0, 1]),
        ("interrupt_running", "owner", vec![0]),
        ("delete_pending", "owner", vec![0]),
        ("front_and_number", "owner", by_number(scenario("front_and_number"))),
    ] {
        let scenario = scenario(name);
        let jobs = Jobs::of(scenario, Flavour::Plain, Some("client"));
        let verdicts = hear(&mut attribution(), Flavour::Plain, &frames(scenario, listener), &jobs);
        let mut lives = Vec::new();
        for input in verdicts.into_iter().filter_map(|verdict| verdict.input) {
            match input {
                Input::Started { backend: HERE, job } => lives.push((job.0, "started")),
                Input::Finished { backend: HERE, job } => lives.push((job.0, "finished")),
                Input::Alive { backend: HERE, .. } => {}
                other => panic!("{other:?}"),
            }
        }
        let started: Vec<u64> = lives.iter().filter(|l| l.1 == "started").map(|l| l.0).collect();
        let finished: Vec<u64> = lives.iter().filter(|l| l.1 == "finished").map(|l| l.0).collect();
        assert_eq!(started, finished, "{name}");
        assert_eq!(finished, ends, "{name}");
        assert!(lives.chunks(2).all(|pair| pair[0].0 == pair[1].0), "{name}: {lives:?}");
    }
}

#[test]
fn an_owner_without_client_id_gets_what_comfyui_would_broadcast() {
    let run = scenario("run_ok");
    let jobs = Jobs::of(run, Flavour::Plain, None);
    let verdicts = hear(&mut attribution(), Flavour::Plain, &frames(run, "owner"), &jobs);
    let broadcast = frames(scenario("run_no_client_id"), "x");
    let broadcast: Vec<Frame> = broadcast.into_iter().filter(of_a_prompt).collect();
    assert_eq!(names(&delivered(&verdicts)), names(&broadcast));
    assert!(matches!(verdicts.last().unwrap().input, Some(Input::Finished { .. })));
}

#[test]
fn strangers_prompts_are_strays() {
    let run = scenario("run_no_client_id");
    for flavour in Flavour::ALL {
        let verdicts = hear(&mut attribution(), flavour, &frames(run, "x"), &Jobs::default());
        for verdict in &verdicts {
            assert!(verdict.delivery.is_none() && verdict.input.is_none());
            assert_ne!(verdict.depth.is_some(), verdict.stray);
        }
    }
}

#[test]
fn a_broadcast_without_an_id_counts_once_for_the_one_running_job() {
    let start = text(&json!({"type": "execution_start", "data": {"prompt_id": "p"}}));
    let end = text(&json!({"type": "executing", "data": {"node": null, "prompt_id": "p"}}));
    let broadcast = [
        binary(&[0, 0, 0, 3, 0, 0, 0, 1, b'1', b'x']),
        text(&json!({"type": "custom", "data": 1})),
    ];
    let jobs = Jobs::default().with("p", 1, Flavour::Flags, Some("c"));
    let mut who = attribution();
    for frame in &broadcast {
        assert!(who.heard(Flavour::Flags, frame, Moment(1), &jobs).stray);
    }
    hear(&mut who, Flavour::Flags, &[start], &jobs);
    for frame in &broadcast {
        assert!(who.heard(Flavour::Plain, frame, Moment(1), &jobs).delivery.is_none());
        let delivery = who.heard(Flavour::Flags, frame, Moment(1), &jobs).delivery.unwrap();
        assert_eq!((&delivery.frame, delivery.job), (frame, JobId(1)));
    }
    hear(&mut who, Flavour::Flags, &[end], &jobs);
    for frame in &broadcast {
        assert!(who.heard(Flavour::Flags, frame, Moment(1), &jobs).stray);
    }
}

#[test]
fn a_broadcast_with_an_id_is_taken_from_its_jobs_socket_alone() {
    let event = text(&json!({"type": "progress_state", "data": {"prompt_id": "p", "nodes": {}}}));
    let jobs = Jobs::default().with("p", 1, Flavour::Plain, Some("c"));
    let mut who = attribution();
    let wrong = who.heard(Flavour::Flags, &event, Moment(1), &jobs);
    assert!(wrong.delivery.is_none() && wrong.input.is_none() && !wrong.stray);
    let right = who.heard(Flavour::Plain, &event, Moment(1), &jobs);
    assert!(right.delivery.is_some() && matches!(right.input, Some(Input::Started { .. })));
}

#[test]
fn after_a_reconnect_previews_find_their_job_again() {
    let run = scenario("reconnect_while_running");
    let jobs = Jobs::of(run, Flavour::Plain, Some("client"));
    let id = run.posts[0].body["prompt_id"].as_str().unwrap();
    let preview = binary(&[0, 0, 0, 1, 0, 0, 0, 1]);
    let mut who = attribution();
    hear(&mut who, Flavour::Plain, &frames(run, "first"), &jobs);
    assert!(who.heard(Flavour::Plain, &preview, Moment(1), &jobs).delivery.is_some());
    who.lost(Flavour::Plain);
    assert!(who.heard(Flavour::Plain, &preview, Moment(1), &jobs).stray);
    who.resume(Flavour::Plain, id);
    assert!(who.heard(Flavour::Plain, &preview, Moment(1), &jobs).delivery.is_some());
    who.lost(Flavour::Plain);
    let verdicts = hear(&mut who, Flavour::Plain, &frames(run, conformance::RECONNECTED), &jobs);
    assert!(matches!(
        verdicts.iter().find_map(|verdict| verdict.input.clone()),
        Some(Input::Started { .. })
    ));
}

#[test]
fn a_prompt_that_was_given_up_tells_nobody_anything() {
    let start = text(&json!({"type": "execution_start", "data": {"prompt_id": "p"}}));
    let preview = binary(&[0, 0, 0, 1, 0, 0, 0, 1]);
    let mut jobs = Jobs::default().with("p", 1, Flavour::Plain, Some("c"));
    let mut who = attribution();
    hear(&mut who, Flavour::Plain, &[start], &jobs);
    jobs.0.clear();
    assert!(who.heard(Flavour::Plain, &preview, Moment(1), &jobs).stray);
}

#[test]
fn what_comes_late_of_a_prompt_goes_to_its_owner_and_revives_nothing() {
    let run = scenario("run_ok");
    let jobs = Jobs::of(run, Flavour::Plain, Some("client"));
    let id = run.posts[0].body["prompt_id"].as_str().unwrap();
    let late = text(&json!({"type": "progress", "data": {"prompt_id": id}}));
    let mut who = attribution();
    hear(&mut who, Flavour::Plain, &frames(run, "owner"), &jobs);
    let verdict = who.heard(Flavour::Plain, &late, Moment(1), &jobs);
    assert!(verdict.delivery.is_some() && verdict.input.is_none());
    let preview = binary(&[0, 0, 0, 1, 0, 0, 0, 1]);
    assert!(who.heard(Flavour::Plain, &preview, Moment(1), &jobs).stray);
}

#[test]
fn a_custom_message_that_names_a_waiting_prompt_does_not_start_it() {
    let jobs = Jobs::default().with("p", 1, Flavour::Plain, Some("c"));
    let custom = text(&json!({"type": "custom", "data": {"prompt_id": "p"}}));
    let verdict = attribution().heard(Flavour::Plain, &custom, Moment(1), &jobs);
    assert!(verdict.delivery.is_some() && verdict.input.is_none());
}

#[test]
fn life_is_told_once_a_second() {
    let jobs = Jobs::default().with("p", 1, Flavour::Plain, Some("c"));
    let mut who = attribution();
    let event = text(&json!({"type": "progress", "data": {"prompt_id": "p"}}));
    let mut told = 0;
    for ms in (1000..11_000).step_by(10) {
        let verdict = who.heard(Flavour::Plain, &event, Moment(ms), &jobs);
        assert!(verdict.delivery.is_some());
        told += u32::from(matches!(verdict.input, Some(Input::Alive { .. })));
    }
    assert_eq!(told, 9);
}

#[test]
fn the_depth_is_told_by_the_plain_socket_while_it_is_there() {
    let jobs = Jobs::default();
    let status =
        text(&json!({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 3}}}}));
    let mut who = attribution();
    let depth =
        |who: &mut Attribution, flavour| who.heard(flavour, &status, Moment(1), &jobs).depth;
    assert_eq!(depth(&mut who, Flavour::Flags), Some(3));
    who.opened(Flavour::Plain);
    assert_eq!(depth(&mut who, Flavour::Flags), None);
    assert_eq!(depth(&mut who, Flavour::Plain), Some(3));
    who.lost(Flavour::Plain);
    assert_eq!(depth(&mut who, Flavour::Flags), Some(3));
}

#[test]
fn an_old_servers_ids_become_ours_even_when_it_tells_them_before_its_reply() {
    let run = scenario("run_ok");
    let theirs = run.posts[0].body["prompt_id"].as_str().unwrap();
    let heard: Vec<Frame> = frames(run, "owner");
    let mut who = attribution();
    let early = hear(&mut who, Flavour::Plain, &heard[..5], &Jobs::default());
    assert!(delivered(&early).is_empty());
    let mut jobs = Jobs::of(run, Flavour::Plain, Some("client"));
    jobs.0.get_mut(theirs).unwrap().prompt_id = "ours".into();
    let mut verdicts = who.claim(theirs, Moment(1), &jobs);
    verdicts.extend(hear(&mut who, Flavour::Plain, &heard[5..], &jobs));
    let delivered = delivered(&verdicts);
    let wanted: Vec<Frame> = heard.into_iter().filter(of_a_prompt).collect();
    assert_eq!(names(&delivered), names(&wanted));
    assert!(delivered.iter().all(|frame| parse(frame).prompt_id.is_none_or(|id| id == "ours")));
    let holds = |frame: &Frame| String::from_utf8_lossy(&frame.bytes).contains(theirs);
    assert!(!delivered.iter().any(holds));
}

#[test]
fn files_in_outputs_are_marked_and_nothing_else_is_touched() {
    let mark: Rewrite = Arc::new(|output| output["images"][0]["subfolder"] = "@here".into());
    let run = scenario("run_ok");
    let jobs = Jobs::of(run, Flavour::Plain, Some("client"));
    let mut who = Attribution::new(HERE, mark);
    let heard = frames(run, "owner");
    let verdicts = hear(&mut who, Flavour::Plain, &heard, &jobs);
    for (before, verdict) in heard.iter().zip(&verdicts) {
        let Some(delivery) = &verdict.delivery else { continue };
        if delivery.meaning == Meaning::Output {
            let after: Value = serde_json::from_slice(&delivery.frame.bytes).unwrap();
            assert_eq!(after["data"]["output"]["images"][0]["subfolder"], "@here");
        } else {
            assert_eq!(delivery.frame, *before);
        }
    }
}

/// The frames of two prompts that ran one after another, each posted under the sid of another
/// socket, with a broadcast in each that comes on both sockets.
fn two_sockets() -> ([Vec<Frame>; 2], Jobs) {
    let run = scenario("two_queued");
    let jobs = Jobs::default()
        .with(run.posts[0].body["prompt_id"].as_str().unwrap(), 0, Flavour::Plain, Some("A"))
        .with(run.posts[1].body["prompt_id"].as_str().unwrap(), 1, Flavour::Flags, Some("B"));
    let (mut a, mut b) = (frames(run, "A"), frames(run, "B"));
    let note = |n: u8| binary(&[0, 0, 0, 3, 0, 0, 0, 1, b'1', n]);
    let after = |frames: &[Frame], meaning| {
        frames.iter().position(|frame| parse(frame).meaning == meaning).unwrap() + 1
    };
    // During the first prompt both hear note 1, during the second both hear note 2.
    let (start_a, start_b) = (after(&a, Meaning::Start), after(&b, Meaning::Start));
    a.push(note(2));
    a.insert(start_a, note(1));
    b.insert(start_b, note(2));
    b.insert(start_b - 1, note(1));
    ([a, b], jobs)
}

proptest! {
    #[test]
    fn the_order_between_the_sockets_does_not_matter(order in prop::collection::vec(any::<bool>(), 0..200)) {
        let ([a, b], jobs) = two_sockets();
        let (mut a, mut b) = (a.iter(), b.iter());
        let mut who = attribution();
        let mut got = [Vec::new(), Vec::new()];
        for plain in order.into_iter().chain([true; 100]).chain([false; 100]) {
            let (flavour, next) =
                if plain { (Flavour::Plain, a.next()) } else { (Flavour::Flags, b.next()) };
            let Some(frame) = next else { continue };
            if let Some(delivery) = who.heard(flavour, frame, Moment(1), &jobs).delivery {
                let client = delivery.owner.client_id.as_deref();
                prop_assert_eq!(client, Some(["A", "B"][delivery.job.0 as usize]));
                got[delivery.job.0 as usize].push(delivery.frame);
            }
        }
        let ([a, b], _) = two_sockets();
        let notes = |frame: &Frame, n: u8| frame.binary && frame.bytes[3] == 3 && frame.bytes[9] != n;
        let wanted = |all: Vec<Frame>, n| -> Vec<Frame> {
            all.into_iter().filter(|frame| of_a_prompt(frame) && !notes(frame, n)).collect()
        };
        prop_assert_eq!(&got[0], &wanted(a, 1));
        prop_assert_eq!(&got[1], &wanted(b, 2));
    }

    #[test]
    fn arbitrary_messages_never_panic(
        messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..80), any::<bool>(), any::<bool>()), 0..20)
    ) {
        let jobs = Jobs::default().with("p", 1, Flavour::Plain, None);
        let mut who = attribution();
        who.resume(Flavour::Plain, "p");
        for (bytes, binary, plain) in messages {
            let frame = Frame { binary, bytes: bytes.into() };
            let flavour = if plain { Flavour::Plain } else { Flavour::Flags };
            who.heard(flavour, &frame, Moment(1), &jobs);
        }
    }

    #[test]
    fn cut_and_mangled_messages_never_panic(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let run = scenario("run_ok_flags");
        let frames = frames(run, "owner");
        let frame = &frames[which.index(frames.len())];
        let mut bytes = frame.bytes.to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let frame = Frame { binary: frame.binary, bytes: bytes.into() };
        let jobs = Jobs::of(run, Flavour::Flags, Some("c"));
        let mut who = attribution();
        who.heard(Flavour::Flags, &frame, Moment(1), &jobs);
    }
}
