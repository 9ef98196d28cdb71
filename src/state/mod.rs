//! What outlives the process: placements, learnt rates, settings, in `state_dir/state.redb`.
//!
//! [`State::open`] makes the directory (0700), takes the database's lock, so that two gateways
//! cannot share a directory, and checks the file. A damaged one is kept aside, named by
//! [`State::set_aside`] for a warning, and the start goes on with an empty one: losing placements
//! moves clients, not starting loses them all. Every call here blocks on the disk; keep it off the
//! request path (`spawn_blocking`).
//!
//! **Durability.** redb has two levels. `None` makes a commit visible to this process only: its
//! pages may still be in redb's own write buffer and the file's header goes on naming the commit
//! before, so that even `kill -9` loses it until a later durable commit. `Immediate` writes the
//! pages, flips the header and calls `fdatasync` before `commit` returns, which survives `kill -9`
//! and power loss. Hence `Immediate` always, in batches: write what changed every 500 ms, and a
//! `kill -9` costs half a second of placements.
//!
//! **Schema.** A number in the table of settings; [`State::open`] upgrades older ones step by step
//! and refuses newer ones.

mod cookie_key;
mod placements;
mod rates;
mod store;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{
    Builder, Database, DatabaseError, StorageError, TableDefinition, TableError, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

pub use cookie_key::load_or_make_cookie_key;
pub use placements::PlacementRecord;
pub use rates::Rate;
use store::Store;

/// The database's file in `state_dir`.
const FILE: &str = "state.redb";
/// Bytes of the database cached in memory; redb's default is 1 GiB.
const CACHE_SIZE: usize = 16 << 20;
/// The schema this version reads and writes.
const SCHEMA: u32 = 1;
const SCHEMA_KEY: &str = "schema";

const SETTINGS: TableDefinition<'_, &str, &str> = TableDefinition::new("settings");

/// Why the state cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// The directory cannot be made or used.
    #[error("state_dir {}: {cause}; make it writable for this user, or name another directory", path.display())]
    Directory {
        /// The directory or a file in it.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Somebody else has it open.
    #[error("state_dir {}: another comfygate uses this state_dir; stop it, or name another directory", .0.display())]
    InUse(PathBuf),
    /// A later version wrote it.
    #[error(
        "{}: written by a newer comfygate (schema {found}, this one knows {SCHEMA}); run that version, or move the file away",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// Another version of the database's format.
    #[error("{}: another version of the database format ({found}); move the file away", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it has.
        found: u8,
    },
    /// The key of the cookies is not what was written.
    #[error("{}: {length} bytes instead of 32; remove it and a new key is made (sessions start anew)", path.display())]
    CookieKey {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// A value cannot be written as JSON.
    #[error("cannot be kept as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Another process has it, for an upgrade.
    #[error("the state was handed to a successor")]
    Released,
    /// Reading or writing failed.
    #[error("the state cannot be read or written: {0}")]
    Storage(#[from] Box<redb::Error>),
}

impl StateError {
    fn directory(path: &Path, cause: io::Error) -> Self {
        Self::Directory { path: path.to_owned(), cause }
    }
}

/// Wraps any of redb's errors.
fn storage(error: impl Into<redb::Error>) -> StateError {
    StateError::Storage(Box::new(error.into()))
}

/// The open state; one per process.
pub struct State {
    database: Store,
    set_aside: Option<PathBuf>,
}

impl State {
    /// Opens the state in `state_dir`, both made when missing.
    pub fn open(state_dir: &Path) -> Result<Self, StateError> {
        make_directory(state_dir)?;
        let path = state_dir.join(FILE);
        let (database, set_aside) = match Store::open(&path) {
            Err(OpenError::Damaged) => {
                let aside = set_aside(&path)?;
                (Store::open(&path).map_err(|error| error.at(&path))?, Some(aside))
            }
            other => (other.map_err(|error| error.at(&path))?, None),
        };
        let state = Self { database, set_aside };
        state.upgrade(&path)?;
        Ok(state)
    }

    /// Closes it, so that a successor can open it; until [`reclaim`](Self::reclaim) every call fails.
    pub fn release(&self) {
        self.database.release();
    }

    /// Whether a successor may have it.
    pub fn is_released(&self) -> bool {
        self.database.is_released()
    }

    /// Opens it again after a [`release`](Self::release).
    pub fn reclaim(&self) -> Result<(), StateError> {
        self.database.reclaim()
    }

    /// Where a damaged file was moved to, for a warning at start.
    pub fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    /// A setting; `None` when it was never made or is of another shape.
    pub fn setting<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let reading = self.database.begin_read()?;
        let table = match reading.open_table(SETTINGS) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            other => other.map_err(storage)?,
        };
        let text = table.get(name).map_err(storage)?;
        Ok(text.and_then(|text| serde_json::from_str(text.value()).ok()))
    }

