//! Keeps the files small: forgets what is beyond the bounds, drops segments that nothing needs.
//!
//! Segments are dropped oldest first, so that a record that says "gone" outlives what it is said of.
//! When dead bytes prevail, what still lives in the oldest is written again at the end, some
//! megabytes at a time, between two batches. On a full disk every dead byte counts.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use bytes::Bytes;
use log::warn;

use super::index::Spot;
use super::line::Entry;
use super::log::{Log, SAVE_EVERY};
use super::record::{self, Record};
use crate::logging::TARGET;
use crate::pool::job::JobId;

/// Bytes that are moved out of a segment between two batches.
const STEP: u64 = 4 << 20;
/// Jobs that are forgotten between two batches.
const FORGET: usize = 1000;
/// What the names of the keys end with by which API nodes are paid.
const SECRET: &[u8] = b"_comfy_org";

impl Log {
    /// Overwrites bodies that had secrets. `Closed` is durable: nobody needs them any more.
    pub(super) fn wipe(&self, spots: impl Iterator<Item = Spot>) {
        for spot in spots {
            let Ok(blob) = self.hot.blob(spot.segment) else { continue };
            let Ok(length) = usize::try_from(spot.payload_len) else { continue };
            let mut body = vec![0; length];
            if blob.read_at(&mut body, spot.payload_at).is_ok() && has_secrets(&body) {
                body.fill(0);
                if let Err(error) = blob.write_at(&body, spot.payload_at) {
                    warn!(target: TARGET, "a prompt's secrets could not be wiped: {error}");
                }
            }
        }
    }

    pub(super) fn tidy(&mut self, now: Instant, now_ms: u64) -> io::Result<bool> {
        let bounds = self.shared.state.lock().bounds;
        let gone = self.shared.index.write().expire(&bounds, now_ms, FORGET);
        let expiring = gone.len() == FORGET;
        self.dirty.extend(gone);
        if self.retry_at.is_some() {
            // Whatever is dead may be the room that is lacking.
            self.hot.seal();
            self.cold.seal();
        }
        let moved_hot = self.tidy_hot()?;
        let moved_cold = self.tidy_cold()?;
        if now >= self.saved_at + SAVE_EVERY {
            self.save(now);
        }
        Ok(expiring || moved_hot || moved_cold)
    }

    fn tidy_hot(&mut self) -> io::Result<bool> {
        while let Some(oldest) = self.hot.oldest()
            && !self.hot_live.contains_key(&oldest)
        {
            self.hot.remove(oldest)?;
        }
        let live: u64 = self.hot_live.values().map(|live| live.bytes).sum();
        let dead = self.hot.bytes().saturating_sub(live);
        let Some(oldest) = self.hot.oldest() else { return Ok(false) };
        let left = self.hot_live.get(&oldest).map_or(0, |live| live.bytes);
        if !self.is_worth(dead, live, left) {
            return Ok(false);
        }
        let entries = self.open_in(oldest);
        let records: Vec<_> = entries.iter().map(|(_, entry)| entry.record(self.salt)).collect();
        let spots = self.hot.append(&records, self.stamp())?;
        for ((id, _), spot) in entries.iter().zip(spots) {
            self.place_open(*id, spot);
        }
        // The rest has ended, and waits for its end to be written.
        Ok(!entries.is_empty())
    }

    /// Whether the oldest segment is to be emptied, with so many bytes dead of all, so many that may
    /// be, and so many to be moved.
    fn is_worth(&self, dead: u64, may_be: u64, left: u64) -> bool {
        if self.retry_at.is_some() {
            // The reserve has room for what is moved.
            let room = self.reserve.size() / 2;
            return left < room && dead > 2 * left + room;
        }
        dead > may_be.max(2 * self.segment_size)
    }

    fn open_in(&self, segment: u64) -> Vec<(JobId, Entry)> {
        let state = self.shared.state.lock();
        let mut left = STEP;
        let mut found = Vec::new();
        for (id, spot) in self.hot_at.iter().filter(|(_, spot)| spot.segment == segment) {
            let Some(open) = state.open.get(id) else { continue };
            let open = Box::new(open.clone());
            found.push((*id, Entry::Open { open, counter: state.counter }));
            left = left.saturating_sub(spot.len());
            if left == 0 {
                break;
            }
        }
        found
    }

    fn tidy_cold(&mut self) -> io::Result<bool> {
        while let Some(oldest) = self.cold.oldest()
            && self.shared.index.read().live(oldest).records == 0
        {
            self.close_ended()?;
            self.cold.remove(oldest)?;
        }
        let live = self.shared.index.read().live_bytes();
        let dead = self.cold.bytes().saturating_sub(live);
        let Some(oldest) = self.cold.oldest() else { return Ok(false) };
        let left = self.shared.index.read().live(oldest).bytes;
        if !self.is_worth(dead, live / 4, left) {
            return Ok(false);
        }
        let mut records = Vec::new();
        let mut ordinals = Vec::new();
        let spots = self.shared.index.read().in_segment(oldest, STEP);
        for (ordinal, spot) in spots {
            let blob = self.cold.blob(oldest)?;
            if let Some(found) = record::read(&*blob, spot.at, spot.end(), self.salt)?
                && found.intact
            {
                let payload = [found.payload, Bytes::new()];
                records.push(Record::new(found.kind, &found.meta, payload, self.salt));
                ordinals.push(ordinal);
            } else {
                warn!(target: TARGET, "the journal has lost a finished job: its record is damaged");
                self.shared.index.write().remove(ordinal);
                self.dirty.insert(ordinal);
            }
        }
        let spots = self.cold.append(&records, self.stamp())?;
        for (ordinal, spot) in ordinals.into_iter().zip(spots) {
            self.settle(ordinal, spot);
        }
        Ok(true)
    }

    /// Tells the stream of open jobs which have ended, before their ends may be forgotten.
    pub(super) fn close_ended(&mut self) -> io::Result<()> {
        if self.unclosed.is_empty() { Ok(()) } else { self.write_hot(VecDeque::new()) }
    }
}

fn has_secrets(body: &[u8]) -> bool {
    memchr::memmem::find(body, SECRET).is_some()
}
