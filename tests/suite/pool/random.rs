//! Many clients at once, each doing what its seed says, against one simulator or a gateway in pool
//! mode; afterwards everything heard and told is held against the ledger of what was done.
//!
//! `COMFYGATE_SEED=n` repeats the decisions of a run that failed; with `COMFYGATE_TEST_FULL` there
//! are 40 clients for ten minutes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use comfygate::sim::{Sim, SimConfig, image_of_seed};
use rand::rngs::StdRng;
use rand::{Rng, RngCore};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use super::agreement::{Kind, Trial, Witness};
use super::ear::{Ear, Manner};
use super::ledger::{Entry, Ledger};
use super::step::{Order, Plan, Profile, Step, graph};
use crate::support::{PATIENCE, eventually, is_full};

/// Prompts of a run at most: fewer than a history holds.
const MOST_PROMPTS: usize = 9_000;
/// Problems shown of a run that failed.
const MOST_SHOWN: usize = 30;
/// How long after the last prompt its events may still be on their way.
const STRAGGLERS: Duration = Duration::from_secs(15);
/// How long to listen on for what should not come.
const AFTERMATH: Duration = Duration::from_millis(300);

/// How large a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) clients: usize,
    pub(crate) time: Duration,
    /// The longest pause of a client between two steps, in milliseconds.
    pub(crate) pause_ms: u64,
}

