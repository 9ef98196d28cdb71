//! The finished jobs, in memory: in the order of finishing, by number and by prompt id, and where
//! each one's history entry lies.
//!
//! Some 800 bytes a job; [`Bounds`] say how many there are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::codec::{Damaged, Fields, Reader};
use super::finished::Finished;
use crate::config::History;
use crate::pool::job::JobId;

/// How much of the past is kept. Whichever is met first counts; the oldest go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Finished jobs.
    pub max_jobs: usize,
    /// Bytes of them on the disk.
    pub max_bytes: u64,
    /// Time since they ended.
    pub max_age: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { max_jobs: 10_000, max_bytes: 2 << 30, max_age: Duration::from_hours(30 * 24) }
    }
}

impl From<History> for Bounds {
    fn from(history: History) -> Self {
        let History { max_jobs, max_bytes, max_age } = history;
        Self { max_jobs, max_bytes, max_age }
    }
}

/// Where a record's payload lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) segment: u64,
    /// Where the record begins.
    pub(super) at: u64,
    /// Where its payload begins.
    pub(super) payload_at: u64,
    pub(super) payload_len: u64,
    pub(super) sum: u32,
}

impl Spot {
    /// Bytes of the whole record.
    pub(super) fn len(&self) -> u64 {
        self.end() - self.at
    }

    pub(super) fn end(&self) -> u64 {
        self.payload_at + self.payload_len
    }

    pub(super) fn put(&self, fields: &mut Fields) {
        for place in [self.segment, self.at, self.payload_at, self.payload_len] {
            fields.u64(place);
        }
        fields.u32(self.sum);
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, Damaged> {
        let [segment, at, payload_at, payload_len] =
            [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
        let sum = reader.u32()?;
        let end = payload_at.checked_add(payload_len).ok_or(Damaged)?;
        if payload_at < at || end < payload_at {
            return Err(Damaged);
        }
        Ok(Self { segment, at, payload_at, payload_len, sum })
    }
}

/// Where an entry and a long reply are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// Not written yet.
    Memory { entry: Bytes, reply: Bytes },
    /// On the disk.
    Disk(Spot),
}

#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) finished: Arc<Finished>,
    pub(super) place: Place,
}

impl Slot {
    fn bytes(&self) -> u64 {
        match &self.place {
            Place::Memory { entry, reply } => (entry.len() + reply.len()) as u64,
            Place::Disk(spot) => spot.len(),
        }
    }
}

/// What of a segment is still needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    slots: BTreeMap<u64, Slot>,
    by_id: HashMap<JobId, u64>,
    by_prompt: HashMap<Arc<str>, u64>,
    bytes: u64,
    segments: BTreeMap<u64, Live>,
}

impl Index {
    pub(super) fn insert(&mut self, slot: Slot) {
        let ordinal = slot.finished.ordinal;
        self.remove(ordinal);
        self.count(&slot);
        self.by_id.insert(slot.finished.id, ordinal);
        self.by_prompt.insert(Arc::clone(&slot.finished.prompt_id), ordinal);
        self.slots.insert(ordinal, slot);
    }

    /// Notes where a job's entry lies now; `false` when the job is gone.
    pub(super) fn settle(&mut self, ordinal: u64, spot: Spot) -> bool {
        let Some(mut slot) = self.slots.remove(&ordinal) else { return false };
        self.uncount(&slot);
        slot.place = Place::Disk(spot);
        self.count(&slot);
        self.slots.insert(ordinal, slot);
        true
    }

    pub(super) fn remove(&mut self, ordinal: u64) -> Option<Slot> {
        let slot = self.slots.remove(&ordinal)?;
        self.uncount(&slot);
        self.by_id.remove(&slot.finished.id);
        if self.by_prompt.get(&slot.finished.prompt_id) == Some(&ordinal) {
            self.by_prompt.remove(&slot.finished.prompt_id);
        }
        Some(slot)
    }

    fn count(&mut self, slot: &Slot) {
        self.bytes += slot.bytes();
        if let Place::Disk(spot) = &slot.place {
            let live = self.segments.entry(spot.segment).or_default();
            live.records += 1;
            live.bytes += spot.len();
        }
    }

    fn uncount(&mut self, slot: &Slot) {
        self.bytes = self.bytes.saturating_sub(slot.bytes());
        let Place::Disk(spot) = &slot.place else { return };
        if let Some(live) = self.segments.get_mut(&spot.segment) {
            live.records -= 1;
            live.bytes -= spot.len();
            if live.records == 0 {
                self.segments.remove(&spot.segment);
            }
        }
    }

    pub(super) fn slot(&self, ordinal: u64) -> Option<&Slot> {
        self.slots.get(&ordinal)
    }

    pub(super) fn ordinal(&self, id: JobId) -> Option<u64> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn by_id(&self, id: JobId) -> Option<&Slot> {
        self.slot(self.ordinal(id)?)
    }

    pub(super) fn by_prompt(&self, prompt_id: &str) -> Option<&Slot> {
        self.slot(*self.by_prompt.get(prompt_id)?)
    }

    /// In the order of finishing.
    pub(super) fn slots(&self) -> impl DoubleEndedIterator<Item = &Slot> {
        self.slots.values()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that finished jobs take on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn live(&self, segment: u64) -> Live {
        self.segments.get(&segment).copied().unwrap_or_default()
    }

    /// Bytes on the disk that are still needed.
    pub(super) fn live_bytes(&self) -> u64 {
        self.segments.values().map(|live| live.bytes).sum()
    }

    /// Those in a segment, up to about `bytes` of them.
    pub(super) fn in_segment(&self, segment: u64, bytes: u64) -> Vec<(u64, Spot)> {
        let mut left = bytes;
        let mut found = Vec::new();
        for (ordinal, slot) in &self.slots {
            let Place::Disk(spot) = slot.place else { continue };
            if spot.segment != segment {
                continue;
            }
            found.push((*ordinal, spot));
            left = left.saturating_sub(spot.len());
            if left == 0 {
                break;
            }
        }
        found
    }

    /// Removes the oldest beyond the bounds, at most `limit` of them.
    pub(super) fn expire(&mut self, bounds: &Bounds, now_ms: u64, limit: usize) -> Vec<u64> {
        let age = u64::try_from(bounds.max_age.as_millis()).unwrap_or(u64::MAX);
        let oldest_kept = now_ms.saturating_sub(age);
        let mut gone = Vec::new();
        while gone.len() < limit
            && let Some((ordinal, slot)) = self.slots.first_key_value()
        {
            let over = self.slots.len() > bounds.max_jobs || self.bytes > bounds.max_bytes;
            if !over && slot.finished.finished_ms >= oldest_kept {
                break;
            }
            let ordinal = *ordinal;
            self.remove(ordinal);
            gone.push(ordinal);
        }
        gone
    }
}
