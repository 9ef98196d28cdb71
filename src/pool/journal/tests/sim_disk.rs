//! A disk in memory: what was written and not synced is lost, or torn, or garbled, at a crash.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::disk::{Blob, Disk};

#[derive(Clone, Default)]
struct Content {
    /// What the next reader sees.
    now: Vec<u8>,
    /// What is on the platter for certain.
    durable: Vec<u8>,
}

#[derive(Default)]
struct Knobs {
    /// Bytes that all files may have.
    room: AtomicU64,
    fails_sync: AtomicBool,
    fails_cut: AtomicBool,
    syncs: AtomicU64,
    /// Operations until a picture of the disk is taken; 0: none.
    until_picture: AtomicU64,
    picture: Mutex<Option<SimDisk>>,
}

type Files = Arc<Mutex<BTreeMap<String, Arc<Mutex<Content>>>>>;

#[derive(Clone)]
pub(super) struct SimDisk {
    files: Files,
    knobs: Arc<Knobs>,
}

struct SimFile {
    content: Arc<Mutex<Content>>,
    disk: SimDisk,
}

impl SimDisk {
    pub(super) fn new() -> Self {
        let disk = Self { files: Files::default(), knobs: Arc::default() };
        disk.set_room(u64::MAX);
        disk
    }

    pub(super) fn set_room(&self, room: u64) {
        self.knobs.room.store(room, Ordering::Relaxed);
    }

    pub(super) fn fail_sync(&self, fails: bool) {
        self.knobs.fails_sync.store(fails, Ordering::Relaxed);
    }

    pub(super) fn fail_cut(&self, fails: bool) {
        self.knobs.fails_cut.store(fails, Ordering::Relaxed);
    }

    pub(super) fn syncs(&self) -> u64 {
        self.knobs.syncs.load(Ordering::Relaxed)
    }

    pub(super) fn used(&self) -> u64 {
        let files: Vec<_> = self.files.lock().values().cloned().collect();
        files.iter().map(|content| content.lock().now.len() as u64).sum()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.files.lock().keys().cloned().collect()
    }

    /// The machine loses power: of what was not synced any part may have come to the platter, and
    /// what did may be garbled.
    pub(super) fn crash(&self, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut files = BTreeMap::new();
        for (name, content) in &*self.files.lock() {
            let content = content.lock();
            let mut survived = content.durable.clone();
            if content.now.len() > survived.len() && random.random_bool(0.7) {
                let sure = survived.len();
                let until = random.random_range(sure..=content.now.len());
                survived.extend_from_slice(&content.now[sure..until]);
                if until > sure && random.random_bool(0.5) {
                    let at = random.random_range(sure..until);
                    let end = (at + random.random_range(1..64)).min(until);
                    survived[at..end]
                        .iter_mut()
                        .for_each(|byte| *byte ^= random.random_range(1..=255));
                }
                if random.random_bool(0.2) {
                    let zeros = random.random_range(1..5000);
                    survived.resize(survived.len() + zeros, 0);
                }
            }
            let content = Content { now: survived.clone(), durable: survived };
            files.insert(name.clone(), Arc::new(Mutex::new(content)));
        }
        let disk = Self::new();
        *disk.files.lock() = files;
        disk
    }

    /// Remembers how the disk is before the operation after `operations` more.
    pub(super) fn take_picture_after(&self, operations: u64) {
        self.knobs.until_picture.store(operations + 1, Ordering::Relaxed);
    }

    /// The disk as it was when the picture was taken, or as it is.
    pub(super) fn picture(&self) -> Self {
        self.knobs.until_picture.store(0, Ordering::Relaxed);
        self.knobs.picture.lock().take().unwrap_or_else(|| self.copy())
    }

    fn copy(&self) -> Self {
        let disk = Self::new();
        let files = self.files.lock();
        let copies = files
            .iter()
            .map(|(name, content)| (name.clone(), Arc::new(Mutex::new(content.lock().clone()))));
        *disk.files.lock() = copies.collect();
        disk
    }

    fn step(&self) {
        let left = self.knobs.until_picture.load(Ordering::Relaxed);
        if left == 1 {
            *self.knobs.picture.lock() = Some(self.copy());
        }
        self.knobs.until_picture.store(left.saturating_sub(1), Ordering::Relaxed);
    }

    fn full() -> io::Error {
        io::Error::from(io::ErrorKind::StorageFull)
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        self.step();
        let content = Arc::new(Mutex::new(Content::default()));
        self.files.lock().insert(name.to_owned(), Arc::clone(&content));
        Ok(Arc::new(SimFile { content, disk: self.clone() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        let content = self.files.lock().get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { content, disk: self.clone() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.step();
        let removed = self.files.lock().remove(name);
        removed.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl Blob for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.content.lock().now.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let content = self.content.lock();
        let from = content.now.get(at as usize..).ok_or(io::ErrorKind::UnexpectedEof)?;
        let from = from.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(from);
        Ok(())
    }

    /// As much as there is room for, then the error: a torn write.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.disk.step();
        let room = self.disk.knobs.room.load(Ordering::Relaxed);
        let left = room.saturating_sub(self.disk.used());
        let mut content = self.content.lock();
        let (start, end) = (at as usize, at as usize + bytes.len());
        let grows = end.saturating_sub(content.now.len()) as u64;
        let fits = if grows > left {
            bytes.len().saturating_sub((grows - left) as usize)
        } else {
            bytes.len()
        };
        let end = start + fits;
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[start..end].copy_from_slice(&bytes[..fits]);
        if fits < bytes.len() { Err(SimDisk::full()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step();
        if self.disk.knobs.fails_sync.load(Ordering::Relaxed) {
            return Err(io::Error::other("input/output error"));
        }
        self.disk.knobs.syncs.fetch_add(1, Ordering::Relaxed);
        let mut content = self.content.lock();
        content.durable = content.now.clone();
        Ok(())
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.disk.step();
        if self.disk.knobs.fails_cut.load(Ordering::Relaxed) {
            return Err(io::Error::other("input/output error"));
        }
        self.content.lock().now.truncate(length as usize);
        Ok(())
    }
}
