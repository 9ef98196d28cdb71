//! Answers by method and code, and how long they took: a table of atomics, so that a request is
//! counted without looking a label up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Durations;

/// The methods of RFC 9110 and PATCH; any other one is `OTHER`, the last.
const METHODS: [&str; 10] =
    ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "OTHER"];

/// The codes that IANA lists. As RFC 9110 (section 15) has it, any other one counts as the first
/// of its class, and what is in no class as a 500.
const CODES: [u16; 63] = [
    100, 101, 102, 103, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304,
    305, 307, 308, 400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415,
    416, 417, 418, 421, 422, 423, 424, 425, 426, 428, 429, 431, 451, 500, 501, 502, 503, 504, 505,
    506, 507, 508, 509, 510, 511,
];

/// Bounds of an answer's time, in seconds: API calls take milliseconds, large files a minute.
const REQUEST_SECONDS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The answers of one backend, or of the gateway itself.
#[derive(Debug)]
pub struct Traffic {
    /// A row per method, a column per code.
    answers: Box<[AtomicU64]>,
    /// How long they took.
    pub durations: Durations,
}

impl Default for Traffic {
    fn default() -> Self {
        let cells = METHODS.len() * CODES.len();
        Self {
            answers: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            durations: Durations::new(&REQUEST_SECONDS),
        }
    }
}

impl Traffic {
    /// Counts an answer.
    pub fn answered(&self, method: &str, code: u16, took: Duration) {
        self.answers[row(method) * CODES.len() + column(code)].fetch_add(1, Relaxed);
        self.durations.observe(took);
    }

    /// Method, code and count of what was answered at all.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u16, u64)> {
        self.answers.iter().enumerate().filter_map(|(cell, count)| {
            let count = count.load(Relaxed);
            let (row, column) = (cell / CODES.len(), cell % CODES.len());
            (count > 0).then(|| (METHODS[row], CODES[column], count))
        })
    }
}

fn row(method: &str) -> usize {
    METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len() - 1)
}

fn column(code: u16) -> usize {
    let class = if (100..600).contains(&code) { code / 100 * 100 } else { 500 };
    let found = CODES.binary_search(&code).or_else(|_| CODES.binary_search(&class));
    found.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(traffic: &Traffic) -> Vec<(&'static str, u16, u64)> {
        traffic.counts().collect()
    }

    #[test]
    fn every_cell_counts_for_itself() {
        for method in METHODS {
            for code in CODES {
                let traffic = Traffic::default();
                traffic.answered(method, code, Duration::ZERO);
                assert_eq!(counts(&traffic), [(method, code, 1)]);
            }
        }
    }

    #[test]
    fn strange_methods_and_codes_make_no_labels_of_their_own() {
        let traffic = Traffic::default();
        for (method, code) in [("BREW", 299), ("get", 299), ("", 200)] {
            traffic.answered(method, code, Duration::ZERO);
        }
        for code in [599, 999, 600, 0, 99, u16::MAX] {
            traffic.answered("GET", code, Duration::ZERO);
        }
        assert_eq!(counts(&traffic), [("GET", 500, 6), ("OTHER", 200, 3)]);
        assert!(CODES.is_sorted());
    }
}
