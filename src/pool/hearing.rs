//! Hears the backends' event sockets: what each message means to the core, and who gets it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Pool;
use super::announced::Announced;
use super::core::Input;
use super::events::{Attribution, Directory, Flavour, Kind, Known, Rewrite, Verdict, parse};
use super::files::prefix;
use super::frame::{Delivery, Frame, Meaning};
use super::links::{self, Listener};
use super::posted::{AllPosted, Posted};
use crate::backend::BackendId;
use crate::clock::Moment;

/// Messages of one prompt that are held at its end.
const MAX_LAST_WORDS: usize = 64;

/// The ear of a pool.
pub(super) struct Ear {
    pool: Weak<Pool>,
    backends: Mutex<HashMap<BackendId, Arc<Mutex<Attribution>>>>,
    /// Backends whose sockets have broken: they may come back as other servers.
    broken: Mutex<HashSet<BackendId>>,
    announced: Mutex<HashMap<BackendId, Announced>>,
}

impl Ear {
    pub(super) fn new(pool: Weak<Pool>) -> Self {
        Self {
            pool,
            backends: Mutex::default(),
            broken: Mutex::default(),
            announced: Mutex::default(),
        }
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

    /// Whether a message of no prompt's was sent to everybody by a custom node.
    fn is_announced(
        &self,
        backend: BackendId,
        flavour: Flavour,
        frame: &Frame,
        now: Moment,
    ) -> bool {
        let heard = parse(frame);
        heard.kind == Kind::Custom
            && heard.prompt_id.is_none()
            && self.announced.lock().entry(backend).or_default().heard(flavour, frame, now)
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
        if verdict.stray && self.is_announced(backend, flavour, &frame, now) {
            pool.announce(backend, &frame);
        }
        pool.act_on(backend, verdict, now);
    }

    fn opened(&self, backend: BackendId, flavour: Flavour) {
        let Some(pool) = self.pool.upgrade() else { return };
        self.of(&pool, backend).lock().opened(flavour);
        pool.links_changed.notify_one();
        if pool.links.is_ready(backend) {
            // What happened while nobody listened has to be asked for.
            let there = pool.core.lock().on(backend);
            pool.retell.lock().reopened(there.iter().map(|view| view.job.id));
            pool.recovered(backend);
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
        // A job that was judged elsewhere is where it begins, and only from there it is told of.
        let (first, input) = match verdict.input {
            Some(input @ Input::Started { .. }) => (Some(input), None),
            input => (None, input),
        };
        if let Some(input) = first {
            self.tell(input);
        }
        if let Some(delivery) = verdict.delivery {
            self.pass_on(backend, delivery);
        }
        if let Some(input) = input {
            if matches!(input, Input::Finished { .. }) {
                self.recovered(backend);
            }
            self.tell(input);
        }
    }
}

impl Pool {
    /// Passes what a backend tells everybody to those whose home it is.
    fn announce(&self, backend: BackendId, frame: &Frame) {
        let Some(gateway) = self.gateway.upgrade() else { return };
        self.hub.pass_to(|caller| gateway.is_home_of(caller, backend), frame);
    }

    /// Passes a message to its owner. From the word on how a prompt ended on they wait until its
    /// history entry is here: clients ask for it as soon as they hear that, and until then the
    /// prompt may be lost with its backend, to run again.
    fn pass_on(&self, backend: BackendId, delivery: Delivery) {
        let (is_open, place) = {
            let core = self.core.lock();
            let place = core.place_of(delivery.job);
            (place.is_some() || core.get(delivery.job).is_some(), place)
        };
        // A copy tells nothing: at a server that was declared dead, or that took so long to answer
        // the POST that another was asked.
        let is_copy = place.is_some_and(|at| at != backend);
        // Until it is held, so that the job's end, which takes what is held, finds it or knows that
        // it has to be retold.
        let mut retell = self.retell.lock();
        if is_copy || !retell.passes(&delivery) {
            return;
        }
        let closes = matches!(delivery.meaning, Meaning::Terminal | Meaning::End);
        if closes && is_open {
            self.ends.lock().entry(delivery.job).or_default().push(delivery);
            self.end_heard.notify_waiters();
            return;
        }
        let passes = self.after_the_end(delivery);
        drop(retell);
        if let Some(delivery) = passes {
            self.hub.deliver(delivery);
        }
    }

    /// What follows a word that is held waits with it; a backend that never stops is passed on.
    fn after_the_end(&self, delivery: Delivery) -> Option<Delivery> {
        let mut ends = self.ends.lock();
        match ends.get_mut(&delivery.job) {
            Some(held) if held.len() < MAX_LAST_WORDS => {
                held.push(delivery);
                None
            }
            _ => Some(delivery),
        }
    }
}

impl Directory for AllPosted {
    fn is_of(&self, backend: BackendId, prompt_id: &str, flavour: Flavour) -> bool {
        self.learn_flavour(backend, prompt_id, flavour)
    }

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
