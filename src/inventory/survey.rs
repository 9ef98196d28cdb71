//! Reads inventories: of each backend as it lives, and of all of them when the doctor asks.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{StreamExt, stream};
use log::debug;
use parking_lot::Mutex;
use rand::Rng;
use reqwest::header::HeaderMap;
use tokio::sync::{Mutex as Turn, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use super::read::Reader;
use super::{Capabilities, Sighting};
use crate::backend::{Backend, BackendId, Standing};
use crate::config;
use crate::fleet::Fleet;
use crate::health::Health;
use crate::logging::TARGET;
use crate::probe::poll::header_pairs;

/// Pause between two readings of `/system_stats`.
const EVERY: Duration = Duration::from_mins(1);
/// Pause after a failure, doubled with each until it is most of an hour.
const RETRY: Duration = Duration::from_secs(10);
const MAX_DOUBLINGS: u32 = 8;
/// Replies of `/object_info` read at once: each may be many megabytes.
const READ_AT_ONCE: usize = 4;
/// A survey of the whole farm takes at most this long.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(20);
/// A survey that ended within this time is not made again.
const SURVEY_HOLDS: Duration = Duration::from_secs(5);

/// Reads inventories.
pub struct Surveyor {
    fleet: Arc<Fleet>,
    reader: Reader,
    headers: ArcSwap<HeaderMap>,
    heavy: Semaphore,
    /// Held for a survey, so that many who ask at once share one.
    last: Turn<Option<(Instant, Arc<Survey>)>>,
    /// Held while equal capabilities are looked for.
    sharing: Mutex<()>,
}

/// A farm as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// Backends that were read.
    pub seen: Vec<Sighting>,
    /// Names of those that were not: down, too slow, or answering something else.
    pub unread: Vec<String>,
}

impl Surveyor {
    /// A surveyor of a fleet.
    pub fn new(fleet: Arc<Fleet>, options: &config::HealthCheck) -> anyhow::Result<Self> {
        Ok(Self {
            fleet,
            reader: Reader::new()?,
            headers: ArcSwap::from_pointee(header_pairs(&options.headers).collect()),
            heavy: Semaphore::new(READ_AT_ONCE),
            last: Turn::default(),
            sharing: Mutex::default(),
        })
    }

    /// Sends other headers from now on.
    pub fn set_options(&self, options: &config::HealthCheck) {
        self.headers.store(Arc::new(header_pairs(&options.headers).collect()));
    }

    /// Reads a backend's inventory whenever it comes up, and the light part of it every minute,
    /// until the backend is removed.
    pub async fn follow(self: Arc<Self>, id: BackendId) {
        let Some(live) = self.fleet.view().get(id).map(|backend| Arc::clone(&backend.live)) else {
            return;
        };
        let mut standing = live.watch();
        let mut heavy = Heavy::default();
        loop {
            let up = |standing: &Standing| standing.removed || standing.health == Health::Up;
            match standing.wait_for(up).await {
                Ok(standing) if !standing.removed => {}
                _ => return,
            }
            tokio::select! {
                () = self.look(id, &mut heavy) => {}
                () = live.inventory.outdated.notified() => heavy.wanted = true,
                _ = standing.wait_for(|now| !up(now) || now.removed) => heavy.wanted = true,
            }
        }
    }

    /// One look and the pause after it.
    async fn look(&self, id: BackendId, heavy: &mut Heavy) {
        let Some(backend) = self.fleet.view().get(id).cloned() else { return };
        let well = self.read_system(&backend).await;
        if heavy.is_due() {
            heavy.tried(self.read_capabilities(&backend).await);
        }
        let pause = if well { EVERY } else { RETRY };
        let pause = heavy.due_in().map_or(pause, |due| pause.min(due));
        // A tenth of jitter keeps the backends from being read in step.
        let pause = pause.mul_f64(rand::rng().random_range(0.9..=1.0));
        sleep(pause).await;
    }

    /// Reads every backend that is up, now. Many who ask within a few seconds share one survey.
    pub async fn survey(&self) -> Arc<Survey> {
        let mut last = self.last.lock().await;
        if let Some((at, survey)) = &*last
            && at.elapsed() < SURVEY_HOLDS
        {
            return Arc::clone(survey);
        }
        let survey = Arc::new(self.read_all().await);
        *last = Some((Instant::now(), Arc::clone(&survey)));
        survey
    }

