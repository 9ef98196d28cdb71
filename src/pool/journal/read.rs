//! What readers ask of the journal: lists from memory, entries from the disk.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::Journal;
use super::disk::Disk;
use super::finished::Finished;
use super::index::{Place, Slot, Spot};
use super::line::Ticket;
use super::record;
use super::shared::Shared;
use crate::pool::job::JobId;

/// How often a record that moves while it is read is looked for again.
const TRIES: usize = 4;

/// What the journal holds, for gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Open jobs.
    pub open: usize,
    /// Finished jobs.
    pub finished: usize,
    /// Bytes that finished jobs take on the disk.
    pub finished_bytes: u64,
}

/// The parts of a payload.
#[derive(Debug, Clone, Copy)]
enum Part {
    Entry,
    Reply,
}

/// What reading from the disk needs.
#[derive(Clone)]
struct Reading {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    salt: u32,
}

impl Journal {
    /// The finished jobs in the order of finishing.
    pub fn finished(&self) -> Vec<Arc<Finished>> {
        self.shared.index.read().slots().map(job_of).collect()
    }

    /// The `limit` jobs that finished last, the newest first.
    pub fn newest(&self, limit: usize) -> Vec<Arc<Finished>> {
        self.shared.index.read().slots().rev().take(limit).map(job_of).collect()
    }

    /// A finished job by its number.
    pub fn get(&self, id: JobId) -> Option<Arc<Finished>> {
        self.shared.index.read().by_id(id).map(job_of)
    }

    /// A finished job by the id that its client knows.
    pub fn find(&self, prompt_id: &str) -> Option<Arc<Finished>> {
        self.shared.index.read().by_prompt(prompt_id).map(job_of)
    }

    /// How much there is.
    pub fn usage(&self) -> Usage {
        let open = self.shared.state.lock().open.len();
        let index = self.shared.index.read();
        Usage { open, finished: index.len(), finished_bytes: index.bytes() }
    }

    /// Removes finished jobs; returns how many there were.
    pub fn delete(&self, ids: &[JobId]) -> (usize, Ticket) {
        self.shared.delete(|_| ids.to_vec())
    }

    /// Removes the finished jobs that are meant; returns how many.
    pub fn clear(&self, meant: impl Fn(&Finished) -> bool) -> (usize, Ticket) {
        self.shared.delete(|index| {
            let jobs = index.slots().map(|slot| &slot.finished);
            jobs.filter(|job| meant(job)).map(|job| job.id).collect()
        })
    }

    /// A job's history entry; `None` when it has none, is gone or cannot be read.
    pub async fn entry(&self, id: JobId) -> Option<Bytes> {
        self.entries(vec![id]).await.pop().flatten()
    }

    /// The history entries of these jobs, in the same order.
    pub async fn entries(&self, ids: Vec<JobId>) -> Vec<Option<Bytes>> {
        let (reading, count) = (self.reading(), ids.len());
        let read = move || ids.into_iter().map(|id| reading.part(id, Part::Entry)).collect();
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| vec![None; count])
    }

    /// The body of the backend's 200 to a job's POST, long ones included.
    pub async fn reply(&self, id: JobId) -> Option<Bytes> {
        if let Some(reply) = &self.get(id)?.reply {
            return Some(reply.clone());
        }
        let reading = self.reading();
        tokio::task::spawn_blocking(move || reading.part(id, Part::Reply)).await.ok().flatten()
    }

    /// As [`entry`](Self::entry), on a thread that may block.
    pub fn entry_blocking(&self, id: JobId) -> Option<Bytes> {
        self.reading().part(id, Part::Entry)
    }

    fn reading(&self) -> Reading {
        Reading { shared: Arc::clone(&self.shared), disk: Arc::clone(&self.disk), salt: self.salt }
    }
}

fn job_of(slot: &Slot) -> Arc<Finished> {
    Arc::clone(&slot.finished)
}

impl Reading {
    fn part(&self, id: JobId, part: Part) -> Option<Bytes> {
        let bytes = self.bytes_of(id, part)?;
        (!bytes.is_empty()).then_some(bytes)
    }

    fn bytes_of(&self, id: JobId, part: Part) -> Option<Bytes> {
        for _ in 0..TRIES {
            let slot = self.shared.index.read().by_id(id)?.clone();
            let spot = match (slot.place, part) {
                (Place::Memory { entry, .. }, Part::Entry) => return Some(entry),
                (Place::Memory { reply, .. }, Part::Reply) => return Some(reply),
                (Place::Disk(spot), _) => spot,
            };
            match self.payload(spot) {
                Ok(payload) => return cut(&payload, slot.finished.entry_len, part),
                // Its segment was dropped; it lies elsewhere by now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    ::log::warn!("the entry of a finished job cannot be read: {error}");
                    return None;
                }
            }
        }
        None
    }

    fn payload(&self, spot: Spot) -> io::Result<Bytes> {
        let blob = self.disk.open(&super::stream::name(super::restore::DONE, spot.segment))?;
        let mut payload = vec![0; usize::try_from(spot.payload_len).unwrap_or(0)];
        blob.read_at(&mut payload, spot.payload_at)?;
        if record::is_intact(&payload, spot.sum, self.salt) {
            Ok(payload.into())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "it is not what was written"))
        }
    }
}

fn cut(payload: &Bytes, entry_len: u64, part: Part) -> Option<Bytes> {
    let entry_len = usize::try_from(entry_len).ok().filter(|length| *length <= payload.len())?;
    Some(match part {
        Part::Entry => payload.slice(..entry_len),
        Part::Reply => payload.slice(entry_len..),
    })
}
