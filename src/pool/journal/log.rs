//! Writes the streams: batches of changes, and what keeps the files small.
//!
//! Two streams of segments, so that what dies together lies together. `open-*` has the bodies and
//! moves of open jobs and dies within hours; `done-*` has the entries of finished ones and dies
//! oldest first. An end is written to `done`; `open` learns of it (a record `Closed`) with a later
//! batch, in any case before the end itself may be dropped from `done`. So a batch of new jobs
//! costs one sync, and nothing ever waits for two streams to agree.
//!
//! Segments are dropped oldest first. When dead bytes prevail, what still lives in the oldest is
//! written again at the end, some megabytes at a time between two batches.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::checkpoint::{Checkpoint, Meta};
use super::error::Unavailable;
use super::index::{Live, Place, Spot};
use super::record::{self, Record, SCHEMA, Stamp};
use super::reserve::Reserve;
use super::restore::Journaled;
use super::shared::{Entry, Item, Life, Shared};
use super::stream::Stream;
use crate::logging::TARGET;
use crate::pool::job::JobId;

/// Pause between two attempts to write on a disk in trouble.
const RETRY: Duration = Duration::from_secs(1);
/// The index on the disk is brought up to date so often, if there is something new.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Age is looked at so often.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes that are moved out of a segment between two batches.
const STEP: u64 = 4 << 20;
/// Bytes that are moved when the disk is full: the reserve has room for them.
const PRESSED_STEP: u64 = 1 << 20;
/// Jobs that are forgotten between two batches.
const FORGET: usize = 1000;

pub(super) struct Log {
    pub(super) shared: Arc<Shared>,
    hot: Stream,
    cold: Stream,
    salt: u32,
    segment_size: u64,
    /// Where each open job's record lies.
    hot_at: HashMap<JobId, Spot>,
    hot_live: BTreeMap<u64, Live>,
    /// Ended durably; `open` does not tell yet. With the place of a body that has secrets.
    unclosed: Vec<(JobId, Option<Spot>)>,
    /// What could not be written and must be.
    kept: VecDeque<Item>,
    retry_at: Option<Instant>,
    reserve: Reserve,
    checkpoint: Option<Checkpoint>,
    /// Ordinals that are new, elsewhere or gone since the last checkpoint.
    dirty: BTreeSet<u64>,
    saved_at: Instant,
}

impl Log {
    pub(super) fn new(
        shared: Arc<Shared>,
        found: Journaled,
        reserve: Reserve,
        checkpoint: Option<Checkpoint>,
        segment_size: u64,
        now: Instant,
    ) -> Self {
        let mut log = Self {
            shared,
            hot: found.hot,
            cold: found.cold,
            salt: found.salt,
            segment_size,
            hot_at: HashMap::new(),
            hot_live: BTreeMap::new(),
            unclosed: found.unclosed.into_iter().map(|(id, spot)| (id, Some(spot))).collect(),
            kept: VecDeque::new(),
            retry_at: None,
            reserve,
            checkpoint,
            dirty: found.fresh.into_iter().collect(),
            saved_at: now,
        };
        for (id, (_, spot)) in found.open {
            log.place_open(id, spot);
        }
        if let Err(error) = log.reserve.prepare() {
            log.trouble(&error, now);
        }
        log
    }

    /// What the checksums begin with.
    pub(super) fn salt(&self) -> u32 {
        self.salt
    }

    /// Takes changes and writes them until there will be no more.
    pub(super) fn run(mut self) {
        let mut deadline = Instant::now();
        loop {
            let (items, life) = self.shared.take(deadline);
            let ending = life != Life::Running && items.is_empty();
            let now = Instant::now();
            if ending {
                self.retry_at = self.retry_at.map(|_| now);
            }
            let more = self.round(items, now, now_ms());
            if ending {
                self.save(now);
                break;
            }
            deadline = if more { now } else { self.next_deadline(now) };
        }
        self.shared.end();
    }

    fn next_deadline(&self, now: Instant) -> Instant {
        let has_news = !self.dirty.is_empty() || !self.unclosed.is_empty();
        let save = has_news.then(|| self.saved_at + SAVE_EVERY);
        [save, self.retry_at].into_iter().flatten().fold(now + IDLE, Instant::min)
    }

