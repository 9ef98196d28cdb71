//! The store of uploads: what clients upload is kept at the gateway, by content, under the names
//! that ComfyUI would give it, and pushed to a backend before a job that names it.
//!
//! Bounds: [`Uploads::open`]'s bytes for what is kept and once more for what is just coming in;
//! 100,000 names. The least recently used go first, never one that an open job has pinned; when
//! only such are left there is no room ([`StoreError::Full`]).
//!
//! Calls that touch the disk block, unless they are `async`; names are decided one at a time.

mod disk;
mod index;
mod spool;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

pub use spool::{Spool, Spooled};

use super::place::{Folder, Place};
use disk::Disk;
use index::{Entry, Gone, Index, MAX_NAMES};

/// The disk learns of a use when it knows only of one this much earlier.
const NOTE_AFTER_MS: u64 = 600_000;

/// The SHA-256 of a content.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    fn read(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why something was not kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It alone is larger than the store.
    #[error("the file is larger than pool.uploads_size")]
    TooLarge,
    /// All the room is taken by files of open jobs, or of other uploads that are coming in.
    #[error("the room for uploads is taken by files in use")]
    Full,
    /// The disk fails.
    #[error("uploads cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// What became of a name that was asked for.
#[derive(Debug)]
pub enum Named {
    /// The content has the name now, and is pinned.
    Kept(Pins),
    /// The name had that content already; it is pinned.
    Same(Pins),
    /// The name has another content.
    Taken,
}

/// A name's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its hash.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Milliseconds since 1970 when it came.
    pub added_ms: u64,
    /// Where it lies. It may be removed at any time; an open file stays readable.
    pub path: PathBuf,
}

/// Names that are not removed for as long as this lives.
pub struct Pins {
    store: Arc<Uploads>,
    places: Vec<Place>,
}

impl Pins {
    /// Holds one more.
    pub fn add(&mut self, place: Place) {
        self.store.index.lock().pin(place.clone());
        self.places.push(place);
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pins").field(&self.places).finish()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut index = self.store.index.lock();
        self.places.iter().for_each(|place| index.unpin(place));
    }
}

/// The store.
#[derive(Debug)]
pub struct Uploads {
    disk: Disk,
    max_bytes: u64,
    index: Mutex<Index>,
    /// Names are decided, and what goes is removed, one at a time.
    deciding: Mutex<()>,
    /// Bytes that are just coming in.
    writing: AtomicU64,
}

impl Uploads {
    /// Opens the store in `dir`, made when missing, and clears away what a crash left over.
    pub fn open(dir: &Path, max_bytes: u64) -> io::Result<Arc<Self>> {
        let disk = Disk::open(dir)?;
        let (names, damaged) = disk.load();
        if damaged > 0 {
            log::warn!("uploads: {damaged} damaged or half-written names are dropped");
        }
        let mut index = Index::default();
        for (place, entry) in names {
            index.insert(place, entry);
        }
        let gone = index.evict(max_bytes, MAX_NAMES);
        gone.names.iter().try_for_each(|name| disk.remove_name(name))?;
        disk.sweep(&index);
        let (index, deciding) = (Mutex::new(index), Mutex::default());
        Ok(Arc::new(Self { disk, max_bytes, index, deciding, writing: AtomicU64::new(0) }))
    }

    /// A file for what comes in.
    pub async fn spool(self: &Arc<Self>) -> Result<Spool, StoreError> {
        Spool::create(Arc::clone(self)).await
    }

    /// Whether a name is there.
    pub fn has(&self, place: &Place) -> bool {
        self.index.lock().get(place).is_some()
    }

    /// What a name holds, which counts as a use.
    pub fn get(&self, place: &Place) -> Option<Held> {
        let now = now_ms();
        let mut index = self.index.lock();
        index.touch(place, now);
        let entry = index.get(place)?;
        let (digest, noted) = (entry.digest, entry.noted_ms);
        let path = self.disk.blob(&digest);
        let held = Held { digest, size: entry.size, added_ms: entry.added_ms, path };
        let note = now.saturating_sub(noted) > NOTE_AFTER_MS;
        if note {
            index.noted(place, now);
        }
        drop(index);
        if note {
            self.disk.note_use(place, now);
        }
        Some(held)
    }

    /// What a name holds, which does not count as a use: the oldest goes first then.
    pub fn glance(&self, place: &Place) -> Option<Held> {
        let index = self.index.lock();
        let entry = index.get(place)?;
        let (digest, path) = (entry.digest, self.disk.blob(&entry.digest));
        Some(Held { digest, size: entry.size, added_ms: entry.added_ms, path })
    }

