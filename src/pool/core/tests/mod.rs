//! One test per rule: a small farm is told what happens and shows what it does.

mod failing;
mod placing;
mod scale;
mod sharing;
mod stopping;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::backend::BackendId;
use crate::config::{Fairness, Strategy};
use crate::inventory::Capabilities;
use crate::pool::job::{Job, Needs, Owner};
use crate::selection::Rule;
use crate::tasks::kind::Kind;

const VETTING: Attempt = entry::VETTING;

fn options() -> Options {
    Options {
        max_size: 100,
        retry_interval: Duration::from_secs(1),
        max_retries: 2,
        fairness: Fairness::RoundRobin,
        running_per_caller: 0,
        prefetch: 0,
        rule: Rule {
            strategy: Strategy::LeastBusy,
            prefer_idle: true,
            queue_weight: true,
            zone_spill: 2,
        },
        warm_slack: Duration::from_secs(5),
        verdict_timeout: Duration::from_secs(10),
        declared_dead_after: Duration::from_secs(10),
        silence: Duration::from_mins(10),
        interrupt_grace: Duration::from_secs(30),
    }
}

fn lane(n: u32) -> Lane {
    Lane {
        backend: BackendId(n),
        name: format!("comfy-{n}").into(),
        weight: 1,
        max_queue: 10,
        backup: false,
        zone: None,
        task_types: Arc::new([]),
        capabilities: None,
        open: true,
        reachable: true,
        prompt_seconds: 0.0,
    }
}

fn with_nodes(n: u32, nodes: &[&str]) -> Lane {
    let nodes = nodes.iter().map(|node| (*node).into()).collect();
    let capabilities = Some(Arc::new(Capabilities { nodes, ..Capabilities::default() }));
    Lane { capabilities, ..lane(n) }
}

fn job(id: u64, client: u8) -> Job {
    Job {
        id: JobId(id),
        prompt_id: format!("p{id}").into(),
        owner: Owner {
            key: ClientKey::from_bytes([client; 16]),
            caller: "x".into(),
            client_id: None,
        },
        number: id as f64,
        priority: 0,
        needs: Arc::default(),
        kind: Some(Kind { hash: 1, label: "a kind".into() }),
        zone: None,
        once: false,
        created_ms: 0,
        body: Bytes::new(),
    }
}

fn needing(id: u64, node: &str) -> Job {
    let needs = Needs { nodes: BTreeSet::from([node.into()]), ..Needs::default() };
    Job { needs: Arc::new(needs), ..job(id, 1) }
}

/// A core, and what it said.
struct Farm {
    core: Core,
    now: u64,
}

/// Actions in few words.
fn words(action: &Action) -> String {
    match action {
        Action::Post(post) if post.vetting => format!("vet {} {}", post.job.id.0, post.backend.0),
        Action::Post(post) => format!("post {} {}", post.job.id.0, post.backend.0),
        Action::TakeBack { job, backend, .. } => format!("take {} {}", job.id.0, backend.0),
        Action::Ask { job, backend, .. } => format!("ask {} {}", job.id.0, backend.0),
        Action::Interrupt { job, backend } => format!("interrupt {} {}", job.id.0, backend.0),
        Action::Accept { job, .. } => format!("accept {}", job.id.0),
        Action::Refuse { job, refusal } => match refusal {
            Refusal::Server { status, .. } => format!("refuse {} {status}", job.id.0),
            other => format!("refuse {} {other:?}", job.id.0),
        },
        Action::Moved { job, phase, .. } | Action::Marked { job, phase, .. } => {
            format!("moved {} {phase:?}", job.id.0)
        }
        Action::Ended { job, outcome, .. } => match outcome {
            Outcome::Failed { error } => format!("ended {} {error}", job.id.0),
            other => format!("ended {} {other:?}", job.id.0),
        },
        Action::Suspect(backend) => format!("suspect {}", backend.0),
    }
}

impl Farm {
    fn of(lanes: impl IntoIterator<Item = Lane>) -> Self {
        Self::with(options(), lanes)
    }

    fn with(options: Options, lanes: impl IntoIterator<Item = Lane>) -> Self {
        let mut farm = Self { core: Core::new(options), now: 1000 };
        for lane in lanes {
            farm.tell(Input::Lane(lane));
        }
        farm
    }

    /// What it does on an input, moves left out.
    fn tell(&mut self, input: Input) -> Vec<String> {
        let mut actions = Vec::new();
        self.core.handle(input, Moment(self.now), &mut actions);
        self.core.check();
        actions.iter().map(words).filter(|words| !words.starts_with("moved")).collect()
    }

    fn submit(&mut self, job: Job) -> Vec<String> {
        self.tell(Input::Submit(Arc::new(job)))
    }

    fn verdict(&mut self, id: u64, attempt: Attempt, verdict: Verdict) -> Vec<String> {
        self.tell(Input::Verdict { job: JobId(id), attempt, verdict })
    }

    fn accepted(&mut self, id: u64, attempt: Attempt) -> Vec<String> {
        self.verdict(id, attempt, Verdict::Accepted(Bytes::from_static(b"{}")))
    }

    fn gone(&mut self, id: u64, attempt: Attempt) -> Vec<String> {
        self.tell(Input::TakenBack { job: JobId(id), attempt, result: TakenBack::Gone })
    }

    fn started(&mut self, id: u64, backend: u32) -> Vec<String> {
        self.tell(Input::Started { backend: BackendId(backend), job: JobId(id) })
    }

    fn finished(&mut self, id: u64, backend: u32) -> Vec<String> {
        self.tell(Input::Finished { backend: BackendId(backend), job: JobId(id) })
    }

    fn told(&mut self, id: u64, backend: u32, attempt: Attempt, known: Known) -> Vec<String> {
        self.tell(Input::Told { backend: BackendId(backend), job: JobId(id), attempt, known })
    }

    fn after(&mut self, ms: u64) -> Vec<String> {
        self.now += ms;
        self.tell(Input::Tick)
    }

    /// A job that runs on a lane that was free.
    fn runs(&mut self, job: Job, backend: u32) {
        let id = job.id.0;
        assert_eq!(self.submit(job), [format!("post {id} {backend}")]);
        self.accepted(id, 1);
        self.started(id, backend);
    }

    /// A job that was judged on a busy lane and waits.
    fn waits(&mut self, job: Job) {
        let id = job.id.0;
        assert!(self.submit(job)[0].starts_with("vet"));
        let taken = self.accepted(id, VETTING | 1);
        assert_eq!(taken[0], format!("accept {id}"));
        assert!(taken[1].starts_with("take"));
        self.gone(id, VETTING | 1);
    }

    fn phase(&self, id: u64) -> Option<Phase> {
        self.core.get(JobId(id)).map(|view| view.phase)
    }
}

fn refused() -> Verdict {
    let body = Bytes::from_static(b"no such node");
    Verdict::Refused { status: 400, content_type: None, body }
}

fn ended(outcome: Outcome) -> Known {
    Known::Ended { outcome, run_seconds: Some(1.0) }
}
