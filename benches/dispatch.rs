//! What a job costs pool mode's core, in time and memory, by how many wait: `cargo bench --bench
//! dispatch`.
//!
//! First the core alone, on virtual time, in front of 50 servers: of one class (each can run
//! anything), and of eight (each job can run on an eighth of them). Then a whole gateway in front of
//! a simulated server: how long a prompt takes from its POST to its 200 when it has to wait, and
//! what it holds in memory, its body left out. `COMFYGATE_BENCH_JOBS` bounds the longest line,
//! 100,000 unless told; a whole gateway gets a twentieth of it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench has no users and may stop")]

use std::alloc::System;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use comfygate::backend::BackendId;
use comfygate::clock::Moment;
use comfygate::config::{Fairness, Strategy};
use comfygate::identity::ClientKey;
use comfygate::inventory::Capabilities;
use comfygate::pool::core::{
    Action, Core, Input, Known, Lane, Options, Outcome, TakenBack, Verdict,
};
use comfygate::pool::job::{Job, JobId, Needs, Owner};
use comfygate::selection::Rule;
use comfygate::tasks::kind::Kind;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const LANES: u32 = 50;
const CLIENTS: u64 = 40;
/// Dispatches, and verdicts, that are timed at most.
const TIMED: usize = 2000;

fn options() -> Options {
    Options {
        max_size: usize::MAX,
        retry_interval: Duration::from_secs(1),
        max_retries: 3,
        fairness: Fairness::RoundRobin,
        prefetch: 0,
        running_per_caller: 0,
        rule: Rule {
            strategy: Strategy::LeastBusy,
            prefer_idle: true,
            queue_weight: true,
            zone_spill: 2,
        },
        warm_slack: Duration::from_secs(2),
        verdict_timeout: Duration::from_secs(20),
        declared_dead_after: Duration::from_secs(10),
        silence: Duration::from_mins(10),
        interrupt_grace: Duration::from_secs(30),
    }
}

fn class(number: u64) -> BTreeSet<Box<str>> {
    BTreeSet::from(["PacedImage".into(), "SaveImage".into(), format!("Class{number}").into()])
}

fn lane(number: u32, classes: u64) -> Lane {
    let nodes = class(u64::from(number) % classes);
    let capabilities = Capabilities { nodes, ..Capabilities::default() };
    Lane {
        backend: BackendId(number),
        name: format!("comfy-{number}").into(),
        weight: 1,
        max_queue: 10,
        backup: false,
        zone: None,
        task_types: Arc::new([]),
        capabilities: Some(Arc::new(capabilities)),
        open: true,
        reachable: true,
        prompt_seconds: 1.0,
    }
}

/// A core, its virtual time, and the jobs that were made.
struct Farm {
    core: Core,
    now: u64,
    made: u64,
    needs: Vec<Arc<Needs>>,
    actions: Vec<Action>,
}

impl Farm {
    fn new(classes: u64) -> Self {
        let needs = (0..classes).map(|n| Needs { nodes: class(n), ..Needs::default() });
        let needs = needs.map(Arc::new).collect();
        let core = Core::new(options());
        let mut farm = Self { core, now: 1000, made: 0, needs, actions: Vec::new() };
        (0..LANES).for_each(|number| farm.tell(Input::Lane(lane(number, classes))));
        farm
    }

    /// A job as the shell makes it, its body left out.
    fn job(&mut self) -> Arc<Job> {
        self.made += 1;
        let (id, client) = (self.made, self.made % CLIENTS);
        Arc::new(Job {
            id: JobId(id),
            prompt_id: format!("00000000-0000-4000-8000-{id:012}").into(),
            owner: Owner {
                key: ClientKey::from_bytes(u128::from(client).to_be_bytes()),
                caller: "192.168.100.200".into(),
                client_id: Some("0123456789abcdef0123456789abcdef".into()),
            },
            number: id as f64,
            priority: 0,
            needs: Arc::clone(&self.needs[id as usize % self.needs.len()]),
            kind: Some(Kind { hash: id % 5, label: "2 nodes: PacedImage, SaveImage".into() }),
            zone: None,
            once: false,
            created_ms: id,
            body: Bytes::new(),
        })
    }