    /// Gives a content a name, if the name is free, `overwrite` is set, or it has that content.
    /// It is durable when this returns. `of` is the content that is compared, which for a mask is
    /// not the one that is kept. Blocks.
    pub fn name(
        self: &Arc<Self>,
        content: &Spooled,
        of: Digest,
        place: &Place,
        overwrite: bool,
    ) -> Result<Named, StoreError> {
        let _one_at_a_time = self.deciding.lock();
        let held = self.index.lock().get(place).map(|entry| entry.digest);
        let pins = self.pin(std::iter::once(place.clone()));
        match held {
            Some(held) if !overwrite && held == of => return Ok(Named::Same(pins)),
            Some(_) if !overwrite => return Ok(Named::Taken),
            _ => {}
        }
        self.keep(content, place)?;
        Ok(Named::Kept(pins))
    }

    /// Keeps names from being removed.
    pub fn pin(self: &Arc<Self>, places: impl Iterator<Item = Place>) -> Pins {
        let mut pins = Pins { store: Arc::clone(self), places: Vec::new() };
        places.for_each(|place| pins.add(place));
        pins
    }

    /// The names at the top of a folder, newest first, as `/internal/files` lists them.
    pub fn newest(&self, folder: Folder) -> Vec<String> {
        let index = self.index.lock();
        let top = index.names(folder).filter(|(place, _)| place.subfolder().is_empty());
        let mut top: Vec<_> =
            top.map(|(place, entry)| (entry.added_ms, place.name().to_owned())).collect();
        drop(index);
        top.sort_by(|a, b| b.cmp(a));
        top.into_iter().map(|(_, name)| name).collect()
    }

    /// The names at the top of the input folder that a node's list shows: those whose type begins
    /// with one of `kinds` (`image`, `video`, `audio`, `model`); all when there are none. Sorted.
    pub fn listed(&self, kinds: &[&str]) -> Vec<String> {
        let mut names = self.newest(Folder::Input);
        names.retain(|name| kinds.is_empty() || kinds.contains(&kind(name)));
        names.sort();
        names
    }

    /// Bytes of all that is kept.
    pub fn bytes(&self) -> u64 {
        self.index.lock().bytes()
    }

    fn keep(&self, content: &Spooled, place: &Place) -> Result<(), StoreError> {
        let now = now_ms();
        let (digest, size) = (content.digest, content.size);
        let entry = Entry { digest, size, added_ms: now, used_ms: now, noted_ms: now };
        self.make_room(place, size)?;
        if !self.index.lock().has(&digest) {
            self.disk.keep_blob(content.path(), &digest)?;
        }
        if let Err(error) = self.disk.keep_name(place, &entry) {
            if !self.index.lock().has(&digest) {
                self.disk.remove_blob(&digest)?;
            }
            return Err(error.into());
        }
        let gone = self.index.lock().insert(place.clone(), entry);
        Ok(self.clear_away(&gone)?)
    }

    /// Removes what is used least until `size` more bytes fit under a name.
    fn make_room(&self, place: &Place, size: u64) -> Result<(), StoreError> {
        let (gone, fits) = {
            let mut index = self.index.lock();
            let bytes = (self.max_bytes + index.freed_with(place)).saturating_sub(size);
            let names = if index.get(place).is_some() { MAX_NAMES } else { MAX_NAMES - 1 };
            (index.evict(bytes, names), index.fits(bytes, names))
        };
        self.clear_away(&gone)?;
        if fits { Ok(()) } else { Err(StoreError::Full) }
    }

    /// Names first: a content without a name is cleared away at the next start, a name without
    /// its content would be a loss.
    fn clear_away(&self, gone: &Gone) -> io::Result<()> {
        gone.names.iter().try_for_each(|name| self.disk.remove_name(name))?;
        gone.blobs.iter().try_for_each(|digest| self.disk.remove_blob(digest))
    }
}

/// What a file is by its name, as ComfyUI sorts them for its nodes.
fn kind(name: &str) -> &'static str {
    let guess = mime_guess::from_path(name).first_raw().unwrap_or_default();
    ["image", "video", "audio"]
        .into_iter()
        .find(|kind| guess.starts_with(kind))
        .unwrap_or(if guess.starts_with("model") { "model" } else { "" })
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