    /// Writes a batch, then tidies up a little; `true`: there is more to tidy up.
    pub(super) fn round(&mut self, items: Vec<Item>, now: Instant, now_ms: u64) -> bool {
        let mut batch = std::mem::take(&mut self.kept);
        batch.extend(items);
        if self.retry_at.is_some_and(|at| now < at) {
            self.hold(batch, None);
            return false;
        }
        let written = self.write(batch);
        let more = self.tidy(now, now_ms);
        match written.and(more) {
            Ok(more) => {
                self.recover(now);
                more && self.retry_at.is_none()
            }
            Err(error) => {
                self.trouble(&error, now);
                false
            }
        }
    }

    fn write(&mut self, batch: VecDeque<Item>) -> io::Result<()> {
        let (hot, cold): (VecDeque<_>, _) = batch.into_iter().partition(|item| item.entry.is_hot());
        let written = if hot.is_empty() { Ok(()) } else { self.write_hot(hot) };
        let cold_written = self.write_cold(cold);
        written.and(cold_written)
    }

    fn write_hot(&mut self, items: VecDeque<Item>) -> io::Result<()> {
        let closed = std::mem::take(&mut self.unclosed);
        let closing = closed.iter().map(|(id, _)| Entry::Closed(*id).record(self.salt));
        let records: Vec<Record> =
            closing.chain(items.iter().map(|item| item.entry.record(self.salt))).collect();
        match self.hot.append(&records, self.stamp()) {
            Ok(spots) => {
                let placed = spots.into_iter().skip(closed.len());
                for (item, spot) in items.into_iter().zip(placed) {
                    if let Entry::Open { open, .. } = &item.entry {
                        self.place_open(open.job.id, spot);
                    }
                    item.tell(Ok(()));
                }
                self.wipe(closed.into_iter().filter_map(|(_, spot)| spot));
                Ok(())
            }
            Err(error) => {
                self.unclosed = closed;
                self.hold(items, Some(&error));
                Err(error)
            }
        }
    }

    fn write_cold(&mut self, items: VecDeque<Item>) -> io::Result<()> {
        let records: Vec<Record> = items.iter().map(|item| item.entry.record(self.salt)).collect();
        match self.cold.append(&records, self.stamp()) {
            Ok(spots) => {
                for (item, spot) in items.into_iter().zip(spots) {
                    match &item.entry {
                        Entry::Ended { finished, .. } => {
                            self.end_open(finished.id);
                            self.settle(finished.ordinal, spot);
                        }
                        Entry::Deleted(gone) => self.dirty.extend(gone.iter().map(|(_, n)| n)),
                        _ => {}
                    }
                    item.tell(Ok(()));
                }
                Ok(())
            }
            Err(error) => {
                self.kept.extend(items);
                Err(error)
            }
        }
    }

    /// New jobs are refused; of an open job's moves the last one is kept.
    fn hold(&mut self, items: impl IntoIterator<Item = Item>, error: Option<&io::Error>) {
        let reason = || match error {
            Some(error) => describe(error),
            None => self.shared.state.lock().trouble.clone().unwrap_or_default(),
        };
        for item in items {
            if let Entry::Open { open, .. } = &item.entry {
                let reason = Unavailable(reason());
                self.shared.state.lock().open.remove(&open.job.id);
                item.tell(Err(reason));
            } else {
                self.kept.push_back(item);
            }
        }
        self.kept = last_moves(std::mem::take(&mut self.kept));
    }

    fn stamp(&self) -> Stamp {
        let state = self.shared.state.lock();
        let (next_id, counter) = (state.next_id, state.counter);
        Stamp { schema: SCHEMA, salt: self.salt, next_id, counter }
    }

    fn place_open(&mut self, id: JobId, spot: Spot) {
        self.unplace_open(id);
        let live = self.hot_live.entry(spot.segment).or_default();
        live.records += 1;
        live.bytes += spot.len();
        self.hot_at.insert(id, spot);
    }

    fn unplace_open(&mut self, id: JobId) -> Option<Spot> {
        let spot = self.hot_at.remove(&id)?;
        if let Some(live) = self.hot_live.get_mut(&spot.segment) {
            live.records -= 1;
            live.bytes -= spot.len();
            if live.records == 0 {
                self.hot_live.remove(&spot.segment);
            }
        }
        Some(spot)
    }

    fn end_open(&mut self, id: JobId) {
        let spot = self.unplace_open(id);
        self.unclosed.push((id, spot));
    }

