//! Taking the journal up again that was closed for a successor, which then failed.

use std::sync::Arc;
use std::time::Instant;

use super::checkpoint::Checkpoint;
use super::disk::Directory;
use super::log::Log;
use super::reserve::Reserve;
use super::restore::{self, Unreadable};
use super::shared::Life;
use super::{DIRECTORY, INDEX, Journal, JournalError};

impl Journal {
    /// Opens it again after [`close`](Self::close); what lies on the disk counts. Blocks.
    pub fn reopen(&self) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        if writer.is_some() {
            return Ok(());
        }
        let path = self.state_dir.join(DIRECTORY);
        let failed = JournalError::at(&path);
        let lock = Directory::open(&path).and_then(|directory| directory.lock());
        let lock = lock.map_err(&failed)?;
        let lock = lock.ok_or_else(|| JournalError::InUse(self.state_dir.clone()))?;
        let (checkpoint, loaded) = Checkpoint::open(&self.state_dir.join(INDEX))?;
        let found = restore::read(&self.disk, loaded, self.segment_size);
        let mut found = found.map_err(|error| match error {
            Unreadable::Io(cause) => failed(cause),
            Unreadable::Newer(found) => JournalError::Newer { path: path.clone(), found },
        })?;
        if found.salt != self.salt {
            return Err(JournalError::Closed("it is another one now".to_owned()));
        }
        {
            let mut state = self.shared.state.lock();
            let mut index = self.shared.index.write();
            state.open = found.open.iter().map(|(id, (open, _))| (*id, open.clone())).collect();
            *index = std::mem::take(&mut found.index);
            state.next_id = state.next_id.max(found.next.id);
            state.next_ordinal = state.next_ordinal.max(found.next.ordinal);
            state.counter = state.counter.max(found.next.counter);
            (state.trouble, state.life) = (None, Life::Running);
        }
        let reserve = Reserve::new(Arc::clone(&self.disk), self.segment_size / 16);
        let (shared, size) = (Arc::clone(&self.shared), self.segment_size);
        let log = Log::new(shared, found, reserve, Some(checkpoint), size, Instant::now());
        let thread = std::thread::Builder::new().name("journal".to_owned());
        *writer = Some(thread.spawn(|| log.run()).map_err(&failed)?);
        *self.lock.lock() = Some(lock);
        Ok(())
    }
}
