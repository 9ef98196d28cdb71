//! A stream of segments: files that are written at their end only and removed as a whole.
//!
//! [`Stream::append`] writes a batch behind what is durable and syncs it. When that fails, the file
//! is cut back to what was durable before, and nothing more is written until that has worked: a
//! record whose writer was told "no" must not come back after a restart. After a failed sync the
//! kernel may call pages clean that never reached the disk, so the next batch opens a new segment.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::disk::{Blob, Disk};
use super::index::Spot;
use super::record::{self, Found, Record, STAMP, Stamp};

/// Writes are gathered up to this size.
const BUFFER: usize = 1 << 20;

pub(super) struct Stream {
    disk: Arc<dyn Disk>,
    prefix: &'static str,
    /// A segment that is at least so long is not written to any more.
    segment_size: u64,
    /// Length of each segment, of which all is durable.
    segments: BTreeMap<u64, u64>,
    active: Option<(u64, Arc<dyn Blob>)>,
    /// What was written beyond the durable part could not be cut off.
    torn: bool,
    next: u64,
}

/// What a scan has met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Places where bytes were not what was written, with whole records behind them.
    pub(super) damaged: usize,
    /// Bytes after the last whole record.
    pub(super) tail: u64,
}

impl Stream {
    /// Finds the segments called `prefix-NUMBER.log`.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        prefix: &'static str,
        segment_size: u64,
    ) -> io::Result<Self> {
        let mut segments = BTreeMap::new();
        for name in disk.list()? {
            if let Some(number) = number_of(&name, prefix) {
                segments.insert(number, disk.open(&name)?.size()?);
            }
        }
        let next = segments.last_key_value().map_or(1, |(last, _)| last.saturating_add(1));
        Ok(Self { disk, prefix, segment_size, segments, active: None, torn: false, next })
    }

    /// Numbers below this were used before.
    pub(super) fn not_before(&mut self, number: u64) {
        self.next = self.next.max(number);
    }

    fn name(&self, number: u64) -> String {
        name(self.prefix, number)
    }

    /// Length of each segment, the oldest first.
    pub(super) fn segments(&self) -> &BTreeMap<u64, u64> {
        &self.segments
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().sum()
    }

    /// Where the next record comes to lie at the earliest.
    pub(super) fn end(&self) -> (u64, u64) {
        let last = self.segments.last_key_value();
        last.map_or((self.next, 0), |(number, length)| (*number, *length))
    }

    /// The oldest segment that is no longer written to.
    pub(super) fn oldest(&self) -> Option<u64> {
        let (oldest, _) = self.segments.first_key_value()?;
        let is_active = self.active.as_ref().is_some_and(|(active, _)| active == oldest);
        (!is_active).then_some(*oldest)
    }

    /// Writes no more to the segment that is written to; the next batch opens another.
    pub(super) fn seal(&mut self) {
        if !self.torn {
            self.active = None;
        }
    }

    pub(super) fn blob(&self, segment: u64) -> io::Result<Arc<dyn Blob>> {
        self.disk.open(&self.name(segment))
    }

    pub(super) fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.segments.keys().filter_map(|&number| Stamp::read(&*self.blob(number).ok()?))
    }

    /// Writes a batch and makes it durable: all of it, or nothing.
    pub(super) fn append(&mut self, records: &[Record], stamp: Stamp) -> io::Result<Vec<Spot>> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        self.mend()?;
        let (segment, blob) = self.writable(stamp)?;
        let start = self.segments.get(&segment).copied().unwrap_or(STAMP);
        let written = write(&*blob, start, records);
        if written.is_err() {
            self.give_up_tail(false);
        }
        let spots = written?;
        if let Err(error) = blob.sync() {
            self.give_up_tail(true);
            return Err(error);
        }
        let end = spots.last().map_or(start, |spot| start + spot.0 + spot.1.len());
        self.segments.insert(segment, end);
        Ok(spots.into_iter().map(|(at, record)| spot(segment, start + at, record)).collect())
    }

    fn give_up_tail(&mut self, synced: bool) {
        self.torn = true;
        let _ = self.mend();
        if synced && !self.torn {
            self.active = None;
        }
    }

    /// Cuts off what a failed batch left.
    fn mend(&mut self) -> io::Result<()> {
        if !self.torn {
            return Ok(());
        }
        if let Some((number, blob)) = &self.active {
            blob.cut(self.segments.get(number).copied().unwrap_or(STAMP))?;
            blob.sync()?;
        }
        self.torn = false;
        Ok(())
    }

    fn writable(&mut self, stamp: Stamp) -> io::Result<(u64, Arc<dyn Blob>)> {
        if let Some((number, blob)) = &self.active
            && self.segments.get(number).is_some_and(|length| *length < self.segment_size)
        {
            return Ok((*number, Arc::clone(blob)));
        }
        let number = self.next;
        let name = self.name(number);
        let made = self.disk.create(&name).and_then(|blob| {
            blob.write_at(&stamp.encode(), 0)?;
            blob.sync()?;
            Ok(blob)
        });
        if made.is_err() {
            let _ = self.disk.remove(&name);
        }
        let blob = made?;
        self.next += 1;
        self.segments.insert(number, STAMP);
        self.active = Some((number, Arc::clone(&blob)));
        Ok((number, blob))
    }

    /// Removes a segment that nothing needs.
    pub(super) fn remove(&mut self, segment: u64) -> io::Result<()> {
        match self.disk.remove(&self.name(segment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.segments.remove(&segment);
        Ok(())
    }

    /// Shows every whole record from a place on. Damage is stepped over; what stands after the last
    /// whole record of the stream was never acknowledged and is cut off.
    pub(super) fn scan(
        &mut self,
        from: (u64, u64),
        salt: u32,
        mut visit: impl FnMut(u64, Found),
    ) -> io::Result<Scanned> {
        let mut scanned = Scanned::default();
        let numbers: Vec<_> = self.segments.range(from.0..).map(|(n, l)| (*n, *l)).collect();
        let last = numbers.last().map(|(number, _)| *number);
        for (number, length) in numbers {
            let start = if number == from.0 { from.1.max(STAMP) } else { STAMP };
            let blob = self.blob(number)?;
            let end = scan_segment(&*blob, start, length, salt, &mut scanned, |found| {
                visit(number, found);
            })?;
            let tail = length.saturating_sub(end);
            if tail == 0 {
                continue;
            }
            let is_ours = Stamp::read(&*blob).is_some_and(|stamp| stamp.salt == salt);
            if Some(number) == last && is_ours {
                scanned.tail = tail;
                if blob.cut(end).is_ok() {
                    self.segments.insert(number, end);
                }
            } else {
                // It may be readable to whoever has what this one lacks: it is left as it is.
                scanned.damaged += 1;
            }
        }
        Ok(scanned)
    }
}

/// Returns where the last whole record ends.
fn scan_segment(
    blob: &dyn Blob,
    start: u64,
    length: u64,
    salt: u32,
    scanned: &mut Scanned,
    mut visit: impl FnMut(Found),
) -> io::Result<u64> {
    let mut at = start;
    while at < length {
        let found = match record::read(blob, at, length, salt)? {
            Some(found) => found,
            None => match record::search(blob, at, length, salt)? {
                Some(found) => {
                    scanned.damaged += 1;
                    found
                }
                None => break,
            },
        };
        at = found.end();
        visit(found);
    }
    Ok(at.min(length.max(start)))
}

/// The file of a segment.
pub(super) fn name(prefix: &str, number: u64) -> String {
    format!("{prefix}-{number:010}.log")
}

fn number_of(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.strip_prefix('-')?.strip_suffix(".log")?.parse().ok()
}

fn spot(segment: u64, at: u64, record: &Record) -> Spot {
    let payload_at = at + record.head.len() as u64;
    Spot { segment, at, payload_at, payload_len: record.payload_len(), sum: record.sum }
}

/// Writes records one behind the other; returns where each begins, counted from `start`.
fn write<'r>(
    blob: &dyn Blob,
    start: u64,
    records: &'r [Record],
) -> io::Result<Vec<(u64, &'r Record)>> {
    let mut spots = Vec::with_capacity(records.len());
    let mut buffer = Vec::new();
    let (mut flushed, mut at) = (0, 0);
    for record in records {
        spots.push((at, record));
        at += record.len();
        for part in [&record.head[..], &record.payload[0], &record.payload[1]] {
            if buffer.len() + part.len() > BUFFER {
                blob.write_at(&buffer, start + flushed)?;
                flushed += buffer.len() as u64;
                buffer.clear();
            }
            if part.len() > BUFFER {
                blob.write_at(part, start + flushed)?;
                flushed += part.len() as u64;
            } else {
                buffer.extend_from_slice(part);
            }
        }
    }
    blob.write_at(&buffer, start + flushed)?;
    Ok(spots)
}
