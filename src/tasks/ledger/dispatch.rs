//! Tasks that the gateway itself hands out, in pool mode: they wait in its line, move to a backend,
//! back when that fails, and end by its word.

use std::sync::Arc;

use jiff::Timestamp;

use super::super::task::{Accepted, Now, Task, TaskState};
use super::{Ledger, Number};
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::comfy::history::Entry;

/// Where tasks stand that wait in the gateway.
pub const THE_LINE: BackendId = BackendId(u32::MAX);

/// Where a task is now.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The backend, or [`THE_LINE`].
    pub backend: BackendId,
    /// Its name; empty for the line.
    pub name: Arc<str>,
    /// Whether it runs there.
    pub running: bool,
    /// How often it was handed to a backend.
    pub attempts: u32,
}

/// A task that ended before this process began.
#[derive(Debug, Clone)]
pub struct Past {
    /// Whose it was and where.
    pub accepted: Accepted,
    /// How it ended.
    pub state: TaskState,
    /// What went wrong.
    pub error: Option<String>,
    /// How often it was handed to a backend.
    pub attempts: u32,
    /// Seconds it ran, if that is known.
    pub run_seconds: Option<f64>,
    /// Milliseconds since 1970 when it came, and when it ended.
    pub times_ms: (u64, u64),
}

impl Ledger {
    /// Puts back a task that an earlier process saw end. It counts for nothing but lists. Those that
    /// ended first are to come first, and before the tasks of this process.
    pub fn remember(&mut self, past: Past) {
        let Past { accepted, state, error, attempts, run_seconds, times_ms } = past;
        if state.is_open() || self.find(accepted.backend, &accepted.id).is_some() {
            return;
        }
        let number = self.next;
        self.next += 1;
        let mut task = Task::new(accepted, then(times_ms.0));
        let finished = then(times_ms.1);
        let ran_ms = run_seconds.map(|run| (run.clamp(0.0, 1e9) * 1000.0) as u64);
        task.started = ran_ms.map(|ran| then(times_ms.1.saturating_sub(ran).max(times_ms.0)));
        task.finished = Some(finished);
        (task.state, task.error, task.attempts) = (state, error, attempts);
        task.run_seconds = run_seconds;
        let line = self.lines.entry(task.backend).or_default();
        line.ids.insert(Arc::clone(&task.id), number);
        self.clients.entry(task.key).or_default().known += 1;
        self.by_state[state as usize].insert(number);
        self.tasks.insert(number, task);
        self.evict();
    }

    /// Keeps at least so many tasks.
    pub fn keep_at_least(&mut self, tasks: usize) {
        self.limit = self.limit.max(tasks);
    }

    /// An open task moved.
    pub fn placed(&mut self, id: &str, placed: &Placed, now: Now) {
        let Some(number) = self.open_number(id) else { return };
        self.carry(number, placed);
        let to = if placed.running { TaskState::Running } else { TaskState::Queued };
        let Some(task) = self.tasks.get_mut(&number) else { return };
        task.attempts = placed.attempts;
        task.backend_name = Arc::clone(&placed.name);
        if task.state == to {
            self.changed(number, now);
        } else {
            self.shift(number, to, now);
        }
        if let Some(task) = self.tasks.get_mut(&number).filter(|_| !placed.running) {
            task.started = None;
        }
    }

    /// An open task ended.
    pub fn ended(&mut self, id: &str, entry: Entry, attempts: u32, now: Now) {
        let Some(number) = self.open_number(id) else { return };
        let Some(task) = self.tasks.get_mut(&number) else { return };
        task.attempts = attempts;
        match entry {
            Entry::Completed { run_seconds } => {
                task.run_seconds = run_seconds;
                self.end(number, TaskState::Completed, None, now);
            }
            Entry::Failed { error } => self.end(number, TaskState::Failed, Some(error), now),
            Entry::Interrupted | Entry::Absent => {
                self.end(number, TaskState::Cancelled, None, now);
            }
        }
    }

    /// Takes where waiting tasks stand and when they will have ended.
    pub fn foresee(&mut self, reckoned: &[(Arc<str>, u32, Option<f64>)], now: Moment) {
        for (id, position, ends) in reckoned {
            let number = self.open_number(id);
            if let Some(task) = number.and_then(|number| self.tasks.get_mut(&number)) {
                task.position = Some(*position);
                task.ends = ends.map(|ends| (ends, now));
            }
        }
    }

