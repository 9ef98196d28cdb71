//! How many jobs of one caller run at once: those of a caller that has as many as it may are passed
//! over in the line until one ends.
//!
//! A job that is posted only for its verdict may start all the same, when the server that judges it
//! falls idle; it is kept away from idle ones where another can judge.

use std::collections::HashMap;

use super::Core;
use crate::config::Fairness;
use crate::identity::ClientKey;
use crate::pool::line::Passed;

impl Core {
    /// Whether a caller has as many jobs at servers as it may.
    pub(super) fn has_enough(&self, caller: ClientKey) -> bool {
        let most = self.options.running_per_caller as usize;
        let own = |id| self.entries.get(&id).is_some_and(|entry| entry.job.owner.key == caller);
        most > 0 && self.seats.all_occupants().filter(|id| own(*id)).take(most).count() == most
    }

    /// Who has.
    pub(super) fn passed_over(&self) -> Passed {
        let most = self.options.running_per_caller;
        if most == 0 {
            return Passed::default();
        }
        let mut running: HashMap<ClientKey, u32> = HashMap::new();
        for entry in self.seats.all_occupants().filter_map(|id| self.entries.get(&id)) {
            *running.entry(entry.job.owner.key).or_default() += 1;
        }
        running.retain(|_, count| *count >= most);
        let mut passed = Passed { flows: running.into_keys().collect(), ..Passed::default() };
        if self.options.fairness == Fairness::Fifo {
            let jobs = passed.flows.iter().filter_map(|caller| self.by_owner.get(caller));
            passed.jobs = jobs.flatten().copied().collect();
        }
        passed
    }
}
