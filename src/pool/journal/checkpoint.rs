//! The index of finished jobs on the disk: `journal.redb`.
//!
//! It holds nothing that the segments do not hold: with it the journal opens without reading
//! gigabytes. Written about once a second, it says up to which place of the stream it knows
//! everything. It is small (some 400 bytes a job), so every page of it is checked when it is
//! opened; a damaged one is moved aside and made anew from the segments.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError,
};

use super::codec::{Damaged, Fields, Reader};
use super::error::JournalError;
use super::finished::Finished;
use super::index::{Place, Slot, Spot};
use super::record::SCHEMA;

/// Ordinal → place and job.
const FINISHED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("finished");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Bytes of it cached by redb.
const CACHE_SIZE: usize = 8 << 20;
/// redb's page; it refuses a file whose length is no multiple of it.
const PAGE: u64 = 4096;

/// What stands beside the jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) salt: u32,
    /// Everything of the stream of finished jobs before this place is in the index.
    pub(super) position: (u64, u64),
    pub(super) next_id: u64,
    pub(super) next_ordinal: u64,
    pub(super) counter: u64,
}

/// What an index held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) meta: Meta,
    pub(super) slots: Vec<Slot>,
}

pub(super) struct Checkpoint {
    path: PathBuf,
    database: Option<Database>,
}

enum Failure {
    Damaged,
    Newer(u32),
    Error(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. } => Self::Damaged,
            redb::Error::UpgradeRequired(_) => Self::Damaged,
            redb::Error::Io(error) if is_damage(&error) => Self::Damaged,
            error => Self::Error(error),
        }
    }
}

fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

impl Checkpoint {
    /// Opens the index; `None` beside it when there is none to be used.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Loaded>), JournalError> {
        let path = path.to_owned();
        match open_database(&path).and_then(|database| Ok((load(&database)?, database))) {
            Ok((loaded, database)) => Ok((Self { path, database: Some(database) }, loaded)),
            Err(Failure::Newer(found)) => Err(JournalError::Newer { path, found }),
            Err(Failure::Damaged) => {
                let aside = path.with_extension("redb.damaged");
                std::fs::rename(&path, aside).map_err(JournalError::at(&path))?;
                Ok((Self { path, database: None }, None))
            }
            Err(Failure::Error(redb::Error::DatabaseAlreadyOpen)) => Err(JournalError::InUse(path)),
            // Without an index the jobs are found all the same; the next save makes a new one.
            Err(Failure::Error(error)) => {
                log::warn!("{}: {error}; reading all segments instead", path.display());
                Ok((Self { path, database: None }, None))
            }
        }
    }

    /// Whether the next [`save`](Self::save) must bring everything.
    pub(super) fn is_empty(&self) -> bool {
        self.database.is_none()
    }

    /// Brings the index up to date, durably. After an error it is empty.
    pub(super) fn save<'s>(
        &mut self,
        meta: Meta,
        changed: impl Iterator<Item = &'s Slot>,
        gone: impl Iterator<Item = u64>,
    ) -> Result<(), redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => make_database(&self.path)?,
        };
        write(&database, meta, changed, gone)?;
        self.database = Some(database);
        Ok(())
    }
}

fn file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    if !length.is_multiple_of(PAGE) {
        file.set_len(length.next_multiple_of(PAGE))?;
    }
    Ok(file)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_SIZE);
    builder
}

fn open_database(path: &Path) -> Result<Database, Failure> {
    let mut database = builder().create_file(file(path)?)?;
    database.check_integrity()?;
    Ok(database)
}

fn make_database(path: &Path) -> Result<Database, redb::Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let made: Result<_, DatabaseError> = builder().create_file(file(path)?);
    Ok(made?)
}

fn load(database: &Database) -> Result<Option<Loaded>, Failure> {
    let reading = database.begin_read()?;
    let meta = match reading.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        other => other?,
    };
    let field = |name: &str| Ok::<_, Failure>(meta.get(name)?.map_or(0, |value| value.value()));
    let schema = u32::try_from(field("schema")?).unwrap_or(u32::MAX);
    if schema > SCHEMA {
        return Err(Failure::Newer(schema));
    }
    let meta = Meta {
        salt: u32::try_from(field("salt")?).map_err(|_| Failure::Damaged)?,
        position: (field("segment")?, field("offset")?),
        next_id: field("next_id")?,
        next_ordinal: field("next_ordinal")?,
        counter: field("counter")?,
    };
    let mut slots = Vec::new();
    for row in reading.open_table(FINISHED)?.iter()? {
        let (_, bytes) = row?;
        slots.push(take_slot(bytes.value()).map_err(|_| Failure::Damaged)?);
    }
    Ok(Some(Loaded { meta, slots }))
}

fn write<'s>(
    database: &Database,
    meta: Meta,
    changed: impl Iterator<Item = &'s Slot>,
    gone: impl Iterator<Item = u64>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut finished = transaction.open_table(FINISHED)?;
        for ordinal in gone {
            finished.remove(ordinal)?;
        }
        for slot in changed {
            if let Some(bytes) = put_slot(slot) {
                finished.insert(slot.finished.ordinal, &bytes[..])?;
            }
        }
        let mut table = transaction.open_table(META)?;
        let fields = [
            ("schema", u64::from(SCHEMA)),
            ("salt", u64::from(meta.salt)),
            ("segment", meta.position.0),
            ("offset", meta.position.1),
            ("next_id", meta.next_id),
            ("next_ordinal", meta.next_ordinal),
            ("counter", meta.counter),
        ];
        for (name, value) in fields {
            table.insert(name, value)?;
        }
    }
    Ok(transaction.commit()?)
}

/// `None` while it is not on the disk.
fn put_slot(slot: &Slot) -> Option<Vec<u8>> {
    let Place::Disk(spot) = &slot.place else { return None };
    let mut fields = Fields::default();
    spot.put(&mut fields);
    fields.raw(&slot.finished.put());
    Some(fields.0)
}

fn take_slot(bytes: &[u8]) -> Result<Slot, Damaged> {
    let mut reader = Reader::new(bytes);
    let place = Place::Disk(Spot::take(&mut reader)?);
    Ok(Slot { finished: Arc::new(Finished::take(&mut reader)?), place })
}