    fn tell(&mut self, input: Input) {
        self.core.handle(input, Moment(self.now), &mut self.actions);
    }

    /// Plays the servers: what is posted is taken, judged prompts are given back. Those that are
    /// posted to run are returned.
    fn settle(&mut self) -> Vec<(BackendId, JobId)> {
        let mut running = Vec::new();
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                match action {
                    Action::Post(post) => {
                        let (job, attempt) = (post.job.id, post.attempt);
                        // What a 200 says, as long as one is.
                        let reply = format!(
                            r#"{{"prompt_id": "{}", "number": {}, "node_errors": {{}}}}"#,
                            post.job.prompt_id, post.job.number
                        );
                        let verdict = Verdict::Accepted(reply.into());
                        self.tell(Input::Verdict { job, attempt, verdict });
                        if !post.vetting {
                            running.push((post.backend, job));
                        }
                    }
                    Action::TakeBack { job, attempt, .. } => {
                        let result = TakenBack::Gone;
                        self.tell(Input::TakenBack { job: job.id, attempt, result });
                    }
                    Action::Ask { job, backend, attempt } => {
                        let known =
                            Known::Ended { outcome: Outcome::Completed, run_seconds: Some(1.0) };
                        self.tell(Input::Told { backend, job: job.id, attempt, known });
                    }
                    _ => {}
                }
            }
        }
        running
    }

    fn submit(&mut self) -> Vec<(BackendId, JobId)> {
        let job = self.job();
        self.now += 1;
        self.tell(Input::Submit(job));
        self.settle()
    }
}

/// One row: microseconds of a submission with its verdict, and of a dispatch; bytes per job.
fn row(jobs: usize, classes: u64) -> (f64, f64, f64) {
    let mut farm = Farm::new(classes);
    let mut running = Vec::new();
    while running.len() < LANES as usize {
        running.extend(farm.submit());
    }
    let empty = MEMORY.stats();
    let waiting = farm.core.waiting();
    while farm.core.waiting() < jobs {
        farm.submit();
    }
    let full = MEMORY.stats();
    let held =
        |stats: &stats_alloc::Stats| stats.bytes_allocated as f64 - stats.bytes_deallocated as f64;
    let bytes = (held(&full) - held(&empty)) / (jobs - waiting).max(1) as f64;

    let timed = TIMED.min(jobs);
    let began = Instant::now();
    for _ in 0..timed {
        farm.submit();
    }
    let judged = began.elapsed().as_secs_f64() * 1e6 / timed as f64;

    let began = Instant::now();
    let mut done = 0;
    while done < timed {
        for (backend, job) in std::mem::take(&mut running) {
            farm.now += 20;
            farm.tell(Input::Started { backend, job });
            farm.tell(Input::Finished { backend, job });
            running.extend(farm.settle());
            done += 1;
        }
    }
    let dispatched = began.elapsed().as_secs_f64() * 1e6 / done as f64;
    (judged, dispatched, bytes)
}

/// A simulated server in a process of its own, so that its memory is not counted.
struct Server(std::process::Child);