    /// The open task of an id, wherever it is.
    fn open_number(&self, id: &str) -> Option<Number> {
        let mut numbers = self.lines.values().filter_map(|line| line.ids.get(id));
        numbers.find(|number| self.tasks.get(number).is_some_and(|t| t.state.is_open())).copied()
    }

    /// Enters a task under its new backend.
    fn carry(&mut self, number: Number, placed: &Placed) {
        let Some(task) = self.tasks.get_mut(&number) else { return };
        if task.backend == placed.backend {
            return;
        }
        if let Some(line) = self.lines.get_mut(&task.backend) {
            line.ids.remove(&task.id);
            line.open.remove(&number);
            if line.ids.is_empty() {
                self.lines.remove(&task.backend);
            }
        }
        task.backend = placed.backend;
        let line = self.lines.entry(placed.backend).or_default();
        line.ids.insert(Arc::clone(&task.id), number);
        line.open.insert(number);
    }
}

/// A time before this process began, whose own clock knows nothing of it.
fn then(ms: u64) -> Now {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    let wall = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
    Now { moment: Moment(0), wall }
}

#[cfg(test)]
mod tests {
    use super::super::super::task::{Accepted, TaskView};
    use super::*;
    use crate::identity::ClientKey;

    fn at(seconds: u64) -> Now {
        Now { moment: Moment(1000 * seconds), wall: jiff::Timestamp::UNIX_EPOCH }
    }

    fn waiting(ids: &[&str]) -> Ledger {
        let mut ledger = Ledger::new(10);
        for id in ids {
            let key = ClientKey::from_bytes([1; 16]);
            let (id, caller) = ((*id).to_owned(), "10.0.0.1".to_owned());
            let backend_name = "".into();
            let accepted = Accepted { id, key, caller, backend: THE_LINE, backend_name, breaks: 0 };
            ledger.accepted(accepted, at(1));
        }
        ledger
    }

    fn placed(backend: u32, running: bool, attempts: u32) -> Placed {
        Placed {
            backend: BackendId(backend),
            name: format!("b{backend}").into(),
            running,
            attempts,
        }
    }

    fn view(ledger: &Ledger, id: &str) -> TaskView {
        ledger.get(id, at(9)).unwrap().1
    }

    #[test]
    fn a_job_moves_from_the_line_to_a_backend_and_ends_there() {
        let mut ledger = waiting(&["a", "b"]);
        ledger.placed("a", &placed(1, false, 1), at(2));
        ledger.placed("a", &placed(1, true, 1), at(3));
        assert_eq!(
            (view(&ledger, "a").state, view(&ledger, "a").backend.as_str()),
            (TaskState::Running, "b1")
        );
        assert_eq!(ledger.open_on(BackendId(1)), 1);
        assert_eq!(ledger.open_on(THE_LINE), 1);
        ledger.ended("a", Entry::Completed { run_seconds: Some(4.0) }, 1, at(7));
        assert_eq!(view(&ledger, "a").state, TaskState::Completed);
        assert_eq!(ledger.rates.predict(BackendId(1), None), Some(4.0));
        ledger.ended("b", Entry::Interrupted, 0, at(7));
        assert_eq!(view(&ledger, "b").state, TaskState::Cancelled);
    }

    #[test]
    fn a_job_that_runs_again_has_not_started() {
        let mut ledger = waiting(&["a"]);
        ledger.placed("a", &placed(1, true, 1), at(3));
        let line = Placed { backend: THE_LINE, name: "".into(), running: false, attempts: 1 };
        ledger.placed("a", &line, at(4));
        let task = view(&ledger, "a");
        assert_eq!((task.state, task.started_at, task.attempts), (TaskState::Queued, None, 1));
        ledger.placed("a", &placed(2, true, 2), at(5));
        assert_eq!((view(&ledger, "a").attempts, view(&ledger, "a").backend.as_str()), (2, "b2"));
    }

    #[test]
    fn what_is_foreseen_is_shown_while_it_waits() {
        let mut ledger = waiting(&["a"]);
        ledger.foresee(&[("a".into(), 3, Some(20.0)), ("x".into(), 4, None)], Moment(1000));
        assert_eq!(
            (view(&ledger, "a").position, view(&ledger, "a").eta_seconds),
            (Some(3), Some(12.0))
        );
    }
}
