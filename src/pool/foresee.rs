//! Tells tasks, and owners of jobs, where they stand in the line and when they will have ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Pool;
use super::core::Phase;
use super::dispatch::now_ms;
use super::eta::{Server, Waits, reckon};
use super::forecast::{self, Foreseen};
use super::job::Job;
use crate::clock::Moment;

/// Moves that come close together are reckoned with together; long lines less often.
const PAUSE: Duration = Duration::from_millis(200);
const LONG_PAUSE: Duration = Duration::from_secs(2);
const LONG: usize = 2000;

/// A task as it is told: its id, its place, and seconds until it will have ended.
type Task = (Arc<str>, u32, Option<f64>);

/// Reckons after each move, for as long as the process lives.
pub(super) async fn foresee(pool: Arc<Pool>) {
    loop {
        let waited = !pool.forecasts.lock().is_empty();
        // Times pass, and words are held back, without a move.
        tokio::select! {
            () = pool.line_moved.notified() => {}
            () = sleep(forecast::PAUSE), if waited => {}
        }
        let (reckoned, foreseen) = pool.reckon();
        pool.tasks.foresee(&reckoned);
        pool.tell_owners(&foreseen);
        sleep(if reckoned.len() > LONG { LONG_PAUSE } else { PAUSE }).await;
    }
}

impl Pool {
    /// Tells owners what is new to them.
    fn tell_owners(&self, foreseen: &[Foreseen]) {
        let tells = self.config.load().pool.eta_events;
        let now_ms = now_ms();
        let waited = |job: &Job| Duration::from_millis(now_ms.saturating_sub(job.created_ms));
        let hears = |job: &Job| tells && self.hub.hears(&job.owner);
        let due = self.forecasts.lock().take(foreseen, Moment::now(), waited, hears);
        for one in due.into_iter().filter_map(|n| foreseen.get(n)) {
            self.hub.tell(&one.job.owner, one.event());
        }
    }

    fn reckon(&self) -> (Vec<Task>, Vec<Foreseen>) {
        let jobs = self.core.lock().jobs();
        let now = Moment::now();
        let view = self.fleet.view();
        let mut servers: Vec<_> = view
            .backends
            .iter()
            .filter(|backend| self.is_open(backend))
            .map(|b| (b.id, Server { free_in: 0.0, mean: b.live.learnt().prompt_seconds }))
            .collect();
        let mut reckoned = Vec::with_capacity(jobs.len());
        let (mut line, mut waiting) = (Vec::new(), Vec::new());
        // Many jobs are of few kinds.
        let mut learnt: HashMap<Option<u64>, Option<f64>> = HashMap::new();
        for view in &jobs {
            let kind = view.job.kind.as_ref().map(|kind| kind.hash);
            let at = match view.phase {
                Phase::Waiting | Phase::Doubtful(_) => None,
                Phase::Sent(at) | Phase::Running(at) | Phase::Ending(at) => Some(at),
            };
            let Some(at) = at else {
                let seconds = *learnt.entry(kind).or_insert_with(|| {
                    let known = servers.iter().filter_map(|(at, _)| self.tasks.predict(*at, kind));
                    known.reduce(f64::min)
                });
                waiting.push(view);
                line.push(Waits { id: Arc::clone(&view.job.prompt_id), seconds });
                continue;
            };
            let predicted = self.tasks.predict(at, kind);
            let ran = view.started.map_or(0.0, |started| now.since(started).as_secs_f64());
            let left = predicted.map(|seconds| (seconds - ran).max(0.0));
            if let Some((_, server)) = servers.iter_mut().find(|(id, _)| *id == at) {
                server.free_in += left.unwrap_or(server.mean);
            }
            reckoned.push((Arc::clone(&view.job.prompt_id), 0, left));
        }
        let servers: Vec<_> = servers.into_iter().map(|(_, server)| server).collect();
        let learnt = servers.iter().any(|server| server.mean > 0.0);
        let mut foreseen = Vec::new();
        if servers.is_empty() {
            let places = (1..).zip(&line);
            reckoned.extend(places.map(|(place, waits)| (Arc::clone(&waits.id), place, None)));
        } else {
            let played = reckon(&servers, &line);
            if learnt {
                let both = played.iter().zip(&waiting);
                foreseen.extend(both.map(|(reckoned, view)| Foreseen {
                    job: Arc::clone(&view.job),
                    position: reckoned.position,
                    begins: reckoned.begins,
                    ends: reckoned.ends,
                }));
            }
            let played = played.into_iter();
            reckoned.extend(played.map(|job| (job.id, job.position, learnt.then_some(job.ends))));
        }
        (reckoned, foreseen)
    }
}
