//! What jobs need, kept once for all that need the same: ten thousand prompts of one workflow name
//! its node types and models once.
//!
//! Bound: [`MAX`] of them are known at a time; a set lives only as long as a job has it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::job::Needs;

/// Sets that are known. Beyond, those that no job has any more are forgotten, else all.
const MAX: usize = 4096;

/// The sets that open jobs share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    hasher: RandomState,
    known: Mutex<HashMap<u64, Weak<Needs>>>,
}

impl Shared {
    /// These needs, shared with the jobs that have the same.
    pub(super) fn of(&self, needs: Needs) -> Arc<Needs> {
        let hash = self.hasher.hash_one(&needs);
        let mut known = self.known.lock();
        if let Some(same) = known.get(&hash).and_then(Weak::upgrade)
            && *same == needs
        {
            return same;
        }
        if known.len() >= MAX {
            known.retain(|_, set| set.strong_count() > 0);
        }
        if known.len() >= MAX {
            known.clear();
        }
        let new = Arc::new(needs);
        known.insert(hash, Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needing(node: &str) -> Needs {
        Needs { nodes: [node.into()].into(), ..Needs::default() }
    }

    #[test]
    fn equal_needs_are_one_and_go_with_their_jobs() {
        let shared = Shared::default();
        let (one, other) = (shared.of(needing("A")), shared.of(needing("A")));
        assert!(Arc::ptr_eq(&one, &other));
        assert!(!Arc::ptr_eq(&one, &shared.of(needing("B"))));
        let all: Vec<_> = (0..2 * MAX).map(|n| shared.of(needing(&n.to_string()))).collect();
        assert!(shared.known.lock().len() <= MAX);
        drop(all);
        shared.of(needing("C"));
        (0..MAX).for_each(|n| drop(shared.of(needing(&format!("x{n}")))));
        assert!(shared.known.lock().len() <= MAX);
    }
}
