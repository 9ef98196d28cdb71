//! A record in a segment, and how records are found again.
//!
//! A segment opens with a [`Stamp`]; then record after record: a head of 28 bytes, `meta`, payload.
//! Head and meta have one checksum, the payload another, so that an index can be made without the
//! payloads, and a payload that is gone does not hide what follows it.
//!
//! **Hazard.** Payloads are clients' bytes. After damage the next record is searched for, and a
//! client could have sent what looks like one; so the checksums begin with the journal's own salt,
//! which no client learns.

use std::io;

use bytes::Bytes;

use super::codec::{Damaged, Fields, Reader};
use super::disk::Blob;

/// The schema this version reads and writes. Every segment carries the one it was written with.
pub(super) const SCHEMA: u32 = 1;
/// Bytes before a segment's first record.
pub(super) const STAMP: u64 = 64;
const STAMP_MAGIC: &[u8; 8] = b"COMFYGJ\n";
const MAGIC: &[u8; 4] = b"\x1fCGj";
const HEAD: usize = 28;
/// Bytes of a meta at most: a prompt of 10,000 nodes stays far below.
const MAX_META: usize = 64 << 20;
/// How much is looked at in one go when the next record is searched for.
const WINDOW: usize = 64 << 10;

/// What a segment opens with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) schema: u32,
    pub(super) salt: u32,
    /// Job ids below were given away when the segment was made.
    pub(super) next_id: u64,
    /// The counter of numbers at that time.
    pub(super) counter: u64,
}

impl Stamp {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.raw(STAMP_MAGIC);
        fields.u32(self.schema);
        fields.u32(self.salt);
        fields.u64(self.next_id);
        fields.u64(self.counter);
        let sum = crc32fast::hash(&fields.0);
        fields.u32(sum);
        fields.0.resize(STAMP as usize, 0);
        fields.0
    }

    pub(super) fn read(blob: &dyn Blob) -> Option<Self> {
        let mut bytes = [0; STAMP as usize];
        blob.read_at(&mut bytes, 0).ok()?;
        Self::decode(&bytes).ok()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut reader = Reader::new(bytes);
        let magic = reader.array::<8>()?;
        let stamp = Self {
            schema: reader.u32()?,
            salt: reader.u32()?,
            next_id: reader.u64()?,
            counter: reader.u64()?,
        };
        let whole = reader.u32()? == crc32fast::hash(&bytes[..32]);
        if &magic == STAMP_MAGIC && whole { Ok(stamp) } else { Err(Damaged) }
    }
}

/// A record as it is to be written.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Head and meta.
    pub(super) head: Vec<u8>,
    /// The payload, in parts.
    pub(super) payload: [Bytes; 2],
    /// The payload's checksum.
    pub(super) sum: u32,
}

impl Record {
    pub(super) fn new(kind: u8, meta: &[u8], payload: [Bytes; 2], salt: u32) -> Self {
        let sum = sum_of(salt, &[&payload[0], &payload[1]]);
        let length = payload.iter().map(|part| part.len() as u64).sum();
        let mut fields = Fields(Vec::with_capacity(HEAD + meta.len()));
        fields.raw(MAGIC);
        fields.u32(u32::from(kind));
        fields.count(meta.len());
        fields.u32(sum);
        fields.u64(length);
        let head_sum = sum_of(salt, &[&fields.0, meta]);
        fields.u32(head_sum);
        fields.raw(meta);
        Self { head: fields.0, payload, sum }
    }

    /// Bytes of the payload.
    pub(super) fn payload_len(&self) -> u64 {
        self.payload.iter().map(|part| part.len() as u64).sum()
    }

    /// Bytes in the segment.
    pub(super) fn len(&self) -> u64 {
        self.head.len() as u64 + self.payload_len()
    }
}

fn sum_of(salt: u32, parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// Whether a payload is the one that was written.
pub(super) fn is_intact(payload: &[u8], sum: u32, salt: u32) -> bool {
    sum_of(salt, &[payload]) == sum
}

/// A record that was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Where it begins.
    pub(super) at: u64,
    pub(super) kind: u8,
    pub(super) meta: Vec<u8>,
    pub(super) payload: Bytes,
    pub(super) sum: u32,
    /// Whether the payload is the one that was written.
    pub(super) intact: bool,
}

impl Found {
    /// Where its payload begins.
    pub(super) fn payload_at(&self) -> u64 {
        self.at + (HEAD + self.meta.len()) as u64
    }

    /// Where it ends.
    pub(super) fn end(&self) -> u64 {
        self.payload_at() + self.payload.len() as u64
    }
}

/// The whole record at `at`; `None` where none stands, or not all of it.
pub(super) fn read(blob: &dyn Blob, at: u64, length: u64, salt: u32) -> io::Result<Option<Found>> {
    let Some(head) = read_head(blob, at, length)? else { return Ok(None) };
    let room = length - at - HEAD as u64;
    let meta_len = head.meta_len as u64;
    if head.meta_len > MAX_META || meta_len > room || head.payload_len > room - meta_len {
        return Ok(None);
    }
    let mut meta = vec![0; head.meta_len];
    blob.read_at(&mut meta, at + HEAD as u64)?;
    if sum_of(salt, &[&head.bytes[..HEAD - 4], &meta]) != head.own_sum {
        return Ok(None);
    }
    let mut payload = vec![0; head.payload_len as usize];
    blob.read_at(&mut payload, at + HEAD as u64 + meta_len)?;
    let intact = is_intact(&payload, head.sum, salt);
    let (kind, sum) = (head.kind, head.sum);
    Ok(Some(Found { at, kind, meta, payload: payload.into(), sum, intact }))
}

struct Head {
    bytes: [u8; HEAD],
    kind: u8,
    meta_len: usize,
    /// Of the payload.
    sum: u32,
    payload_len: u64,
    /// Of what stands before it and the meta.
    own_sum: u32,
}

fn read_head(blob: &dyn Blob, at: u64, length: u64) -> io::Result<Option<Head>> {
    if length.saturating_sub(at) < HEAD as u64 {
        return Ok(None);
    }
    let mut bytes = [0; HEAD];
    blob.read_at(&mut bytes, at)?;
    Ok(parse_head(bytes).ok())
}

fn parse_head(bytes: [u8; HEAD]) -> Result<Head, Damaged> {
    let mut reader = Reader::new(&bytes);
    if &reader.array::<4>()? != MAGIC {
        return Err(Damaged);
    }
    Ok(Head {
        bytes,
        kind: u8::try_from(reader.u32()?).map_err(|_| Damaged)?,
        meta_len: reader.count()?,
        sum: reader.u32()?,
        payload_len: reader.u64()?,
        own_sum: reader.u32()?,
    })
}

/// The first whole record after `from`: the way on after damage.
pub(super) fn search(
    blob: &dyn Blob,
    from: u64,
    length: u64,
    salt: u32,
) -> io::Result<Option<Found>> {
    let mut at = from;
    let mut window = vec![0; WINDOW];
    while length.saturating_sub(at) >= HEAD as u64 {
        let size = WINDOW.min(usize::try_from(length - at).unwrap_or(WINDOW));
        blob.read_at(&mut window[..size], at)?;
        for hit in memchr::memmem::find_iter(&window[..size], MAGIC) {
            if let Some(found) = read(blob, at + hit as u64, length, salt)? {
                return Ok(Some(found));
            }
        }
        at += (size - (MAGIC.len() - 1)) as u64;
    }
    Ok(None)
}
