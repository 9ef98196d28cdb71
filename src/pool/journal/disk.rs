//! The journal's directory as the log needs it: whole files by name, written at an offset.
//!
//! A trait, so that tests can let it fail, and crash in the middle of a write, on demand. What
//! [`Blob::write_at`] wrote is durable when [`Blob::sync`] has returned, and not a moment earlier.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory of files.
pub trait Disk: Send + Sync {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes an empty file, its name durable when this returns.
    fn create(&self, name: &str) -> io::Result<Arc<dyn Blob>>;
    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A file.
pub trait Blob: Send + Sync {
    /// Its length.
    fn size(&self) -> io::Result<u64>;
    /// Fills `buffer` with what stands at `at`.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `at`.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts it to this length.
    fn cut(&self, length: u64) -> io::Result<()>;
}

/// A directory of the file system.
pub(super) struct Directory {
    path: PathBuf,
    /// To make names durable.
    handle: File,
}

impl Directory {
    /// Opens the directory, made with mode 0700 when missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self { path: path.to_owned(), handle: File::open(path)? })
    }

    /// Takes the lock that one process alone can hold, for as long as the file is kept. `None`:
    /// another one has it.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let file = private().create(true).truncate(false).open(self.path.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        let file = private().create(true).truncate(true).open(self.path.join(name))?;
        self.handle.sync_all()?;
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        Ok(Arc::new(private().open(self.path.join(name))?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }
}

impl Blob for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}
