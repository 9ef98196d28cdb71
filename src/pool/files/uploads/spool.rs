//! What comes in is written to a file and hashed as it comes, never held in memory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncWriteExt, BufWriter};

use super::{Digest, StoreError, Uploads};

const BUFFER: usize = 256 << 10;

/// A file that is being written; it goes when dropped.
#[derive(Debug)]
pub struct Spool {
    partial: Partial,
    file: BufWriter<tokio::fs::File>,
    hasher: Sha256,
}

/// A whole content that has no name yet; it goes when dropped.
#[derive(Debug)]
pub struct Spooled {
    pub(super) partial: Partial,
    /// Its hash.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// The file, and its share of the room.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) path: PathBuf,
    store: Arc<Uploads>,
    size: u64,
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.store.writing.fetch_sub(self.size, Relaxed);
        // Gone already when it found its place; else the next start removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Partial {
    fn grow(&mut self, by: usize) -> Result<(), StoreError> {
        let by = by as u64;
        let before = self.store.writing.fetch_add(by, Relaxed);
        self.size += by;
        let room = self.store.max_bytes;
        if self.size > room {
            return Err(StoreError::TooLarge);
        }
        if before.saturating_add(by) > room { Err(StoreError::Full) } else { Ok(()) }
    }
}

impl Spool {
    pub(super) async fn create(store: Arc<Uploads>) -> Result<Self, StoreError> {
        let maker = Arc::clone(&store);
        let made = tokio::task::spawn_blocking(move || maker.disk.partial()).await;
        let (path, file) = made.map_err(io::Error::other)??;
        let file = BufWriter::with_capacity(BUFFER, tokio::fs::File::from_std(file));
        Ok(Self { partial: Partial { path, store, size: 0 }, file, hasher: Sha256::new() })
    }

    /// Takes a piece.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        self.partial.grow(piece.len())?;
        self.hasher.update(piece);
        Ok(self.file.write_all(piece).await?)
    }

    /// Nothing more comes.
    pub async fn finish(mut self) -> Result<Spooled, StoreError> {
        self.file.flush().await?;
        let digest = Digest(self.hasher.finalize().into());
        let size = self.partial.size;
        Ok(Spooled { partial: self.partial, digest, size })
    }
}

impl Spooled {
    /// Where it lies for now.
    pub fn path(&self) -> &Path {
        &self.partial.path
    }
}
