//! When a waiting job will have ended: the line played forward over the servers.
//!
//! List scheduling (Graham, 1966): each job in dispatch order goes to the server that is free first
//! among those it may run on, for as long as its kind takes there. Nothing is known of what will
//! come, so a newcomer with precedence makes the reckoning too short; a wrong one is told again with
//! the next move.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Seconds assumed where nothing was learnt.
const UNKNOWN: f64 = 10.0;

/// A server that takes jobs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Server {
    /// Seconds until it is free.
    pub free_in: f64,
    /// Seconds that a job of unknown kind takes; 0 when that is unknown too.
    pub mean: f64,
}

/// A job of the line.
#[derive(Debug, Clone, PartialEq)]
pub struct Waits {
    /// Its prompt id.
    pub id: Arc<str>,
    /// Seconds that its kind takes, if that is known.
    pub seconds: Option<f64>,
}

/// When a job will begin and end, in seconds from now.
#[derive(Debug, Clone, PartialEq)]
pub struct Reckoned {
    /// Its prompt id.
    pub id: Arc<str>,
    /// Jobs before it in the line, itself included.
    pub position: u32,
    /// When it begins.
    pub begins: f64,
    /// When it ends.
    pub ends: f64,
}

/// Plays the line forward. Without servers nothing can be said.
pub fn reckon(servers: &[Server], line: &[Waits]) -> Vec<Reckoned> {
    let mut free: BinaryHeap<_> = servers
        .iter()
        .enumerate()
        .map(|(n, server)| Reverse((Seconds(sane(server.free_in)), n)))
        .collect();
    let mut reckoned = Vec::with_capacity(line.len());
    for (position, waits) in (1..).zip(line) {
        let Some(Reverse((Seconds(begins), n))) = free.pop() else { return Vec::new() };
        let mean = servers[n].mean;
        let takes = waits.seconds.unwrap_or(if mean > 0.0 { mean } else { UNKNOWN });
        let ends = begins + sane(takes);
        free.push(Reverse((Seconds(ends), n)));
        reckoned.push(Reckoned { id: Arc::clone(&waits.id), position, begins, ends });
    }
    reckoned
}

fn sane(seconds: f64) -> f64 {
    if seconds.is_finite() { seconds.max(0.0) } else { UNKNOWN }
}

/// Seconds in their total order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seconds(f64);

impl Eq for Seconds {}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seconds {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(seconds: &[Option<f64>]) -> Vec<Waits> {
        let job = |(n, seconds): (usize, &Option<f64>)| Waits {
            id: n.to_string().into(),
            seconds: *seconds,
        };
        seconds.iter().enumerate().map(job).collect()
    }

    #[test]
    fn jobs_go_to_whoever_is_free_first() {
        let servers = [Server { free_in: 5.0, mean: 2.0 }, Server { free_in: 1.0, mean: 10.0 }];
        let reckoned = reckon(&servers, &line(&[Some(3.0), Some(4.0), None]));
        let times: Vec<_> = reckoned.iter().map(|r| (r.position, r.begins, r.ends)).collect();
        assert_eq!(times, [(1, 1.0, 4.0), (2, 4.0, 8.0), (3, 5.0, 7.0)]);
        assert!(reckon(&[], &line(&[None])).is_empty());
    }

    proptest! {
        #[test]
        fn nobody_begins_before_those_ahead_and_nothing_is_nonsense(
            servers in prop::collection::vec((any::<f64>(), any::<f64>()), 1..8),
            seconds in prop::collection::vec(prop::option::of(any::<f64>()), 0..40),
        ) {
            let servers: Vec<_> =
                servers.into_iter().map(|(free_in, mean)| Server { free_in, mean }).collect();
            let reckoned = reckon(&servers, &line(&seconds));
            prop_assert_eq!(reckoned.len(), seconds.len());
            prop_assert!(reckoned.windows(2).all(|two| two[0].begins <= two[1].begins));
            prop_assert!(reckoned.iter().all(|r| r.begins >= 0.0 && r.ends >= r.begins));
        }
    }
}
