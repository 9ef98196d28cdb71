//! Hears the backends' event sockets: what each message means to the core, and who gets it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Pool;
use super::core::Input;
use super::events::{Attribution, Directory, Flavour, Known, Rewrite, Verdict};
use super::files::prefix;
use super::frame::{Delivery, Frame, Meaning};
use super::links::{self, Listener};
use super::posted::{AllPosted, Posted};
use crate::backend::BackendId;
use crate::clock::Moment;

/// The ear of a pool.
pub(super) struct Ear {
    pool: Weak<Pool>,
    backends: Mutex<HashMap<BackendId, Arc<Mutex<Attribution>>>>,
    /// Backends whose sockets have broken: they may come back as other servers.
    broken: Mutex<HashSet<BackendId>>,
}

impl Ear {
    pub(super) fn new(pool: Weak<Pool>) -> Self {
        Self { pool, backends: Mutex::default(), broken: Mutex::default() }
    }

    /// A backend runs a prompt under an id of its own making. What it told of it before is told now.
    pub(super) fn learn(&self, backend: BackendId, id: &Arc<str>, posted: Posted) {
        let Some(pool) = self.pool.upgrade() else { return };
        let now = Moment::now();
        let side = self.of(&pool, backend);
        let mut side = side.lock();
        pool.posted.add(backend, Arc::clone(id), posted);
        for verdict in side.claim(id, now, &pool.posted) {
            pool.act_on(backend, verdict, now);
        }
    }

    /// A backend is no longer part of the fleet.
    pub(super) fn forget(&self, backend: BackendId) {
        self.backends.lock().remove(&backend);
        self.broken.lock().remove(&backend);
    }

    /// A backend said, not by an event, that a prompt runs there.
    pub(super) fn resume(&self, pool: &Pool, backend: BackendId, flavour: Flavour, id: &str) {
        self.of(pool, backend).lock().resume(flavour, id);
    }

    fn of(&self, pool: &Pool, backend: BackendId) -> Arc<Mutex<Attribution>> {
        let mut backends = self.backends.lock();
        let known = backends.entry(backend).or_insert_with(|| {
            let name = pool.name_of(backend);
            let rewrite: Rewrite = Arc::new(move |value| prefix::mark(value, &name));
            Arc::new(Mutex::new(Attribution::new(backend, rewrite)))
        });
        Arc::clone(known)
    }
}

impl Listener for Ear {
    fn heard(&self, backend: BackendId, flavour: Flavour, frame: Frame) {
        let Some(pool) = self.pool.upgrade() else { return };
        let now = Moment::now();
        let side = self.of(&pool, backend);
        let verdict = side.lock().heard(flavour, &frame, now, &pool.posted);
        pool.act_on(backend, verdict, now);
    }

    fn opened(&self, backend: BackendId, flavour: Flavour) {
        let Some(pool) = self.pool.upgrade() else { return };
        self.of(&pool, backend).lock().opened(flavour);
        pool.links_changed.notify_one();
        if pool.links.is_ready(backend) {
            // What happened while nobody listened has to be asked for.
            pool.tell(Input::LaneReset(backend));
            pool.look_first(backend);
            if self.broken.lock().remove(&backend)
                && let Some(backend) = pool.fleet.view().get(backend)
            {
                backend.live.inventory.outdate();
                pool.files.forget(backend.id);
            }
        }
    }

    fn lost(&self, backend: BackendId, flavour: Flavour) {
        let Some(pool) = self.pool.upgrade() else { return };
        self.of(&pool, backend).lock().lost(flavour);
        self.broken.lock().insert(backend);
        pool.read.lock().remove(&backend);
        pool.links_changed.notify_one();
        if let Some(backend) = pool.fleet.view().get(backend) {
            links::took_loss(backend);
        }
    }
}

impl Pool {
    fn act_on(self: &Arc<Self>, backend: BackendId, verdict: Verdict, now: Moment) {
        self.lived(backend, verdict.depth, now);
        if let Some(delivery) = verdict.delivery {
            self.pass_on(delivery);
        }
        if let Some(input) = verdict.input {
            self.tell(input);
        }
    }
}

impl Pool {
    /// Passes a message to its owner. The last word on a prompt waits until its history entry is
    /// here: clients ask for it as soon as they hear that word.
    fn pass_on(&self, delivery: Delivery) {
        let is_open = || self.core.lock().get(delivery.job).is_some();
        if delivery.meaning == Meaning::End && is_open() {
            self.ends.lock().insert(delivery.job, delivery);
            self.end_heard.notify_waiters();
        } else {
            self.hub.deliver(delivery);
        }
    }
}

impl Directory for AllPosted {
    fn job(&self, backend: BackendId, prompt_id: &str) -> Option<Known> {
        let posted = self.find(backend, prompt_id)?;
        Some(Known {
            job: posted.job.id,
            owner: posted.job.owner.clone(),
            prompt_id: Arc::clone(&posted.job.prompt_id),
            flavour: posted.flavour,
        })
    }
}
