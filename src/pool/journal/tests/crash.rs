//! Power is lost at every step of writing, thousands of times; what was acknowledged is there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use super::super::disk::Disk;
use super::super::log::Log;
use super::super::{assemble, restore};
use super::sim_disk::SimDisk;
use super::*;

/// Small, so that segments are dropped and emptied all the time.
const SEGMENT: u64 = 6_000;

pub(super) struct Machine {
    pub(super) disk: SimDisk,
    pub(super) journal: Journal,
    pub(super) log: Log,
    pub(super) restored: Restored,
}

impl Machine {
    pub(super) fn start(disk: SimDisk, bounds: Bounds, segment: u64) -> Self {
        let dynamic: Arc<dyn Disk> = Arc::new(disk.clone());
        let found = restore::read(&dynamic, None, segment).unwrap_or_else(|_| panic!("not read"));
        let bounds = Bounds { max_age: Duration::MAX, ..bounds };
        let (shared, restored, log) = assemble(&dynamic, found, None, bounds, names(), segment);
        let (writer, lock) = (Mutex::new(None), Mutex::new(None));
        let (salt, state_dir) = (log.salt(), PathBuf::new());
        let journal =
            Journal { shared, disk: dynamic, salt, writer, lock, state_dir, segment_size: segment };
        Self { disk, journal, log, restored }
    }

    /// Lets the writer work for a round at this time.
    pub(super) fn round(&mut self, now: Instant) {
        let (items, _) = self.journal.shared.take(Instant::now());
        self.log.round(items, now, NOW_MS);
    }
}

/// What the world was told, and what it asked for.
#[derive(Debug, Default, Clone)]
struct Told {
    size: usize,
    accepted: Option<bool>,
    /// The last move that is certain, and all that were asked for since.
    steps: Vec<u32>,
    end_asked: bool,
    ended: bool,
    delete_asked: bool,
    deleted: bool,
}

struct World {
    machine: Machine,
    jobs: BTreeMap<u64, Told>,
    next: u64,
    random: StdRng,
    now: Instant,
}

enum Asked {
    Accept(u64, Ticket),
    Move(u64, u32, Ticket),
    End(u64, Ticket),
    Delete(u64, Ticket),
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            machine: Machine::start(SimDisk::new(), Bounds::default(), SEGMENT),
            jobs: BTreeMap::new(),
            next: 1,
            random: StdRng::seed_from_u64(seed),
            now: Instant::now(),
        }
    }

    fn ask(&mut self) -> Option<Asked> {
        let journal = &self.machine.journal;
        let mut some = |wanted: &dyn Fn(&Told) -> bool| {
            let ids = self.jobs.iter().filter(|(_, told)| wanted(told)).map(|(id, _)| *id);
            ids.choose(&mut self.random)
        };
        let open = some(&|told| told.accepted == Some(true) && !told.end_asked);
        let finished = some(&|told| told.end_asked && !told.delete_asked);
        let dice = self.random.random_range(0..10);
        match (dice, open, finished) {
            (0..=3, _, _) => {
                let (id, size) = (self.next, self.random.random_range(10..2_000));
                self.next += 1;
                self.jobs.insert(id, Told { size, steps: vec![0], ..Told::default() });
                Some(Asked::Accept(id, journal.write(accepted(id, size))))
            }
            (4..=6, Some(id), _) => {
                let told = self.jobs.get_mut(&id)?;
                let step = told.steps.last()? + 1;
                told.steps.push(step);
                let phase = Phase::Running(BackendId(1));
                Some(Asked::Move(id, step, journal.write(moved(id, phase, step))))
            }
            (7..=8, Some(id), _) => {
                let told = self.jobs.get_mut(&id)?;
                told.end_asked = true;
                Some(Asked::End(id, journal.write(ended(id, told.size))))
            }
            (9, _, Some(id)) => {
                self.jobs.get_mut(&id)?.delete_asked = true;
                let (count, ticket) = journal.delete(&[JobId(id)]);
                assert_eq!(count, 1, "job {id} was not there to be deleted");
                Some(Asked::Delete(id, ticket))
            }
            _ => None,
        }
    }

    fn hear(&mut self, asked: Asked) {
        match asked {
            Asked::Accept(id, ticket) => {
                if let Some(told) = self.jobs.get_mut(&id) {
                    told.accepted = Some(ticket.wait().is_ok());
                }
            }
            Asked::Move(id, step, ticket) => {
                if ticket.wait().is_ok() {
                    self.jobs.get_mut(&id).unwrap().steps.retain(|known| *known >= step);
                }
            }
            Asked::End(id, ticket) => {
                self.jobs.get_mut(&id).unwrap().ended |= ticket.wait().is_ok();
            }
            Asked::Delete(id, ticket) => {
                self.jobs.get_mut(&id).unwrap().deleted |= ticket.wait().is_ok();
            }
        }
    }

    /// A few rounds; power may be lost in the last one.
    fn live(&mut self) -> SimDisk {
        for _ in 0..self.random.random_range(1..12) {
            let asked: Vec<_> = (0..12).filter_map(|_| self.ask()).collect();
            self.now += Duration::from_millis(700);
            self.machine.round(self.now);
            for asked in asked {
                self.hear(asked);
            }
        }
        let _unheard: Vec<_> = (0..12).filter_map(|_| self.ask()).collect();
        self.machine.disk.take_picture_after(self.random.random_range(0..8));
        self.now += Duration::from_millis(700);
        self.machine.round(self.now);
        self.machine.disk.picture()
    }

    fn crash(&mut self) {
        let disk = self.live().crash(self.random.random());
        self.machine = Machine::start(disk, Bounds::default(), SEGMENT);
        let (jobs, machine) = (&mut self.jobs, &self.machine);
        let open: BTreeMap<u64, &OpenJob> =
            machine.restored.open.iter().map(|open| (open.job.id.0, open)).collect();
        for id in open.keys().copied().chain(machine.journal.finished().iter().map(|f| f.id.0)) {
            assert!(jobs.contains_key(&id), "job {id} was made up");
            assert!(machine.restored.next_job_id.0 > id, "its number may be given away again");
        }
        jobs.retain(|id, told| settle(*id, told, open.get(id).copied(), &machine.journal));
        self.next = self.next.max(machine.restored.next_job_id.0);
    }
}

