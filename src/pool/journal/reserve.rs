//! Head-room on the disk: a file that is given up when the disk is full, so that the ends
//! of running jobs can still be written while new ones are refused.
//!
//! The trouble is over when the file could be made again and there is as much room beside it.

use std::io;
use std::sync::Arc;

use super::disk::Disk;

const NAME: &str = "reserve";
const PROBE: &str = "probe";

pub(super) struct Reserve {
    disk: Arc<dyn Disk>,
    size: usize,
    held: bool,
}

impl Reserve {
    pub(super) fn new(disk: Arc<dyn Disk>, size: u64) -> Self {
        let held = disk.open(NAME).and_then(|blob| blob.size()).is_ok_and(|held| held == size);
        Self { disk, size: usize::try_from(size).unwrap_or(0), held }
    }

    /// Bytes that it holds.
    pub(super) fn size(&self) -> u64 {
        self.size as u64
    }

    /// Gives the room to whoever needs it now.
    pub(super) fn release(&mut self) {
        self.held = false;
        let _ = self.disk.remove(NAME);
    }

    /// Takes the room again; fails when there is not twice as much.
    pub(super) fn restock(&mut self) -> io::Result<()> {
        if !self.held {
            self.fill(NAME)?;
            self.held = true;
        }
        self.fill(PROBE)?;
        self.disk.remove(PROBE)
    }

    fn fill(&self, name: &str) -> io::Result<()> {
        let filled = self.disk.create(name).and_then(|blob| {
            blob.write_at(&vec![0x5a; self.size], 0)?;
            blob.sync()
        });
        if filled.is_err() {
            let _ = self.disk.remove(name);
        }
        filled
    }

    /// Makes it if it is missing, at the start.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        if self.held { Ok(()) } else { self.restock() }
    }
}
