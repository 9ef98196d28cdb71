//! Tells the core what the fleet looks like: who is there, what they can do, who may get jobs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Pool;
use super::core::{Input, Lane};
use crate::backend::{Backend, BackendId};
use crate::fleet::View;
use crate::health::Health;
use crate::inventory::Capabilities;

/// Changes that come close together are told together.
const PAUSE: Duration = Duration::from_millis(20);

/// What was told of a backend last.
struct Told {
    lane: Lane,
    task_types: Vec<String>,
}

/// Follows the fleet for as long as the process lives.
pub(super) async fn follow(pool: Arc<Pool>) {
    let mut changes = pool.fleet.watch();
    let mut told: HashMap<BackendId, Told> = HashMap::new();
    loop {
        changes.borrow_and_update();
        tell(&pool, &mut told);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = pool.links_changed.notified() => {}
        }
        sleep(PAUSE).await;
    }
}

fn tell(pool: &Arc<Pool>, told: &mut HashMap<BackendId, Told>) {
    let view = pool.fleet.view().clone();
    for backend in &view.backends {
        let lane = lane_of(pool, backend, told.get(&backend.id));
        let known = told.get(&backend.id).is_some_and(|told| same(&told.lane, &lane));
        if !known {
            let task_types = backend.spec.task_types.clone();
            told.insert(backend.id, Told { lane: lane.clone(), task_types });
            pool.tell(Input::Lane(lane));
            pool.fleet.touch();
        }
    }
    pool.note_outputs(&view);
    let gone: Vec<_> = told.keys().filter(|id| view.get(**id).is_none()).copied().collect();
    for id in gone {
        told.remove(&id);
        pool.tell(Input::LaneGone(id));
        pool.ear.forget(id);
    }
}

fn lane_of(pool: &Pool, backend: &Backend, told: Option<&Told>) -> Lane {
    let standing = backend.live.standing();
    let same_types = told.filter(|told| told.task_types == backend.spec.task_types);
    let task_types = same_types.map_or_else(
        || backend.spec.task_types.clone().into(),
        |told| Arc::clone(&told.lane.task_types),
    );
    Lane {
        backend: backend.id,
        name: backend.name().into(),
        weight: backend.spec.weight,
        max_queue: backend.spec.max_queue.max(1),
        backup: backend.spec.backup,
        zone: backend.zone().map(Into::into),
        task_types,
        capabilities: backend.live.inventory.capabilities(),
        open: is_open(pool, backend),
        reachable: standing.health == Health::Up,
        prompt_seconds: (backend.live.learnt().prompt_seconds * 10.0).round() / 10.0,
    }
}

/// Whether new jobs may go to a backend.
pub(super) fn is_open(pool: &Pool, backend: &Backend) -> bool {
    let standing = backend.live.standing();
    standing.health == Health::Up
        && standing.takes_new()
        && !standing.suspect
        && pool.links.is_ready(backend.id)
        && pool.read.lock().contains(&backend.id)
}

/// Whether nothing changed that the core cares about. Capabilities are the same when they are the
/// same reading: a new reading of the same costs the core little.
fn same(one: &Lane, other: &Lane) -> bool {
    let capabilities = |lane: &Lane| lane.capabilities.as_ref().map(Arc::<Capabilities>::as_ptr);
    one.name == other.name
        && (one.weight, one.max_queue, one.backup, one.open, one.reachable)
            == (other.weight, other.max_queue, other.backup, other.open, other.reachable)
        && one.zone == other.zone
        && Arc::ptr_eq(&one.task_types, &other.task_types)
        && capabilities(one) == capabilities(other)
        && (one.prompt_seconds - other.prompt_seconds).abs() < f64::EPSILON
}

impl Pool {
    /// Notes which node types end a workflow, when a backend was read anew.
    fn note_outputs(&self, view: &View) {
        let known = self.outputs.load();
        let read = view.backends.iter().filter_map(|b| b.live.inventory.capabilities());
        let new = read.filter(|found| !found.outputs.is_subset(&known));
        let new: Vec<_> = new.collect();
        if !new.is_empty() {
            let all = new.iter().flat_map(|found| found.outputs.iter().cloned());
            self.outputs.store(Arc::new(known.iter().cloned().chain(all).collect()));
        }
    }
}
