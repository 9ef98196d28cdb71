//! What a fuzzer calls of this module: see [`crate::fuzz`].

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a target tells of a broken promise by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::change;
use super::codec::Reader;
use super::disk::{Blob, Disk};
use super::finished::Finished;
use super::record::{Record, SCHEMA, Stamp};
use super::restore::{self, Journaled};
use crate::fuzz::Input;

const SALT: u32 = 42;
const SEGMENT: u64 = 1 << 20;
const KINDS: [u8; 6] = [1, 2, 3, 16, 17, 99];

type Content = Arc<Mutex<Vec<u8>>>;

/// A disk in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<BTreeMap<String, Content>>>);

struct File(Content);

impl Disk for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        let content = Content::default();
        self.0.lock().insert(name.to_owned(), Arc::clone(&content));
        Ok(Arc::new(File(content)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        let content = self.0.lock().get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(File(content)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl Blob for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let content = self.0.lock();
        let from = usize::try_from(at).ok().and_then(|at| content.get(at..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let (mut content, at) = (self.0.lock(), at as usize);
        let end = at + bytes.len();
        let longest = content.len().max(end);
        content.resize(longest, 0);
        content[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.0.lock().truncate(length as usize);
        Ok(())
    }
}

/// Pieces of the two streams: each with a byte that says what it is, a meta behind its length and a
/// payload behind its own. Records have the right checksums, since no fuzzer guesses those.
pub fn journal(data: &[u8]) {
    let mut input = Input(data);
    let stamp = Stamp { schema: SCHEMA, salt: SALT, next_id: 1, counter: 1 }.encode();
    let mut streams = [stamp.clone(), stamp];
    for _ in 0..64 {
        if input.0.is_empty() {
            break;
        }
        let choice = input.byte();
        let (meta, payload) = (input.counted(), input.counted());
        let stream = &mut streams[usize::from(choice & 1)];
        match choice >> 1 & 7 {
            // Damage: bytes that are no record, and a record whose payload is another.
            6 => stream.extend_from_slice(meta),
            7 => {
                let record =
                    Record::new(KINDS[0], meta, [Bytes::from_static(b"x"), Bytes::new()], SALT);
                stream.extend_from_slice(&record.head);
                stream.push(b'y');
            }
            kind => {
                let kind = KINDS[usize::from(kind)];
                let body = Bytes::copy_from_slice(payload);
                let record = Record::new(kind, meta, [body, Bytes::new()], SALT);
                stream.extend_from_slice(&record.head);
                stream.extend_from_slice(payload);
            }
        }
        metas(meta, payload);
    }
    let disk = Memory::default();
    for (prefix, bytes) in ["open", restore::DONE].into_iter().zip(streams) {
        let made =
            disk.create(&super::stream::name(prefix, 1)).and_then(|blob| blob.write_at(&bytes, 0));
        assert!(made.is_ok());
    }
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let first = restored(&disk);
    let again = restored(&disk);
    assert_eq!(told(&first), told(&again), "read twice, read alike");
    assert!(first.open.keys().all(|id| first.index.ordinal(*id).is_none()), "open or ended");
    assert!(first.open.keys().all(|id| id.0 == u64::MAX || id.0 < first.next.id), "never again");
}

fn restored(disk: &Arc<dyn Disk>) -> Journaled {
    restore::read(disk, None, SEGMENT).ok().expect("damage is stepped over")
}

fn told(found: &Journaled) -> (BTreeSet<u64>, Vec<Vec<u8>>, u64) {
    let open = found.open.keys().map(|id| id.0).collect();
    let ended = found.index.slots().map(|slot| slot.finished.put()).collect();
    (open, ended, found.next.id)
}

/// What a meta says is written as the same bytes again, read again, and written alike.
fn metas(meta: &[u8], payload: &[u8]) {
    if let Ok((open, counter)) = change::take_open(meta, Bytes::copy_from_slice(payload)) {
        let put = change::put_open(&open, counter);
        let (again, same) = change::take_open(&put, open.job.body.clone()).expect("it was written");
        assert_eq!((change::put_open(&again, same), same), (put, counter));
        assert_eq!(change::take_id(meta), Ok(open.job.id));
    }
    if let Ok(finished) = Finished::take(&mut Reader::new(meta)) {
        let put = finished.put();
        let again = Finished::take(&mut Reader::new(&put)).expect("it was written");
        assert_eq!(again.put(), put);
        assert!(meta.starts_with(&put), "as it stood there");
    }
    if let Ok(ids) = change::take_ids(meta) {
        assert!(meta.starts_with(&change::put_ids(&ids)));
    }
}
