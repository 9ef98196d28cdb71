//! Many clients at once, each doing what its seed says, against one simulator or a gateway in pool
//! mode; afterwards everything heard and told is held against the ledger of what was done.
//!
//! `COMFYGATE_SEED=n` repeats the decisions of a run that failed; with `COMFYGATE_TEST_FULL` there
//! are 40 clients for ten minutes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use comfygate::sim::{Sim, SimConfig};
use rand::RngCore;
use serde_json::json;

use super::actor::{Client, Listening};
use super::agreement::{Kind, Trial, Witness};
use super::asking::Http;
use super::breach::BREACHES;
use super::ledger::Ledger;
use super::step::{Plan, Profile, graph};
use crate::support::{PATIENCE, eventually, is_full};

/// Problems shown of a run that failed.
const MOST_SHOWN: usize = 30;
/// How long to listen on for what should not come.
const AFTERMATH: Duration = Duration::from_millis(300);

/// How large a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) clients: usize,
    pub(crate) time: Duration,
    /// The longest pause of a client between two steps, in milliseconds.
    pub(crate) pause_ms: u64,
    /// How long after the last prompt its events may still be on their way.
    pub(crate) stragglers: Duration,
}

impl Size {
    /// As the suite has time for, or as the issue wants it.
    pub(crate) fn of_suite(pause_ms: u64) -> Self {
        let stragglers = Duration::from_secs(15);
        if is_full() {
            Self { clients: 40, time: Duration::from_mins(10), pause_ms: 4_000, stragglers }
        } else {
            Self { clients: 12, time: Duration::from_secs(8), pause_ms, stragglers }
        }
    }
}

/// The server under test.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) base: String,
    pub(crate) kind: Kind,
}

/// Simulators for such runs: nothing of theirs is forgotten, and their own reconnect bug is off.
fn config() -> SimConfig {
    SimConfig {
        speed: 10.0,
        reconnect_bug: false,
        keep_outputs: 100_000,
        history_size: 100_000,
        ..SimConfig::default()
    }
}

pub(crate) async fn farm(count: usize) -> Vec<Sim> {
    let mut farm = Vec::new();
    for _ in 0..count {
        farm.push(Sim::start(config()).await.unwrap());
    }
    farm
}

/// The seed of a run: a fresh one, or the one asked for.
fn seed() -> u64 {
    match std::env::var("COMFYGATE_SEED") {
        Ok(seed) => seed.parse().expect("COMFYGATE_SEED is a number"),
        Err(_) => rand::rng().next_u64(),
    }
}

/// Runs it and panics with the seed and all that was wrong.
pub(crate) async fn run(target: Target, size: Size) {
    let seed = seed();
    println!("COMFYGATE_SEED={seed}");
    let problems = problems(&target, size, seed).await;
    let shown = problems.iter().take(MOST_SHOWN).cloned().collect::<Vec<_>>().join("\n");
    let count = problems.len();
    assert!(problems.is_empty(), "COMFYGATE_SEED={seed}: {count} problems\n{shown}");
}

/// Runs it and says all that was wrong.
async fn problems(target: &Target, size: Size, seed: u64) -> Vec<String> {
    let ledger = Arc::new(Ledger::default());
    let until = Instant::now() + size.time;
    let mut clients = Vec::new();
    for index in 0..size.clients {
        let profile = Profile::of(seed, index);
        let random = profile.random(seed);
        let client = Client::connect(&target.base, profile, ledger.clone()).await;
        clients.push(tokio::spawn(client.live(random, until, size.pause_ms)));
    }
    let mut ears = Vec::new();
    for client in clients {
        ears.push(client.await.unwrap_or_else(|error| panic!("COMFYGATE_SEED={seed}: {error}")));
    }
    let mut problems = judge(target, &ledger, ears, size.stragglers).await;
    problems.extend(alone(target).await);
    problems
}

/// Waits until all is over, then says all that is wrong.
async fn judge(
    target: &Target,
    ledger: &Ledger,
    ears: Vec<Listening>,
    stragglers: Duration,
) -> Vec<String> {
    let http = Http::new(&target.base, "10.99.0.1");
    eventually("nothing runs and nothing waits", PATIENCE, async || http.depth().await == 0).await;
    let started = Instant::now();
    while started.elapsed() < stragglers && !trial(target, ledger, &ears, &http).await.1 {
        tokio::time::sleep(AFTERMATH).await;
    }
    tokio::time::sleep(AFTERMATH).await;
    let (trial, _) = trial(target, ledger, &ears, &http).await;
    println!("{}", trial.summary());
    let mut problems = trial.problems();
    for (id, entry) in ledger.prompts() {
        let ended = trial.history.get(&id).filter(|told| told["status"]["status_str"] == "success");
        let Some(told) = ended else { continue };
        let images = &told["outputs"]["2"]["images"];
        // ComfyUI leaves cached results out of the history of a prompt without a client.
        let has_client = told["prompt"][3]["client_id"].is_string();
        if matches!(target.kind, Kind::Plain) && images.is_null() && !has_client {
            continue;
        }
        let (status, bytes) = http.view(&images[0]).await;
        if status != 200 || !entry.picture.is(&bytes) {
            let length = bytes.len();
            problems.push(format!("{id}: not its picture: {status}, {length} bytes, of {images}"));
        }
    }
    problems
}

