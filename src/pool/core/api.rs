//! The words that the core and the shell around it exchange.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::BackendId;
use crate::clock::Moment;
use crate::config::Fairness;
use crate::inventory::Capabilities;
use crate::pool::job::{Job, JobId};
use crate::selection::Rule;

/// Counts the attempts to run a job, from 1; what arrives late for an earlier one is told apart.
pub type Attempt = u32;

/// What the core is told about how to work.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Jobs waiting at most.
    pub max_size: usize,
    /// Pause before a job goes back to a backend that failed it without having taken it.
    pub retry_interval: Duration,
    /// Attempts of one job after its first.
    pub max_retries: u32,
    /// In which order callers get their turn.
    pub fairness: Fairness,
    /// Jobs of one caller that are sent to servers at once; 0: as many as there is room for.
    pub running_per_caller: u32,
    /// Prompts posted to a backend ahead of the running one, 0 or 1.
    pub prefetch: u32,
    /// How a backend is chosen when several are free.
    pub rule: Rule,
    /// A backend that ran the same kind last is preferred when its expected wait is longer by no
    /// more than this.
    pub warm_slack: Duration,
    /// A POST without a verdict is given up after this long.
    pub verdict_timeout: Duration,
    /// A backend that is gone for this long is dead: its jobs run again elsewhere.
    pub declared_dead_after: Duration,
    /// A running prompt without any event for this long (and five times its kind's longest) makes
    /// its backend suspect.
    pub silence: Duration,
    /// How long an interrupt of a silent prompt has to help.
    pub interrupt_grace: Duration,
}

/// What the configuration, the probes and the inventory say of a backend.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Which one.
    pub backend: BackendId,
    /// Its name, which the ring hashes.
    pub name: Arc<str>,
    /// Share of the load.
    pub weight: u32,
    /// Prompts it may hold at most, at least 1.
    pub max_queue: u32,
    /// Used only when no other is open.
    pub backup: bool,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Kinds of work it does; empty: any.
    pub task_types: Arc<[String]>,
    /// What it has; `None` while that is not known: it may be able to run anything.
    pub capabilities: Option<Arc<Capabilities>>,
    /// Whether new jobs may go there: healthy, enabled, not draining, its event sockets open.
    pub open: bool,
    /// Whether it answers at all. A lane that is reachable and not open keeps what it has.
    pub reachable: bool,
    /// Learnt seconds per prompt of any kind; 0 when unknown.
    pub prompt_seconds: f64,
}

/// A POST for a job.
#[derive(Debug, Clone)]
pub struct Post {
    /// The job.
    pub job: Arc<Job>,
    /// Where to.
    pub backend: BackendId,
    /// Which attempt.
    pub attempt: Attempt,
    /// Posted with a number that puts it last, to be taken back: only the verdict is wanted.
    pub vetting: bool,
}

/// What became of a POST.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Accepted: the body of the 200, as it came.
    Accepted(bytes::Bytes),
    /// The server's own refusal.
    Refused {
        /// Its status, 400 as a rule.
        status: u16,
        /// Its `Content-Type`.
        content_type: Option<String>,
        /// Its body.
        body: bytes::Bytes,
    },
    /// Nothing left for the backend, or it said so itself (a 5xx): it does not have the prompt.
    NotSent,
    /// The connection was lost after the body had begun to leave: it may have the prompt.
    Unknown,
}

/// What became of taking a prompt back out of a backend's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// It is neither in the queue nor in history: gone.
    Gone,
    /// It is running, or has run already: it is dispatched then.
    Started,
    /// The backend does not answer.
    Unknown,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With success.
    Completed,
    /// By its own error, or because it cannot be run.
    Failed {
        /// What went wrong, for people.
        error: String,
    },
    /// By its owner's wish: taken out of the line (nothing is in history), or interrupted.
    Cancelled,
}

/// What a backend knows of a prompt when it is asked: first its queue, then its history.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// It waits in the backend's queue.
    Pending,
    /// It runs.
    Running,
    /// It has ended, and the shell has kept its history entry.
    Ended {
        /// How.
        outcome: Outcome,
        /// Seconds it ran, if the entry tells.
        run_seconds: Option<f64>,
    },
    /// The backend does not know it.
    Absent,
    /// The backend does not answer.
    Unknown,
}

/// Something happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A client hands in a job. Its prompt id is not in use.
    Submit(Arc<Job>),
    /// The client of a job whose verdict is still out has gone, or has waited long enough.
    Abandon(JobId),
    /// A POST was answered or failed.
    Verdict {
        /// Whose.
        job: JobId,
        /// Which attempt.
        attempt: Attempt,
        /// How.
        verdict: Verdict,
    },
    /// A prompt was taken back, or not.
    TakenBack {
        /// Whose.
        job: JobId,
        /// Which attempt.
        attempt: Attempt,
        /// What became of it.
        result: TakenBack,
    },
    /// `execution_start`, or another sign that it runs.
    Started {
        /// Where.
        backend: BackendId,
        /// Which.
        job: JobId,
    },
    /// Any other event of a running job.
    Alive {
        /// Where.
        backend: BackendId,
        /// Which.
        job: JobId,
    },
    /// `executing` with a null node: the backend is done with it and history has it.
    Finished {
        /// Where.
        backend: BackendId,
        /// Which.
        job: JobId,
    },
    /// A backend was asked about a job.
    Told {
        /// Where.
        backend: BackendId,
        /// Which.
        job: JobId,
        /// Which attempt was asked about.
        attempt: Attempt,
        /// What it said.
        known: Known,
    },
    /// A whole reading of a backend's queue, begun at `asked`.
    Queue {
        /// Where.
        backend: BackendId,
        /// Jobs of ours that run there.
        running: Vec<JobId>,
        /// Jobs of ours that wait there.
        pending: Vec<JobId>,
        /// Prompts there that did not come through this gateway.
        foreign: u32,
        /// When the reading was begun.
        asked: Moment,
    },
    /// A backend is new or has changed.
    Lane(Lane),
    /// A backend is no longer part of the fleet.
    LaneGone(BackendId),
    /// A backend has restarted or lost what it knew: everything held there must be asked for.
    LaneReset(BackendId),
    /// The owner (or an operator) wants a job stopped, wherever it is.
    Cancel(JobId),
    /// A caller wants what runs stopped, and this job counts among it.
    Interrupt(JobId),
    /// The options have changed.
    Options(Options),
    /// Time has passed; see [`Core::next_tick`](super::Core::next_tick).
    Tick,
}

