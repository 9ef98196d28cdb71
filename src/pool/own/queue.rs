//! `GET /prompt` and `GET /queue`: all that waits and runs in the farm, in one order.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde_json::json;

use super::super::Pool;
use super::super::core::JobView;
use super::super::visit::Visit;
use super::{json as reply, list_of};

/// How many prompts wait and run.
pub(super) async fn count(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
) -> Response {
    let remaining = if pool.is_isolated() {
        pool.shown_to(&visit).count()
    } else {
        pool.core.lock().open_jobs()
    };
    reply(json!({"exec_info": {"queue_remaining": remaining}}).to_string())
}

/// The prompts themselves.
pub(super) async fn list(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
) -> Response {
    let (running, pending): (Vec<_>, Vec<_>) = pool.shown_to(&visit).partition(runs);
    let items = |views: Vec<JobView>| list_of(views.iter().map(|view| pool.item(view)));
    let mut text = b"{\"queue_running\":".to_vec();
    text.extend_from_slice(&items(running));
    text.extend_from_slice(b",\"queue_pending\":");
    text.extend_from_slice(&items(pending));
    text.push(b'}');
    reply(text)
}

/// Whether a job shows as running.
pub(super) fn runs(view: &JobView) -> bool {
    !view.waits
}

impl Pool {
    /// The open jobs that a caller may see: running ones, then waiting ones in the order in which
    /// they will run.
    pub(super) fn shown_to(&self, visit: &Visit) -> impl Iterator<Item = JobView> + use<> {
        let own_only = self.is_isolated().then_some(visit.key);
        let jobs = self.core.lock().jobs();
        jobs.into_iter().filter(move |view| own_only.is_none_or(|key| view.job.owner.key == key))
    }

    /// A job as an item of /queue.
    pub(super) fn item(&self, view: &JobView) -> Bytes {
        let is_output = |class: &str| self.is_output(class);
        super::super::submission::queue_item(&view.job, &view.reply, &is_output)
    }
}
