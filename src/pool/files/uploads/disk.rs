//! The store on disk: contents under their hash, and one small file per name.
//!
//! ```text
//! uploads/blobs/ab/<sha256 of the content>    0600
//! uploads/names/cd/<sha256 of folder/path>    0600, JSON; its time is that of the name's last use
//! uploads/partial/<uuid>                      0600, what is being written
//! ```
//!
//! Everything is written to `partial`, synced, renamed to its place, and the directory synced. A
//! content comes before the first name that refers to it and goes after the last: whatever a
//! crash leaves over is found by [`Disk::load`] and [`Disk::sweep`] and removed. A name whose file
//! is damaged, or whose content is not there in its full size, is as good as gone, and no other
//! suffers. All calls block.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Digest;
use super::index::{Entry, Index};
use crate::pool::files::place::{Folder, Place};

/// Bytes of a name's file at most: a path of 1 KiB may be escaped.
const MAX_RECORD: u64 = 16 << 10;

/// A name's file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    folder: String,
    path: String,
    sha256: String,
    size: u64,
    added_ms: u64,
}

/// The store's directory.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Makes the directory, 0700, and forgets what was being written.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let disk = Self { root: root.to_owned() };
        for folder in ["blobs", "names", "partial"] {
            make_directory(&disk.root.join(folder))?;
        }
        for left in files(&disk.root.join("partial")) {
            std::fs::remove_file(left)?;
        }
        Ok(disk)
    }

    /// A new file to write to: its path, and the file.
    pub(super) fn partial(&self) -> io::Result<(PathBuf, File)> {
        let path = self.root.join("partial").join(uuid::Uuid::new_v4().to_string());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((path, file))
    }

    /// Where a content lies.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        shelf(&self.root.join("blobs"), &digest.to_string())
    }

    /// Moves a content to its place.
    pub(super) fn keep_blob(&self, partial: &Path, digest: &Digest) -> io::Result<()> {
        OpenOptions::new().write(true).open(partial)?.sync_all()?;
        place(partial, &self.blob(digest))
    }

    /// Writes what a name holds.
    pub(super) fn keep_name(&self, name: &Place, entry: &Entry) -> io::Result<()> {
        let record = Record {
            folder: name.folder().name().to_owned(),
            path: name.path().to_owned(),
            sha256: entry.digest.to_string(),
            size: entry.size,
            added_ms: entry.added_ms,
        };
        let (partial, mut file) = self.partial()?;
        let written = serde_json::to_vec(&record)
            .map_err(io::Error::other)
            .and_then(|text| file.write_all(&text))
            .and_then(|()| file.set_modified(time(entry.used_ms)))
            .and_then(|()| file.sync_all())
            .and_then(|()| place(&partial, &self.name_file(name)));
        if written.is_err() {
            // The first error is the one to tell; the next start removes what is left.
            let _ = std::fs::remove_file(&partial);
        }
        written
    }

    /// Notes a name's last use.
    pub(super) fn note_use(&self, name: &Place, used_ms: u64) {
        // Only the order of leaving suffers when that fails.
        let _ = File::open(self.name_file(name)).and_then(|f| f.set_modified(time(used_ms)));
    }

    /// Removes a name.
    pub(super) fn remove_name(&self, name: &Place) -> io::Result<()> {
        remove(&self.name_file(name))
    }

    /// Removes a content.
    pub(super) fn remove_blob(&self, digest: &Digest) -> io::Result<()> {
        remove(&self.blob(digest))
    }

    /// Every good name; how many were not, which are removed.
    pub(super) fn load(&self) -> (Vec<(Place, Entry)>, usize) {
        let (mut good, mut bad) = (Vec::new(), 0);
        for file in shelves(&self.root.join("names")) {
            if let Some(found) = self.read_name(&file) {
                good.push(found);
            } else {
                bad += 1;
                // It stays until the next start then.
                let _ = std::fs::remove_file(&file);
            }
        }
        (good, bad)
    }

    /// Removes the contents that no name refers to.
    pub(super) fn sweep(&self, index: &Index) {
        for file in shelves(&self.root.join("blobs")) {
            let digest = file.file_name().and_then(|name| Digest::read(name.to_str()?));
            if !digest.is_some_and(|digest| index.has(&digest)) {
                // It stays until the next start then.
                let _ = std::fs::remove_file(&file);
            }
        }
    }

    fn read_name(&self, path: &Path) -> Option<(Place, Entry)> {
        let file = File::open(path).ok()?;
        let used = file.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let mut text = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut text).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let name = Place::new(Folder::of(&record.folder)?, "", &record.path)?;
        let digest = Digest::read(&record.sha256)?;
        let size = std::fs::metadata(self.blob(&digest)).ok()?.len();
        let used_ms = u64::try_from(used.as_millis()).ok()?;
        let entry = Entry { digest, size, added_ms: record.added_ms, used_ms, noted_ms: used_ms };
        (size == record.size && path == self.name_file(&name)).then_some((name, entry))
    }

    fn name_file(&self, name: &Place) -> PathBuf {
        let text = format!("{}/{}", name.folder().name(), name.path());
        shelf(&self.root.join("names"), &hex::encode(Sha256::digest(text)))
    }
}

fn shelf(root: &Path, name: &str) -> PathBuf {
    root.join(name.get(..2).unwrap_or_default()).join(name)
}

fn time(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Renames a synced file to its place and makes that durable.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    let directory = to.parent().unwrap_or(to);
    if !directory.is_dir() {
        make_directory(directory)?;
        directory.parent().map_or(Ok(()), sync_directory)?;
    }
    std::fs::rename(from, to)?;
    sync_directory(directory)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn shelves(root: &Path) -> impl Iterator<Item = PathBuf> {
    entries(root).flat_map(|shelf| files(&shelf).collect::<Vec<_>>())
}

fn files(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    entries(directory).filter(|path| path.is_file())
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}
