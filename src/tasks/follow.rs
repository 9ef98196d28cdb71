//! Follows the prompts of ours on each backend, from their place in its queue to their end.
//!
//! A backend that holds none is left alone. Otherwise its queue is read when a status event told
//! that it moved, or a prompt was accepted, or an interval of the health check has passed, but at
//! most ten times a second, less often when reading it takes long, and what has left the queue is
//! looked up in history. All backends are followed independently.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::asking::Silence;
use crate::backend::{Backend, BackendId, Standing};
use crate::comfy::history::Entry;
use crate::fleet::View;
use crate::gateway::Gateway;
use crate::health::Health;

/// Pause between two looks at a queue at least.
const PAUSE: Duration = Duration::from_millis(100);
/// A look is followed by a pause of so many times its own length, at most [`LONGEST_PAUSE`].
const SPARING: u32 = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A queue of so many bytes is read again only after [`HEAVY_PAUSE`].
const HEAVY: usize = 1 << 20;
const HEAVY_PAUSE: Duration = Duration::from_secs(2);
/// Histories asked for at once, and per look.
const LOOK_UPS: usize = 4;
const LOOK_UPS_PER_LOOK: usize = 256;
/// After so long a backend that is down will not come back with the prompts it had: ComfyUI keeps
/// them in memory.
pub const LOST_AFTER: Duration = Duration::from_mins(1);

/// Follows every backend of the gateway's fleet, now and later.
pub async fn run(gateway: Arc<Gateway>) {
    let mut changed = gateway.fleet.watch();
    let mut followed: HashMap<BackendId, Arc<Backend>> = HashMap::new();
    let mut seen: Option<Arc<View>> = None;
    loop {
        // The fleet also tells of every reading; only another set of backends matters here.
        let view = arc_swap::Guard::into_inner(gateway.fleet.view());
        if !seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &view)) {
            followed.retain(|&id, _| view.get(id).is_some());
            for backend in &view.backends {
                let before = followed.insert(backend.id, Arc::clone(backend));
                // A name that went and came back has another live part, and its old follower ends.
                if !before.is_some_and(|before| Arc::ptr_eq(&before.live, &backend.live)) {
                    tokio::spawn(follow(Arc::clone(&gateway), Arc::clone(backend)));
                }
            }
            seen = Some(view);
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Follows one backend until it is removed.
async fn follow(gateway: Arc<Gateway>, first: Arc<Backend>) {
    let live = Arc::clone(&first.live);
    let mut standing = live.watch();
    let mut soonest = Instant::now();
    loop {
        let now = *standing.borrow_and_update();
        if now.removed {
            return gateway.tasks.backend_lost(first.id, "the backend was removed");
        }
        if now.health == Health::Down {
            live.set_outlook(None);
            wait_for_return(&gateway, &first, &mut standing).await;
            continue;
        }
        if gateway.tasks.open_on(first.id) == 0 {
            live.set_outlook(None);
            tokio::select! {
                () = live.moved.notified() => {}
                _ = standing.changed() => {}
            }
            continue;
        }
        sleep_until(soonest).await;
        // Its specification may have been replaced since.
        let backend = gateway.fleet.view().get(first.id).cloned();
        let Some(backend) = backend.filter(|b| Arc::ptr_eq(&b.live, &live)) else { continue };
        let started = Instant::now();
        let looked = look(&gateway, &backend).await;
        soonest = Instant::now() + pause(&looked, started.elapsed());
        if !looked.is_ok_and(|look| look.again) {
            let interval = gateway.config.load().health_check.interval;
            tokio::select! {
                () = live.moved.notified() => {}
                () = sleep(interval) => {}
                _ = standing.changed() => {}
            }
        }
    }
}

async fn wait_for_return(
    gateway: &Gateway,
    backend: &Backend,
    standing: &mut watch::Receiver<Standing>,
) {
    let is_back = |standing: &Standing| standing.removed || standing.health != Health::Down;
    if timeout(LOST_AFTER, standing.wait_for(is_back)).await.is_err() {
        gateway.tasks.backend_lost(backend.id, "the backend is down");
        let _ = standing.wait_for(is_back).await;
    }
}

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Look {
    /// Something is still to be found out.
    again: bool,
    /// Bytes of the queue.
    size: usize,
}

fn pause(looked: &Result<Look, Silence>, took: Duration) -> Duration {
    let pause = (took * SPARING).clamp(PAUSE, LONGEST_PAUSE);
    match looked {
        Ok(look) if look.size > HEAVY => pause.max(HEAVY_PAUSE),
        _ => pause,
    }
}

/// Looks at a backend's queue once, and at its history for what has left the queue.
pub(super) async fn look(gateway: &Gateway, backend: &Backend) -> Result<Look, Silence> {
    let tasks = &gateway.tasks;
    let options = gateway.config.load().health_check.clone();
    let mark = tasks.mark(backend);
    let (items, size) = match tasks.asker.queue(backend, &options).await {
        Ok(found) => found,
        Err(silence) => {
            if silence == Silence::Gone {
                backend.live.broke();
            }
            return Err(silence);
        }
    };
    let gone = tasks.saw_queue(backend.id, &items, mark);
    let more = gone.len() > LOOK_UPS_PER_LOOK;
    let found = futures_util::stream::iter(gone.into_iter().take(LOOK_UPS_PER_LOOK))
        .map(|id| {
            let options = &options;
            async move {
                let entry = tasks.asker.history(backend, options, &id).await;
                let settled = entry.as_ref().is_ok_and(|entry| *entry != Entry::Absent);
                if let Ok(entry) = entry {
                    tasks.outcome(backend.id, &id, entry, mark);
                }
                settled || tasks.state_of(backend.id, &id).is_none_or(|state| !state.is_open())
            }
        })
        .buffer_unordered(LOOK_UPS)
        .fold(true, |all, settled| async move { all && settled })
        .await;
    let (outlook, mean) = tasks.outlook(backend.id);
    backend.live.set_outlook(outlook);
    backend.live.teach(mean.map(|mean| mean.seconds));
    Ok(Look { again: more || !found, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_ten_a_second_and_fewer_when_they_cost_more() {
        let light = Ok(Look { again: false, size: 100 });
        let heavy = Ok(Look { again: true, size: HEAVY + 1 });
        assert_eq!(pause(&light, Duration::from_millis(1)), PAUSE);
        assert_eq!(pause(&light, Duration::from_millis(50)), Duration::from_millis(500));
        assert_eq!(pause(&light, Duration::from_secs(9)), LONGEST_PAUSE);
        assert_eq!(pause(&heavy, Duration::from_millis(1)), HEAVY_PAUSE);
        assert_eq!(pause(&Err(Silence::Gone), Duration::ZERO), PAUSE);
    }
}
