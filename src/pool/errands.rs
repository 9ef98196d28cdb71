//! The errands of the core: each talks to one backend and brings back one input.

use std::sync::Arc;

use super::Pool;
use super::core::{Attempt, Input, Known, Post, TakenBack, Verdict};
use super::job::Job;
use super::posted::Posted;
use super::submission;
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
        let flavour = self.hub.flavour_of(&job.owner);
        let body = match self.prepare(backend, job).await {
            Ok(body) => body,
            Err(error) => {
                log::debug!("{} cannot have the files of {}: {error}", backend.name(), job.prompt_id);
                return Verdict::NotSent;
            }
        };
        let number = if post.vetting { submission::LAST } else { job.number };
        let sid = self.sids.of(flavour);
        let body = submission::render(&body, &sid, number, &job.prompt_id);
        let posted = Posted { job: Arc::clone(job), flavour };
        self.posted.add(backend.id, Arc::clone(&job.prompt_id), posted.clone());
        let timeout = self.config.load().pool_verdict_timeout();
        let verdict = self.ask.post_prompt(backend, body, timeout).await;
        if let Verdict::Accepted(reply) = &verdict
            && let Some(theirs) = submission::remote_id(reply, &job.prompt_id)
        {
            self.posted.add(backend.id, theirs.into(), posted);
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
                let (known, entry) = self.ask.know(&at, &self.id_at(&at, &job)).await;
                if let Some(entry) = entry {
                    self.adopt(&at, &job, &entry);
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

    fn backend(&self, id: BackendId) -> Option<Arc<Backend>> {
        self.fleet.view().get(id).cloned()
    }

    fn id_at(&self, backend: &Backend, job: &Job) -> Arc<str> {
        self.posted.id_at(backend.id, job.id).unwrap_or_else(|| Arc::clone(&job.prompt_id))
    }
}