    async fn read_all(&self) -> Survey {
        let backends = self.fleet.view().backends.clone();
        let deadline = Instant::now() + SURVEY_TIMEOUT;
        let read = stream::iter(backends.clone().into_iter().enumerate())
            .map(|(position, backend)| async move {
                let fresh = timeout_at(deadline, self.read_now(&backend)).await;
                (position, fresh.ok().flatten())
            })
            .buffer_unordered(READ_AT_ONCE * 2);
        let mut read: Vec<(usize, Option<Sighting>)> = read.collect().await;
        read.sort_by_key(|(position, _)| *position);
        let mut survey = Survey::default();
        for (position, sighting) in read {
            match sighting {
                Some(sighting) => survey.seen.push(sighting),
                None => survey.unread.push(backends[position].name().to_owned()),
            }
        }
        survey
    }

    async fn read_now(&self, backend: &Backend) -> Option<Sighting> {
        let is_up = backend.live.standing().health == Health::Up;
        if !is_up || !self.read_system(backend).await || !self.read_capabilities(backend).await {
            return None;
        }
        let inventory = &backend.live.inventory;
        Some(Sighting {
            name: backend.name().to_owned(),
            version: inventory.system()?.version.clone(),
            capabilities: inventory.capabilities()?,
        })
    }

    async fn read_system(&self, backend: &Backend) -> bool {
        match self.reader.system(backend, self.headers_for(backend)).await {
            Ok(system) => {
                backend.live.inventory.found_system(system);
                true
            }
            Err(why) => unread(backend, "/system_stats", &why),
        }
    }

    async fn read_capabilities(&self, backend: &Backend) -> bool {
        let Ok(_turn) = self.heavy.acquire().await else { return false };
        match self.reader.capabilities(backend, self.headers_for(backend)).await {
            Ok(found) => {
                self.share(backend, found);
                true
            }
            Err(why) => unread(backend, "/object_info", &why),
        }
    }

    /// Keeps what was found; backends of the same kind share one copy of it.
    fn share(&self, backend: &Backend, found: Capabilities) {
        let _sharing = self.sharing.lock();
        let view = self.fleet.view();
        let known = view.backends.iter().filter_map(|other| other.live.inventory.capabilities());
        let same = known.into_iter().find(|known| **known == found);
        let found = same.unwrap_or_else(|| Arc::new(found));
        let news = backend.live.inventory.capabilities() != Some(Arc::clone(&found));
        backend.live.inventory.found_capabilities(found);
        if news {
            self.fleet.touch();
        }
    }

    fn headers_for(&self, backend: &Backend) -> HeaderMap {
        let mut headers = HeaderMap::clone(&self.headers.load());
        for (name, value) in header_pairs(&backend.spec.headers) {
            headers.insert(name, value);
        }
        headers
    }
}

fn unread(backend: &Backend, what: &str, why: &str) -> bool {
    debug!(target: TARGET, "{what} of {} could not be read: {why}", backend.name());
    false
}

/// When `/object_info` is to be read again.
#[derive(Debug)]
struct Heavy {
    wanted: bool,
    not_before: Option<Instant>,
    failures: u32,
}

impl Default for Heavy {
    fn default() -> Self {
        Self { wanted: true, not_before: None, failures: 0 }
    }
}

impl Heavy {
    fn is_due(&self) -> bool {
        self.due_in().is_some_and(|due| due.is_zero())
    }

    /// How long until it is to be read, if it is.
    fn due_in(&self) -> Option<Duration> {
        let now = Instant::now();
        let due = self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        self.wanted.then_some(due)
    }

    /// Took a try. A backend that flaps is not asked for megabytes each time it comes up.
    fn tried(&mut self, well: bool) {
        self.wanted = !well;
        self.failures = if well { 0 } else { self.failures + 1 };
        let doublings = self.failures.saturating_sub(1).min(MAX_DOUBLINGS);
        self.not_before = Some(Instant::now() + RETRY * (1 << doublings));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_ever_more_rarely() {
        let mut heavy = Heavy::default();
        assert!(heavy.is_due());
        heavy.tried(false);
        assert_eq!(heavy.due_in(), Some(RETRY));
        for _ in 0..100 {
            heavy.tried(false);
        }
        assert_eq!(heavy.due_in(), Some(RETRY * 256));
        heavy.tried(true);
        assert_eq!(heavy.due_in(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_flaps_is_read_once_in_ten_seconds() {
        let mut heavy = Heavy::default();
        heavy.tried(true);
        heavy.wanted = true;
        assert!(!heavy.is_due());
        tokio::time::advance(RETRY).await;
        assert!(heavy.is_due());
    }
}
