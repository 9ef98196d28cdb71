//! The journal: no accepted job is lost, whatever dies.
//!
//! [`Journal::write`] takes what the core says of a job and gives a [`Ticket`] that resolves when
//! it is durable: the client's 200 waits for it. Everything queued is written in one batch with one
//! `fdatasync` (group commit), by a thread of its own. [`Journal::open`] gives back the open jobs,
//! and the finished ones are there to be listed and read: this is pool mode's history.
//!
//! On the disk, under `state_dir`: `journal/` with the segments (`open-*`, `done-*`: checksummed
//! records, written at the end only), a lock and a reserve of 2 MiB; and `journal.redb`, an index of
//! the finished jobs that holds nothing the segments do not hold. `docs/journal.md` says why.
//!
//! **Bounds.** [`Bounds`] for finished jobs; open ones by `queue.max_size`. New jobs are refused
//! ([`Unavailable`], a 503) while the line is full or the disk in trouble; what happens to accepted
//! ones is kept in memory until it can be written.
//!
//! **Hazards.** Bodies hold secrets (`…_comfy_org`): files are 0600, and such a body is overwritten
//! once its job has ended. [`Journal::open`], [`Journal::close`] and what is called `…_blocking`
//! block on the disk; everything else holds a lock for a moment.

mod change;
mod checkpoint;
mod codec;
pub mod disk;
mod error;
mod finished;
mod index;
mod line;
mod log;
mod read;
mod record;
mod reopen;
mod reserve;
mod restore;
mod save;
mod shared;
mod stream;
mod tidy;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use ::log::warn;
use parking_lot::Mutex;

pub use change::{Accepted, Change, Ended, Fingerprint, Moved, OpenJob, PhaseName};
pub use error::{JournalError, Unavailable};
pub use finished::{Finished, MAX_SUMMARY};
pub use index::Bounds;
pub use line::Ticket;
pub use read::Usage;
pub use shared::Names;

use checkpoint::Checkpoint;
use disk::{Directory, Disk};
use log::Log;
use reserve::Reserve;
use restore::{Journaled, Unreadable};
use shared::{Life, Shared};

use crate::logging::TARGET;
use crate::pool::job::JobId;

/// The index, in `state_dir`.
const INDEX: &str = "journal.redb";
/// The directory of the segments, in `state_dir`.
const DIRECTORY: &str = "journal";
/// Bytes of a segment, about.
const SEGMENT: u64 = 32 << 20;

/// What an earlier process left.
#[derive(Debug)]
pub struct Restored {
    /// The accepted jobs that have not ended, in the order of their numbers.
    pub open: Vec<OpenJob>,
    /// The first number that was never given away.
    pub next_job_id: JobId,
    /// The counter of numbers, as the last accepted job left it.
    pub counter: u64,
    /// Finished jobs that are known.
    pub finished: usize,
    /// Jobs, or places where jobs may have been, that could not be read.
    pub damaged: usize,
}

/// The journal; one per process. Dropping it closes it.
pub struct Journal {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    salt: u32,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held for as long as the journal is open.
    lock: Mutex<Option<std::fs::File>>,
    state_dir: PathBuf,
    segment_size: u64,
}

impl Journal {
    /// Opens the journal in `state_dir`, both made when missing. `names` tells backends' names.
    pub fn open(
        state_dir: &Path,
        bounds: Bounds,
        names: Names,
    ) -> Result<(Self, Restored), JournalError> {
        Self::open_sized(state_dir, bounds, names, SEGMENT)
    }

    fn open_sized(
        state_dir: &Path,
        bounds: Bounds,
        names: Names,
        segment_size: u64,
    ) -> Result<(Self, Restored), JournalError> {
        let path = state_dir.join(DIRECTORY);
        let failed = JournalError::at(&path);
        let directory = Directory::open(state_dir).and_then(|_| Directory::open(&path));
        let directory = directory.map_err(&failed)?;
        let lock = directory.lock().map_err(&failed)?;
        let lock = lock.ok_or_else(|| JournalError::InUse(state_dir.to_owned()))?;
        let (checkpoint, loaded) = Checkpoint::open(&state_dir.join(INDEX))?;
        let disk: Arc<dyn Disk> = Arc::new(directory);
        let found = restore::read(&disk, loaded, segment_size).map_err(|error| match error {
            Unreadable::Io(cause) => failed(cause),
            Unreadable::Newer(found) => JournalError::Newer { path: path.clone(), found },
        })?;
        if found.damaged > 0 {
            let (damaged, path) = (found.damaged, path.display());
            warn!(target: TARGET, "journal {path}: {damaged} records were damaged and are left out");
        }
        let (shared, restored, log) =
            assemble(&disk, found, Some(checkpoint), bounds, names, segment_size);
        let salt = log.salt();
        let writer = std::thread::Builder::new().name("journal".to_owned()).spawn(|| log.run());
        let writer = Mutex::new(Some(writer.map_err(&failed)?));
        let (lock, state_dir) = (Mutex::new(Some(lock)), state_dir.to_owned());
        Ok((Self { shared, disk, salt, writer, lock, state_dir, segment_size }, restored))
    }

    /// Hands in a change. Changes of one job become durable in the order in which they are handed
    /// in. Never blocks on the disk.
    pub fn write(&self, change: Change) -> Ticket {
        self.shared.write(change)
    }

    /// Why new jobs are refused at present, if they are.
    pub fn health(&self) -> Result<(), String> {
        let state = self.shared.state.lock();
        match (&state.trouble, state.life) {
            (Some(reason), _) => Err(reason.clone()),
            (None, Life::Running) => Ok(()),
            (None, _) => Err("the journal is closed".to_owned()),
        }
    }

    /// Takes other bounds; what is beyond them goes soon.
    pub fn set_bounds(&self, bounds: Bounds) {
        self.shared.state.lock().bounds = bounds;
        self.shared.wake.notify_one();
    }

    /// Writes what is left and gives the directory free. Blocks until that is done.
    pub fn close(&self) {
        {
            let mut state = self.shared.state.lock();
            state.life = state.life.max(Life::Closing);
            self.shared.wake.notify_one();
        }
        let writer = self.writer.lock().take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            self.shared.end();
        }
        self.lock.lock().take();
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

/// The writer and what it shares with callers, of what was found on the disk.
fn assemble(
    disk: &Arc<dyn Disk>,
    found: Journaled,
    checkpoint: Option<Checkpoint>,
    bounds: Bounds,
    names: Names,
    segment_size: u64,
) -> (Arc<Shared>, Restored, Log) {
    let mut found = found;
    let mut open: Vec<OpenJob> = found.open.values().map(|(open, _)| open.clone()).collect();
    open.sort_by_key(|open| open.job.id);
    let restored = Restored {
        next_job_id: JobId(found.next.id),
        counter: found.next.counter,
        finished: found.index.len(),
        damaged: found.damaged,
        open,
    };
    let by_id = restored.open.iter().map(|open| (open.job.id, open.clone())).collect();
    let index = std::mem::take(&mut found.index);
    let shared = Arc::new(Shared::new(by_id, index, found.next, bounds, names));
    let reserve = Reserve::new(Arc::clone(disk), segment_size / 16);
    let log =
        Log::new(Arc::clone(&shared), found, reserve, checkpoint, segment_size, Instant::now());
    (shared, restored, log)
}
