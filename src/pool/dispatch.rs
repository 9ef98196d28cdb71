//! Does what the core decides.
//!
//! [`Pool::tell`] hands an input to the core and performs its actions under the core's lock, so
//! that journal and tasks hear of moves in their order. Performing is quick: what needs the network
//! becomes a task of its own ([`errands`](super::errands)), whose answer comes back as an input.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use log::warn;

use super::core::{Action, Input, Kept, Marks, Outcome, Phase, Refusal};
use super::frame::Delivery;
use super::hook::Patient;
use super::job::{Job, JobId};
use super::journal::{Accepted, Change, Ended, Moved, Ticket};
use super::own::prompt::Answer;
use super::retell::{self, Subject};
use super::submission::jobs::Summary;
use super::submission::{self, Number};
use super::{Fetched, Pool};
use crate::backend::{Backend, BackendId};
use crate::clock::Moment;
use crate::comfy::history::Entry;
use crate::identity::ClientKey;
use crate::logging::TARGET;
use crate::rejection::{Kind, Rejection};
use crate::tasks::{self, Placed, THE_LINE};

impl Pool {
    /// Tells the core what happened and does what follows.
    pub fn tell(self: &Arc<Self>, input: Input) {
        let mut actions = Vec::new();
        let (open, of) = {
            let mut core = self.core.lock();
            let Some(input) = self.keep_for_later(input) else { return };
            core.handle(input, Moment::now(), &mut actions);
            let of: BTreeSet<ClientKey> = actions.iter().filter_map(changes_status).collect();
            for action in actions {
                self.perform(action);
            }
            let of = of.into_iter().map(|key| (key, core.open_of(key) as u64));
            (core.open_jobs() as u64, of.collect::<Vec<_>>())
        };
        if self.is_isolated() {
            for (key, open) in of {
                self.hub.status_of(key, open);
            }
        } else if !of.is_empty() {
            self.hub.status(open);
        }
        self.alarm.notify_one();
    }

    /// How many of a caller's jobs have not ended.
    pub(super) fn open_of(&self, key: ClientKey) -> u64 {
        self.core.lock().open_of(key) as u64
    }

    /// Ticks whenever the core wants it, for as long as the process lives.
    pub(super) async fn tick(self: Arc<Self>) {
        loop {
            let next = self.core.lock().next_tick();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep(at.since(Moment::now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    self.until_here().await;
                    self.tell(Input::Tick);
                }
                () = self.alarm.notified() => {}
            }
        }
    }

    fn perform(self: &Arc<Self>, action: Action) {
        match action {
            Action::Post(post) => self.spawn(|pool| pool.post(post)),
            Action::TakeBack { job, backend, attempt } => {
                self.spawn(move |pool| pool.take_back(job, backend, attempt));
            }
            Action::Ask { job, backend, attempt } => {
                self.spawn(move |pool| pool.ask_about(job, backend, attempt));
            }
            Action::Interrupt { job, backend } => {
                self.spawn(move |pool| pool.interrupt(job, backend));
            }
            Action::Accept { job, backend, reply } => self.accept(&job, backend, reply),
            Action::Refuse { job, refusal } => self.refuse(&job, refusal),
            Action::Moved { job, phase, attempt, marks } => {
                self.moved(&job, phase, attempt, marks);
            }
            Action::Marked { job, phase, attempt, marks } => {
                self.keep_move(&job, phase, attempt, marks);
            }
            Action::Ended { job, outcome, backend, attempts, run_seconds } => {
                self.ended(&job, outcome, backend, attempts, run_seconds);
            }
            Action::Suspect(backend) => self.suspect(backend),
        }
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        errand: impl FnOnce(Arc<Self>) -> F,
    ) {
        tokio::spawn(errand(Arc::clone(self)));
    }

    /// Puts jobs back that an earlier process left.
    pub(super) fn restore(self: &Arc<Self>, kept: Vec<Kept>) {
        let mut actions = Vec::new();
        let mut core = self.core.lock();
        core.restore(kept, Moment::now(), &mut actions);
        for action in actions {
            self.perform(action);
        }
    }

    /// Enters a job in the list of tasks.
    pub(super) fn enter(&self, job: &Job) {
        self.tasks.accepted(tasks::Accepted {
            id: job.prompt_id.to_string(),
            key: job.owner.key,
            caller: job.owner.caller.to_string(),
            backend: THE_LINE,
            backend_name: "".into(),
            breaks: 0,
        });
        if let Some(kind) = &job.kind {
            self.tasks.set_kind(THE_LINE, &job.prompt_id, kind.clone());
        }
    }

