//! What owners of waiting jobs are told of when those will run, and how far off that was.
//!
//! A `comfygate_eta` event goes to the owner's socket, which ComfyUI's page passes over, once a job
//! has waited for [`PATIENCE`], so that short runs see exactly ComfyUI's frames; again when its
//! beginning or its end has moved by more than a second and a tenth of the time until then; and at
//! most every [`PAUSE`] for one job. The error is the difference between what was reckoned first
//! and the real beginning. What is remembered goes with the waiting jobs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::frame::Frame;
use super::job::{Job, JobId};
use crate::clock::Moment;

/// Who waits for less is told nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Between two words on one job.
pub(super) const PAUSE: Duration = Duration::from_secs(2);
/// Seconds by which times move without a word.
const SLACK: f64 = 1.0;
/// The same as a part of the time until then.
const SHARE: f64 = 0.1;

/// When a waiting job will run, in seconds from now.
#[derive(Debug, Clone)]
pub(super) struct Foreseen {
    pub job: Arc<Job>,
    pub position: u32,
    pub begins: f64,
    pub ends: f64,
}

impl Foreseen {
    /// The event that tells it.
    pub(super) fn event(&self) -> Frame {
        let tenths = |seconds: f64| (seconds * 10.0).round() / 10.0;
        let data = json!({
            "prompt_id": &*self.job.prompt_id,
            "position": self.position,
            "starts_in": tenths(self.begins),
            "ends_in": tenths(self.ends),
        });
        let event = json!({"type": "comfygate_eta", "data": data});
        Frame { binary: false, bytes: Bytes::from(event.to_string()) }
    }
}

/// A word on a job: when it was said, and the times it named, as seconds since the same start.
#[derive(Debug, Clone, Copy)]
struct Word {
    at: Moment,
    begins: f64,
    ends: f64,
}

#[derive(Debug)]
struct Waiting {
    /// When it was reckoned to begin, at first; `None` when it has begun before.
    first: Option<f64>,
    told: Option<Word>,
    /// The last reckoning that saw it.
    round: u64,
}

/// What was foreseen of the jobs that wait.
#[derive(Debug, Default)]
pub(super) struct Forecasts {
    waiting: HashMap<JobId, Waiting>,
    round: u64,
}

impl Forecasts {
    /// Takes a reckoning of all waiting jobs; returns those whose owners are to be told, if they
    /// `hear`. `waited` tells how long a job has.
    pub(super) fn take(
        &mut self,
        foreseen: &[Foreseen],
        now: Moment,
        waited: impl Fn(&Job) -> Duration,
        hears: impl Fn(&Job) -> bool,
    ) -> Vec<usize> {
        self.round += 1;
        let mut due = Vec::new();
        for (n, one) in foreseen.iter().enumerate() {
            let (begins, ends) = (seconds(now) + one.begins, seconds(now) + one.ends);
            let known = self.waiting.entry(one.job.id);
            let known = known.or_insert(Waiting { first: Some(begins), told: None, round: 0 });
            known.round = self.round;
            let news = known.told.is_none_or(|told| {
                let moved =
                    differs(told.begins, begins, one.begins) || differs(told.ends, ends, one.ends);
                moved && now.since(told.at) >= PAUSE
            });
            if news && waited(&one.job) >= PATIENCE && hears(&one.job) {
                known.told = Some(Word { at: now, begins, ends });
                due.push(n);
            }
        }
        // One that is on its way to a server is about to begin.
        self.waiting.retain(|_, known| known.round == self.round || known.first.is_some());
        due
    }

    /// A job has begun; how far off the first reckoning was, if there was one.
    pub(super) fn begun(&mut self, job: JobId, now: Moment) -> Option<Duration> {
        let first = self.waiting.remove(&job)?.first?;
        Duration::try_from_secs_f64((seconds(now) - first).abs()).ok()
    }

    /// A job is no more.
    pub(super) fn forget(&mut self, job: JobId) {
        self.waiting.remove(&job);
    }

    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

fn seconds(moment: Moment) -> f64 {
    moment.0 as f64 / 1000.0
}

fn differs(told: f64, now: f64, left: f64) -> bool {
    let difference = (told - now).abs();
    difference > SLACK && difference > SHARE * left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ClientKey;
    use crate::pool::job::Owner;

    fn foreseen(id: u64, begins: f64) -> Foreseen {
        let key = ClientKey::from_bytes([1; 16]);
        let job = Job {
            id: JobId(id),
            prompt_id: format!("p{id}").into(),
            owner: Owner { key, caller: "a".into(), client_id: None },
            number: 0.0,
            priority: 0,
            needs: Arc::default(),
            kind: None,
            zone: None,
            once: false,
            created_ms: 0,
            body: Bytes::new(),
        };
        Foreseen { job: Arc::new(job), position: 3, begins, ends: begins + 5.0 }
    }

    fn told(forecasts: &mut Forecasts, at: u64, begins: f64) -> bool {
        let waited = |_: &Job| Duration::from_millis(at);
        let due = forecasts.take(&[foreseen(1, begins)], Moment(at), waited, |_| true);
        due == [0]
    }

    #[test]
    fn who_waits_for_long_is_told_once_and_then_of_changes() {
        let mut forecasts = Forecasts::default();
        assert!(!told(&mut forecasts, 1_999, 30.0), "it may begin at once");
        assert!(told(&mut forecasts, 2_000, 30.0));
        assert!(!told(&mut forecasts, 7_000, 25.0), "as was said");
        assert!(!told(&mut forecasts, 7_000, 27.4), "less than a tenth");
        assert!(told(&mut forecasts, 7_000, 40.0));
        assert!(!told(&mut forecasts, 8_999, 20.0), "too soon after the last word");
        assert!(told(&mut forecasts, 9_000, 20.0));
        assert!(!told(&mut forecasts, 28_900, 1.0), "less than a second");
    }

    #[test]
    fn who_does_not_hear_is_told_later() {
        let mut forecasts = Forecasts::default();
        let long = |_: &Job| Duration::from_mins(1);
        let jobs = [foreseen(1, 9.0), foreseen(2, 9.0)];
        assert_eq!(forecasts.take(&jobs, Moment(0), long, |job| job.id.0 == 2), [1]);
        assert_eq!(forecasts.take(&jobs, Moment(10), long, |_| true), [0]);
    }

    #[test]
    fn the_error_is_that_of_the_first_reckoning_and_counts_once() {
        let mut forecasts = Forecasts::default();
        told(&mut forecasts, 1_000, 30.0);
        told(&mut forecasts, 2_000, 10.0);
        assert_eq!(forecasts.begun(JobId(1), Moment(21_000)), Some(Duration::from_secs(10)));
        assert_eq!(forecasts.begun(JobId(1), Moment(21_000)), None);
        assert_eq!(forecasts.begun(JobId(2), Moment(21_000)), None);
        assert!(forecasts.is_empty());
        told(&mut forecasts, 22_000, 3.0);
        forecasts.take(&[], Moment(22_001), |_| PATIENCE, |_| true);
        assert!(!forecasts.is_empty(), "it was sent and has not begun");
        forecasts.forget(JobId(1));
        assert!(forecasts.is_empty());
    }

    #[test]
    fn the_event_is_what_clients_expect() {
        let text = String::from_utf8(foreseen(1, 2.04).event().bytes.to_vec()).unwrap();
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        let data = json!({"prompt_id": "p1", "position": 3, "starts_in": 2.0, "ends_in": 7.0});
        assert_eq!(event, json!({"type": "comfygate_eta", "data": data}));
    }
}
