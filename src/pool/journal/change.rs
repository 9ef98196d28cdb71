//! What is written: the changes of a job's life, and how they stand in the log.
//!
//! Backends stand there by name, for their numbers are those of one process. What the fields are is
//! part of the [schema](super::record::SCHEMA).

use std::sync::Arc;

use bytes::Bytes;

use super::codec::{Damaged, Fields, Reader};
use crate::backend::BackendId;
use crate::identity::ClientKey;
use crate::pool::core::{Attempt, Kept, Marks, Outcome, Phase};
use crate::pool::job::{Job, JobId, Needs, Owner};
use crate::tasks::kind::Kind;

/// The SHA-256 (or the like) by which a repeated body is known.
pub type Fingerprint = [u8; 32];

/// A job was accepted: it must be durable before its client hears of it.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The job.
    pub job: Arc<Job>,
    /// The body of the backend's 200.
    pub reply: Bytes,
    /// What a repeat of the same body is known by.
    pub fingerprint: Fingerprint,
    /// The counter of numbers after this job.
    pub counter: u64,
}

/// An accepted job is in another state.
#[derive(Debug, Clone)]
pub struct Moved {
    /// Which.
    pub id: JobId,
    /// Where it is now.
    pub phase: Phase,
    /// How many attempts were made.
    pub attempts: Attempt,
    /// What else is to be kept of it.
    pub marks: Marks,
    /// The id it has at the backend, where that differs from its own.
    pub remote_id: Option<Arc<str>>,
}

/// An accepted job has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Which.
    pub id: JobId,
    /// How.
    pub outcome: Outcome,
    /// Where it ran last, if it ran.
    pub backend: Option<BackendId>,
    /// How many attempts it took.
    pub attempts: Attempt,
    /// Seconds it ran, if that is known.
    pub run_seconds: Option<f64>,
    /// Milliseconds since 1970 when it ended.
    pub finished_ms: u64,
    /// A few words for lists, kept in memory; at most [`MAX_SUMMARY`](super::MAX_SUMMARY) bytes,
    /// a longer one is not kept.
    pub summary: Bytes,
    /// Its history entry, without secrets; empty when history has none.
    pub entry: Bytes,
}

/// A change.
#[derive(Debug, Clone)]
pub enum Change {
    /// Accepted.
    Accepted(Accepted),
    /// Moved.
    Moved(Moved),
    /// Ended.
    Ended(Box<Ended>),
}

/// An accepted job that has not ended, as the journal keeps it.
#[derive(Debug, Clone)]
pub struct OpenJob {
    /// The job. `needs.only_on` is not set: see `only_on`.
    pub job: Arc<Job>,
    /// The name of the backend it can run on alone.
    pub only_on: Option<Arc<str>>,
    /// The body of the backend's 200.
    pub reply: Bytes,
    /// What a repeat of the same body is known by.
    pub fingerprint: Fingerprint,
    /// Where it was.
    pub at: PhaseName,
    /// How many attempts were made.
    pub attempts: Attempt,
    /// What else is kept of it.
    pub marks: Marks,
    /// The id it has at the backend, where that differs from its own.
    pub remote_id: Option<Arc<str>>,
}

impl OpenJob {
    /// As the core takes it; `id_of` gives the number of a backend's name in this process.
    pub fn kept(&self, id_of: impl Fn(&str) -> BackendId) -> Kept {
        let mut job = Arc::clone(&self.job);
        if let Some(name) = &self.only_on {
            let needs = Needs { only_on: Some(id_of(name)), ..(*job.needs).clone() };
            job = Arc::new(Job { needs: Arc::new(needs), ..(*job).clone() });
        }
        let phase = self.at.phase(id_of);
        let (attempts, marks) = (self.attempts, self.marks);
        Kept { job, phase, attempts, marks, reply: self.reply.clone() }
    }
}

/// A [`Phase`] with the backend's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseName {
    /// As [`Phase`] orders them.
    step: u8,
    /// Where, unless it waits.
    backend: Option<Arc<str>>,
}

impl PhaseName {
    pub(super) const WAITING: Self = Self { step: 0, backend: None };

    pub(super) fn new(phase: Phase, name: impl Fn(BackendId) -> Option<Arc<str>>) -> Self {
        let (step, backend) = match phase {
            Phase::Waiting => (0, None),
            Phase::Sent(backend) => (1, Some(backend)),
            Phase::Running(backend) => (2, Some(backend)),
            Phase::Ending(backend) => (3, Some(backend)),
            Phase::Doubtful(backend) => (4, Some(backend)),
        };
        let known = |backend| name(backend).unwrap_or_else(|| "?".into());
        Self { step, backend: backend.map(known) }
    }

    /// The backend's name, unless it waits.
    pub fn backend(&self) -> Option<&Arc<str>> {
        self.backend.as_ref()
    }

    /// The phase in this process.
    pub fn phase(&self, id_of: impl Fn(&str) -> BackendId) -> Phase {
        let Some(backend) = self.backend.as_deref().map(id_of) else { return Phase::Waiting };
        match self.step {
            1 => Phase::Sent(backend),
            2 => Phase::Running(backend),
            3 => Phase::Ending(backend),
            _ => Phase::Doubtful(backend),
        }
    }

