//! Head-room on the disk: a file of 2 MiB that is given up when the disk is full, so that the ends
//! of running jobs can still be written while new ones are refused.
//!
//! The trouble is over when the file could be made again and there is as much room beside it.

use std::io;
use std::sync::Arc;

use super::disk::Disk;

const NAME: &str = "reserve";
const PROBE: &str = "probe";
const SIZE: usize = 2 << 20;

pub(super) struct Reserve {
    disk: Arc<dyn Disk>,
    held: bool,
}

impl Reserve {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        let size = disk.open(NAME).and_then(|blob| blob.size()).unwrap_or(0);
        Self { disk, held: size == SIZE as u64 }
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
            blob.write_at(&vec![0x5a; SIZE], 0)?;
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
