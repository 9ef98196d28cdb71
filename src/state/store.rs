//! The open database. After an error of the disk redb refuses everything until the file is opened
//! again, so that is done here at the next use; and it is closed while another process has it.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use redb::{Database, ReadTransaction, ReadableDatabase, TransactionError, WriteTransaction};

use super::{OpenError, StateError, open_database, storage};

pub(super) struct Store {
    path: PathBuf,
    opened: Mutex<Opened>,
}

enum Opened {
    Here(Database),
    /// It failed, and is to be opened again.
    Broken,
    /// Another process has it.
    Released,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let opened = Mutex::new(Opened::Here(open_database(path)?));
        Ok(Self { path: path.to_owned(), opened })
    }

    pub(super) fn begin_read(&self) -> Result<ReadTransaction, StateError> {
        self.begin(Database::begin_read)
    }

    pub(super) fn begin_write(&self) -> Result<WriteTransaction, StateError> {
        self.begin(Database::begin_write)
    }

    fn begin<T>(
        &self,
        begin: impl Fn(&Database) -> Result<T, TransactionError>,
    ) -> Result<T, StateError> {
        let mut opened = self.opened.lock();
        if let Opened::Here(database) = &*opened {
            match begin(database).map_err(redb::Error::from) {
                Err(redb::Error::PreviousIo) => *opened = Opened::Broken,
                begun => return begun.map_err(storage),
            }
        }
        if matches!(*opened, Opened::Released) {
            return Err(StateError::Released);
        }
        let database = open_database(&self.path).map_err(|error| error.at(&self.path))?;
        let begun = begin(&database).map_err(storage);
        *opened = Opened::Here(database);
        begun
    }

    /// Closes it, so that another process can open it.
    pub(super) fn release(&self) {
        *self.opened.lock() = Opened::Released;
    }

    pub(super) fn is_released(&self) -> bool {
        matches!(*self.opened.lock(), Opened::Released)
    }

    /// Opens it again.
    pub(super) fn reclaim(&self) -> Result<(), StateError> {
        let mut opened = self.opened.lock();
        if matches!(*opened, Opened::Released) {
            let database = open_database(&self.path).map_err(|error| error.at(&self.path))?;
            *opened = Opened::Here(database);
        }
        Ok(())
    }
}
