//! Taking a prompt back: a waiting one is deleted from its backend's queue, a running one is
//! interrupted by its id.
//!
//! It may start, or end, between the look and the deed. So the queue is looked at afresh before
//! each deed, until the task has ended or `PATIENCE` is over. Only a prompt that was just seen
//! running is interrupted: older ComfyUI ignores the id and would stop whatever runs.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::follow::look;
use super::{TaskState, TaskView};
use crate::backend::{Backend, BackendId};
use crate::gateway::Gateway;
use crate::rejection::{Kind, Rejection};

/// A cancellation is waited for at most this long; nodes look at the interrupt between steps.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Pause between two interrupts of one prompt.
const INTERRUPT_PAUSE: Duration = Duration::from_secs(1);

/// Cancels a task and returns it: cancelled, or still open when its backend takes its time.
pub async fn cancel(gateway: &Gateway, id: &str) -> Result<TaskView, Rejection> {
    let (backend, task) = gateway.tasks.get(id).ok_or_else(unknown)?;
    if !task.state.is_open() {
        return Err(had_ended(&task));
    }
    let backend = gateway.fleet.view().get(backend).cloned().ok_or_else(unreachable)?;
    gateway.tasks.cancelling(backend.id, id);
    let heard = insist(gateway, &backend, id).await;
    let task = view(gateway, backend.id, id)?;
    match task.state {
        TaskState::Cancelled => Ok(task),
        TaskState::Queued | TaskState::Running if heard => Ok(task),
        TaskState::Queued | TaskState::Running => Err(unreachable()),
        TaskState::Completed | TaskState::Failed => Err(had_ended(&task)),
    }
}

/// Goes on until the task has ended or patience has; whether the backend has answered.
async fn insist(gateway: &Gateway, backend: &Arc<Backend>, id: &str) -> bool {
    let started = Instant::now();
    let (mut heard, mut interrupted) = (false, None::<Instant>);
    loop {
        let looked = look(gateway, backend).await.is_ok();
        heard |= looked;
        let state = gateway.tasks.state_of(backend.id, id);
        let Some(state) = state.filter(|state| state.is_open()) else { return true };
        if started.elapsed() >= PATIENCE {
            return heard;
        }
        let may_interrupt = interrupted.is_none_or(|at| at.elapsed() >= INTERRUPT_PAUSE);
        if looked && state == TaskState::Queued {
            post(gateway, backend, "/queue", &json!({"delete": [id]})).await;
        } else if looked && may_interrupt {
            post(gateway, backend, "/interrupt", &json!({"prompt_id": id})).await;
            interrupted = Some(Instant::now());
        }
        sleep(PAUSE).await;
    }
}

async fn post(gateway: &Gateway, backend: &Backend, path: &str, body: &serde_json::Value) {
    let options = gateway.config.load().health_check.clone();
    // Whether it helped is seen at the next look.
    let _ = gateway.tasks.asker.post(backend, &options, path, body).await;
}

fn view(gateway: &Gateway, backend: BackendId, id: &str) -> Result<TaskView, Rejection> {
    let found = gateway.tasks.get(id).filter(|(at, _)| *at == backend);
    found.map(|(_, view)| view).ok_or_else(unknown)
}

/// There is no such task.
pub fn unknown() -> Rejection {
    Rejection::new(Kind::NotFound, "there is no task of this id")
        .cure("GET /lb/tasks lists those that are remembered")
}

/// It cannot be cancelled any more.
pub fn had_ended(task: &TaskView) -> Rejection {
    let message = format!("the task had ended: it is {}", task.state.name());
    Rejection::new(Kind::Conflict, message).cure("only queued and running tasks can be cancelled")
}

fn unreachable() -> Rejection {
    Rejection::new(Kind::UpstreamFailed, "the task's ComfyUI server does not answer")
        .cure("try again; when the server is gone for good, the task ends as failed by itself")
        .retry_after(1)
}
