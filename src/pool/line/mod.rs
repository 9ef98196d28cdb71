//! The line: the jobs that wait, and whose turn it is.
//!
//! Order: jobs that run again, then higher priority (together a job's [`Level`]), then fairness
//! among callers, then a caller's own order (`number`, arrival). Jobs are grouped in classes by the
//! set of lanes able to run them ([`LaneSet`]), so that a freed lane looks at one head per class,
//! and a farm of equals has one class however many workflows it runs. Within a class and level the
//! callers take turns by start-time fair queueing (`turns`).
//!
//! A turn counts wherever the same lanes are at stake: a dispatch is charged to the caller's place
//! in every class that shares a lane with the job's, and a lane's dispatch moves the virtual time
//! of all classes that it serves. When nothing of a level waits in a class, its tags are forgotten.
//!
//! Bounds: memory goes with the waiting jobs; pushing, taking and removing cost
//! O(classes · log jobs).

mod lane_set;
mod order;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeMap, HashMap, HashSet};

pub use lane_set::LaneSet;
use turns::{Place, Turns};

use crate::identity::ClientKey;
use crate::pool::job::JobId;

/// What goes before fairness; the greater goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level {
    /// It was dispatched before, and runs again or was given back.
    pub again: bool,
    /// Its priority.
    pub priority: i32,
}

/// A waiting job as the line sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ticket {
    /// Which job.
    pub id: JobId,
    /// Who shares the turns: the caller; one for all where fairness is by arrival.
    pub flow: ClientKey,
    /// What goes before fairness.
    pub level: Level,
    /// Its place among the caller's own; finite.
    pub number: f64,
    /// What its turn costs, above 0.
    pub cost: f64,
}

/// Who is passed over: callers that share turns, and jobs of callers that do not.
#[derive(Debug, Default)]
pub struct Passed {
    /// Callers.
    pub flows: HashSet<ClientKey>,
    /// Jobs of one flow that stands for all callers.
    pub jobs: HashSet<JobId>,
}

struct Item {
    ticket: Ticket,
    class: usize,
}

/// The jobs of one set of lanes.
struct Class {
    lanes: LaneSet,
    levels: BTreeMap<Level, Turns>,
}

/// The waiting jobs.
#[derive(Default)]
pub struct Line {
    items: HashMap<JobId, Item>,
    classes: Vec<Option<Class>>,
    index: HashMap<LaneSet, usize>,
    /// Counts changes of tags.
    turn: u64,
}

impl Line {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether a job waits.
    pub fn contains(&self, id: JobId) -> bool {
        self.items.contains_key(&id)
    }

    /// The lanes that a waiting job is filed under.
    pub fn lanes_of(&self, id: JobId) -> Option<&LaneSet> {
        let class = self.items.get(&id)?.class;
        self.classes.get(class)?.as_ref().map(|class| &class.lanes)
    }

    /// Puts a job into the line. One that waits already is moved.
    pub fn push(&mut self, ticket: Ticket, lanes: LaneSet) {
        self.remove(ticket.id);
        let now = self.virtual_time(&lanes, ticket.level);
        let class = self.class_of(lanes);
        self.turn += 1;
        if let Some(open) = self.classes[class].as_mut() {
            let turns = open.levels.entry(ticket.level).or_insert_with(|| Turns::starting(now));
            turns.push(ticket.flow, Place::new(ticket.number, ticket.id), self.turn);
            self.items.insert(ticket.id, Item { ticket, class });
        }
    }

    /// Takes a job out without its turn having come.
    pub fn remove(&mut self, id: JobId) -> Option<Ticket> {
        let Item { ticket, class } = self.items.remove(&id)?;
        if let Some(turns) = self.turns_mut(class, ticket.level) {
            turns.remove(ticket.flow, Place::new(ticket.number, id));
        }
        self.tidy(class, ticket.level);
        Some(ticket)
    }

    /// A waiting job's turn will cost something else than was thought when it came.
    pub fn price(&mut self, id: JobId, cost: f64) {
        if let Some(item) = self.items.get_mut(&id) {
            item.ticket.cost = cost;
        }
    }

