//! Reads the journal: the index, then the segments from where it ends, then the open jobs.
//!
//! Every record says all that is needed to take it in whatever has been lost around it. A job is
//! open when a whole record says so and none says that it has ended or was deleted; the order of
//! the two streams does not matter, for numbers are never given away twice.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::change::{self, OpenJob};
use super::checkpoint::{Loaded, Meta};
use super::codec::Reader;
use super::disk::Disk;
use super::finished::Finished;
use super::index::{Index, Place, Slot, Spot};
use super::line::kind;
use super::record::{Found, SCHEMA, Stamp};
use super::shared::Next;
use super::stream::Stream;
use crate::pool::job::JobId;

/// The prefix of segments with open jobs.
const OPEN: &str = "open";
/// The prefix of segments with finished jobs.
pub(super) const DONE: &str = "done";

/// The journal as it was found.
pub(super) struct Journaled {
    pub(super) hot: Stream,
    pub(super) cold: Stream,
    pub(super) salt: u32,
    pub(super) next: Next,
    pub(super) open: HashMap<JobId, (OpenJob, Spot)>,
    pub(super) index: Index,
    /// Ended jobs whose end the stream of open jobs does not tell yet, and where their bodies lie.
    pub(super) unclosed: HashMap<JobId, Spot>,
    /// What the index on the disk does not know yet.
    pub(super) fresh: Vec<u64>,
    /// Jobs, or places where jobs may have been, that could not be read.
    pub(super) damaged: usize,
}

/// Why it could not be read.
pub(super) enum Unreadable {
    Io(io::Error),
    Newer(u32),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub(super) fn read(
    disk: &Arc<dyn Disk>,
    loaded: Option<Loaded>,
    segment_size: u64,
) -> Result<Journaled, Unreadable> {
    let [hot, cold] =
        [OPEN, DONE].map(|prefix| Stream::open(Arc::clone(disk), prefix, segment_size));
    let (hot, cold) = (hot?, cold?);
    let stamps: Vec<Stamp> = hot.stamps().chain(cold.stamps()).collect();
    if let Some(stamp) = stamps.iter().find(|stamp| stamp.schema > SCHEMA) {
        return Err(Unreadable::Newer(stamp.schema));
    }
    // An index of other segments is none.
    let loaded = loaded
        .filter(|loaded| stamps.iter().all(|stamp| stamp.salt == loaded.meta.salt))
        .unwrap_or_default();
    let salt = match stamps.first() {
        Some(stamp) => stamp.salt,
        None if loaded.meta.salt != 0 => loaded.meta.salt,
        None => rand::random::<u32>().max(1),
    };
    let mut found = Journaled {
        hot,
        cold,
        salt,
        next: first_numbers(&stamps, loaded.meta),
        open: HashMap::new(),
        index: Index::default(),
        unclosed: HashMap::new(),
        fresh: Vec::new(),
        damaged: 0,
    };
    found.cold.not_before(loaded.meta.position.0.saturating_add(1));
    found.take_index(loaded.slots);
    let deleted = found.read_cold(loaded.meta.position)?;
    found.read_hot(&deleted)?;
    Ok(found)
}

fn first_numbers(stamps: &[Stamp], meta: Meta) -> Next {
    Next {
        id: stamps.iter().map(|stamp| stamp.next_id).fold(meta.next_id.max(1), u64::max),
        counter: stamps.iter().map(|stamp| stamp.counter).fold(meta.counter, u64::max),
        ordinal: meta.next_ordinal,
    }
}

impl Journaled {
    /// Takes in what the index held; of segments that were dropped since, nothing is needed.
    fn take_index(&mut self, slots: Vec<Slot>) {
        let oldest = self.cold.segments().first_key_value().map(|(number, _)| *number);
        for slot in slots {
            let Place::Disk(spot) = &slot.place else { continue };
            let length = self.cold.segments().get(&spot.segment).copied().unwrap_or(0);
            if spot.end() <= length {
                self.note(slot.finished.id, slot.finished.ordinal);
                self.index.insert(slot);
            } else if oldest.is_none_or(|oldest| spot.segment >= oldest) {
                self.damaged += 1;
            }
        }
    }