impl Size {
    /// As the suite has time for, or as the issue wants it.
    pub(crate) fn of_suite(pause_ms: u64) -> Self {
        if is_full() {
            Self { clients: 40, time: Duration::from_mins(10), pause_ms: 4_000 }
        } else {
            Self { clients: 12, time: Duration::from_secs(8), pause_ms }
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
pub(crate) async fn farm(count: usize) -> Vec<Sim> {
    let config = SimConfig {
        speed: 10.0,
        reconnect_bug: false,
        keep_outputs: 100_000,
        history_size: 100_000,
        ..SimConfig::default()
    };
    let mut farm = Vec::new();
    for _ in 0..count {
        farm.push(Sim::start(config.clone()).await.unwrap());
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
    let ledger = Arc::new(Ledger::default());
    let until = Instant::now() + size.time;
    let mut clients = Vec::new();
    for index in 0..size.clients {
        let profile = Profile::of(seed, index);
        let random = profile.random(seed);
        let client = Client::connect(&target, profile, ledger.clone()).await;
        clients.push(tokio::spawn(client.live(random, until, size.pause_ms)));
    }
    let mut ears = Vec::new();
    for client in clients {
        ears.push(client.await.unwrap_or_else(|error| panic!("COMFYGATE_SEED={seed}: {error}")));
    }
    let mut problems = judge(&target, &ledger, ears).await;
    problems.extend(alone(&target).await);
    let shown = problems.iter().take(MOST_SHOWN).cloned().collect::<Vec<_>>().join("\n");
    let count = problems.len();
    assert!(problems.is_empty(), "COMFYGATE_SEED={seed}: {count} problems\n{shown}");
    println!("{} prompts", ledger.count());
}

/// One client at work.
struct Client {
    profile: Profile,
    ear: Ear,
    http: Http,
    ledger: Arc<Ledger>,
    /// Its accepted prompts, in order, with the furthest state that it has read of each.
    prompts: Vec<(String, u8)>,
    last_paced: Option<Plan>,
    /// Its last upload: the name the server gave and the picture's seed.
    upload: Option<(String, u64)>,
    uploads: usize,
}

impl Client {
    async fn connect(target: &Target, profile: Profile, ledger: Arc<Ledger>) -> Self {
        let address = target.base.trim_start_matches("http://").parse().unwrap();
        let http = Http::new(&target.base, &profile.address);
        let mut ear = Ear::new(address, profile.clone());
        ear.open().await;
        let (prompts, last_paced, upload) = (Vec::new(), None, None);
        Self { profile, ear, http, ledger, prompts, last_paced, upload, uploads: 0 }
    }

    /// Steps and pauses until it is time; ends with a socket open.
    async fn live(mut self, mut random: StdRng, until: Instant, pause_ms: u64) -> Listening {
        while Instant::now() < until {
            let step = Step::draw(&mut random);
            let pause = Duration::from_millis(random.random_range(0..pause_ms));
            self.take(step).await;
            tokio::time::sleep(pause).await;
        }
        (self.profile, self.ear)
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Post(orders) => {
                for order in orders {
                    self.post(order).await;
                }
            }
            Step::Upload(seed) => self.upload(seed).await,
            Step::Delete(back) => self.delete(back).await,
            Step::Interrupt(back) => self.interrupt(back).await,
            Step::InterruptAny => {
                self.ledger.interrupt(&self.profile.address);
                self.http.post("/interrupt", &json!({})).await;
            }
            Step::Forget(back) => self.forget(back).await,
            Step::ReadJob(back) => self.read_job(back).await,
            Step::ReadQueue => self.read_queue().await,
            Step::Break { reset, away, post } => {
                self.ear.end(Manner::Abrupt(reset)).await;
                if let Some(order) = post {
                    self.post(order).await;
                }
                tokio::time::sleep(away).await;
                self.ear.open().await;
            }
            Step::Replace => self.ear.replace().await,
            Step::Leave { away } => {
                self.ear.end(Manner::Polite).await;
                tokio::time::sleep(away).await;
                self.ear.open().await;
            }
        }
    }

    async fn post(&mut self, order: Order) {
        let plan = match order.plan {
            // One of nobody leaves what a cache gives it out of history.
            Plan::Repeat if self.profile.anonymous => return,
            Plan::Repeat => match self.last_paced.clone() {
                Some(plan) => plan,
                None => return,
            },
            Plan::Load if self.upload.is_none() => return,
            plan => plan,
        };
        if self.ledger.count() >= MOST_PROMPTS {
            return;
        }
        let (image, loaded) = self.upload.clone().unzip();
        let mut body = json!({"prompt": graph(&plan, image.as_deref().unwrap_or_default())});
        let client_id = if self.profile.anonymous { None } else { self.ear.sid.clone() };
        if let Some(id) = &client_id {
            body["client_id"] = id.as_str().into();
        }
        if let Some(number) = order.number {
            body["number"] = number.into();
        } else if order.front {
            body["front"] = true.into();
        }
        let id = uuid::Uuid::new_v4().to_string();
        if order.named {
            body["prompt_id"] = id.as_str().into();
        }
        let entry = Entry {
            client: self.profile.index,
            address: self.profile.address.clone(),
            client_id,
            ..Entry::new(&plan, loaded)
        };
        let (status, reply) = self.http.post("/prompt", &body).await;
        self.posted(&plan, (status, &reply), entry, order.named.then_some(&id));
    }

    /// Notes what became of a prompt, and that the reply was right.
    fn posted(&mut self, plan: &Plan, told: (u16, &Value), entry: Entry, asked: Option<&String>) {
        let (status, reply) = told;
        let errors = reply["node_errors"].as_object().is_some_and(|errors| !errors.is_empty());
        let right = match plan {
            Plan::Invalid(_) => status == 400 && reply["error"]["type"].is_string(),
            Plan::Partly { .. } => status == 200 && errors,
            _ => status == 200 && !errors,
        };
        let id = reply["prompt_id"].as_str();
        if !right || (status == 200 && asked.is_some_and(|asked| id != Some(asked))) {
            self.ledger.problem(format!("{plan:?} was answered with {status} {reply}"));
        }
        match (status, id) {
            (200, Some(id)) => {
                self.ledger.add(id, entry);
                self.prompts.push((id.to_owned(), 0));
                if matches!(plan, Plan::Paced { .. }) {
                    self.last_paced = Some(plan.clone());
                }
            }
            _ => asked.into_iter().for_each(|id| self.ledger.refuse(id)),
        }
    }

    async fn upload(&mut self, seed: u64) {
        self.uploads += 1;
        // Names are taken again now and then, so that servers must rename.
        let name = format!("of-{}-{}.png", self.profile.index / 2, self.uploads % 3);
        let name = self.http.upload(&name, image_of_seed(seed)).await;
        self.upload = Some((name, seed));
    }

    /// The client's own prompt, so far back from its last.
    fn own(&self, back: usize) -> Option<usize> {
        self.prompts.len().checked_sub(back + 1)
    }

    async fn delete(&mut self, back: usize) {
        let Some(index) = self.own(back) else { return };
        let id = &self.prompts[index].0;
        self.ledger.change(id, |entry| entry.deleted = true);
        self.http.post("/queue", &json!({"delete": [id]})).await;
    }

    async fn interrupt(&mut self, back: usize) {
        let Some(index) = self.own(back) else { return };
        let id = &self.prompts[index].0;
        self.ledger.change(id, |entry| entry.interrupted = true);
        self.http.post("/interrupt", &json!({"prompt_id": id})).await;
    }

    /// Deletes a prompt from history, if it has ended.
    async fn forget(&mut self, back: usize) {
        let Some(index) = self.own(back) else { return };
        let id = &self.prompts[index].0;
        let (_, found) = self.http.get(&format!("/history/{id}")).await;
        let Some(told) = found.get(id).cloned() else { return };
        self.ledger.change(id, |entry| entry.forgotten = Some(told));
        self.http.post("/history", &json!({"delete": [id]})).await;
    }

    /// Reads of a job's state must never go back.
    async fn read_job(&mut self, back: usize) {
        let Some(index) = self.own(back) else { return };
        let (id, before) = self.prompts[index].clone();
        let (status, job) = self.http.get(&format!("/api/jobs/{id}")).await;
        let entry = self.ledger.get(&id).unwrap();
        let state = job["status"].as_str().unwrap_or_default();
        let now = match (status, state) {
            (404, _) if entry.deleted || entry.interrupted || entry.forgotten.is_some() => return,
            (200, "pending") => 0,
            (200, "in_progress") => 1,
            (200, "completed" | "failed" | "cancelled") => 2,
            _ => {
                self.ledger.problem(format!("/api/jobs/{id} says {status} {job} of {entry:?}"));
                return;
            }
        };
        if now < before {
            self.ledger.problem(format!("{id} was in state {before} and is {state} now"));
        }
        self.prompts[index].1 = now;
    }

    /// Nobody stands in the queue twice, nor under another's name.
    async fn read_queue(&mut self) {
        let (_, queue) = self.http.get("/queue").await;
        let mut seen = std::collections::BTreeSet::new();
        for list in ["queue_running", "queue_pending"] {
            for item in queue[list].as_array().into_iter().flatten() {
                let id = item[1].as_str().unwrap_or_default();
                if !seen.insert(id) {
                    self.ledger.problem(format!("/queue lists {id} twice"));
                }
                let named = item[3].get("client_id").and_then(Value::as_str);
                if self.ledger.get(id).is_some_and(|e| e.client_id.as_deref() != named) {
                    self.ledger.problem(format!("/queue says {named:?} for {id}"));
                }
            }
        }
    }
}

type Listening = (Profile, Ear);

/// Waits until all is over, then says all that is wrong.
async fn judge(target: &Target, ledger: &Ledger, ears: Vec<Listening>) -> Vec<String> {
    let http = Http::new(&target.base, "10.99.0.1");
    eventually("nothing runs and nothing waits", PATIENCE, async || http.depth().await == 0).await;
    let started = Instant::now();
    while started.elapsed() < STRAGGLERS && !trial(target, ledger, &ears, &http).await.1 {
        tokio::time::sleep(AFTERMATH).await;
    }
    tokio::time::sleep(AFTERMATH).await;
    let (trial, _) = trial(target, ledger, &ears, &http).await;
    let mut problems = trial.problems();
    for (id, entry) in ledger.prompts() {
        let ended = trial.history.get(&id).filter(|told| told["status"]["status_str"] == "success");
        let Some(told) = ended else { continue };
        let images = &told["outputs"]["2"]["images"];
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

/// Requests of one address.
struct Http {
    client: reqwest::Client,
    base: String,
    address: String,
}

impl Http {
    fn new(base: &str, address: &str) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { client, base: base.to_owned(), address: address.to_owned() }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Vec<u8>) {
        let request = request.header("x-forwarded-for", &self.address);
        let reply = request.send().await.unwrap();
        (reply.status().as_u16(), reply.bytes().await.unwrap().to_vec())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let reply = self.send(self.client.get(format!("{}{path}", self.base))).await;
        (reply.0, read(&reply.1))
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let reply = self.send(self.client.post(format!("{}{path}", self.base)).json(body)).await;
        (reply.0, read(&reply.1))
    }

    async fn depth(&self) -> u64 {
        self.get("/prompt").await.1["exec_info"]["queue_remaining"].as_u64().unwrap()
    }

    /// All pages of `/api/jobs`.
    async fn jobs(&self) -> Vec<Value> {
        let mut jobs = Vec::new();
        loop {
            let page = self.get(&format!("/api/jobs?limit=500&offset={}", jobs.len())).await.1;
            jobs.extend(page["jobs"].as_array().unwrap().iter().cloned());
            if page["pagination"]["has_more"] != json!(true) {
                return jobs;
            }
        }
    }

    async fn view(&self, file: &Value) -> (u16, Vec<u8>) {
        let names = ["filename", "subfolder", "type"];
        let query = names.map(|name| (name, file[name].as_str().unwrap_or_default()));
        self.send(self.client.get(format!("{}/view", self.base)).query(&query)).await
    }

    async fn upload(&self, name: &str, bytes: Vec<u8>) -> String {
        let form = Form::new().part("image", Part::bytes(bytes).file_name(name.to_owned()));
        let url = format!("{}/upload/image", self.base);
        let (status, reply) = self.send(self.client.post(url).multipart(form)).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&reply));
        read(&reply)["name"].as_str().unwrap().to_owned()
    }
}

/// JSON, or what else it is as a text.
fn read(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
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
