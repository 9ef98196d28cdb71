//! Frames that wait for a socket, and what of them may go when they are too many.
//!
//! `progress`, `progress_state` and previews tell a state: the latest of them tells all. Every other
//! frame is an event and is never dropped here. A preview may be a result, though
//! (`SaveImageWebsocket` and its like send what they made as a preview), so previews go last: first
//! those in JPEG, which samplers draw, then PNGs, which those nodes send, and only where another
//! preview follows before the job's node changes. That much is counted in *epochs*: an `executing`
//! begins the next one of its job.
//!
//! Thinning looks at all frames, so it is done when they have doubled since the last time.

use std::collections::{HashMap, HashSet, VecDeque};

use super::entry::Entry;
use crate::pool::frame::Meaning;
use crate::pool::job::JobId;

/// Places that an empty queue keeps.
const MIN_CAPACITY: usize = 8;

/// How much may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thin {
    /// Progress of which there is a later one.
    Progress,
    /// Also JPEG previews that another preview of the same node follows.
    Previews,
    /// Also PNG previews that another preview of the same node follows.
    Results,
}

/// Frames in order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    cost: usize,
    /// Thinned when it costs more than this.
    threshold: usize,
}

impl Queue {
    /// What all frames in it cost.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.cost += entry.cost();
        self.entries.push_back(entry);
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.cost -= entry.cost();
        if self.entries.is_empty() {
            // A burst must not leave its memory behind with thousands of idle sockets.
            self.threshold = 0;
            self.entries.shrink_to(MIN_CAPACITY);
        }
        Some(entry)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Moves all of `other` behind what is here. That it comes at once is not the reader's fault:
    /// only when it has doubled is it thinned.
    pub(super) fn append(&mut self, mut other: Self) {
        if other.cost > 0 {
            self.cost += other.cost;
            self.entries.append(&mut other.entries);
            self.threshold = self.threshold.max(2 * self.cost);
        }
    }

    /// Keeps only what `keep` says, asked in order.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        let cost = &mut self.cost;
        self.entries.retain(|entry| {
            let stays = keep(entry);
            if !stays {
                *cost -= entry.cost();
            }
            stays
        });
    }

    /// Thins when it costs more than `floor` and twice of what the last time left.
    pub(super) fn thin_above(&mut self, floor: usize, thin: Thin, target: usize) {
        if self.cost > self.threshold.max(floor) {
            self.thin(thin, target);
            self.threshold = 2 * self.cost;
        }
    }

    /// As [`leave_missed`](Self::leave_missed), under the same condition.
    pub(super) fn leave_missed_above(&mut self, floor: usize) {
        if self.cost > self.threshold.max(floor) {
            self.leave_missed();
            self.threshold = 2 * self.cost;
        }
    }

    /// Drops superseded progress, and superseded previews, oldest first, until it costs no more
    /// than `target`.
    pub(super) fn thin(&mut self, thin: Thin, target: usize) {
        let superseded = self.superseded();
        self.drop_marked(&superseded, |entry| entry.meaning != Meaning::Preview, 0);
        if thin >= Thin::Previews && self.cost > target {
            let superseded = self.superseded();
            self.drop_marked(&superseded, Entry::is_passing_state, target);
        }
        if thin >= Thin::Results && self.cost > target {
            let superseded = self.superseded();
            self.drop_marked(&superseded, |_| true, target);
        }
    }

    /// What a later frame says anew, by place.
    fn superseded(&self) -> Vec<bool> {
        let mut later = HashSet::new();
        let mut marks: Vec<bool> = (self.entries.iter().rev())
            .map(|entry| match entry.meaning {
                Meaning::ProgressState => !later.insert((entry.job, entry.meaning, 0)),
                Meaning::Progress | Meaning::Preview => {
                    !later.insert((entry.job, entry.meaning, entry.epoch))
                }
                _ => false,
            })
            .collect();
        marks.reverse();
        marks
    }

    fn drop_marked(&mut self, marks: &[bool], may_go: impl Fn(&Entry) -> bool, target: usize) {
        let mut cost = self.cost;
        let mut marks = marks.iter();
        self.retain(|entry| {
            let goes = marks.next() == Some(&true) && cost > target && may_go(entry);
            if goes {
                cost -= entry.cost();
            }
            !goes
        });
    }

    /// Leaves what a client that was away is to get: of running jobs only the latest progress and
    /// `executing`, of ended ones none; events and results all. An `executing` that results follow
    /// stays, for it names their node.
    pub(super) fn leave_missed(&mut self) {
        let ended: HashSet<_> = self.closed().collect();
        let mut latest = HashSet::new();
        let mut leads = HashSet::new();
        let mut stays: Vec<bool> = (self.entries.iter().rev())
            .map(|entry| {
                let runs = !ended.contains(&entry.job);
                if entry.is_passing_state() {
                    return runs && latest.insert((entry.job, entry.meaning));
                }
                match entry.meaning {
                    Meaning::Preview => {
                        leads.insert((entry.job, entry.epoch));
                        true
                    }
                    Meaning::Executing => {
                        let is_latest = latest.insert((entry.job, entry.meaning));
                        (runs && is_latest) || leads.contains(&(entry.job, entry.epoch))
                    }
                    _ => true,
                }
            })
            .collect();
        stays.reverse();
        let mut stays = stays.into_iter();
        self.retain(|_| stays.next().unwrap_or(true));
    }

    /// Drops whole jobs that have ended, oldest first, then whatever is oldest, until no more than
    /// `target` is left.
    pub(super) fn drop_oldest(&mut self, target: usize) {
        let ended: HashSet<_> = self.ended().collect();
        let mut costs: HashMap<Option<JobId>, usize> = HashMap::new();
        let mut order = Vec::new();
        for entry in self.entries.iter().filter(|entry| ended.contains(&entry.job)) {
            *costs.entry(entry.job).or_insert_with(|| {
                order.push(entry.job);
                0
            }) += entry.cost();
        }
        let mut left = self.cost;
        let mut goes = HashSet::new();
        for job in order {
            if left <= target {
                break;
            }
            left -= costs.get(&job).copied().unwrap_or(0);
            goes.insert(job);
        }
        self.retain(|entry| !goes.contains(&entry.job));
        while self.cost > target && self.pop().is_some() {}
    }

    /// Jobs of which the frame that says how they ended is here: nothing of them runs any more.
    fn closed(&self) -> impl Iterator<Item = Option<JobId>> {
        let closes = |entry: &&Entry| matches!(entry.meaning, Meaning::Terminal | Meaning::End);
        self.entries.iter().filter(closes).map(|entry| entry.job)
    }

    fn ended(&self) -> impl Iterator<Item = Option<JobId>> {
        self.entries.iter().filter(|entry| entry.meaning == Meaning::End).map(|entry| entry.job)
    }
}