impl Server {
    fn start(port: u16) -> Self {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_comfygate"));
        command.args(["sim", "-p", &port.to_string()]).stderr(std::process::Stdio::null());
        Self(command.stdout(std::process::Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A workflow of twenty nodes with a model, of which each prompt has another seed.
fn prompt(seed: usize) -> serde_json::Value {
    let mut nodes = serde_json::json!({
        "1": {"class_type": "PacedImage", "inputs": {"seconds": 600.0, "steps": 1, "seed": seed,
            "fail_at": -1, "preview": false}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    });
    for node in 3..20 {
        nodes[node.to_string()] = serde_json::json!({"class_type": "EmptyImage", "inputs":
            {"width": 8, "height": 8, "batch_size": 1, "color": 1}});
    }
    serde_json::json!({"prompt": nodes, "client_id": "0123456789abcdef0123456789abcdef"})
}

/// Milliseconds from POST to 200 of a prompt that waits, alone and with 16 at once; bytes it holds.
async fn whole(jobs: usize) -> anyhow::Result<(f64, f64, f64)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let _server = Server::start(port);
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (state, size) = (directory.path().display().to_string(), (jobs + 100).to_string());
    let env = [
        ("MODE", "pool"),
        ("SERVER__PORT", "0"),
        ("ADMIN__LISTEN", "127.0.0.1:0"),
        ("STATE_DIR", &state),
        ("QUEUE__MAX_SIZE", &size),
    ];
    let env = env.map(|(key, value)| (format!("COMFYGATE__{key}"), value.to_owned()));
    let mut sources = comfygate::config::Sources { env: env.into(), ..Default::default() };
    sources.flags.backends = Some(format!("http://127.0.0.1:{port}"));
    let loaded = comfygate::config::load(&sources).map_err(|p| anyhow::anyhow!("{p}"))?;
    let gateway = comfygate::server::Server::prepare(sources, loaded)?;
    let url = format!("http://127.0.0.1:{}/prompt", gateway.data_address().unwrap().port());
    let running = tokio::spawn(gateway.run());
    let http = reqwest::Client::builder().no_proxy().build()?;
    let post = |seed: usize| {
        let request = http.post(&url).json(&prompt(seed));
        async move {
            let response = request.send().await?;
            let accepted = response.status().is_success();
            anyhow::ensure!(accepted, "a prompt was refused: {}", response.text().await?);
            anyhow::Ok(())
        }
    };
    // It listens once it runs, and has its server a moment later.
    let began = Instant::now();
    while post(0).await.is_err() && began.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for seed in 1..200 {
        post(seed).await?;
    }
    let mut seed = 200;
    let began = Instant::now();
    for _ in 0..200 {
        post(seed).await?;
        seed += 1;
    }
    let alone = began.elapsed().as_secs_f64() * 1000.0 / 200.0;
    let before = MEMORY.stats();
    let (began, first) = (Instant::now(), seed);
    while seed < jobs {
        futures_util::future::try_join_all((seed..seed + 16).map(post)).await?;
        seed += 16;
    }
    let posted = (seed - first).max(1) as f64;
    let many = began.elapsed().as_secs_f64() * 1000.0 / posted;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = MEMORY.stats();
    let held = (after.bytes_allocated - before.bytes_allocated) as f64
        - (after.bytes_deallocated - before.bytes_deallocated) as f64;
    running.abort();
    Ok((alone, many, held / posted - prompt(seed).to_string().len() as f64))
}

fn main() {
    let longest = std::env::var("COMFYGATE_BENCH_JOBS").ok().and_then(|n| n.parse().ok());
    let longest: usize = longest.unwrap_or(100_000);
    println!("{LANES} servers, {CLIENTS} clients; a job's body is not counted\n");
    println!("  waiting  classes   submit+verdict   finish+dispatch   bytes/job");
    for classes in [1, 8] {
        for jobs in [100, 1000, 10_000, 100_000].into_iter().filter(|jobs| *jobs <= longest) {
            let (judged, dispatched, bytes) = row(jobs, classes);
            println!(
                "{jobs:9}  {classes:7}   {judged:11.1} µs   {dispatched:12.1} µs   {bytes:9.0}"
            );
        }
    }
    let jobs = longest / 20;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match runtime.block_on(whole(jobs)) {
        Ok((alone, many, bytes)) => println!(
            "\na whole gateway, {jobs} waiting: POST to 200 {alone:.1} ms alone, {many:.1} ms each \
             of 16 at once; {bytes:.0} bytes/job"
        ),
        Err(error) => println!("\na whole gateway: {error:#}"),
    }
}
