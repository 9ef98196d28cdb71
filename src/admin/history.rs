//! The last hour in samples of ten seconds: queues by backend, throughput, waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::clock::Moment;
use crate::gateway::Gateway;

/// Time between two samples.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Samples of an hour.
pub const LENGTH: usize = 360;
/// Backends with a series of their own; the others are summed.
pub const MAX_SERIES: usize = 64;

/// Waits remembered, and for how long they count.
const MAX_WAITS: usize = 4096;
const WAITS_COUNT: Duration = Duration::from_mins(10);
const MINUTE: Duration = Duration::from_mins(1);

/// One look at the farm.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// When.
    pub at: Moment,
    /// Prompts by backend, the first [`MAX_SERIES`].
    pub queues: Vec<(Arc<str>, u32)>,
    /// Prompts on all others, when there are others.
    pub others: Option<u32>,
    /// How prompts flow.
    pub pulse: Pulse,
}

/// How prompts flow; `None` is not known.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Pulse {
    /// Prompts that ended in the last minute.
    pub finished_per_minute: Option<f64>,
    /// Median of the seconds that prompts waited of late.
    pub wait_p50: Option<f64>,
    /// 95th percentile of them.
    pub wait_p95: Option<f64>,
}

impl Sample {
    /// A look now.
    pub fn of(gateway: &Gateway, pulse: Pulse) -> Self {
        let view = gateway.fleet.view();
        let (own, rest) = view.backends.split_at(view.backends.len().min(MAX_SERIES));
        Self {
            at: Moment::now(),
            queues: own.iter().map(|b| (b.name().into(), b.live.depth.prompts())).collect(),
            others: (!rest.is_empty()).then(|| rest.iter().map(|b| b.live.depth.prompts()).sum()),
            pulse,
        }
    }
}

/// Feels the pulse: counts of ended prompts and waits go in, what they mean of late comes out.
#[derive(Debug, Default)]
pub struct Meter {
    /// How many had ended, at each sample of the last minute.
    ended: VecDeque<(Moment, u64)>,
    /// When prompts ended, and how long they had waited.
    waits: VecDeque<(Moment, f64)>,
}

impl Meter {
    /// A prompt ended that had waited so long.
    pub fn waited(&mut self, seconds: f64, now: Moment) {
        if self.waits.len() >= MAX_WAITS {
            self.waits.pop_front();
        }
        self.waits.push_back((now, seconds));
    }

    /// The pulse, `ended` prompts having ended since the start.
    pub fn pulse(&mut self, ended: u64, now: Moment) -> Pulse {
        self.ended.push_back((now, ended));
        // The oldest that is kept is a minute old, or as old as the process.
        while self.ended.get(1).is_some_and(|(at, _)| now.since(*at) >= MINUTE) {
            self.ended.pop_front();
        }
        while self.waits.front().is_some_and(|(at, _)| now.since(*at) > WAITS_COUNT) {
            self.waits.pop_front();
        }
        let before = self.ended.front().map_or(0, |(_, before)| *before);
        let mut waits: Vec<f64> = self.waits.iter().map(|(_, seconds)| *seconds).collect();
        waits.sort_by(f64::total_cmp);
        Pulse {
            finished_per_minute: Some(ended.saturating_sub(before) as f64),
            wait_p50: quantile(&waits, 0.5),
            wait_p95: quantile(&waits, 0.95),
        }
    }
}

/// The least value that a share of all does not exceed.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The last [`LENGTH`] samples.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Sample>>);

impl History {
    /// Adds a sample.
    pub fn push(&self, mut sample: Sample) {
        let mut samples = self.0.lock();
        if let Some(last) = samples.back() {
            share_names(&mut sample, last);
        }
        if samples.len() >= LENGTH {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// The samples, oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.0.lock().iter().cloned().collect()
    }

    /// The last sample's pulse.
    pub fn pulse(&self) -> Pulse {
        self.0.lock().back().map(|sample| sample.pulse).unwrap_or_default()
    }
}

/// Names stay the same from sample to sample, and are kept once.
fn share_names(sample: &mut Sample, last: &Sample) {
    for ((name, _), (known, _)) in sample.queues.iter_mut().zip(&last.queues) {
        if name == known {
            *name = Arc::clone(known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pulse_counts_the_last_minute_and_ranks_recent_waits() {
        let mut meter = Meter::default();
        let at = |seconds: u64| Moment(1000 + seconds * 1000);
        assert_eq!(meter.pulse(0, at(0)).wait_p50, None);
        for wait in 1..=20 {
            meter.waited(f64::from(wait), at(1));
        }
        let pulse = meter.pulse(20, at(10));
        let expected =
            Pulse { finished_per_minute: Some(20.0), wait_p50: Some(10.0), wait_p95: Some(19.0) };
        assert_eq!(pulse, expected);
        for ten in 2..=7 {
            meter.pulse(20, at(10 * ten));
        }
        assert_eq!(meter.pulse(25, at(80)).finished_per_minute, Some(5.0));
        assert_eq!(meter.pulse(25, at(700)).wait_p95, None);
        assert!(meter.ended.len() <= 8);
    }

    #[test]
    fn an_hour_is_kept_and_names_are_kept_once() {
        let history = History::default();
        for number in 0..LENGTH as u64 + 3 {
            let queues = vec![(Arc::from("a"), 1)];
            history.push(Sample { at: Moment(number), queues, ..Sample::default() });
        }
        let samples = history.samples();
        assert_eq!((samples.len(), samples[0].at), (LENGTH, Moment(3)));
        assert!(Arc::ptr_eq(&samples[0].queues[0].0, &samples[LENGTH - 1].queues[0].0));
    }
}
