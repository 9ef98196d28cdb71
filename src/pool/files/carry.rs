//! Brings files to where a job needs them: uploads from the store to a backend, outputs of one
//! backend to another by way of the store.
//!
//! Only input folders are ever written to, so that nobody's outputs are overwritten: an output
//! that is brought along becomes the input `comfygate/<hash>.ext`. One push per backend and name,
//! and one download per file, is under way at a time. What a backend has is remembered (bounded)
//! until [`Carrier::forget`], for it is asked by every job.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::flights::Flights;
use super::place::{Folder, Place};
use super::remote::{DownloadError, Fetched, Remote, Trouble, download};
use super::uploads::{Digest, Named, Pins, StoreError, Uploads};
use crate::backend::{Backend, BackendId};

/// The subfolder of what the gateway puts into input folders by itself.
pub const SUBFOLDER: &str = "comfygate";
/// Files remembered per backend; beyond, all are forgotten and sent again.
const MAX_KNOWN: usize = 20_000;
/// Brought files remembered; beyond, all are forgotten and asked for again.
const MAX_BROUGHT: usize = 4096;
/// Attempts to push a file whose content changes meanwhile.
const MAX_CHANGES: usize = 5;

/// Why a file is not where it is needed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CarryError {
    /// The backend that needs it, or has it, is of no use.
    #[error("backend {backend}: {trouble}")]
    Backend {
        /// Its name.
        backend: String,
        /// What is wrong with it.
        trouble: Trouble,
    },
    /// The store is of no use.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

impl CarryError {
    fn of(error: impl Into<DownloadError>, backend: &Backend) -> Self {
        match error.into() {
            DownloadError::Backend(trouble) => {
                Self::Backend { backend: backend.name().to_owned(), trouble }
            }
            DownloadError::Store(error) => Self::Store(Arc::new(error)),
        }
    }
}

/// What a backend has.
#[derive(Default)]
struct Has {
    /// Counts how often it was forgotten: what is told of an earlier time does not count.
    era: u64,
    files: HashMap<Place, Digest>,
}

/// A file that was brought: the tag it had, and what it is called now.
#[derive(Clone)]
struct Brought {
    tag: String,
    place: Place,
}

/// A file that was brought along and is pinned; none when it was not there.
pub(super) type Bring = Option<(Place, Arc<Pins>)>;

/// Brings files.
pub struct Carrier {
    pub(super) uploads: Arc<Uploads>,
    pub(super) remote: Arc<Remote>,
    has: Mutex<HashMap<BackendId, Has>>,
    brought: Mutex<HashMap<(BackendId, Place), Brought>>,
    pushes: Flights<(BackendId, Place), Result<(), CarryError>>,
    downloads: Flights<(BackendId, Place), Result<Bring, CarryError>>,
}

impl Carrier {
    /// Carries between a store and backends.
    pub fn new(uploads: Arc<Uploads>, remote: Arc<Remote>) -> Arc<Self> {
        Arc::new(Self {
            uploads,
            remote,
            has: Mutex::default(),
            brought: Mutex::default(),
            pushes: Flights::default(),
            downloads: Flights::default(),
        })
    }

    /// A backend may have lost its files: it has restarted, or refused a job that names some.
    pub fn forget(&self, backend: BackendId) {
        let mut has = self.has.lock();
        let has = has.entry(backend).or_default();
        has.era += 1;
        has.files.clear();
    }

    /// Makes sure that a backend has what the store has under `source`, and tells where: inputs
    /// under their own name, others as an input of the gateway's. `None` when it is in the store
    /// no more.
    pub async fn ensure(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        source: &Place,
    ) -> Result<Option<Place>, CarryError> {
        for _ in 0..MAX_CHANGES {
            let Some(held) = self.uploads.get(source) else { return Ok(None) };
            let target = target(source, &held.digest);
            if self.knows(backend.id, &target, &held.digest) {
                return Ok(Some(target));
            }
            let key = (backend.id, target.clone());
            let (this, backend) = (Arc::clone(self), Arc::clone(backend));
            let (source, target) = (source.clone(), target.clone());
            let push = async move { this.push(&backend, &source, target).await };
            self.pushes.join(key, push).await?;
        }
        let trouble = Trouble::Wrong;
        Err(CarryError::Backend { backend: backend.name().to_owned(), trouble })
    }

