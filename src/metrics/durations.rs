//! A histogram of durations that threads add to without waiting for each other.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::proto;

/// How many durations fell between which bounds, and their sum.
#[derive(Debug)]
pub struct Durations {
    /// Upper bounds in seconds, ascending; the last bucket has none.
    bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    /// Nanoseconds: enough for 584 years.
    sum: AtomicU64,
}

impl Durations {
    /// An empty histogram with these bounds.
    pub fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0) }
    }

    /// Adds a duration.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.partition_point(|&bound| bound < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    /// The histogram now. Its count is the sum of its buckets, whatever is being added meanwhile.
    pub fn snapshot(&self) -> proto::Histogram {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(self.bounds.len());
        for (taken, &bound) in self.buckets.iter().zip(self.bounds) {
            count += taken.load(Relaxed);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        count += self.buckets.last().map_or(0, |beyond| beyond.load(Relaxed));
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count);
        histogram.set_sample_sum(self.sum.load(Relaxed) as f64 / 1e9);
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_its_bucket_and_all_above() {
        let durations = Durations::new(&[0.5, 1.0]);
        for millis in [500, 501, 1000, 9000] {
            durations.observe(Duration::from_millis(millis));
        }
        let histogram = durations.snapshot();
        let counts: Vec<_> = histogram
            .get_bucket()
            .iter()
            .map(prometheus::proto::Bucket::cumulative_count)
            .collect();
        assert_eq!(counts, [1, 3]);
        assert_eq!(histogram.get_sample_count(), 4);
        assert!((histogram.get_sample_sum() - 11.001).abs() < 1e-9);
    }
}