    /// Keeps an accepted job, then answers its client.
    fn accept(self: &Arc<Self>, job: &Arc<Job>, backend: BackendId, reply: bytes::Bytes) {
        self.enter(job);
        let kept = self.journal.write(Change::Accepted(Accepted {
            job: Arc::clone(job),
            reply: reply.clone(),
            fingerprint: self.fingerprint_of(job),
            counter: u64::try_from(self.counter.at()).unwrap_or_default(),
        }));
        let (pool, job, id) = (Arc::clone(self), Arc::clone(job), job.id);
        tokio::spawn(async move {
            let answer = match kept.await {
                Ok(()) => Answer::Accepted {
                    reply: submission::reply(&reply, &job.prompt_id, Number::of(&job)),
                    by: pool.named_in_replies(backend),
                },
                Err(error) => {
                    warn!(target: TARGET, "a prompt was refused because it could not be kept: {error}");
                    pool.tell(Input::Cancel(id));
                    Answer::Refused(not_kept())
                }
            };
            pool.answer(id, answer);
        });
    }

    fn refuse(&self, job: &Job, refusal: Refusal) {
        self.forget(job);
        self.retell.lock().forget(job.id);
        let answer = match refusal {
            Refusal::Server { backend, status, content_type, body } => {
                let by = self.named_in_replies(backend);
                Answer::Server { by, status, content_type, body }
            }
            Refusal::Full => Answer::Refused(
                Rejection::new(Kind::QueueFull, "as many prompts wait as may")
                    .cure("try again later; queue.max_size raises the limit")
                    .retry_after(self.drains_in()),
            ),
            Refusal::NoBackend => Answer::Refused(
                Rejection::new(Kind::NoBackend, "no ComfyUI server can take prompts at the moment")
                    .retry_after(5),
            ),
            Refusal::Timeout => Answer::Refused(
                Rejection::new(
                    Kind::NoBackend,
                    "no ComfyUI server answered in time; nothing was queued",
                )
                .retry_after(5),
            ),
        };
        self.answer(job.id, answer);
    }

    fn answer(&self, id: JobId, answer: Answer) {
        if let Some(waits) = self.verdicts.lock().remove(&id) {
            let _ = waits.send(answer);
        }
    }

    fn moved(&self, job: &Arc<Job>, phase: Phase, attempts: u32, marks: Marks) {
        let (backend, running) = match phase {
            Phase::Waiting => (None, false),
            Phase::Sent(backend) | Phase::Doubtful(backend) => (Some(backend), false),
            Phase::Running(backend) | Phase::Ending(backend) => (Some(backend), true),
        };
        let placed = Placed {
            backend: backend.unwrap_or(THE_LINE),
            name: backend.map_or_else(|| "".into(), |backend| self.name_of(backend)),
            running,
            attempts,
        };
        if running && let Some(error) = self.forecasts.lock().begun(job.id, Moment::now()) {
            self.eta_error.observe(error);
        }
        if phase == Phase::Waiting {
            self.ends.lock().remove(&job.id);
            self.retell.lock().again(job.id);
            self.hub.withdrawn(&job.owner, job.id);
        }
        self.tasks.placed(&job.prompt_id, &placed);
        self.keep_move(job, phase, attempts, marks);
        self.line_moved.notify_one();
    }

    fn keep_move(&self, job: &Job, phase: Phase, attempts: u32, marks: Marks) {
        let remote_id = phase.backend().and_then(|backend| self.posted.id_at(backend, job.id));
        let remote_id = remote_id.filter(|id| *id != job.prompt_id);
        let moved = Moved { id: job.id, phase, attempts, marks, remote_id };
        let kept = self.journal.write(Change::Moved(moved));
        if job.once && matches!(phase, Phase::Sent(_)) {
            self.written.lock().insert(job.id, kept);
        }
    }

    fn ended(
        &self,
        job: &Arc<Job>,
        outcome: Outcome,
        backend: Option<BackendId>,
        attempts: u32,
        run_seconds: Option<f64>,
    ) {
        let fetched = self.entries.lock().remove(&job.id);
        let told = match &outcome {
            Outcome::Completed => Entry::Completed { run_seconds },
            Outcome::Failed { error } => Entry::Failed { error: error.clone() },
            Outcome::Cancelled => Entry::Interrupted,
        };
        self.tasks.ended(&job.prompt_id, told, attempts);
        let Fetched { entry, summary } = fetched.unwrap_or_else(|| {
            let entry = self.entry_without_server(job, &outcome).unwrap_or_default();
            Fetched { summary: summary_of(job, &entry), entry }
        });
        let (held, untold) = self.last_words(job, &entry);
        self.forget(job);
        let kept = self.journal.write(Change::Ended(Box::new(Ended {
            id: job.id,
            outcome,
            backend,
            attempts,
            run_seconds,
            finished_ms: now_ms(),
            summary,
            entry,
        })));
        self.tell_end(job, kept, held, untold);
        self.line_moved.notify_one();
    }

