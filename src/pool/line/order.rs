//! The whole order, as it would be if every lane could run everything and nothing else came.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::btree_set;

use super::turns::{Place, Tag};
use super::{Level, Line};
use crate::pool::job::JobId;

/// A caller's next job, its tag and since when it has that, and the caller's rest by its number.
type Next = Reverse<(Reverse<Level>, Tag, u64, JobId, usize)>;

/// A caller in the merge.
struct Rest<'a> {
    tag: f64,
    since: u64,
    level: Level,
    jobs: btree_set::Iter<'a, Place>,
}

/// The waiting jobs in the order of their turns: a merge of the callers' own orders.
pub struct Order<'a> {
    line: &'a Line,
    rests: Vec<Rest<'a>>,
    next: BinaryHeap<Next>,
    turn: u64,
}

impl Line {
    /// The waiting jobs in the order of their turns; each step costs O(log callers).
    pub fn order(&self) -> Order<'_> {
        let mut order =
            Order { line: self, rests: Vec::new(), next: BinaryHeap::new(), turn: self.turn };
        for (level, turns) in self.classes.iter().flatten().flat_map(|class| &class.levels) {
            for flow in turns.flows() {
                let (tag, since) = (flow.tag, flow.since);
                order.rests.push(Rest { tag, since, level: *level, jobs: flow.jobs.iter() });
                order.draw(order.rests.len() - 1);
            }
        }
        order
    }
}

impl Order<'_> {
    fn draw(&mut self, at: usize) {
        let rest = &mut self.rests[at];
        if let Some(place) = rest.jobs.next() {
            let tag = Tag::new(rest.tag);
            self.next.push(Reverse((Reverse(rest.level), tag, rest.since, place.id, at)));
        }
    }
}

impl Iterator for Order<'_> {
    type Item = JobId;

    fn next(&mut self) -> Option<JobId> {
        let Reverse((.., id, at)) = self.next.pop()?;
        self.rests[at].tag += self.line.items.get(&id).map_or(1.0, |item| item.ticket.cost);
        self.turn += 1;
        self.rests[at].since = self.turn;
        self.draw(at);
        Some(id)
    }
}
