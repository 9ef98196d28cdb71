//! Cancelling by the admin API.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::Pool;
use super::core::Input;
use crate::rejection::Rejection;
use crate::tasks::cancel::{had_ended, unknown};
use crate::tasks::{TaskState, TaskView};

/// A cancellation is waited for at most this long; nodes look at an interrupt between steps.
const PATIENCE: Duration = Duration::from_secs(3);

impl Pool {
    /// Cancels a task and returns it: cancelled, or still open when its backend takes its time.
    pub async fn cancel_task(self: &Arc<Self>, id: &str) -> Result<TaskView, Rejection> {
        let (_, task) = self.tasks.get(id).ok_or_else(unknown)?;
        if !task.state.is_open() {
            return Err(had_ended(&task));
        }
        let job = self.core.lock().find(id).ok_or_else(unknown)?;
        let mut events = self.tasks.subscribe();
        self.tell(Input::Cancel(job));
        let state = || self.tasks.get(id).map(|(_, task)| task.state);
        let _ = timeout(PATIENCE, async {
            while state().is_some_and(TaskState::is_open) {
                if let Err(RecvError::Closed) = events.recv().await {
                    return;
                }
            }
        })
        .await;
        let (_, task) = self.tasks.get(id).ok_or_else(unknown)?;
        match task.state {
            TaskState::Completed | TaskState::Failed => Err(had_ended(&task)),
            _ => Ok(task),
        }
    }
}
