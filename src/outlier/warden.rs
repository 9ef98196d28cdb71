//! Applies the rule of ejection to the fleet: takes evidence, ejects, takes back.
//!
//! Evidence comes with every answer, so that of a backend without failures costs one relaxed load.
//! Whether one more may be ejected is decided under one lock, or two that fail in the same instant
//! would both be the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use log::{info, warn};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Evidence, Farm, Tally};
use crate::backend::{Backend, Wanted};
use crate::clock::Moment;
use crate::config::{Config, Outlier};
use crate::fleet::{Fleet, View};
use crate::health::Health;
use crate::logging::TARGET;

/// Changes of the fleet that come close together are looked at together.
const PAUSE: Duration = Duration::from_millis(50);

/// What one backend's answers have told.
#[derive(Debug, Default)]
pub struct Track {
    /// Whether the tally holds failures.
    dirty: AtomicBool,
    tally: Mutex<Tally>,
    ejections: AtomicU64,
}

impl Track {
    /// How often it was ejected.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    fn observe(&self, evidence: Evidence, rule: &Outlier) -> Option<String> {
        if evidence == Evidence::Good && !self.dirty.load(Relaxed) {
            return None;
        }
        let mut tally = self.tally.lock();
        let reason = tally.observe(evidence, rule);
        self.dirty.store(!tally.is_clean(), Relaxed);
        reason
    }

    /// Forgets what speaks against it, and an ejection under way.
    pub fn release(&self) {
        self.tally.lock().release();
        self.dirty.store(false, Relaxed);
    }

    fn eject(&self, rule: &Outlier, now: Moment) -> Duration {
        self.ejections.fetch_add(1, Relaxed);
        let length = self.tally.lock().eject(rule, now);
        self.dirty.store(false, Relaxed);
        length
    }

    fn sweep(&self, now: Moment) -> bool {
        self.tally.lock().sweep(now)
    }
}

/// Watches a fleet's answers.
#[derive(Debug)]
pub struct Warden {
    fleet: Arc<Fleet>,
    config: Arc<ArcSwap<Config>>,
    /// Held while it is decided who is out.
    deciding: Mutex<()>,
}

impl Warden {
    /// A warden of a fleet.
    pub fn new(fleet: Arc<Fleet>, config: Arc<ArcSwap<Config>>) -> Arc<Self> {
        Arc::new(Self { fleet, config, deciding: Mutex::new(()) })
    }

    /// Takes what a request told of its backend.
    pub fn saw(&self, backend: &Backend, evidence: Evidence) {
        let config = self.config.load();
        if let Some(reason) = backend.live.outlier.observe(evidence, &config.outlier) {
            self.eject(backend, &reason, &config.outlier);
        }
    }

    fn eject(&self, backend: &Backend, reason: &str, rule: &Outlier) {
        let _deciding = self.deciding.lock();
        let view = self.fleet.view();
        let standing = backend.live.standing();
        // Another judge has spoken, or another request has been quicker.
        if !standing.keeps_old() || view.get(backend.id).is_none() {
            return;
        }
        if !farm(&view, backend).may_eject(rule) {
            return;
        }
        let now = Moment::now();
        let length = backend.live.outlier.eject(rule, now);
        let until = SignedDuration::try_from(length).ok();
        let until = until.and_then(|length| Timestamp::now().checked_add(length).ok());
        backend.live.note(|notes| {
            notes.last_error = Some(reason.to_owned());
            notes.ejected_until = until;
        });
        backend.live.ejected(now);
        let seconds = length.as_secs_f64();
        warn!(target: TARGET, "backend {} is ejected for {seconds} s: {reason}", backend.name());
        self.fleet.touch();
    }

    /// Takes back the ejected backends that fit when no other that fits can take anybody; whether
    /// there were any.
    pub fn relent(&self, fits: impl Fn(&Backend) -> bool) -> bool {
        let view = self.fleet.view();
        let fitting = || view.backends.iter().filter(|backend| fits(backend));
        if !fitting().any(|backend| is_ready_when_back(backend)) {
            return false;
        }
        let _deciding = self.deciding.lock();
        if fitting().any(|backend| backend.live.standing().takes_new()) {
            return false;
        }
        for backend in fitting().filter(|backend| is_ready_when_back(backend)) {
            self.take_back(backend, "no other backend is left");
        }
        true
    }

