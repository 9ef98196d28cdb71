//! A job that has ended, as lists and repeats need it. What is longer stays on the disk.

use std::sync::Arc;

use bytes::Bytes;

use super::change::{Fingerprint, put_owner, take_owner};
use super::codec::{Damaged, Fields, Reader};
use crate::pool::core::{Attempt, Outcome};
use crate::pool::job::{JobId, Owner};

/// Bytes of a summary at most.
pub const MAX_SUMMARY: usize = 8 << 10;
/// Replies up to this are kept in memory; longer ones name invalid nodes and stay on the disk.
const MAX_REPLY: usize = 256;
/// Characters of an error that are kept.
const MAX_ERROR: usize = 500;

/// A job that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Its number.
    pub id: JobId,
    /// Its place in the order of finishing; unique, and the same for good.
    pub ordinal: u64,
    /// The id that its client knows.
    pub prompt_id: Arc<str>,
    /// Whose it is.
    pub owner: Owner,
    /// Its place as ComfyUI orders.
    pub number: f64,
    /// How it ended.
    pub outcome: Outcome,
    /// The name of the backend where it ran last.
    pub backend: Option<Arc<str>>,
    /// How many attempts it took.
    pub attempts: Attempt,
    /// Seconds it ran, if that is known.
    pub run_seconds: Option<f64>,
    /// Milliseconds since 1970 when it came.
    pub created_ms: u64,
    /// Milliseconds since 1970 when it ended.
    pub finished_ms: u64,
    /// What a repeat of the same body is known by.
    pub fingerprint: Fingerprint,
    /// The body of the backend's 200; `None` when it is long: see
    /// [`Journal::reply`](super::Journal::reply).
    pub reply: Option<Bytes>,
    /// A few words for lists.
    pub summary: Bytes,
    /// Bytes of its history entry; 0 when history has none.
    pub entry_len: u64,
}

impl Finished {
    /// Bounds what is kept in memory. The reply that is too long for it comes back.
    pub(super) fn bound(mut self, reply: Bytes) -> (Self, Bytes) {
        if self.summary.len() > MAX_SUMMARY {
            self.summary = Bytes::new();
        }
        if let Outcome::Failed { error } = &mut self.outcome
            && let Some((end, _)) = error.char_indices().nth(MAX_ERROR)
        {
            error.truncate(end);
        }
        if reply.len() > MAX_REPLY {
            return (self, reply);
        }
        self.reply = Some(Bytes::copy_from_slice(&reply));
        (self, Bytes::new())
    }

    /// The meta; the payload is the entry, then the long reply.
    pub(super) fn put(&self) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.u64(self.id.0);
        fields.u64(self.ordinal);
        fields.text(&self.prompt_id);
        put_owner(&mut fields, &self.owner);
        fields.f64(self.number);
        put_outcome(&mut fields, &self.outcome);
        fields.maybe(self.backend.as_deref(), Fields::text);
        fields.u32(self.attempts);
        fields.maybe(self.run_seconds, Fields::f64);
        fields.u64(self.created_ms);
        fields.u64(self.finished_ms);
        fields.raw(&self.fingerprint);
        fields.maybe(self.reply.as_deref(), Fields::bytes);
        fields.bytes(&self.summary);
        fields.u64(self.entry_len);
        fields.0
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(Self {
            id: JobId(reader.u64()?),
            ordinal: reader.u64()?,
            prompt_id: reader.text()?.into(),
            owner: take_owner(reader)?,
            number: reader.f64()?,
            outcome: take_outcome(reader)?,
            backend: reader.maybe(Reader::text)?.map(Arc::from),
            attempts: reader.u32()?,
            run_seconds: reader.maybe(Reader::f64)?,
            created_ms: reader.u64()?,
            finished_ms: reader.u64()?,
            fingerprint: reader.array()?,
            reply: reader.maybe(Reader::bytes)?.map(Bytes::copy_from_slice),
            summary: Bytes::copy_from_slice(reader.bytes()?),
            entry_len: reader.u64()?,
        })
    }
}

fn put_outcome(fields: &mut Fields, outcome: &Outcome) {
    match outcome {
        Outcome::Completed => fields.u8(0),
        Outcome::Failed { error } => {
            fields.u8(1);
            fields.text(error);
        }
        Outcome::Cancelled => fields.u8(2),
    }
}

fn take_outcome(reader: &mut Reader<'_>) -> Result<Outcome, Damaged> {
    match reader.u8()? {
        0 => Ok(Outcome::Completed),
        1 => Ok(Outcome::Failed { error: reader.text()?.to_owned() }),
        2 => Ok(Outcome::Cancelled),
        _ => Err(Damaged),
    }
}
