//! Looks at the backends' queues: what of ours is there, and what of strangers.
//!
//! A prompt that somebody posts to a backend directly takes its turn there, so that a job of ours
//! would wait behind it. The depth that every status event tells shows that something is there;
//! only the queue itself tells whose. It is read whenever the depth is not what the core believes,
//! and now and then.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{interval, sleep};

use super::Pool;
use super::core::{ARRIVED, Input};
use super::errands::TIMEOUT;
use super::job::JobId;
use super::links;
use crate::backend::{Backend, BackendId};
use crate::clock::Moment;

/// Pause before a surprising depth is looked into: the reply to a POST may be on its way.
const PATIENCE: Duration = Duration::from_millis(150);

impl Pool {
    /// A backend has shown life, and perhaps its depth.
    pub(super) fn lived(self: &Arc<Self>, backend: BackendId, depth: Option<u32>, now: Moment) {
        let view = self.fleet.view();
        let (Some(backend), Some(depth)) = (view.get(backend), depth) else { return };
        links::took_depth(backend, &self.fleet, depth, now);
        if self.is_surprising(backend.id, depth) {
            self.look_at(backend.id);
        }
    }

    /// Whether a backend holds another number of prompts than the core believes.
    fn is_surprising(&self, backend: BackendId, depth: u32) -> bool {
        depth as usize != self.core.lock().expected(backend)
    }

    /// Reads the queue of a backend whose sockets have opened: nothing goes there before.
    pub(super) fn look_first(self: &Arc<Self>, backend: BackendId) {
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            while pool.links.is_ready(backend) && !pool.read.lock().contains(&backend) {
                let Some(found) = pool.fleet.view().get(backend).cloned() else { return };
                if !pool.look(&found).await {
                    sleep(PATIENCE).await;
                }
            }
        });
    }

    /// Reads a backend's queue soon; several wishes make one reading.
    pub(super) fn look_at(self: &Arc<Self>, backend: BackendId) {
        if !self.looking.lock().insert(backend) {
            return;
        }
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            sleep(PATIENCE).await;
            pool.looking.lock().remove(&backend);
            let found = pool.fleet.view().get(backend).cloned();
            if let Some(backend) = found {
                pool.look(&backend).await;
            }
        });
    }

    /// Looks at every backend now and then, for as long as the process lives.
    pub(super) async fn look_round(self: Arc<Self>) {
        let mut every = interval(Duration::from_secs(5));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            for backend in &self.fleet.view().backends {
                if backend.live.standing().may_be_asked() {
                    self.look_at(backend.id);
                }
            }
        }
    }

    /// The job of ours that a backend means by an id. An earlier process may have posted it there
    /// and died before it could write that down.
    fn ours_at(&self, backend: BackendId, id: &str) -> Option<JobId> {
        if let Some(posted) = self.posted.find(backend, id) {
            return Some(posted.job.id);
        }
        let core = self.core.lock();
        let job = core.get(core.find(id)?)?.job;
        drop(core);
        self.remember(backend, Arc::clone(&job.prompt_id), &job);
        Some(job.id)
    }

    /// After a restart nothing leaves the line before every queue was read, late enough to show
    /// what an earlier process sent.
    pub(super) async fn look_after_restart(self: Arc<Self>) {
        sleep(ARRIVED).await;
        for backend in &self.fleet.view().backends {
            self.look_at(backend.id);
        }
    }

    async fn look(self: &Arc<Self>, backend: &Backend) -> bool {
        let asked = Moment::now();
        let Ok(items) = self.ask.queue(backend, TIMEOUT).await else { return false };
        if !items.complete {
            return false;
        }
        let ours = |ids: &[String]| {
            ids.iter().filter_map(|id| self.ours_at(backend.id, id)).collect::<Vec<_>>()
        };
        let (running, pending) = (ours(&items.running), ours(&items.pending));
        let all = items.running.len() + items.pending.len();
        let foreign = (all - running.len() - pending.len()) as u32;
        if items.running.is_empty() {
            self.recovered(backend.id);
        }
        self.tell(Input::Queue { backend: backend.id, running, pending, foreign, asked });
        if self.read.lock().insert(backend.id) {
            self.links_changed.notify_one();
        }
        true
    }
}
