//! The lines an operator reads: how many servers are available, which is best, when that changes.

use std::sync::Arc;
use std::time::Duration;

use log::info;

use crate::backend::Backend;
use crate::fleet::{Fleet, View};
use crate::logging::{TARGET, is_verbose};

/// Summaries come at most this often; a busy farm's best backend changes many times a second.
const PAUSE: Duration = Duration::from_secs(1);

/// What a summary says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Backends that take new clients.
    pub available: usize,
    /// Backends in all.
    pub total: usize,
    /// Name of the one with the least to do.
    pub best: Option<String>,
    /// Its queue.
    pub queue: u32,
}

impl Summary {
    /// The summary of a view. The best stays the best while no other has less to do.
    pub fn of(view: &View, before: Option<&str>) -> Self {
        let open = |backend: &&Arc<Backend>| {
            let standing = backend.live.standing();
            standing.takes_new() && standing.is_healthy()
        };
        let depth = |backend: &Arc<Backend>| backend.live.depth.prompts();
        let available: Vec<_> = view.backends.iter().filter(open).collect();
        let least = available.iter().map(|backend| depth(backend)).min();
        let best = |named: Option<&str>| {
            available
                .iter()
                .find(|b| Some(depth(b)) == least && named.is_none_or(|name| b.name() == name))
        };
        let best = before.and_then(|name| best(Some(name))).or_else(|| best(None));
        Self {
            available: available.len(),
            total: view.backends.len(),
            best: best.map(|backend| backend.name().to_owned()),
            queue: least.unwrap_or(0),
        }
    }

    /// The line for the log.
    pub fn line(&self) -> String {
        let Self { available, total, best, queue } = self;
        match best {
            Some(best) => {
                format!("available servers: {available}/{total}, best: {best} (queue: {queue})")
            }
            None => format!("available servers: {available}/{total}"),
        }
    }
}

/// Writes summaries for as long as the process lives.
pub async fn report(fleet: Arc<Fleet>) {
    let mut changes = fleet.watch();
    let mut last: Option<Summary> = None;
    loop {
        let best_before = last.as_ref().and_then(|summary| summary.best.clone());
        let now = Summary::of(&fleet.view(), best_before.as_deref());
        let news = last.as_ref().is_none_or(|last| {
            (last.available, last.total, &last.best) != (now.available, now.total, &now.best)
        });
        if news {
            if let (Some(before), Some(best)) = (&best_before, &now.best)
                && before != best
            {
                info!(target: TARGET, "switch: {before} → {best} ({})", why(&fleet.view(), before));
            }
            info!(target: TARGET, "{}", now.line());
            if is_verbose() {
                info!(target: TARGET, "{}", table(&fleet.view()));
            }
            last = Some(now);
            tokio::time::sleep(PAUSE).await;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn why(view: &View, before: &str) -> &'static str {
    match view.named(before).map(|backend| backend.live.standing()) {
        Some(standing) if standing.takes_new() => "shorter queue",
        Some(_) => "the other is out of service",
        None => "the other is gone",
    }
}

/// The full health table of verbose logging.
fn table(view: &View) -> String {
    let mut table = String::from("health check done:");
    for backend in &view.backends {
        let reading = backend.live.depth.reading();
        let standing = backend.live.standing();
        let mark = if standing.is_healthy() { "✅" } else { "❌" };
        table.push_str(&format!(
            "\n  - {}: {mark} {} (running: {}, pending: {}, total: {})",
            backend.name(),
            standing.label(),
            reading.running,
            reading.pending,
            backend.live.depth.prompts(),
        ));
    }
    table
}
