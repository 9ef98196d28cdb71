//! The gateway around the core: what its journal holds, and how it starts again from that.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::{Action, Core, Kept, Marks, Options, Phase};
use super::random::Random;
use crate::clock::Moment;
use crate::config::{Fairness, Strategy};
use crate::pool::job::JobId;
use crate::selection::Rule;

pub(super) fn options() -> Options {
    Options {
        max_size: 60,
        retry_interval: Duration::from_millis(500),
        max_retries: 30,
        fairness: Fairness::RoundRobin,
        running_per_caller: 0,
        prefetch: 0,
        rule: Rule {
            strategy: Strategy::LeastBusy,
            prefer_idle: true,
            queue_weight: true,
            zone_spill: 2,
        },
        warm_slack: Duration::from_secs(1),
        verdict_timeout: Duration::from_secs(10),
        declared_dead_after: Duration::from_secs(8),
        silence: Duration::from_secs(30),
        interrupt_grace: Duration::from_secs(5),
    }
}

/// What is written down.
#[derive(Default)]
pub(super) struct Journal {
    pub(super) lines: Vec<Action>,
    /// So much of it is on the disk for sure: a client was told of it.
    pub(super) told: usize,
    /// It tells before it is sure.
    pub(super) skips_sync: bool,
}

impl Journal {
    pub(super) fn write(&mut self, action: &Action) {
        match action {
            Action::Accept { .. } | Action::Ended { .. } => {
                self.lines.push(action.clone());
                self.told = if self.skips_sync { 0 } else { self.lines.len() };
            }
            // A job that must not run twice is posted when it is written where.
            Action::Moved { job, .. } if job.once => {
                self.lines.push(action.clone());
                self.told = if self.skips_sync { 0 } else { self.lines.len() };
            }
            Action::Moved { .. } | Action::Marked { .. } => self.lines.push(action.clone()),
            _ => {}
        }
    }

    /// A crash: some of what nobody was told of is lost.
    pub(super) fn crash(&mut self, random: &mut Random) -> Vec<Kept> {
        let keep = random.within(self.told as u64, self.lines.len() as u64 + 1) as usize;
        self.lines.truncate(keep);
        let mut kept: BTreeMap<JobId, Kept> = BTreeMap::new();
        for line in &self.lines {
            match line {
                Action::Accept { job, reply, .. } => {
                    let (job, reply) = (job.clone(), reply.clone());
                    let (phase, marks) = (Phase::Waiting, Marks::default());
                    let waits = Kept { phase, attempts: 0, marks, job, reply };
                    kept.insert(waits.job.id, waits);
                }
                Action::Moved { job, phase, attempt, marks }
                | Action::Marked { job, phase, attempt, marks } => {
                    if let Some(kept) = kept.get_mut(&job.id) {
                        (kept.phase, kept.attempts, kept.marks) = (*phase, *attempt, *marks);
                    }
                }
                Action::Ended { job, .. } => drop(kept.remove(&job.id)),
                _ => {}
            }
        }
        kept.into_values().collect()
    }
}

/// A new core from what the journal holds.
pub(super) fn restart(
    options: Options,
    kept: Vec<Kept>,
    now: Moment,
    actions: &mut Vec<Action>,
) -> Core {
    let mut core = Core::new(options);
    core.restore(kept, now, actions);
    core
}