/// Compares what is there with what was told, which from here on is what is there.
fn settle(id: u64, told: &mut Told, open: Option<&OpenJob>, journal: &Journal) -> bool {
    let finished = journal.get(JobId(id));
    assert!(open.is_none() || finished.is_none(), "job {id} is open and finished: {told:?}");
    let kept = open.is_some() || finished.is_some();
    if told.accepted == Some(true) && !told.delete_asked {
        assert!(kept, "job {id} is lost: {told:?}");
    }
    if told.accepted == Some(false) {
        assert!(!kept, "job {id} was refused and came back");
    }
    if told.deleted {
        assert!(!kept, "job {id} was deleted and came back: {told:?}");
    }
    if let Some(open) = open {
        assert!(!told.ended, "job {id} has ended and is open again: {told:?}");
        assert_eq!(open.job.body, body(id, told.size));
        assert!(told.steps.contains(&open.attempts), "job {id}: {} {told:?}", open.attempts);
        told.steps = vec![open.attempts];
    }
    if finished.is_some() {
        assert!(told.end_asked, "job {id} has not ended: {told:?}");
        assert_eq!(journal.entry_blocking(JobId(id)), Some(entry(id, told.size)), "job {id}");
    }
    told.accepted = Some(true);
    (told.ended, told.end_asked) = (finished.is_some(), finished.is_some());
    (told.deleted, told.delete_asked) = (false, false);
    kept
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..8 {
        world.crash();
    }
}

#[test]
fn what_was_acknowledged_survives_any_crash() {
    let seeds = if std::env::var_os("COMFYGATE_TEST_FULL").is_some() { 5_000 } else { 100 };
    let first = std::env::var("COMFYGATE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = first.map_or(0..seeds, |seed| seed..seed + 1);
    for seed in seeds {
        let ran = std::panic::catch_unwind(|| run(seed));
        assert!(ran.is_ok(), "replay with COMFYGATE_SEED={seed}");
    }
}

/// The stream of open jobs must know of an end before the end itself is dropped.
#[test]
fn a_job_whose_end_was_forgotten_does_not_come_back() {
    let few = Bounds { max_jobs: 2, ..Bounds::default() };
    let mut machine = Machine::start(SimDisk::new(), few, SEGMENT);
    let now = Instant::now();
    let accepted: Vec<_> = (1..40).map(|n| machine.journal.write(accepted(n, 100))).collect();
    machine.round(now);
    assert!(accepted.into_iter().all(|ticket| ticket.wait().is_ok()));
    for n in 1..30 {
        let ticket = machine.journal.write(ended(n, 1000));
        machine.round(now);
        ticket.wait().unwrap();
        let again = Machine::start(machine.disk.crash(n), few, SEGMENT);
        let open = numbers(&again.restored.open).into_keys();
        assert!(open.eq(n + 1..40), "after {n}");
    }
}

/// Dropping and rewriting keep the files near what is needed, through jobs by the thousand.
#[test]
fn the_files_stay_near_what_they_hold() {
    let mut machine = Machine::start(SimDisk::new(), Bounds::default(), SEGMENT);
    let now = Instant::now();
    let mut tickets = vec![machine.journal.write(accepted(1, 3_000))];
    for n in 2..2_000 {
        tickets.push(machine.journal.write(accepted(n, 500)));
        tickets.push(machine.journal.write(ended(n, 500)));
        if n > 60 && n % 10 != 0 {
            tickets.push(machine.journal.delete(&[JobId(n - 50)]).1);
        }
        machine.round(now + Duration::from_millis(n));
    }
    for _ in 0..50 {
        machine.round(now + Duration::from_secs(10));
    }
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    let needed = machine.journal.usage().finished_bytes + 4_000;
    let used = machine.disk.used();
    assert!(used < needed + needed / 4 + 12 * SEGMENT, "{used} for {needed}");
    let again = Machine::start(machine.disk.crash(1), Bounds::default(), SEGMENT);
    assert_eq!(numbers(&again.restored.open), [(1, 3_000)].into());
    assert_eq!(again.restored.finished, machine.journal.usage().finished);
}
