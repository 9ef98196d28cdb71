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

impl Pulse {
    /// How prompts flow now. Nobody follows prompts yet.
    pub fn of(_gateway: &Gateway) -> Self {
        Self::default()
    }
}

impl Sample {
    /// A look now.
    pub fn of(gateway: &Gateway) -> Self {
        let view = gateway.fleet.view();
        let (own, rest) = view.backends.split_at(view.backends.len().min(MAX_SERIES));
        Self {
            at: Moment::now(),
            queues: own.iter().map(|b| (b.name().into(), b.live.depth.prompts())).collect(),
            others: (!rest.is_empty()).then(|| rest.iter().map(|b| b.live.depth.prompts()).sum()),
            pulse: Pulse::of(gateway),
        }
    }
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
