//! Which prompts of ours a backend has, and under which id and flavour it was posted there: what
//! turns an event's prompt id into a job.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::events::Flavour;
use super::job::{Job, JobId};
use crate::backend::BackendId;

/// A prompt that was posted to a backend.
#[derive(Debug, Clone)]
pub(super) struct Posted {
    /// The job.
    pub job: Arc<Job>,
    /// Which of our sids it was posted under.
    pub flavour: Flavour,
    /// Whether that is known: what an earlier process posted is only guessed.
    pub sure: bool,
}

/// All of them. An old ComfyUI gives a prompt an id of its own, so that a job may be known under
/// two; both are forgotten with the job.
#[derive(Debug, Default)]
pub(super) struct AllPosted {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    posted: HashMap<(BackendId, Arc<str>), Posted>,
    of: HashMap<JobId, Vec<(BackendId, Arc<str>)>>,
}

impl AllPosted {
    /// A prompt is about to be posted: events may overtake the reply.
    pub(super) fn add(&self, backend: BackendId, id: Arc<str>, posted: Posted) {
        let mut inner = self.inner.lock();
        let (job, key) = (posted.job.id, (backend, id));
        let keys = inner.of.entry(job).or_default();
        if !keys.contains(&key) {
            keys.push(key.clone());
        }
        inner.posted.insert(key, posted);
    }

    /// What a backend means by an id.
    pub(super) fn find(&self, backend: BackendId, id: &str) -> Option<Posted> {
        // The key owns its text; an event's id is short.
        self.inner.lock().posted.get(&(backend, Arc::from(id))).cloned()
    }

    /// The id under which a backend knows a job, the latest if there are several.
    pub(super) fn id_at(&self, backend: BackendId, job: JobId) -> Option<Arc<str>> {
        let inner = self.inner.lock();
        let mut keys = inner.of.get(&job)?.iter().rev();
        keys.find(|(at, _)| *at == backend).map(|(_, id)| Arc::clone(id))
    }

    /// An event came on the socket of this flavour. True when only a guess stood against that.
    pub(super) fn learn_flavour(&self, backend: BackendId, id: &str, flavour: Flavour) -> bool {
        let mut inner = self.inner.lock();
        let posted = inner.posted.get_mut(&(backend, Arc::from(id)));
        let Some(posted) = posted.filter(|posted| !posted.sure) else { return false };
        (posted.flavour, posted.sure) = (flavour, true);
        true
    }

    /// A job has ended, or was refused.
    pub(super) fn forget(&self, job: JobId) {
        let mut inner = self.inner.lock();
        for key in inner.of.remove(&job).unwrap_or_default() {
            inner.posted.remove(&key);
        }
    }
}
