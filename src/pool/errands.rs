//! The errands of the core: each talks to one backend and brings back one input.

use std::sync::Arc;

use super::Pool;
use super::core::{Attempt, Input, Known, Post, TakenBack, Verdict};
use super::job::Job;
use super::events::Flavour;
use super::files::prefix;
use super::posted::Posted;
use super::submission::{self, Adoption};
use crate::backend::{Backend, BackendId};

impl Pool {
    /// Posts a prompt under the sid that suits its owner.
    pub(super) async fn post(self: Arc<Self>, post: Post) {
        let verdict = match self.backend(post.backend) {
            Some(backend) => self.post_to(&backend, &post).await,
            None => Verdict::NotSent,
        };
        self.tell(Input::Verdict { job: post.job.id, attempt: post.attempt, verdict });
    }

    async fn post_to(&self, backend: &Backend, post: &Post) -> Verdict {
        let job = &post.job;
        let flavour = self.flavour_of(job);
        let body = match self.prepare(backend, job).await {
            Ok(body) => body,
            Err(error) => {
                log::debug!("{} cannot have the files of {}: {error}", backend.name(), job.prompt_id);
                return Verdict::NotSent;
            }
        };
        let number = if post.vetting { submission::LAST } else { job.number };
        let sid = self.links.sids().of(flavour);
        let body = submission::render(&body, &sid, number, &job.prompt_id);
        let posted = Posted { job: Arc::clone(job), flavour };
        self.posted.add(backend.id, Arc::clone(&job.prompt_id), posted.clone());
        let timeout = self.config.load().pool_verdict_timeout();
        let verdict = self.ask.post_prompt(backend, body, timeout).await;
        if let Verdict::Accepted(reply) = &verdict
            && let Some(theirs) = submission::remote_id(reply, &job.prompt_id)
        {
            self.ear.learn(backend.id, theirs.into(), posted);
        }
        verdict
    }

    /// Takes a prompt back out of a backend's queue.
    pub(super) async fn take_back(self: Arc<Self>, job: Arc<Job>, backend: BackendId, attempt: Attempt) {
        let result = match self.backend(backend) {
            Some(backend) => self.ask.take_back(&backend, &self.id_at(&backend, &job)).await,
            None => TakenBack::Unknown,
        };
        self.tell(Input::TakenBack { job: job.id, attempt, result });
    }

    /// Asks a backend what it knows of a prompt, and keeps its history entry if it has ended.
    pub(super) async fn ask_about(self: Arc<Self>, job: Arc<Job>, backend: BackendId, attempt: Attempt) {
        let known = match self.backend(backend) {
            Some(at) => {
                let id = self.id_at(&at, &job);
                let (known, entry) = self.ask.know(&at, &id).await;
                if let Some(entry) = entry {
                    self.adopt(&at, &job, &entry);
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

    /// Interrupts a running prompt.
    pub(super) async fn interrupt(self: Arc<Self>, job: Arc<Job>, backend: BackendId) {
        if let Some(backend) = self.backend(backend) {
            self.ask.interrupt(&backend, &self.id_at(&backend, &job)).await;
        }
    }

    /// The socket on which a job's events come in the form that its owner wants.
    fn flavour_of(&self, job: &Job) -> Flavour {
        let wants = job.owner.client_id.as_ref().is_some_and(|id| self.hub.flags(id));
        if wants { Flavour::Flags } else { Flavour::Plain }
    }

    /// Keeps a history entry as the job's owner is to get it.
    fn adopt(&self, backend: &Backend, job: &Job, entry: &[u8]) {
        let reply = self.core.lock().get(job.id).map(|view| view.reply).unwrap_or_default();
        let adoption = Adoption {
            job,
            reply: &reply,
            remote_id: &self.id_at(backend, job),
            is_output: &|class| self.merged.is_output(class),
            rewritten: self.files.names_files(&job.body),
            mark: &|value| prefix::mark(value, backend.name()),
        };
        if let Some(entry) = submission::adopt(entry, &adoption) {
            self.entries.lock().insert(job.id, entry);
        }
    }

    fn backend(&self, id: BackendId) -> Option<Arc<Backend>> {
        self.fleet.view().get(id).cloned()
    }

    fn id_at(&self, backend: &Backend, job: &Job) -> Arc<str> {
        self.posted.id_at(backend.id, job.id).unwrap_or_else(|| Arc::clone(&job.prompt_id))
    }
}
