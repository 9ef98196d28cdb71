//! Writes the streams: batches of changes, and what keeps the files small.
//!
//! Two streams of segments, so that what dies together lies together. `open-*` has the bodies and
//! moves of open jobs and dies within hours; `done-*` has the entries of finished ones and dies
//! oldest first. An end is written to `done`; `open` learns of it (a record `Closed`) with a later
//! batch, in any case before the end itself may be dropped from `done`. So a batch of new jobs
//! costs one sync, and nothing ever waits for two streams to agree.
//!
//! [`tidy`](super::tidy) keeps the files small between two batches, [`save`](super::save) the index.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::checkpoint::Checkpoint;
use super::error::Unavailable;
use super::index::{Live, Spot};
use super::line::{Entry, Item, last_moves};
use super::record::{Record, SCHEMA, Stamp};
use super::reserve::Reserve;
use super::restore::Journaled;
use super::shared::{Life, Shared};
use super::stream::Stream;
use crate::logging::TARGET;
use crate::pool::job::JobId;

/// Pause between two attempts to write on a disk in trouble.
const RETRY: Duration = Duration::from_secs(1);
/// The index on the disk is brought up to date so often, if there is something new.
pub(super) const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Age is looked at so often.
pub(super) const IDLE: Duration = Duration::from_secs(30);

pub(super) struct Log {
    pub(super) shared: Arc<Shared>,
    pub(super) hot: Stream,
    pub(super) cold: Stream,
    pub(super) salt: u32,
    pub(super) segment_size: u64,
    /// Where each open job's record lies.
    pub(super) hot_at: HashMap<JobId, Spot>,
    pub(super) hot_live: BTreeMap<u64, Live>,
    /// Ended durably; `open` does not tell yet. With the place of a body that has secrets.
    pub(super) unclosed: Vec<(JobId, Option<Spot>)>,
    /// What could not be written and must be.
    kept: VecDeque<Item>,
    pub(super) retry_at: Option<Instant>,
    pub(super) reserve: Reserve,
    pub(super) checkpoint: Option<Checkpoint>,
    /// Ordinals that are new, elsewhere or gone since the last checkpoint.
    pub(super) dirty: BTreeSet<u64>,
    pub(super) saved_at: Instant,
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

    pub(super) fn write_hot(&mut self, items: VecDeque<Item>) -> io::Result<()> {
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
                    item.tell(&Ok(()));
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
                    item.tell(&Ok(()));
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
                item.tell(&Err(reason));
            } else {
                self.kept.push_back(item);
            }
        }
        self.kept = last_moves(std::mem::take(&mut self.kept));
    }

    pub(super) fn stamp(&self) -> Stamp {
        let state = self.shared.state.lock();
        let (next_id, counter) = (state.next_id, state.counter);
        Stamp { schema: SCHEMA, salt: self.salt, next_id, counter }
    }

    pub(super) fn place_open(&mut self, id: JobId, spot: Spot) {
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

    pub(super) fn settle(&mut self, ordinal: u64, spot: Spot) {
        if self.shared.index.write().settle(ordinal, spot) {
            self.dirty.insert(ordinal);
        }
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

fn describe(error: &io::Error) -> String {
    format!("the journal cannot be written: {error}")
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}