    fn put(&self, fields: &mut Fields) {
        fields.u8(self.step);
        fields.maybe(self.backend.as_deref(), Fields::text);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, Damaged> {
        let step = reader.u8()?;
        let backend = reader.maybe(Reader::text)?.map(Arc::from);
        Ok(Self { step, backend })
    }
}

/// The meta of an open job; its payload is the body.
pub(super) fn put_open(open: &OpenJob, counter: u64) -> Vec<u8> {
    let mut fields = Fields::default();
    let job = &open.job;
    fields.u64(job.id.0);
    fields.text(&job.prompt_id);
    put_owner(&mut fields, &job.owner);
    fields.f64(job.number);
    fields.raw(&job.priority.to_le_bytes());
    for names in [&job.needs.nodes, &job.needs.models] {
        fields.count(names.len());
        for name in names {
            fields.text(name);
        }
    }
    fields.maybe(job.needs.task_type.as_deref(), Fields::text);
    fields.maybe(open.only_on.as_deref(), Fields::text);
    fields.maybe(job.kind.as_ref(), |fields, kind| {
        fields.u64(kind.hash);
        fields.text(&kind.label);
    });
    fields.maybe(job.zone.as_deref(), Fields::text);
    fields.u8(u8::from(job.once));
    fields.u64(job.created_ms);
    fields.bytes(&open.reply);
    fields.raw(&open.fingerprint);
    open.at.put(&mut fields);
    fields.u32(open.attempts);
    fields.maybe(open.remote_id.as_deref(), Fields::text);
    fields.u64(counter);
    put_marks(&mut fields, open.marks);
    fields.0
}

/// An open job and the counter, from its meta and its body.
pub(super) fn take_open(meta: &[u8], body: Bytes) -> Result<(OpenJob, u64), Damaged> {
    let reader = &mut Reader::new(meta);
    let id = JobId(reader.u64()?);
    let prompt_id = reader.text()?.into();
    let owner = take_owner(reader)?;
    let number = reader.f64()?;
    let priority = i32::from_le_bytes(reader.array()?);
    let (nodes, models) = (take_names(reader)?, take_names(reader)?);
    let task_type = reader.maybe(Reader::text)?.map(Box::from);
    let needs = Arc::new(Needs { nodes, models, task_type, only_on: None });
    let only_on = reader.maybe(Reader::text)?.map(Arc::from);
    let kind =
        reader.maybe(|reader| Ok(Kind { hash: reader.u64()?, label: reader.text()?.into() }))?;
    let zone = reader.maybe(Reader::text)?.map(Arc::from);
    let once = reader.u8()? != 0;
    let created_ms = reader.u64()?;
    let job =
        Job { id, prompt_id, owner, number, priority, needs, kind, zone, once, created_ms, body };
    let mut open = OpenJob {
        job: Arc::new(job),
        only_on,
        reply: Bytes::copy_from_slice(reader.bytes()?),
        fingerprint: reader.array()?,
        at: PhaseName::take(reader)?,
        attempts: reader.u32()?,
        marks: Marks::default(),
        remote_id: reader.maybe(Reader::text)?.map(Arc::from),
    };
    let counter = reader.u64()?;
    open.marks = take_marks(reader)?;
    Ok((open, counter))
}

/// The id alone, which every meta of a job begins with.
pub(super) fn take_id(meta: &[u8]) -> Result<JobId, Damaged> {
    Reader::new(meta).u64().map(JobId)
}

fn take_names(reader: &mut Reader<'_>) -> Result<std::collections::BTreeSet<Box<str>>, Damaged> {
    (0..reader.count()?).map(|_| reader.text().map(Box::from)).collect()
}

pub(super) fn put_owner(fields: &mut Fields, owner: &Owner) {
    fields.raw(&owner.key.to_bytes());
    fields.text(&owner.caller);
    fields.maybe(owner.client_id.as_deref(), Fields::text);
}

pub(super) fn take_owner(reader: &mut Reader<'_>) -> Result<Owner, Damaged> {
    Ok(Owner {
        key: ClientKey::from_bytes(reader.array()?),
        caller: reader.text()?.into(),
        client_id: reader.maybe(Reader::text)?.map(Arc::from),
    })
}

/// The meta of a move.
pub(super) fn put_moved(id: JobId, open: &OpenJob) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.u64(id.0);
    open.at.put(&mut fields);
    fields.u32(open.attempts);
    fields.maybe(open.remote_id.as_deref(), Fields::text);
    put_marks(&mut fields, open.marks);
    fields.0
}

/// Makes the move of this meta.
pub(super) fn take_moved(meta: &[u8], open: &mut OpenJob) -> Result<(), Damaged> {
    let reader = &mut Reader::new(meta);
    reader.u64()?;
    open.at = PhaseName::take(reader)?;
    open.attempts = reader.u32()?;
    open.remote_id = reader.maybe(Reader::text)?.map(Arc::from);
    open.marks = take_marks(reader)?;
    Ok(())
}

const BEGAN: u8 = 1;
const CANCELLED: u8 = 2;

fn put_marks(fields: &mut Fields, marks: Marks) {
    fields.u32(marks.strikes);
    let began = if marks.began { BEGAN } else { 0 };
    fields.u8(began | if marks.cancelled { CANCELLED } else { 0 });
}

/// What an earlier version wrote has none.
fn take_marks(reader: &mut Reader<'_>) -> Result<Marks, Damaged> {
    if reader.is_empty() {
        return Ok(Marks::default());
    }
    let (strikes, flags) = (reader.u32()?, reader.u8()?);
    let (began, cancelled) = (flags & BEGAN != 0, flags & CANCELLED != 0);
    Ok(Marks { strikes, began, cancelled })
}

/// A list of ids.
pub(super) fn put_ids(ids: &[JobId]) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.count(ids.len());
    for id in ids {
        fields.u64(id.0);
    }
    fields.0
}

pub(super) fn take_ids(meta: &[u8]) -> Result<Vec<JobId>, Damaged> {
    let reader = &mut Reader::new(meta);
    (0..reader.count()?).map(|_| reader.u64().map(JobId)).collect()
}