    fn note(&mut self, id: JobId, ordinal: u64) {
        self.next.id = self.next.id.max(id.0.saturating_add(1));
        self.next.ordinal = self.next.ordinal.max(ordinal.saturating_add(1));
    }

    fn read_cold(&mut self, position: (u64, u64)) -> io::Result<HashSet<JobId>> {
        let mut records = Vec::new();
        let mut deleted = HashSet::new();
        let mut damaged = 0;
        let scanned = self.cold.scan(position, self.salt, |segment, found| match found.kind {
            kind::ENDED if found.intact => match Finished::take(&mut Reader::new(&found.meta)) {
                Ok(finished) => records.push((finished, spot(segment, &found))),
                Err(_) => damaged += 1,
            },
            kind::DELETED => match change::take_ids(&found.meta) {
                Ok(ids) => deleted.extend(ids),
                Err(_) => damaged += 1,
            },
            _ => damaged += 1,
        })?;
        self.damaged += damaged + scanned.damaged;
        for (finished, spot) in records {
            self.note(finished.id, finished.ordinal);
            if !deleted.contains(&finished.id) {
                self.fresh.push(finished.ordinal);
                let place = Place::Disk(spot);
                self.index.insert(Slot { finished: Arc::new(finished), place });
            }
        }
        for id in &deleted {
            if let Some(ordinal) = self.index.ordinal(*id) {
                self.index.remove(ordinal);
                self.fresh.push(ordinal);
            }
        }
        Ok(deleted)
    }

    fn read_hot(&mut self, deleted: &HashSet<JobId>) -> io::Result<()> {
        let (mut unclosed, mut lost) = (HashMap::new(), HashSet::new());
        let (index, open, next) = (&self.index, &mut self.open, &mut self.next);
        let mut damaged = 0;
        let scanned = self.hot.scan((0, 0), self.salt, |segment, found| {
            let Ok(id) = change::take_id(&found.meta) else {
                damaged += 1;
                return;
            };
            next.id = next.id.max(id.0.saturating_add(1));
            match found.kind {
                kind::OPEN if index.ordinal(id).is_some() || deleted.contains(&id) => {
                    unclosed.insert(id, spot(segment, &found));
                }
                kind::OPEN => match take_open(segment, found) {
                    Some((job, spot, counter)) => {
                        lost.remove(&id);
                        next.counter = next.counter.max(counter);
                        open.insert(id, (job, spot));
                    }
                    None => {
                        lost.insert(id);
                    }
                },
                kind::MOVED => {
                    let moved =
                        open.get_mut(&id).map(|(job, _)| change::take_moved(&found.meta, job));
                    damaged += usize::from(moved.is_some_and(|moved| moved.is_err()));
                }
                kind::CLOSED => {
                    open.remove(&id);
                    unclosed.remove(&id);
                    lost.remove(&id);
                }
                _ => damaged += 1,
            }
        })?;
        lost.retain(|id| !open.contains_key(id));
        self.damaged += damaged + scanned.damaged + lost.len();
        self.unclosed = unclosed;
        Ok(())
    }
}

fn take_open(segment: u64, found: Found) -> Option<(OpenJob, Spot, u64)> {
    if !found.intact {
        return None;
    }
    let spot = spot(segment, &found);
    let (job, counter) = change::take_open(&found.meta, found.payload).ok()?;
    Some((job, spot, counter))
}

fn spot(segment: u64, found: &Found) -> Spot {
    Spot {
        segment,
        at: found.at,
        payload_at: found.payload_at(),
        payload_len: found.payload.len() as u64,
        sum: found.sum,
    }
}
