//! What stands in the line to the disk: changes as they are to be written, and the tickets of those
//! who wait for them.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::change::{self, OpenJob};
use super::error::Unavailable;
use super::finished::Finished;
use super::record::Record;
use crate::pool::job::JobId;

/// Resolves when a change is durable, or will not be.
#[derive(Debug)]
#[must_use = "a job is accepted when its ticket has said so"]
pub struct Ticket(oneshot::Receiver<Result<(), Unavailable>>);

impl Ticket {
    pub(super) fn ready(result: Result<(), Unavailable>) -> Self {
        let (sender, receiver) = oneshot::channel();
        let _ = sender.send(result);
        Self(receiver)
    }

    /// A ticket and what it waits for.
    pub(super) fn new() -> (oneshot::Sender<Result<(), Unavailable>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }

    /// Waits, on a thread that may block.
    pub fn wait(self) -> Result<(), Unavailable> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(stopped()))
    }
}

impl Future for Ticket {
    type Output = Result<(), Unavailable>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|told| told.unwrap_or_else(|_| Err(stopped())))
    }
}

pub(super) fn stopped() -> Unavailable {
    Unavailable("the gateway is stopping".to_owned())
}

/// A change as it is to be written.
#[derive(Debug)]
pub(super) enum Entry {
    Open { open: Box<OpenJob>, counter: u64 },
    Moved { id: JobId, meta: Vec<u8> },
    Closed(JobId),
    Ended { finished: Arc<Finished>, entry: Bytes, reply: Bytes },
    Deleted(Vec<(JobId, u64)>),
}

/// Kinds of records. Their numbers are on disks.
pub(super) mod kind {
    pub(crate) const OPEN: u8 = 1;
    pub(crate) const MOVED: u8 = 2;
    pub(crate) const CLOSED: u8 = 3;
    pub(crate) const ENDED: u8 = 16;
    pub(crate) const DELETED: u8 = 17;
}

impl Entry {
    pub(super) fn record(&self, salt: u32) -> Record {
        let none = || [Bytes::new(), Bytes::new()];
        let (kind, meta, payload) = match self {
            Self::Open { open, counter } => {
                let body = [open.job.body.clone(), Bytes::new()];
                (kind::OPEN, change::put_open(open, *counter), body)
            }
            Self::Moved { meta, .. } => (kind::MOVED, meta.clone(), none()),
            Self::Closed(id) => (kind::CLOSED, id.0.to_le_bytes().to_vec(), none()),
            Self::Ended { finished, entry, reply } => {
                (kind::ENDED, finished.put(), [entry.clone(), reply.clone()])
            }
            Self::Deleted(gone) => {
                let ids: Vec<_> = gone.iter().map(|(id, _)| *id).collect();
                (kind::DELETED, change::put_ids(&ids), none())
            }
        };
        Record::new(kind, &meta, payload, salt)
    }

    /// Whether it belongs to the stream of open jobs.
    pub(super) fn is_hot(&self) -> bool {
        matches!(self, Self::Open { .. } | Self::Moved { .. } | Self::Closed(_))
    }

    pub(super) fn is_new_job(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// About as many bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Open { open, .. } => open.job.body.len() + 1024,
            Self::Ended { entry, reply, .. } => entry.len() + reply.len() + 1024,
            Self::Deleted(ids) => ids.len() * 16,
            _ => 256,
        }
    }
}

pub(super) struct Item {
    pub(super) entry: Entry,
    /// Its own, and those of the moves that it makes superfluous.
    pub(super) tickets: Vec<oneshot::Sender<Result<(), Unavailable>>>,
}

impl Item {
    pub(super) fn tell(self, result: &Result<(), Unavailable>) {
        for ticket in self.tickets {
            let _ = ticket.send(result.clone());
        }
    }
}

/// Of each job's moves the last one, which says all.
pub(super) fn last_moves(items: VecDeque<Item>) -> VecDeque<Item> {
    let mut last: VecDeque<Item> = VecDeque::with_capacity(items.len());
    let mut earlier: HashMap<JobId, Vec<_>> = HashMap::new();
    for mut item in items.into_iter().rev() {
        let Entry::Moved { id, .. } = item.entry else {
            last.push_front(item);
            continue;
        };
        item.tickets.retain(|ticket| !ticket.is_closed());
        if let Some(tickets) = earlier.get_mut(&id) {
            tickets.append(&mut item.tickets);
        } else {
            earlier.insert(id, Vec::new());
            last.push_front(item);
        }
    }
    for item in &mut last {
        if let Entry::Moved { id, .. } = item.entry {
            item.tickets.extend(earlier.remove(&id).unwrap_or_default());
        }
    }
    last
}
