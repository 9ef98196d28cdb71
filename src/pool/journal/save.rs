//! Brings the index on the disk up to date, about once a second.

use std::time::Instant;

use log::warn;

use super::checkpoint::{Checkpoint, Meta};
use super::index::{Place, Slot};
use super::log::{IDLE, Log};
use super::record::Stamp;
use crate::logging::TARGET;

impl Log {
    /// Brings the index on the disk up to date.
    pub(super) fn save(&mut self, now: Instant) {
        self.saved_at = now;
        let Some(mut checkpoint) = self.checkpoint.take() else {
            let _ = self.close_ended();
            self.dirty.clear();
            return;
        };
        if let Err(error) = self.save_to(&mut checkpoint) {
            // The segments have everything; only the next start takes longer.
            warn!(target: TARGET, "the index of the journal could not be written: {error}");
            self.saved_at = now + IDLE;
        }
        self.checkpoint = Some(checkpoint);
    }

    fn save_to(&mut self, checkpoint: &mut Checkpoint) -> Result<(), redb::Error> {
        self.close_ended()?;
        if self.dirty.is_empty() {
            return Ok(());
        }
        let Stamp { salt, next_id, counter, .. } = self.stamp();
        let next_ordinal = self.shared.state.lock().next_ordinal;
        let position = self.cold.end();
        let meta = Meta { salt, position, next_id, next_ordinal, counter };
        let (changed, gone) = self.news(checkpoint.is_empty());
        checkpoint.save(meta, changed.iter(), gone.into_iter())?;
        self.dirty.clear();
        Ok(())
    }

    /// What is new and what is gone; jobs that are not on the disk yet are told when they are.
    fn news(&self, everything: bool) -> (Vec<Slot>, Vec<u64>) {
        let index = self.shared.index.read();
        if everything {
            return (index.slots().cloned().collect(), Vec::new());
        }
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for ordinal in &self.dirty {
            match index.slot(*ordinal) {
                Some(slot) if matches!(slot.place, Place::Disk(_)) => changed.push(slot.clone()),
                Some(_) => {}
                None => gone.push(*ordinal),
            }
        }
        (changed, gone)
    }
}