    /// What was held of a job's last words, and what nobody told.
    fn last_words(&self, job: &Job, entry: &[u8]) -> (Vec<Delivery>, Vec<Delivery>) {
        let mut retell = self.retell.lock();
        let held = self.ends.lock().remove(&job.id).unwrap_or_default();
        (held, retell.close(&Subject::from(job), entry))
    }

    /// Tells a job's end to its owner once it is on the disk: told earlier, it could run again after
    /// a crash and end another way.
    fn tell_end(&self, job: &Arc<Job>, kept: Ticket, held: Vec<Delivery>, untold: Vec<Delivery>) {
        let (hub, job) = (Arc::clone(&self.hub), Arc::clone(job));
        tokio::spawn(async move {
            // What cannot be kept is true all the same.
            let _ = kept.await;
            for delivery in retell::in_order(held, untold) {
                hub.deliver(delivery);
            }
            hub.ended(&job.owner, job.id);
        });
    }

    /// The history entry of a job that failed without any server having one.
    fn entry_without_server(&self, job: &Job, outcome: &Outcome) -> Option<bytes::Bytes> {
        let Outcome::Failed { error } = outcome else { return None };
        let is_output = |class: &str| self.is_output(class);
        Some(submission::failed_entry(job, b"{}", &is_output, error, now_ms()))
    }

    /// By what a job is known again; reckoned beforehand, since a body may be long.
    pub(super) fn fingerprint_of(&self, job: &Job) -> [u8; 32] {
        let known = self.fingerprints.lock().get(&job.id).copied();
        known.unwrap_or_else(|| submission::fingerprint(&job.body))
    }

    /// Forgets what was kept for a job while it was open.
    fn forget(&self, job: &Job) {
        self.posted.forget(job.id);
        self.written.lock().remove(&job.id);
        self.forecasts.lock().forget(job.id);
        self.ends.lock().remove(&job.id);
        self.pins.lock().remove(&job.id);
        self.rewritten.lock().remove(&job.id);
        self.fingerprints.lock().remove(&job.id);
        self.held.fetch_sub(job.body.len() as u64, Relaxed);
    }

    fn suspect(&self, backend: BackendId) {
        if let Some(backend) = self.fleet.view().get(backend) {
            warn!(
                target: TARGET,
                "backend {} is suspect: its running prompt shows no life, and an interrupt did not help",
                backend.name()
            );
            backend.live.hangs(true);
            self.call_hook(backend);
        }
        self.fleet.touch();
    }

    fn call_hook(&self, backend: &Backend) {
        let Some(hook) = self.config.load().pool.restart_hook.clone() else { return };
        let (name, url) = (backend.name().to_owned(), backend.spec.endpoint.url());
        self.hooks.call(hook, Patient { id: backend.id, name, url }, Moment::now());
    }

    /// A backend that was suspect has restarted, or got over it.
    pub(super) fn recovered(&self, backend: BackendId) {
        if let Some(backend) = self.fleet.view().get(backend).filter(|b| b.live.is_hung()) {
            backend.live.hangs(false);
            self.fleet.touch();
        }
    }

    /// The name of a backend, also of one that is gone.
    pub(super) fn name_of(&self, backend: BackendId) -> Arc<str> {
        let view = self.fleet.view();
        view.get(backend).map_or_else(|| "".into(), |backend| backend.name().into())
    }

    /// The name of the backend that an answer came from, where clients may see it.
    pub(super) fn named_in_replies(&self, backend: BackendId) -> Option<Arc<str>> {
        self.config.load().server.backend_header.then(|| self.name_of(backend))
    }

    /// Seconds after which the line will be shorter, for `Retry-After`.
    pub(super) fn drains_in(&self) -> u32 {
        let view = self.fleet.view();
        let seconds = view.backends.iter().map(|backend| backend.live.learnt().prompt_seconds);
        let shortest = seconds.filter(|seconds| *seconds > 0.0).min_by(f64::total_cmp);
        shortest.map_or(5, |seconds| seconds.clamp(1.0, 60.0).ceil() as u32)
    }
}

/// What lists of jobs say of one that has ended.
pub(super) fn summary_of(job: &Job, entry: &[u8]) -> bytes::Bytes {
    serde_json::to_vec(&Summary::of(job).ended(entry)).unwrap_or_default().into()
}

/// Whose job it is that has ComfyUI tell everybody its depth: when a prompt comes, begins or ends.
fn changes_status(action: &Action) -> Option<ClientKey> {
    match action {
        Action::Accept { job, .. }
        | Action::Ended { job, .. }
        | Action::Moved { job, phase: Phase::Running(_), .. } => Some(job.owner.key),
        _ => None,
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn not_kept() -> Rejection {
    Rejection::new(Kind::StorageUnavailable, "the prompt could not be kept, and was not queued")
        .cure("look at the gateway's log; is state_dir writable, and its disk full?")
        .retry_after(5)
}
