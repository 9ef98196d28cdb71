//! The gateway's memory and descriptors over time.

use std::time::{Duration, Instant};

use super::clients::Seen;
use crate::support::{Gateway, PATIENCE, eventually};

struct Row {
    at: Duration,
    served: u64,
    cut: u64,
    prompts: u64,
    faults: u32,
    memory_kib: u64,
    descriptors: usize,
}

/// Looks now and then.
pub(crate) struct Pulse {
    start: Instant,
    /// Descriptors before anybody came.
    quiet: usize,
    rows: Vec<Row>,
}

impl Pulse {
    pub(crate) fn start(gateway: &Gateway) -> Self {
        Self { start: Instant::now(), quiet: gateway.descriptors(), rows: Vec::new() }
    }

    pub(crate) fn take(&mut self, gateway: &Gateway, seen: &Seen, faults: u32) {
        let row = Row {
            at: self.start.elapsed(),
            served: seen.served(),
            cut: seen.cut(),
            prompts: seen.prompts(),
            faults,
            memory_kib: gateway.memory_kib("VmRSS"),
            descriptors: gateway.descriptors(),
        };
        println!("{}", row.line());
        self.rows.push(row);
    }

    pub(crate) fn table(&self) -> String {
        let head = "| seconds | served | cut | prompts | faults | RSS MiB | descriptors |";
        let rule = "|---|---|---|---|---|---|---|";
        let rows = self.rows.iter().map(Row::line);
        let lines: Vec<_> = [head.to_owned(), rule.to_owned()].into_iter().chain(rows).collect();
        lines.join("\n")
    }

    /// Memory does not grow, once everything has been seen: the last quarter is like the second.
    pub(crate) fn assert_flat(&self, length: Duration) {
        let mean = |rows: &[Row]| {
            rows.iter().map(|row| row.memory_kib).sum::<u64>() / rows.len().max(1) as u64
        };
        let quarter = self.rows.len() / 4;
        let (early, late) =
            (mean(&self.rows[quarter..2 * quarter]), mean(&self.rows[3 * quarter..]));
        // In half a minute caches and the allocator are still filling.
        let allowed =
            if length >= Duration::from_mins(2) { early / 4 + (8 << 10) } else { 96 << 10 };
        assert!(late <= early + allowed, "{early} KiB grew to {late} KiB\n{}", self.table());
    }

    /// When the clients are gone and idle connections have had their time, so are descriptors.
    pub(crate) async fn assert_nothing_left(&self, gateway: &Gateway) {
        let most = self.quiet + 16;
        eventually("descriptors are given back", PATIENCE + PATIENCE, async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            gateway.descriptors() <= most
        })
        .await;
        println!("descriptors: {} before, {} after", self.quiet, gateway.descriptors());
    }
}

impl Row {
    fn line(&self) -> String {
        let Self { served, cut, prompts, faults, memory_kib, descriptors, .. } = self;
        let (seconds, memory) = (self.at.as_secs(), *memory_kib as f64 / 1024.0);
        format!(
            "| {seconds} | {served} | {cut} | {prompts} | {faults} | {memory:.1} | {descriptors} |"
        )
    }
}
