//! What a job costs pool mode's core, in time and memory, by how many wait: `cargo bench --bench
//! dispatch`.
//!
//! The core alone, on virtual time, in front of 50 servers: of one class (each can run anything),
//! and of eight (each job can run on an eighth of them). `COMFYGATE_BENCH_JOBS` bounds the longest
//! line, 100,000 unless told.

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
}