    async fn push(
        &self,
        backend: &Backend,
        source: &Place,
        target: Place,
    ) -> Result<(), CarryError> {
        // Whatever it holds now; who waits for another content asks again.
        let Some(held) = self.uploads.get(source) else { return Ok(()) };
        let era = self.has.lock().entry(backend.id).or_default().era;
        let put = self.remote.put(backend, &target, &held).await;
        let mut has = self.has.lock();
        let has = has.entry(backend.id).or_default();
        match put {
            Ok(()) if has.era == era => {
                if has.files.len() >= MAX_KNOWN {
                    has.files.clear();
                }
                has.files.insert(target, held.digest);
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(error) => {
                has.files.remove(&target);
                Err(CarryError::of(error, backend))
            }
        }
    }

    fn knows(&self, backend: BackendId, target: &Place, digest: &Digest) -> bool {
        self.has.lock().get(&backend).is_some_and(|has| has.files.get(target) == Some(digest))
    }

    /// Takes a backend's file into the store, where it stays pinned for as long as the answer is
    /// held. `None` when the backend has no such file.
    pub async fn bring(
        self: &Arc<Self>,
        holder: &Arc<Backend>,
        file: &Place,
    ) -> Result<Option<(Place, Arc<Pins>)>, CarryError> {
        let key = (holder.id, file.clone());
        let (this, holder, file) = (Arc::clone(self), Arc::clone(holder), file.clone());
        let download = async move {
            let brought = this.download(&holder, &file).await;
            brought.map_err(|error| CarryError::of(error, &holder))
        };
        self.downloads.join(key, download).await
    }

    async fn download(&self, holder: &Backend, file: &Place) -> Result<Bring, DownloadError> {
        let key = (holder.id, file.clone());
        let known = self.brought.lock().get(&key).cloned();
        let known = known.filter(|known| self.uploads.has(&known.place));
        // Pinned before the question, so that it is there after the answer.
        let pinned = known.map(|known| {
            let pins = self.uploads.pin(std::iter::once(known.place.clone()));
            (known, Arc::new(pins))
        });
        let tag = pinned.as_ref().map(|(known, _)| known.tag.as_str());
        let response = match self.remote.fetch(holder, file, tag).await? {
            Fetched::Absent => return Ok(None),
            Fetched::Unchanged => return Ok(pinned.map(|(known, pins)| (known.place, pins))),
            Fetched::File(response) => response,
        };
        let (content, tag) = download(response, &self.uploads).await?;
        let place = alias(file, &content.digest);
        let (store, name) = (Arc::clone(&self.uploads), place.clone());
        let named =
            tokio::task::spawn_blocking(move || store.name(&content, content.digest, &name, false));
        let pins = match named.await.map_err(io::Error::other).map_err(StoreError::Io)?? {
            Named::Kept(pins) | Named::Same(pins) => Arc::new(pins),
            // Two contents of one half of a hash.
            Named::Taken => return Err(StoreError::Io(io::ErrorKind::AlreadyExists.into()).into()),
        };
        if let Some(tag) = tag {
            let mut brought = self.brought.lock();
            if brought.len() >= MAX_BROUGHT {
                brought.clear();
            }
            brought.insert(key, Brought { tag, place: place.clone() });
        }
        Ok(Some((place, pins)))
    }
}

/// Where a content of the store goes on a backend.
fn target(source: &Place, digest: &Digest) -> Place {
    match source.folder() {
        Folder::Input => source.clone(),
        Folder::Output | Folder::Temp => alias(source, digest),
    }
}

fn alias(file: &Place, digest: &Digest) -> Place {
    let name = format!("{}{}", &digest.to_string()[..32], file.suffix());
    // A hash is always a name.
    Place::new(Folder::Input, SUBFOLDER, &name).unwrap_or_else(|| file.clone())
}
