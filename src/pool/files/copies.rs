//! Copies of what jobs made, so that a result can be read when the backend that made it is gone, or
//! has come back with an empty disk (`pool.keep_outputs`).
//!
//! When a job has ended, the files that its history entry names are fetched and kept in a store like
//! that of the uploads: content-addressed, so that nothing is kept twice, durable, bounded, and
//! 0600. A copy has its file's name as clients know it, `@NAME/…` included, and is shown only when
//! the backend itself has no such file, or does not answer: what a server has is what it has now.
//!
//! Bounds: all copies together at most `pool.keep_outputs` bytes, the oldest going first; one file
//! at most a quarter of that; `AT_ONCE` files are fetched at a time, and at most `MAX_WAITING`
//! wait for that. What is beyond is not kept, which the log tells once a minute at most. A job's end
//! waits `PATIENCE` for its copies; those that take longer come later.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Uri};
use log::warn;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::place::{Folder, Place};
use super::prefix;
use super::remote::{DownloadError, Fetched, Remote, Trouble, download_at_most};
use super::uploads::{StoreError, Uploads};
use super::{Asked, Query, Stamp, asked_place};
use crate::backend::Backend;
use crate::clock::Moment;
use crate::logging::TARGET;

/// Files that are fetched at a time.
const AT_ONCE: usize = 4;
/// Files that wait for that.
const MAX_WAITING: u64 = 1000;
/// Files of one job.
const MAX_FILES: usize = 200;
/// How long a job's end waits for its copies.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two warnings, in milliseconds.
const QUIET_MS: u64 = 60_000;

/// Opens the store in `dir`, made when missing; what is beyond `max_bytes` goes. With 0 there is none,
/// and what was kept before is removed.
pub fn open(dir: &Path, max_bytes: u64) -> io::Result<Option<Arc<Uploads>>> {
    if max_bytes == 0 && !dir.exists() {
        return Ok(None);
    }
    let store = Uploads::open(dir, max_bytes)?;
    Ok((max_bytes > 0).then_some(store))
}

/// The copies.
pub struct Copies {
    store: Arc<Uploads>,
    remote: Arc<Remote>,
    seats: Semaphore,
    waiting: AtomicU64,
    /// A single file's bytes.
    largest: u64,
    warned_ms: AtomicU64,
}

impl Copies {
    /// Copies in a store of so many bytes.
    pub fn new(store: Arc<Uploads>, max_bytes: u64, remote: Arc<Remote>) -> Arc<Self> {
        let (seats, waiting) = (Semaphore::new(AT_ONCE), AtomicU64::new(0));
        let (largest, warned_ms) = (max_bytes / 4, AtomicU64::new(0));
        Arc::new(Self { store, remote, seats, waiting, largest, warned_ms })
    }

    /// Copies a job's files from the backend that made them, and returns when that is done or takes
    /// too long; it goes on by itself then.
    pub async fn take(self: &Arc<Self>, backend: &Arc<Backend>, files: BTreeSet<Place>) {
        if files.is_empty() {
            return;
        }
        let (this, backend) = (Arc::clone(self), Arc::clone(backend));
        let taking = tokio::spawn(async move {
            let files = files.into_iter().take(MAX_FILES);
            futures_util::future::join_all(files.map(|file| this.take_one(&backend, file))).await
        });
        let _ = timeout(PATIENCE, taking).await;
    }

    async fn take_one(&self, backend: &Backend, file: Place) {
        if self.waiting.fetch_add(1, Relaxed) >= MAX_WAITING {
            self.warn(backend, &file, &"too many files wait to be copied");
        } else if let Ok(_seat) = self.seats.acquire().await
            && let Err(error) = self.copy(backend, &file).await
        {
            self.warn(backend, &file, &words(&error));
        }
        self.waiting.fetch_sub(1, Relaxed);
    }

    async fn copy(&self, backend: &Backend, file: &Place) -> Result<(), DownloadError> {
        let Some(name) = copied(backend.name(), file) else { return Ok(()) };
        let Fetched::File(response) = self.remote.fetch(backend, file, None).await? else {
            return Err(Trouble::Refused(404).into());
        };
        let (content, _) = download_at_most(response, &self.store, self.largest).await?;
        let store = Arc::clone(&self.store);
        let named =
            tokio::task::spawn_blocking(move || store.name(&content, content.digest, &name, true));
        named.await.map_err(io::Error::other).map_err(StoreError::Io)??;
        Ok(())
    }

    fn warn(&self, backend: &Backend, file: &Place, why: &dyn std::fmt::Display) {
        let (now, before) = (Moment::now().0.max(1), self.warned_ms.load(Relaxed));
        if before != 0 && now.saturating_sub(before) < QUIET_MS {
            return;
        }
        self.warned_ms.store(now, Relaxed);
        let (name, path) = (backend.name(), file.path());
        warn!(target: TARGET, "{path} of {name} could not be copied (pool.keep_outputs): {why}");
    }

    /// Whether a backend's file that a `GET /view` asks for has a copy; `asked` is the target
    /// without the prefix.
    pub fn file(&self, backend: &str, asked: &str) -> Option<Place> {
        let place = asked_place(&asked.parse::<Uri>().ok()?)?;
        self.has(backend, &place).then_some(place)
    }

    /// Whether a backend's file has a copy.
    pub fn has(&self, backend: &str, file: &Place) -> bool {
        copied(backend, file).is_some_and(|name| self.store.has(&name))
    }

    /// Whether a backend has a file itself.
    pub async fn is_at(&self, backend: &Backend, file: &Place) -> bool {
        matches!(self.remote.size(backend, file).await, Ok(Some(_)))
    }

    /// Answers `GET /view` from a copy; `uri` is without the prefix.
    pub async fn view(&self, backend: &str, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
        let asked = Asked::of(&Query::of(uri)).ok()?;
        let held = self.store.glance(&copied(backend, &asked_place(uri)?)?)?;
        let stamp = Stamp {
            etag: format!("\"{}\"", &held.digest.to_string()[..32]),
            modified: i64::try_from(held.added_ms / 1000).unwrap_or_default(),
        };
        let shown = asked.show(&held.path, Some(&stamp), headers).await;
        Some(shown.unwrap_or_else(IntoResponse::into_response))
    }

    /// Bytes of all copies.
    pub fn bytes(&self) -> u64 {
        self.store.bytes()
    }
}

fn words(error: &DownloadError) -> String {
    match error {
        DownloadError::Store(StoreError::TooLarge) => {
            "it is larger than a quarter of it".to_owned()
        }
        DownloadError::Store(StoreError::Full) => "as much as fits is just coming in".to_owned(),
        DownloadError::Store(StoreError::Io(error)) => error.to_string(),
        DownloadError::Backend(trouble) => trouble.to_string(),
    }
}

/// A file's name in the store: as clients know it.
fn copied(backend: &str, file: &Place) -> Option<Place> {
    let made = matches!(file.folder(), Folder::Output | Folder::Temp);
    made.then(|| Place::new(file.folder(), &prefix::join(backend, file.subfolder()), file.name()))?
}