    fn settle(&mut self, ordinal: u64, spot: Spot) {
        if self.shared.index.write().settle(ordinal, spot) {
            self.dirty.insert(ordinal);
        }
    }

    /// Overwrites bodies that had secrets. `Closed` is durable: nobody needs them any more.
    fn wipe(&self, spots: impl Iterator<Item = Spot>) {
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

    fn tidy(&mut self, now: Instant, now_ms: u64) -> io::Result<bool> {
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
            return left < PRESSED_STEP && dead > 2 * left + PRESSED_STEP;
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
                let payload = [found.payload, bytes::Bytes::new()];
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
    fn close_ended(&mut self) -> io::Result<()> {
        if self.unclosed.is_empty() { Ok(()) } else { self.write_hot(VecDeque::new()) }
    }

    /// Brings the index on the disk up to date.
    fn save(&mut self, now: Instant) {
        self.saved_at = now;
        let Some(mut checkpoint) = self.checkpoint.take() else {
            let _ = self.close_ended();
            self.dirty.clear();
            return;
        };
        if let Err(error) = self.save_to(&mut checkpoint) {
            // The segments have everything; only the next start takes longer.
            warn!(target: TARGET, "the index of the journal could not be written: {error}");
            self.saved_at = now + IDLE;
        }
        self.checkpoint = Some(checkpoint);
    }

    fn save_to(&mut self, checkpoint: &mut Checkpoint) -> Result<(), redb::Error> {
        self.close_ended()?;
        if self.dirty.is_empty() {
            return Ok(());
        }
        let Stamp { salt, next_id, counter, .. } = self.stamp();
        let next_ordinal = self.shared.state.lock().next_ordinal;
        let position = self.cold.end();
        let meta = Meta { salt, position, next_id, next_ordinal, counter };
        let (changed, gone) = self.news(checkpoint.is_empty());
        checkpoint.save(meta, changed.iter(), gone.into_iter())?;
        self.dirty.clear();
        Ok(())
    }

    /// What is new and what is gone; jobs that are not on the disk yet are told when they are.
    fn news(&self, everything: bool) -> (Vec<super::index::Slot>, Vec<u64>) {
        let index = self.shared.index.read();
        if everything {
            return (index.slots().cloned().collect(), Vec::new());
        }
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for ordinal in &self.dirty {
            match index.slot(*ordinal) {
                Some(slot) if matches!(slot.place, Place::Disk(_)) => changed.push(slot.clone()),
                Some(_) => {}
                None => gone.push(*ordinal),
            }
        }
        (changed, gone)
    }

    fn trouble(&mut self, error: &io::Error, now: Instant) {
        let reason = describe(error);
        self.retry_at = Some(now + RETRY);
        self.reserve.release();
        let mut state = self.shared.state.lock();
        if state.trouble.is_none() {
            warn!(target: TARGET, "{reason}; new jobs are refused, running ones go on");
        }
        state.trouble = Some(reason);
    }

    fn recover(&mut self, now: Instant) {
        if self.retry_at.is_none() {
            return;
        }
        if let Err(error) = self.reserve.restock() {
            self.trouble(&error, now);
            return;
        }
        self.retry_at = None;
        self.shared.state.lock().trouble = None;
        info!(target: TARGET, "the journal can be written again");
    }
}

/// Of each job's moves the last one, which says all.
fn last_moves(items: VecDeque<Item>) -> VecDeque<Item> {
    let mut last: VecDeque<Item> = VecDeque::with_capacity(items.len());
    let mut earlier: HashMap<JobId, Vec<_>> = HashMap::new();
    for mut item in items.into_iter().rev() {
        let Entry::Moved { id, .. } = item.entry else {
            last.push_front(item);
            continue;
        };
        item.tickets.retain(|ticket| !ticket.is_closed());
        match earlier.get_mut(&id) {
            Some(tickets) => tickets.append(&mut item.tickets),
            None => {
                earlier.insert(id, Vec::new());
                last.push_front(item);
            }
        }
    }
    for item in &mut last {
        if let Entry::Moved { id, .. } = item.entry {
            item.tickets.extend(earlier.remove(&id).unwrap_or_default());
        }
    }
    last
}

fn describe(error: &io::Error) -> String {
    format!("the journal cannot be written: {error}")
}

/// Whether a body names the keys by which API nodes are paid.
fn has_secrets(body: &[u8]) -> bool {
    memchr::memmem::find(body, b"_comfy_org").is_some()
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}