    /// Makes or changes a setting; it is on the disk when this returns.
    pub fn set_setting<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let text = serde_json::to_string(value)?;
        self.write(|transaction| put_setting(transaction, name, &text))
    }

    /// Runs one durable transaction.
    fn write<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let transaction = self.database.begin_write()?;
        let result = change(&transaction)?;
        transaction.commit().map_err(storage)?;
        Ok(result)
    }

    fn upgrade(&self, path: &Path) -> Result<(), StateError> {
        let found = self.setting(SCHEMA_KEY)?.unwrap_or(0);
        if found > SCHEMA {
            return Err(StateError::Newer { path: path.to_owned(), found });
        }
        if found == SCHEMA {
            return Ok(());
        }
        self.write(|transaction| {
            (found..SCHEMA).try_for_each(|from| upgrade_step(transaction, from))?;
            put_setting(transaction, SCHEMA_KEY, &SCHEMA.to_string())
        })
    }
}

/// Brings the schema from `from` to `from + 1`. Schema 0 is the empty file.
fn upgrade_step(transaction: &WriteTransaction, from: u32) -> Result<(), StateError> {
    if from == 0 {
        placements::make_table(transaction)?;
        rates::make_table(transaction)?;
    }
    Ok(())
}

fn put_setting(transaction: &WriteTransaction, name: &str, text: &str) -> Result<(), StateError> {
    let mut table = transaction.open_table(SETTINGS).map_err(storage)?;
    table.insert(name, text).map_err(storage)?;
    Ok(())
}

/// Makes the directory with mode 0700; one that exists keeps its mode, for it is its owner's.
fn make_directory(path: &Path) -> Result<(), StateError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| StateError::directory(path, cause))
}

enum OpenError {
    Damaged,
    InUse,
    Format(u8),
    Io(io::Error),
    Other(Box<redb::Error>),
}

impl OpenError {
    fn at(self, path: &Path) -> StateError {
        match self {
            Self::InUse => StateError::InUse(path.parent().unwrap_or(path).to_owned()),
            Self::Format(found) => StateError::Format { path: path.to_owned(), found },
            Self::Io(cause) => StateError::directory(path, cause),
            Self::Damaged => {
                StateError::directory(path, io::Error::new(ErrorKind::InvalidData, "damaged"))
            }
            Self::Other(error) => StateError::Storage(error),
        }
    }
}

impl From<DatabaseError> for OpenError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Self::InUse,
            DatabaseError::UpgradeRequired(found) => Self::Format(found),
            DatabaseError::Storage(StorageError::Corrupted(_)) => Self::Damaged,
            DatabaseError::Storage(StorageError::Io(cause)) if is_damage(&cause) => Self::Damaged,
            DatabaseError::Storage(StorageError::Io(cause)) => Self::Io(cause),
            other => Self::Other(Box::new(other.into())),
        }
    }
}

fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
}

/// Opens the database, 0600, and compares every page with its checksum: redb itself does so only
/// after a crash, and a damaged page would otherwise be met in the middle of a request. That reads
/// the file once, a fraction of a second for a million placements.
fn open_database(path: &Path) -> Result<Database, OpenError> {
    let mut database = Builder::new()
        .set_cache_size(CACHE_SIZE)
        .create_file(private_file(path).map_err(OpenError::Io)?)?;
    database.check_integrity()?;
    Ok(database)
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Moves a damaged file to `state.redb.damaged-<time>`.
fn set_aside(path: &Path) -> Result<PathBuf, StateError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".damaged-{}", now.as_millis()));
    let aside = PathBuf::from(aside);
    std::fs::rename(path, &aside).map_err(|cause| StateError::directory(path, cause))?;
    Ok(aside)
}

#[cfg(test)]
mod tests;