/// Something is to be done. Every action that asks for an answer gets exactly one input back.
#[derive(Debug, Clone)]
pub enum Action {
    /// POST the prompt; answer with [`Input::Verdict`].
    Post(Post),
    /// Delete it from the backend's queue and confirm; answer with [`Input::TakenBack`].
    TakeBack {
        /// Which.
        job: Arc<Job>,
        /// Where.
        backend: BackendId,
        /// Which attempt.
        attempt: Attempt,
    },
    /// Ask the backend's queue, then its history; answer with [`Input::Told`].
    Ask {
        /// Which.
        job: Arc<Job>,
        /// Where.
        backend: BackendId,
        /// Which attempt.
        attempt: Attempt,
    },
    /// Interrupt it where it runs. No answer: events tell.
    Interrupt {
        /// Which.
        job: Arc<Job>,
        /// Where.
        backend: BackendId,
    },
    /// The job is accepted: keep it, then answer its client with the backend's 200.
    Accept {
        /// Which.
        job: Arc<Job>,
        /// Who took it.
        backend: BackendId,
        /// The body of the backend's 200.
        reply: bytes::Bytes,
    },
    /// The job is refused, by the server's own word; nothing is kept of it.
    Refuse {
        /// Which.
        job: Arc<Job>,
        /// Why.
        refusal: Refusal,
    },
    /// A job that was accepted is in another state now. Told for every move of [`Phase`], in order.
    Moved {
        /// Which.
        job: Arc<Job>,
        /// Where it is now.
        phase: Phase,
        /// Which attempt; 0 before the first.
        attempt: Attempt,
        /// What else is to be kept of it.
        marks: Marks,
    },
    /// Of an accepted job something else than its phase has changed: to be kept.
    Marked {
        /// Which.
        job: Arc<Job>,
        /// Where it is.
        phase: Phase,
        /// Which attempt.
        attempt: Attempt,
        /// What is to be kept.
        marks: Marks,
    },
    /// A job that was accepted has ended. The last word on it; the core has forgotten it.
    Ended {
        /// Which.
        job: Arc<Job>,
        /// How.
        outcome: Outcome,
        /// Where it ran last, if it ran.
        backend: Option<BackendId>,
        /// How many attempts it took.
        attempts: Attempt,
        /// Seconds it ran, if that is known.
        run_seconds: Option<f64>,
    },
    /// A prompt on this backend shows no life, and an interrupt did not help: take it out.
    Suspect(BackendId),
}

/// Why a job was not accepted.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// The server's own words.
    Server {
        /// Whose.
        backend: BackendId,
        /// Status.
        status: u16,
        /// `Content-Type`.
        content_type: Option<String>,
        /// Body.
        body: bytes::Bytes,
    },
    /// As many jobs wait as may.
    Full,
    /// No server can be asked.
    NoBackend,
    /// No server answered in time.
    Timeout,
}

/// Where an accepted job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// In the gateway's line.
    Waiting,
    /// At a backend, not started as far as is known.
    Sent(BackendId),
    /// Running there.
    Running(BackendId),
    /// Ended there as its events say; history is being fetched.
    Ending(BackendId),
    /// It may be there: the backend is being asked, or cannot be.
    Doubtful(BackendId),
}

impl Phase {
    /// The backend where it is, or may be.
    pub fn backend(self) -> Option<BackendId> {
        match self {
            Self::Waiting => None,
            Self::Sent(at) | Self::Running(at) | Self::Ending(at) | Self::Doubtful(at) => Some(at),
        }
    }
}

/// What a restart must not forget of an accepted job, beside its phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// Attempts that failed while it ran, or by a server's word: they count against `max_retries`.
    pub strikes: u32,
    /// It has begun where it is, or may be.
    pub began: bool,
    /// Its owner wants it stopped.
    pub cancelled: bool,
}

/// A job as readers see it.
#[derive(Debug, Clone)]
pub struct JobView {
    /// The job.
    pub job: Arc<Job>,
    /// Where it is.
    pub phase: Phase,
    /// It waits for its turn: in the line, at a server that only judges it, or behind another one.
    pub waits: bool,
    /// How many attempts were made.
    pub attempts: Attempt,
    /// When it began to run, if it runs.
    pub started: Option<Moment>,
    /// The validated outputs and such that the backend's 200 told (its body).
    pub reply: bytes::Bytes,
}

/// An accepted job as a journal kept it, for [`Core::restore`](super::Core::restore).
#[derive(Debug, Clone)]
pub struct Kept {
    /// The job.
    pub job: Arc<Job>,
    /// Where it was.
    pub phase: Phase,
    /// How many attempts were made.
    pub attempts: Attempt,
    /// What else was kept of it.
    pub marks: Marks,
    /// The body of the backend's 200.
    pub reply: bytes::Bytes,
}
