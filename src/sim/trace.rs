//! When prompts came, began and ended, so that a test can measure how long a server was left
//! without work. Cheap and bounded: the oldest marks make room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

/// How many marks are remembered.
const MAX_MARKS: usize = 100_000;

/// What happened to a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Its POST had come whole, and was accepted afterwards.
    Posted,
    /// It was taken off the queue to run.
    Started,
    /// Its last frame, `executing` with a null node, is about to be sent.
    Finished,
}

/// One mark with its time.
#[derive(Debug, Clone)]
pub struct Traced {
    /// When.
    pub at: Instant,
    /// What.
    pub mark: Mark,
    /// The prompt's id.
    pub prompt: Arc<str>,
}

/// The marks of one server, oldest first.
#[derive(Debug, Default)]
pub(super) struct Trace(Mutex<VecDeque<Traced>>);

impl Trace {
    /// Adds a mark.
    pub(super) fn note(&self, mark: Mark, prompt: &str, at: Instant) {
        let mut marks = self.0.lock();
        if marks.len() >= MAX_MARKS {
            marks.pop_front();
        }
        marks.push_back(Traced { at, mark, prompt: prompt.into() });
    }

    /// All marks that are remembered.
    pub(super) fn marks(&self) -> Vec<Traced> {
        self.0.lock().iter().cloned().collect()
    }
}