    /// Takes back who has been out for long enough, and everybody when nobody is left; runs for as
    /// long as the process does.
    pub async fn tend(self: Arc<Self>) {
        let mut changes = self.fleet.watch();
        let mut swept = Instant::now();
        loop {
            let interval = self.config.load().outlier.interval;
            tokio::select! {
                () = sleep_until(swept + interval) => {
                    swept = Instant::now();
                    self.sweep(Moment::now());
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.relent(|_| true);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn sweep(&self, now: Moment) {
        let view = self.fleet.view();
        for backend in &view.backends {
            if backend.live.outlier.sweep(now) {
                let _deciding = self.deciding.lock();
                self.take_back(backend, "its time is over");
            }
        }
    }

    fn take_back(&self, backend: &Backend, why: &str) {
        if backend.live.taken_back(Moment::now()) {
            info!(target: TARGET, "backend {} is back from ejection: {why}", backend.name());
            self.fleet.touch();
        }
    }
}

/// Whether nothing but the ejection keeps clients from it.
fn is_ready_when_back(backend: &Backend) -> bool {
    let standing = backend.live.standing();
    standing.ejected
        && standing.health != Health::Down
        && standing.wanted == Wanted::Enabled
        && !standing.removed
}

fn farm(view: &View, this: &Backend) -> Farm {
    let mut farm = Farm::default();
    for backend in &view.backends {
        let standing = backend.live.standing();
        farm.members += usize::from(standing.wanted != Wanted::Disabled);
        farm.ejected += usize::from(standing.ejected);
        farm.others += usize::from(backend.id != this.id && standing.takes_new());
    }
    farm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Change;
    use crate::pace::Learnt;
    use crate::roster::Member;

    /// Backends `b-0`, `b-1`, … that are up.
    fn farm_of(count: usize) -> Arc<Warden> {
        let url = |n| format!("{{name: b-{n}, url: 'http://a:{}'}}", n + 1);
        let urls: Vec<String> = (0..count).map(url).collect();
        let config = crate::config::parse(&format!("backends: [{}]", urls.join(", "))).unwrap();
        let fleet = Arc::new(Fleet::new());
        let members = config.backends.iter().cloned();
        let members = members.map(|spec| Member { spec, wanted: Wanted::Enabled }).collect();
        fleet.apply(members, |_| Learnt::default());
        for backend in &fleet.view().backends {
            backend.live.alter(|standing| standing.health = Health::Up);
        }
        Warden::new(fleet, Arc::new(ArcSwap::from_pointee(config)))
    }

    fn fail(warden: &Warden, n: usize) {
        let backend = Arc::clone(&warden.fleet.view().backends[n]);
        for _ in 0..5 {
            warden.saw(&backend, Evidence::GatewayFailure("connection lost"));
        }
    }

    fn states(warden: &Warden) -> Vec<&'static str> {
        warden.fleet.view().backends.iter().map(|b| b.live.standing().label()).collect()
    }

    fn judge(warden: &Warden, n: usize, to: Health) {
        let live = Arc::clone(&warden.fleet.view().backends[n].live);
        let from = live.standing().health;
        live.judged(&Change { from, to, reason: String::new() }, Moment::now());
    }

    #[test]
    fn at_most_half_is_ejected_however_many_fail() {
        let warden = farm_of(5);
        for n in 0..5 {
            fail(&warden, n);
        }
        assert_eq!(states(&warden), ["ejected", "ejected", "up", "up", "up"]);
        let first = Arc::clone(&warden.fleet.view().backends[0]);
        assert_eq!(first.live.outlier.ejections(), 1);
        assert!(first.live.notes().ejected_until.unwrap() > Timestamp::now());
        let single = farm_of(1);
        fail(&single, 0);
        assert_eq!(states(&single), ["up"]);
    }

    #[test]
    fn failures_of_many_threads_eject_no_more_than_half() {
        let warden = farm_of(8);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let warden = &warden;
                scope.spawn(move || (0..50).for_each(|_| fail(warden, n)));
            }
        });
        assert_eq!(states(&warden).iter().filter(|state| **state == "ejected").count(), 4);
    }

    #[test]
    fn an_ejected_backend_is_back_when_its_time_is_over() {
        let warden = farm_of(2);
        fail(&warden, 0);
        let now = Moment::now();
        warden.sweep(now.plus(Duration::from_secs(29)));
        assert_eq!(states(&warden), ["ejected", "up"]);
        warden.sweep(now.plus(Duration::from_secs(31)));
        assert_eq!(states(&warden), ["up", "up"]);
        assert_eq!(warden.fleet.view().backends[0].live.notes().ejected_until, None);
    }

    #[test]
    fn when_nobody_else_is_left_the_ejected_ones_come_back() {
        let warden = farm_of(3);
        fail(&warden, 0);
        judge(&warden, 1, Health::Down);
        assert!(!warden.relent(|_| true), "b-2 is there");
        judge(&warden, 2, Health::Down);
        assert!(warden.relent(|_| true));
        assert_eq!(states(&warden), ["up", "down", "down"]);
        fail(&warden, 0);
        assert_eq!(states(&warden), ["up", "down", "down"], "the last one stays");
    }

    #[test]
    fn a_kind_of_work_that_only_ejected_ones_do_brings_them_back() {
        let warden = farm_of(4);
        fail(&warden, 0);
        fail(&warden, 1);
        assert!(warden.relent(|backend| backend.name() == "b-1"));
        assert_eq!(states(&warden), ["ejected", "up", "up", "up"]);
    }

    #[test]
    fn one_that_goes_down_is_healths_business() {
        let warden = farm_of(2);
        fail(&warden, 0);
        judge(&warden, 0, Health::Down);
        assert_eq!(states(&warden), ["down", "up"]);
        judge(&warden, 0, Health::Up);
        assert_eq!(states(&warden), ["up", "up"]);
        judge(&warden, 1, Health::Down);
        fail(&warden, 1);
        assert_eq!(states(&warden), ["up", "down"]);
    }
}
