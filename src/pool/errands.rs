//! The errands of the core: each talks to one backend and brings back one input.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use tokio::time::timeout;

use super::core::{Attempt, Input, Known, Post, TakenBack, Verdict};
use super::dispatch::summary_of;
use super::events::Flavour;
use super::files::place::Place;
use super::files::{Own, prefix};
use super::frame::{Delivery, Meaning};
use super::job::{Job, JobId};
use super::posted::Posted;
use super::submission::{self, Adoption};
use super::{Fetched, Pool};
use crate::backend::{Backend, BackendId};
use crate::identity::ClientKey;
use crate::logging::TARGET;

/// A POST without a verdict is given up after this long: ComfyUI's loop may stall for seconds.
pub(super) const VERDICT_TIMEOUT: Duration = Duration::from_secs(20);
/// Events come this much later than the answer to a question at most.
const EVENTS_LATE: Duration = Duration::from_secs(3);
/// Any other question is.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

impl Pool {
    /// Posts a prompt under the sid that suits its owner.
    pub(super) async fn post(self: Arc<Self>, post: Post) {
        let written = self.written.lock().remove(&post.job.id);
        if let Some(written) = written
            && written.await.is_err()
        {
            let (job, attempt, verdict) = (post.job.id, post.attempt, Verdict::NotSent);
            return self.tell(Input::Verdict { job, attempt, verdict });
        }
        let verdict = match self.backend(post.backend) {
            Some(backend) => match self.post_to(&backend, &post).await {
                // Perhaps for want of a file that was there once.
                (Verdict::Refused { .. }, true) => {
                    self.files.forget(backend.id);
                    self.post_to(&backend, &post).await.0
                }
                (verdict, _) => verdict,
            },
            None => Verdict::NotSent,
        };
        self.tell(Input::Verdict { job: post.job.id, attempt: post.attempt, verdict });
    }

    /// Posts it once; also tells whether it names files that were brought there.
    async fn post_to(self: &Arc<Self>, backend: &Arc<Backend>, post: &Post) -> (Verdict, bool) {
        let job = &post.job;
        let flavour = self.flavour_of(job);
        let mut has_files = false;
        let body = match self.files.prepare(&job.body, backend, &self.own(job.owner.key)).await {
            Ok(prepared) => {
                has_files = !prepared.pins.is_empty();
                self.pins.lock().entry(job.id).or_default().extend(prepared.pins);
                if prepared.body.is_some() {
                    self.rewritten.lock().insert(job.id);
                }
                prepared.body.unwrap_or_else(|| job.body.clone())
            }
            Err(error) => {
                let name = backend.name();
                warn!(target: TARGET, "{name} cannot have the files of {}: {error}", job.prompt_id);
                return (Verdict::NotSent, has_files);
            }
        };
        let number = if post.vetting { submission::LAST } else { job.number };
        let sid = self.links.sids().of(flavour);
        let body = submission::render(&body, &sid, number, &job.prompt_id);
        let posted = Posted { job: Arc::clone(job), flavour, sure: true };
        self.posted.add(backend.id, Arc::clone(&job.prompt_id), posted.clone());
        let verdict = self.ask.post_prompt(backend, &job.prompt_id, body, VERDICT_TIMEOUT).await;
        if let Verdict::Accepted(reply) = &verdict
            && let Some(theirs) = submission::remote_id(reply, &job.prompt_id)
        {
            self.ear.learn(backend.id, &theirs.into(), posted);
        }
        (verdict, has_files)
    }

    /// Takes a prompt back out of a backend's queue.
    pub(super) async fn take_back(
        self: Arc<Self>,
        job: Arc<Job>,
        backend: BackendId,
        attempt: Attempt,
    ) {
        let result = match self.backend(backend) {
            Some(backend) => {
                self.ask.take_back(&backend, &self.id_at(&backend, &job), TIMEOUT).await
            }
            None => TakenBack::Unknown,
        };
        self.tell(Input::TakenBack { job: job.id, attempt, result });
    }

