//! Ways that hold prompts back until a server is free: the bound, and pool mode's own core.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use comfygate::backend::BackendId;
use comfygate::clock::Moment;
use comfygate::config::{Fairness, Strategy};
use comfygate::identity::ClientKey;
use comfygate::inventory::Capabilities;
use comfygate::pool::core::{Action, Core, Input, Lane, Options, TakenBack, Verdict};
use comfygate::pool::job::{Job, JobId, Needs, Owner};
use comfygate::selection::Rule;
use comfygate::tasks::kind::Kind;

use super::work::{Case, Outcome, Prompt};

/// From a server's last event to the arrival of its next prompt, in seconds of virtual time: more
/// than the gateway takes (`tests/suite/pool/idle.rs` measures it).
const GAP: f64 = 0.005;

/// The bound: one line without delay, the fastest of the free servers first.
pub(crate) fn bound(case: &Case, prompts: &[Prompt]) -> Outcome {
    let speeds = case.speeds();
    let mut free_at = vec![0.0_f64; speeds.len()];
    let mut outcome = Outcome::default();
    for (number, prompt) in prompts.iter().enumerate() {
        let begins = |server: usize| free_at[server].max(prompt.at);
        let better = |a: &usize, b: &usize| {
            begins(*a).total_cmp(&begins(*b)).then(speeds[*b].total_cmp(&speeds[*a]))
        };
        let server = (0..speeds.len()).min_by(better).unwrap_or(0);
        let (begins, seconds) = (begins(server), prompt.work / speeds[server]);
        free_at[server] = begins + seconds;
        let counted = Outcome::is_counted(number, prompts.len());
        outcome.began(counted, begins - prompt.at, seconds, begins + seconds);
    }
    outcome
}

/// Pool mode: the real core in virtual time.
pub(crate) fn pool(case: &Case, prompts: &[Prompt], fairness: Fairness) -> Outcome {
    let mut farm = Farm::new(case, prompts, fairness);
    let mut next = 0;
    loop {
        let ends = farm.ends.peek().map(|Reverse((at, ..))| *at);
        let arrives = prompts.get(next).map(|prompt| nanos(prompt.at));
        match (ends, arrives) {
            (None, None) => return farm.outcome,
            (Some(at), arrives) if arrives.is_none_or(|arrives| at <= arrives) => farm.end_one(at),
            _ => {
                farm.arrive(next);
                next += 1;
            }
        }
    }
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

struct Farm<'a> {
    case: &'a Case,
    prompts: &'a [Prompt],
    speeds: Vec<f64>,
    core: Core,
    needs: Arc<Needs>,
    now: u64,
    /// When running prompts end, where, and which.
    ends: BinaryHeap<Reverse<(u64, u32, u64)>>,
    actions: Vec<Action>,
    outcome: Outcome,
}

impl<'a> Farm<'a> {
    fn new(case: &'a Case, prompts: &'a [Prompt], fairness: Fairness) -> Self {
        let nodes = || BTreeSet::from(["PacedImage".into(), "SaveImage".into()]);
        let mut farm = Self {
            case,
            prompts,
            speeds: case.speeds(),
            core: Core::new(options(fairness)),
            needs: Arc::new(Needs { nodes: nodes(), ..Needs::default() }),
            now: 1,
            ends: BinaryHeap::new(),
            actions: Vec::new(),
            outcome: Outcome::default(),
        };
        let has = Arc::new(Capabilities { nodes: nodes(), ..Capabilities::default() });
        for (number, speed) in farm.speeds.clone().into_iter().enumerate() {
            farm.tell(Input::Lane(Lane {
                backend: BackendId(number as u32),
                name: format!("comfy-{number}").into(),
                weight: 1,
                max_queue: 10,
                backup: false,
                zone: None,
                task_types: Arc::new([]),
                capabilities: Some(Arc::clone(&has)),
                open: true,
                reachable: true,
                prompt_seconds: farm.case.times.mean() / speed,
            }));
        }
        farm
    }

    fn tell(&mut self, input: Input) {
        // The core's clock ticks in milliseconds, the farm's in nanoseconds.
        self.core.handle(input, Moment(1 + self.now / 1_000_000), &mut self.actions);
    }

    fn arrive(&mut self, number: usize) {
        let prompt = &self.prompts[number];
        self.now = nanos(prompt.at);
        let job = Job {
            id: JobId(number as u64),
            prompt_id: format!("00000000-0000-4000-8000-{number:012}").into(),
            owner: Owner {
                key: ClientKey::from_bytes(u128::from(prompt.address).to_be_bytes()),
                caller: "client".into(),
                client_id: None,
            },
            number: number as f64,
            priority: 0,
            needs: Arc::clone(&self.needs),
            kind: Some(Kind { hash: prompt.kind, label: "kind".into() }),
            zone: None,
            once: false,
            created_ms: 0,
            body: Bytes::new(),
        };
        self.tell(Input::Submit(Arc::new(job)));
        self.settle(0.0);
    }

    fn end_one(&mut self, at: u64) {
        let Some(Reverse((_, server, job))) = self.ends.pop() else { return };
        self.now = at;
        let (backend, job) = (BackendId(server), JobId(job));
        self.tell(Input::Finished { backend, job });
        self.settle(GAP);
    }

    /// Plays the servers: judged prompts are given back, the others begin after `gap`.
    fn settle(&mut self, gap: f64) {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                self.perform(action, gap);
            }
        }
    }

    fn perform(&mut self, action: Action, gap: f64) {
        match action {
            Action::Post(post) => {
                let (job, attempt, backend) = (post.job.id, post.attempt, post.backend);
                let verdict = Verdict::Accepted(Bytes::from_static(b"{}"));
                self.tell(Input::Verdict { job, attempt, verdict });
                if !post.vetting {
                    self.begin(backend, job, gap);
                }
            }
            Action::TakeBack { job, attempt, .. } => {
                let result = TakenBack::Gone;
                self.tell(Input::TakenBack { job: job.id, attempt, result });
            }
            Action::Ask { job, backend, attempt } => {
                use comfygate::pool::core::{Known, Outcome};
                let known = Known::Ended { outcome: Outcome::Completed, run_seconds: None };
                self.tell(Input::Told { backend, job: job.id, attempt, known });
            }
            _ => {}
        }
    }

    fn begin(&mut self, backend: BackendId, job: JobId, gap: f64) {
        let number = job.0 as usize;
        let prompt = &self.prompts[number];
        let seconds = prompt.work / self.speeds[backend.0 as usize];
        let begins = self.now as f64 / 1e9 + gap;
        let ends = begins + seconds;
        let counted = Outcome::is_counted(number, self.prompts.len());
        self.outcome.began(counted, begins - prompt.at, seconds, ends);
        self.ends.push(Reverse((nanos(ends), backend.0, job.0)));
        self.tell(Input::Started { backend, job });
    }
}

fn options(fairness: Fairness) -> Options {
    Options {
        max_size: usize::MAX,
        retry_interval: Duration::from_secs(1),
        max_retries: 3,
        fairness,
        prefetch: 0,
        running_per_caller: 0,
        rule: Rule {
            strategy: Strategy::LeastWait,
            prefer_idle: true,
            queue_weight: true,
            zone_spill: 2,
        },
        warm_slack: Duration::ZERO,
        verdict_timeout: Duration::from_secs(20),
        declared_dead_after: Duration::from_secs(10),
        silence: Duration::from_hours(24),
        interrupt_grace: Duration::from_secs(30),
    }
}
