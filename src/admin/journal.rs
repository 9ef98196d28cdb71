//! The last changes of state, for people who ask what happened.

use std::collections::VecDeque;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

/// Changes remembered.
pub const LENGTH: usize = 200;
/// Characters of a detail that are kept.
const MAX_DETAIL: usize = 300;

/// A backend's change of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When.
    pub at: Timestamp,
    /// Whose.
    pub backend: String,
    /// From what; `None`: it was not there.
    pub from: Option<&'static str>,
    /// To what; `None`: it is gone.
    pub to: Option<&'static str>,
    /// Why, when that is known.
    pub detail: Option<String>,
}

/// The last [`LENGTH`] changes.
#[derive(Debug, Default)]
pub struct Journal(Mutex<VecDeque<Change>>);

impl Journal {
    /// Writes a change down.
    pub fn note(
        &self,
        backend: &str,
        from: Option<&'static str>,
        to: Option<&'static str>,
        detail: Option<String>,
    ) -> Change {
        let detail = detail.map(|detail| detail.chars().take(MAX_DETAIL).collect());
        let at = Timestamp::now();
        let change = Change { at, backend: backend.to_owned(), from, to, detail };
        let mut changes = self.0.lock();
        changes.truncate(LENGTH - 1);
        changes.push_front(change.clone());
        change
    }

    /// The changes, newest first.
    pub fn changes(&self) -> Vec<Change> {
        self.0.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_are_kept() {
        let journal = Journal::default();
        for number in 0..LENGTH + 5 {
            journal.note(&number.to_string(), None, Some("up"), None);
        }
        let changes = journal.changes();
        assert_eq!(changes.len(), LENGTH);
        assert_eq!(changes[0].backend, (LENGTH + 4).to_string());
        assert_eq!(changes[LENGTH - 1].backend, "5");
    }
}
