//! `outlier` and `timeouts`: when a backend that fails is given up, and for how long.

use std::time::Duration;

use super::raw::Node;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// `outlier`: backends that fail real requests are taken out for a time. Names and defaults are
/// Envoy's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlier {
    /// Failed connections, silences, 502, 503 and 504 in a row; 0: does not count.
    pub consecutive_gateway_failure: u32,
    /// The same and any other 5xx in a row; 0: does not count.
    pub consecutive_5xx: u32,
    /// Time between two looks at who may come back.
    pub interval: Duration,
    /// How long the first ejection takes; the n-th takes n times that.
    pub base_ejection_time: Duration,
    /// How long any takes at most.
    pub max_ejection_time: Duration,
    /// Percentage of the backends in service that may be out by this rule.
    pub max_ejection_percent: u32,
}

/// `timeouts`: how long backends may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// Silence before or within an answer.
    pub read: Duration,
    /// The same where files pass, and for routes of custom nodes.
    pub transfer: Duration,
    /// Without taking a byte of a body.
    pub write: Duration,
}

pub(super) fn outlier(node: &Node<'_>) -> Outlier {
    Outlier {
        consecutive_gateway_failure: node.get("consecutive_gateway_failure").int(5, 0..=1_000_000),
        consecutive_5xx: node.get("consecutive_5xx").int(0, 0..=1_000_000),
        interval: node.get("interval").duration(10 * SECOND, 10 * MS..=HOUR),
        base_ejection_time: node.get("base_ejection_time").duration(30 * SECOND, MS..=DAY),
        max_ejection_time: node.get("max_ejection_time").duration(300 * SECOND, MS..=DAY),
        // More than half would be another farm than the one that was paid for.
        max_ejection_percent: node.get("max_ejection_percent").int(50, 0..=50),
    }
}

pub(super) fn timeouts(node: &Node<'_>) -> Timeouts {
    Timeouts {
        connect: node.get("connect").duration(3 * SECOND, 10 * MS..=HOUR),
        read: node.get("read").duration(60 * SECOND, 10 * MS..=DAY),
        transfer: node.get("transfer").duration(300 * SECOND, 10 * MS..=DAY),
        write: node.get("write").duration(60 * SECOND, 10 * MS..=DAY),
    }
}