    /// Takes a job out because a lane, or one to be, has its turn; the caller is charged.
    pub fn take(&mut self, id: JobId, lane: usize) -> Option<Ticket> {
        let Item { ticket, class } = self.items.remove(&id)?;
        let place = Place::new(ticket.number, id);
        self.turn += 1;
        let turn = self.turn;
        let turns = self.turns_mut(class, ticket.level)?;
        let start = turns.take(ticket.flow, place, ticket.cost, turn);
        self.charge_neighbours(class, &ticket);
        for open in self.classes.iter_mut().flatten().filter(|c| c.lanes.contains(lane)) {
            if let Some(turns) = open.levels.get_mut(&ticket.level) {
                turns.advance(start);
            }
        }
        self.tidy(class, ticket.level);
        Some(ticket)
    }

    /// The job whose turn it is among the classes that `usable` takes.
    pub fn best(&self, usable: impl Fn(&LaneSet) -> bool) -> Option<JobId> {
        self.best_but(usable, &Passed::default())
    }

    /// The same when some callers are passed over. Looks at each of those once, and, where turns
    /// go by arrival alone, at each of their jobs that stands before another's.
    pub fn best_but(&self, usable: impl Fn(&LaneSet) -> bool, passed: &Passed) -> Option<JobId> {
        let classes = self.classes.iter().flatten().filter(|class| usable(&class.lanes));
        let heads = classes.filter_map(|class| {
            class.levels.iter().rev().find_map(|(level, turns)| {
                let (tag, since, id) = turns.head_but(passed)?;
                Some((std::cmp::Reverse(*level), tag, since, id))
            })
        });
        heads.min().map(|(.., id)| id)
    }

    /// A job has cost more or less than it was charged: the difference, where the lane it ran on
    /// is at stake.
    pub fn correct(&mut self, ticket: &Ticket, lane: usize, difference: f64) {
        for class in self.classes.iter_mut().flatten().filter(|c| c.lanes.contains(lane)) {
            if let Some(turns) = class.levels.get_mut(&ticket.level) {
                turns.charge(ticket.flow, difference);
            }
        }
    }

    /// Files every job anew, under what `refile` says of it; tags start again.
    pub fn rebuild(&mut self, mut refile: impl FnMut(Ticket) -> (Ticket, LaneSet)) {
        let items = std::mem::take(&mut self.items);
        self.classes.clear();
        self.index.clear();
        for item in items.into_values() {
            let (ticket, lanes) = refile(item.ticket);
            self.push(ticket, lanes);
        }
    }

    /// Where a class that is new at a level starts: not behind those it shares lanes with.
    fn virtual_time(&self, lanes: &LaneSet, level: Level) -> f64 {
        let sharing = self.classes.iter().flatten().filter(|c| c.lanes.intersects(lanes));
        let times = sharing.filter_map(|c| c.levels.get(&level)).map(Turns::time);
        times.fold(0.0, f64::max)
    }

    fn class_of(&mut self, lanes: LaneSet) -> usize {
        if let Some(&class) = self.index.get(&lanes) {
            return class;
        }
        let vacant = self.classes.iter().position(Option::is_none);
        let class = vacant.unwrap_or(self.classes.len());
        if class == self.classes.len() {
            self.classes.push(None);
        }
        self.index.insert(lanes.clone(), class);
        self.classes[class] = Some(Class { lanes, levels: BTreeMap::new() });
        class
    }

    fn turns_mut(&mut self, class: usize, level: Level) -> Option<&mut Turns> {
        self.classes.get_mut(class)?.as_mut()?.levels.get_mut(&level)
    }

    fn charge_neighbours(&mut self, class: usize, ticket: &Ticket) {
        let Some(lanes) = self.classes[class].as_ref().map(|class| class.lanes.clone()) else {
            return;
        };
        let others = self.classes.iter_mut().enumerate().filter(|(at, _)| *at != class);
        for other in others.filter_map(|(_, other)| other.as_mut()) {
            if other.lanes.intersects(&lanes)
                && let Some(turns) = other.levels.get_mut(&ticket.level)
            {
                turns.charge(ticket.flow, ticket.cost);
            }
        }
    }

    /// Forgets a level, and a class, where nothing waits any more.
    fn tidy(&mut self, class: usize, level: Level) {
        let Some(Some(open)) = self.classes.get_mut(class) else { return };
        if open.levels.get(&level).is_some_and(Turns::is_empty) {
            open.levels.remove(&level);
        }
        if open.levels.is_empty() {
            self.index.remove(&open.lanes);
            self.classes[class] = None;
        }
    }
}
