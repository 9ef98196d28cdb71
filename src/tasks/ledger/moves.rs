//! How a task moves on, ends and is forgotten, with every index that names it.

use super::super::task::{Now, TaskState};
use super::{Ledger, Number, TaskChange};
use crate::clock::Moment;

impl Ledger {
    /// Moves an open task on to another state.
    pub(super) fn shift(&mut self, number: Number, to: TaskState, now: Now) {
        let Some(task) = self.tasks.get_mut(&number) else { return };
        let from = task.state;
        if !from.is_open() || from == to {
            return;
        }
        task.state = to;
        if to == TaskState::Running {
            task.started = Some(now);
        }
        self.by_state[from as usize].remove(&number);
        self.by_state[to as usize].insert(number);
        let client = self.clients.entry(task.key).or_default();
        if let Some(numbers) = client.of(from) {
            numbers.remove(&number);
        }
        if let Some(numbers) = client.of(to) {
            numbers.insert(number);
        }
        if !to.is_open() {
            client.last_end = Some(now.moment);
            if let Some(line) = self.lines.get_mut(&task.backend) {
                line.open.remove(&number);
            }
        }
        self.changed(number, now);
    }

    /// Ends an open task.
    pub(super) fn end(&mut self, number: Number, to: TaskState, error: Option<String>, now: Now) {
        let Some(task) = self.tasks.get_mut(&number).filter(|task| task.state.is_open()) else {
            return;
        };
        let seen = task.started.map(|started| now.since(&started));
        // The backend's own times are exact; ours end when the end was seen.
        task.run_seconds = task.run_seconds.or(seen);
        if let (None, Some(run)) = (task.started, task.run_seconds) {
            task.started = Some(earlier(now, run, task.created));
        }
        task.finished = Some(now);
        task.error = error;
        self.ended[to as usize] += 1;
        let kind = task.kind.as_ref().map(|kind| kind.hash);
        match to {
            TaskState::Completed => self.rates.completed(task.backend, kind, task.run_seconds),
            TaskState::Failed => self.rates.failed(task.backend),
            _ => {}
        }
        self.shift(number, to, now);
    }

    /// Notes what a task is now, for those who want to hear of it.
    pub(super) fn changed(&mut self, number: Number, now: Now) {
        let Some(task) = self.tasks.get(&number) else { return };
        let change = TaskChange {
            state: task.state,
            wait_seconds: task.started.map(|started| started.since(&task.created)),
            run_seconds: task.run_seconds,
        };
        self.changes.push((change, task.view(now)));
    }

    /// Makes room: the oldest ended tasks go, and only when there are none the oldest open ones.
    pub(super) fn evict(&mut self) {
        while self.tasks.len() > self.limit {
            let ended = TaskState::ALL.into_iter().filter(|state| !state.is_open());
            let oldest_ended = ended.filter_map(|s| self.by_state[s as usize].first()).min();
            let oldest = oldest_ended.or(self.tasks.keys().next()).copied();
            let Some(oldest) = oldest else { return };
            self.remove(oldest);
        }
    }

    /// Forgets a task and everything that names it.
    pub(super) fn remove(&mut self, number: Number) {
        let Some(task) = self.tasks.remove(&number) else { return };
        self.by_state[task.state as usize].remove(&number);
        if let Some(line) = self.lines.get_mut(&task.backend) {
            line.ids.remove(&task.id);
            line.open.remove(&number);
            if line.ids.is_empty() {
                self.lines.remove(&task.backend);
            }
        }
        let Some(client) = self.clients.get_mut(&task.key) else { return };
        if let Some(numbers) = client.of(task.state) {
            numbers.remove(&number);
        }
        client.known -= 1;
        if client.known == 0 {
            self.clients.remove(&task.key);
        }
    }
}

/// The time `seconds` before `now`, but not before `floor`.
fn earlier(now: Now, seconds: f64, floor: Now) -> Now {
    let milliseconds = (seconds.clamp(0.0, 1e9) * 1000.0) as u64;
    let moment = Moment(now.moment.0.saturating_sub(milliseconds)).max(floor.moment);
    let back = now.moment.since(moment);
    let wall = jiff::SignedDuration::try_from(back).ok();
    let wall = wall.and_then(|back| now.wall.checked_sub(back).ok()).unwrap_or(now.wall);
    Now { moment, wall }
}