    /// Asks a backend what it knows of a prompt, and keeps its history entry if it has ended.
    pub(super) async fn ask_about(
        self: Arc<Self>,
        job: Arc<Job>,
        backend: BackendId,
        attempt: Attempt,
    ) {
        let known = match self.backend(backend) {
            Some(at) => {
                let id = self.id_at(&at, &job);
                let (known, entry) = self.ask.know(&at, &id, TIMEOUT).await;
                if matches!(known, Known::Ended { .. }) {
                    self.hear_out(backend, job.id).await;
                }
                if let Some(entry) = entry {
                    let made = self.adopt(&at, &job, &entry);
                    if let Some(copies) = &self.copies {
                        copies.take(&at, made).await;
                    }
                }
                if let (Known::Running, Some(posted)) = (&known, self.posted.find(backend, &id)) {
                    self.ear.resume(&self, backend, posted.flavour, &id);
                }
                known
            }
            None => Known::Unknown,
        };
        self.tell(Input::Told { backend, job: job.id, attempt, known });
    }

    /// A backend said that a prompt has ended: its events may still be on their way, and once the
    /// job is over nobody would know whose they are.
    async fn hear_out(&self, backend: BackendId, job: JobId) {
        let heard = async {
            loop {
                let ended = self.end_heard.notified();
                let is_over =
                    |held: &Vec<Delivery>| held.iter().any(|one| one.meaning == Meaning::End);
                let over = self.ends.lock().get(&job).is_some_and(is_over);
                if over || !self.links.is_ready(backend) || self.retell.lock().has_gap(job) {
                    return;
                }
                ended.await;
            }
        };
        let _ = timeout(EVENTS_LATE, heard).await;
    }

    /// Interrupts a running prompt.
    pub(super) async fn interrupt(self: Arc<Self>, job: Arc<Job>, backend: BackendId) {
        if let Some(backend) = self.backend(backend) {
            // Events tell whether it helped.
            let _ = self.ask.interrupt(&backend, &self.id_at(&backend, &job), TIMEOUT).await;
        }
    }

    /// What a caller's own jobs made, for files that are named without their prefix.
    pub(super) fn own(self: &Arc<Self>, caller: ClientKey) -> Own {
        let pool = Arc::downgrade(self);
        Own(Arc::new(move |place| {
            let Some(pool) = pool.upgrade() else { return Vec::new() };
            let names = pool.made.by(caller, place);
            names.iter().map(|name| pool.fleet.id_of(name)).collect()
        }))
    }

    /// A backend has a job of an earlier process.
    pub(super) fn remember(&self, backend: BackendId, id: Arc<str>, job: &Arc<Job>) {
        // Its owner's socket has not come back yet: what it announced is not known.
        let posted = Posted { job: Arc::clone(job), flavour: self.flavour_of(job), sure: false };
        self.posted.add(backend, id, posted);
    }

    /// The socket on which a job's events come in the form that its owner wants.
    fn flavour_of(&self, job: &Job) -> Flavour {
        if self.hub.flags_of(&job.owner) { Flavour::Flags } else { Flavour::Plain }
    }

    /// Keeps a history entry as the job's owner is to get it, and returns which files it made there.
    fn adopt(&self, backend: &Backend, job: &Job, entry: &[u8]) -> BTreeSet<Place> {
        let reply = self.core.lock().get(job.id).map(|view| view.reply).unwrap_or_default();
        let adoption = Adoption {
            job,
            reply: &reply,
            remote_id: &self.id_at(backend, job),
            is_output: &|class| self.is_output(class),
            rewritten: self.rewritten.lock().contains(&job.id),
            mark: &|value| prefix::mark(value, backend.name()),
        };
        let Some(entry) = submission::adopt(entry, &adoption) else { return BTreeSet::new() };
        // Read here, not where the job ends: that must be quick, and entries may be long.
        let made = self.made.took(job.owner.key, &entry);
        let summary = summary_of(job, &entry);
        self.entries.lock().insert(job.id, Fetched { entry, summary });
        let here = |(name, place): (Box<str>, Place)| (*name == *backend.name()).then_some(place);
        made.into_iter().filter_map(here).collect()
    }

    fn backend(&self, id: BackendId) -> Option<Arc<Backend>> {
        self.fleet.view().get(id).cloned()
    }

    fn id_at(&self, backend: &Backend, job: &Job) -> Arc<str> {
        self.posted.id_at(backend.id, job.id).unwrap_or_else(|| Arc::clone(&job.prompt_id))
    }
}