/// What there is to judge by now, and whether everybody has heard all.
async fn trial<'a>(
    target: &Target,
    ledger: &'a Ledger,
    ears: &[Listening],
    http: &Http,
) -> (Trial<'a>, bool) {
    let history = http.get("/history").await.1;
    let queue = http.get("/queue").await.1;
    let jobs = http.jobs().await;
    let witness = |(profile, ear): &Listening| Witness {
        profile: profile.clone(),
        sid: ear.sid.clone().unwrap_or_default(),
        sessions: ear.sessions(),
    };
    let witnesses = ears.iter().map(witness).collect();
    let trial = Trial { kind: target.kind, ledger, witnesses, history, queue, jobs };
    let complete = trial.missing().is_empty();
    (trial, complete)
}

/// With nobody else there: clears the queue, interrupts what runs, clears the history.
async fn alone(target: &Target) -> Vec<String> {
    let http = Http::new(&target.base, "10.99.0.1");
    let mut problems = Vec::new();
    for seed in 0..12 {
        let plan = Plan::Paced {
            seed,
            seconds: 600.0,
            steps: 100,
            fail_at: -1,
            preview: false,
            temporary: false,
        };
        let body = json!({"prompt": graph(&plan, ""), "client_id": "alone"});
        let (status, reply) = http.post("/prompt", &body).await;
        if status != 200 {
            problems.push(format!("alone: {status} {reply}"));
        }
    }
    let mut running = Vec::new();
    eventually("some run", PATIENCE, async || {
        let queue = http.get("/queue").await.1;
        running = queue["queue_running"].as_array().cloned().unwrap_or_default();
        !running.is_empty()
    })
    .await;
    let before = http.get("/history").await.1.as_object().map_or(0, serde_json::Map::len);
    http.post("/queue", &json!({"clear": true})).await;
    let queue = http.get("/queue").await.1;
    if queue["queue_pending"] != json!([]) {
        problems.push(format!("something waits after a clear: {}", queue["queue_pending"]));
    }
    running = queue["queue_running"].as_array().cloned().unwrap_or_default();
    for item in &running {
        http.post("/interrupt", &json!({"prompt_id": item[1]})).await;
    }
    eventually("nothing runs", PATIENCE, async || http.depth().await == 0).await;
    let after = http.get("/history").await.1.as_object().map_or(0, serde_json::Map::len);
    if after != before + running.len() {
        problems.push(format!("{} ran and {} came to history", running.len(), after - before));
    }
    http.post("/history", &json!({"clear": true})).await;
    let (history, jobs) = (http.get("/history").await.1, http.jobs().await);
    if history != json!({}) || !jobs.is_empty() {
        problems.push(format!("after a clear: {history}, {jobs:?}"));
    }
    problems
}

/// One simulator is the ideal farm of one: what fails here is wrong with the proof.
#[tokio::test(flavor = "multi_thread")]
async fn random_clients_of_one_simulator_agree_with_it() {
    let farm = farm(1).await;
    let target = Target { base: farm[0].url(), kind: Kind::Plain };
    run(target, Size::of_suite(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_clients_of_a_farm_agree_with_it() {
    let farm = farm(3).await;
    let gateway = super::pool(&farm).await;
    run(Target { base: gateway.data.clone(), kind: Kind::Pool }, Size::of_suite(150)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_server_does_wrong_is_noticed() {
    let size = Size {
        clients: 10,
        time: Duration::from_secs(4),
        pause_ms: 80,
        stragglers: Duration::from_millis(300),
    };
    let runs = BREACHES.map(|breach| async move {
        let sim = Sim::start(breach.apply(config())).await.unwrap();
        let target = Target { base: sim.url(), kind: Kind::Plain };
        let problems = problems(&target, size, 1).await;
        println!("{breach:?}: {} problems: {:?}", problems.len(), problems.first());
        problems.is_empty().then(|| format!("{breach:?}"))
    });
    let missed: Vec<_> = futures_util::future::join_all(runs).await.into_iter().flatten().collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}
