//! What can be asked of the ledger.

use super::super::line::Outlook;
use super::super::task::{Now, TaskState, TaskView};
use super::Ledger;
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::identity::ClientKey;

/// How many tasks are in each state. Open ones now; ended ones since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Waiting.
    pub queued: u64,
    /// Running.
    pub running: u64,
    /// Succeeded.
    pub completed: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ClientStanding {
    /// Its prompts that wait.
    pub queued: usize,
    /// Its prompts that run.
    pub running: usize,
    /// Position of the one that will end first.
    pub position: Option<u32>,
    /// Predicted seconds until that one ends.
    pub eta_seconds: Option<f64>,
}

impl Ledger {
    /// A task, the newest if several backends have one of this id.
    pub fn get(&self, id: &str, now: Now) -> Option<(BackendId, TaskView)> {
        let numbers = self.lines.values().filter_map(|line| line.ids.get(id));
        let task = numbers.max().and_then(|number| self.tasks.get(number))?;
        Some((task.backend, task.view(now)))
    }

    /// How a task stands.
    pub fn state_of(&self, backend: BackendId, id: &str) -> Option<TaskState> {
        self.find(backend, id).and_then(|number| self.tasks.get(&number)).map(|task| task.state)
    }

    /// A page of tasks, the newest first, and how many there are in all.
    pub fn list(
        &self,
        state: Option<TaskState>,
        limit: usize,
        offset: usize,
        now: Now,
    ) -> (Vec<TaskView>, usize) {
        let Some(state) = state else {
            let page = self.tasks.values().rev().skip(offset).take(limit);
            return (page.map(|task| task.view(now)).collect(), self.tasks.len());
        };
        let numbers = &self.by_state[state as usize];
        let page = numbers.iter().rev().skip(offset).take(limit);
        let tasks = page.filter_map(|number| self.tasks.get(number));
        (tasks.map(|task| task.view(now)).collect(), numbers.len())
    }

    /// How many tasks are in each state.
    pub fn counts(&self) -> Counts {
        let open = |state: TaskState| self.by_state[state as usize].len() as u64;
        let ended = |state: TaskState| self.ended[state as usize];
        Counts {
            queued: open(TaskState::Queued),
            running: open(TaskState::Running),
            completed: ended(TaskState::Completed),
            failed: ended(TaskState::Failed),
            cancelled: ended(TaskState::Cancelled),
        }
    }

    /// Open tasks of a client.
    pub fn open_of(&self, key: ClientKey) -> usize {
        self.clients.get(&key).map_or(0, |client| client.queued.len() + client.running.len())
    }

    /// When the last task of a client ended, as far as the ledger goes back.
    pub fn last_end_of(&self, key: ClientKey) -> Option<Moment> {
        self.clients.get(&key).and_then(|client| client.last_end)
    }

    /// Open tasks of a backend.
    pub fn open_on(&self, backend: BackendId) -> usize {
        self.lines.get(&backend).map_or(0, |line| line.open.len())
    }

    /// What a backend's queue looked like last, if its times can be predicted.
    pub fn outlook(&self, backend: BackendId) -> Option<Outlook> {
        let line = self.lines.get(&backend).filter(|line| !line.open.is_empty())?;
        line.outlook
    }

    /// Where a client stands: by its oldest running prompt, else its oldest waiting one.
    pub fn standing_of(&self, key: ClientKey, now: Now) -> ClientStanding {
        let Some(client) = self.clients.get(&key) else { return ClientStanding::default() };
        let first = client.running.first().or(client.queued.first());
        let first = first.and_then(|number| self.tasks.get(number)).map(|task| task.view(now));
        ClientStanding {
            queued: client.queued.len(),
            running: client.running.len(),
            position: first.as_ref().and_then(|view| view.position),
            eta_seconds: first.and_then(|view| view.eta_seconds),
        }
    }
}
