//! Follows the fleet for those who watch: tells the [`Hub`](super::events::Hub) what changed,
//! writes changes of state into the [`Journal`](super::journal::Journal) and takes a sample for
//! the [`History`](super::history::History) every ten seconds.
//!
//! A fleet under load changes many times a second, so changes are collected for [`DEBOUNCE`],
//! and each backend is told at most once per look.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::Admin;
use super::history::{SAMPLE_EVERY, Sample};
use super::views::{BackendView, Stats};
use crate::clock::Moment;

/// Changes are collected for so long.
const DEBOUNCE: Duration = Duration::from_millis(250);
/// Looks without a change, and the least time between two `stats`.
const TICK: Duration = Duration::from_secs(1);
/// What changes all the time and is no news.
const VOLATILE: [&str; 6] = [
    "queue_age_seconds",
    "last_check",
    "response_seconds",
    "uptime_seconds",
    "eta_seconds",
    "connections",
];

/// Follows until the admin plane is gone.
pub(super) async fn watch(admin: Weak<Admin>) {
    let Some(strong) = admin.upgrade() else { return };
    let mut changes = strong.gateway.fleet.watch();
    drop(strong);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                sleep(DEBOUNCE).await;
                changes.mark_unchanged();
            }
            _ = ticks.tick() => {}
        }
        let Some(admin) = admin.upgrade() else { return };
        seen.look(&admin);
    }
}

/// Tells of every task that changes its state, and takes down how long those that ended waited.
pub(super) async fn watch_tasks(admin: Weak<Admin>) {
    let Some(strong) = admin.upgrade() else { return };
    let mut tasks = strong.gateway.tasks.subscribe();
    drop(strong);
    loop {
        let task = match tasks.recv().await {
            Ok(event) => event.task,
            // Pages show some tasks late; the next change of each, or a reload, puts that right.
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let Some(admin) = admin.upgrade() else { return };
        if let (false, Some(started)) = (task.state.is_open(), task.started_at) {
            let waited = started.duration_since(task.created_at).as_secs_f64().max(0.0);
            admin.meter.lock().waited(waited, Moment::now());
        }
        admin.hub.tell("task", &task);
    }
}

/// What was seen last.
#[derive(Default)]
struct Seen {
    states: HashMap<String, &'static str>,
    shown: HashMap<String, Value>,
    stats: Value,
    stats_at: Option<Instant>,
    sample_due: Option<Instant>,
}

impl Seen {
    fn look(&mut self, admin: &Arc<Admin>) {
        self.states(admin);
        if admin.hub.is_heard() {
            self.backends(admin);
            self.stats(admin);
        } else {
            self.shown.clear();
        }
        let due = self.sample_due.get_or_insert_with(Instant::now);
        if due.elapsed() > Duration::ZERO {
            // At a steady rate; what a stopped process missed stays missed.
            let behind = due.elapsed().as_secs() / SAMPLE_EVERY.as_secs();
            *due += SAMPLE_EVERY * (behind as u32 + 1);
            let counts = admin.gateway.tasks.counts();
            let ended = counts.completed + counts.failed;
            let pulse = admin.meter.lock().pulse(ended, Moment::now());
            let sample = Sample::of(&admin.gateway, pulse);
            admin.hub.tell("sample", &sample.pulse);
            admin.history.push(sample);
        }
    }

    /// Writes down who changed its state, came or went.
    fn states(&mut self, admin: &Admin) {
        let view = admin.gateway.fleet.view();
        let mut before = std::mem::take(&mut self.states);
        for backend in &view.backends {
            let to = backend.live.standing().label();
            let from = before.remove(backend.name());
            if from != Some(to) {
                let detail = matches!(to, "down" | "ejected")
                    .then(|| backend.live.notes().last_error)
                    .flatten();
                let change = admin.journal.note(backend.name(), from, Some(to), detail);
                admin.hub.tell("change", &change);
            }
            self.states.insert(backend.name().to_owned(), to);
        }
        for (name, from) in before {
            let change = admin.journal.note(&name, Some(from), None, None);
            admin.hub.tell("change", &change);
            admin.hub.tell("backend_removed", &json!({ "name": name }));
        }
    }

    fn backends(&mut self, admin: &Admin) {
        let view = admin.gateway.fleet.view();
        let mut before = std::mem::take(&mut self.shown);
        for backend in &view.backends {
            let shown = BackendView::of(&admin.gateway, backend);
            let steady = without_volatile(&shown);
            if before.remove(backend.name()).as_ref() != Some(&steady) {
                admin.hub.tell("backend", &shown);
            }
            self.shown.insert(backend.name().to_owned(), steady);
        }
    }

    fn stats(&mut self, admin: &Admin) {
        if self.stats_at.is_some_and(|at| at.elapsed() < TICK) {
            return;
        }
        let stats = Stats::of(&admin.gateway);
        let steady = without_volatile(&stats);
        if self.stats != steady {
            admin.hub.tell("stats", &stats);
            self.stats = steady;
            self.stats_at = Some(Instant::now());
        }
    }
}

fn without_volatile(shown: &impl serde::Serialize) -> Value {
    let mut shown = serde_json::to_value(shown).unwrap_or_default();
    if let Value::Object(fields) = &mut shown {
        for name in VOLATILE {
            fields.shift_remove(name);
        }
    }
    shown
}
