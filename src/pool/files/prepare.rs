//! Makes a job ready for a backend: the files it names are brought there first, and its prompt
//! names them as that backend knows them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::carry::{Carrier, CarryError};
use super::place::{Folder, Place};
use super::references::{Named, Reference, references};
use super::scan;
use super::uploads::Pins;
use super::{MadeBy, whose};
use crate::backend::Backend;

/// Files of one job that are brought at the same time.
const AT_ONCE: usize = 8;
/// Outputs that one prompt may name; more stay as they are, and the server does not know them.
const MAX_OUTPUTS: usize = 1000;
/// A body of so many bytes is read on a thread of its own.
const LARGE: usize = 256 << 10;

/// A job that is ready.
#[derive(Debug)]
pub struct Prepared {
    /// The body for this backend, when it is another one than the client's.
    pub body: Option<Bytes>,
    /// Keeps the files in the store; to be held until the job has ended.
    pub pins: Vec<Arc<Pins>>,
}

/// What becomes of a file's references.
enum Becomes {
    /// They stay as they are.
    Same,
    /// They name another place.
    Renamed(Place),
    /// They name nothing: it cannot be told which of several files is meant.
    Nothing,
}

/// What was found out about a file.
struct Settled {
    named: Named,
    becomes: Becomes,
    pins: Option<Arc<Pins>>,
}

/// What a backend's jobs are made ready with.
pub(super) struct Preparation<'a> {
    pub(super) carrier: &'a Arc<Carrier>,
    pub(super) backend: &'a Arc<Backend>,
    /// The backends that may hold files.
    pub(super) members: &'a [Arc<Backend>],
    pub(super) made: &'a MadeBy,
}

/// The references in a body.
pub(super) async fn read(carrier: &Arc<Carrier>, body: &Bytes) -> Vec<Reference> {
    if body.len() < LARGE {
        return references(body, &carrier.uploads);
    }
    let (carrier, body) = (Arc::clone(carrier), body.clone());
    let read = tokio::task::spawn_blocking(move || references(&body, &carrier.uploads));
    read.await.unwrap_or_default()
}

impl Preparation<'_> {
    /// Brings what the body names, and says what the body must be.
    pub(super) async fn prepare(&self, body: &Bytes) -> Result<Prepared, CarryError> {
        let references = read(self.carrier, body).await;
        let mut pins = vec![Arc::new(self.carrier.uploads.pin(kept(&references)))];
        let named: Vec<_> =
            distinct(&references).into_iter().map(|named| self.settle(named)).collect();
        let settled: Vec<_> = stream::iter(named).buffer_unordered(AT_ONCE).try_collect().await?;
        let mut becomes = HashMap::with_capacity(settled.len());
        for Settled { named, becomes: what, pins: held } in settled {
            becomes.insert(named, what);
            pins.extend(held);
        }
        let edits: Vec<_> = references
            .iter()
            .flat_map(|reference| match becomes.get(&reference.named) {
                Some(Becomes::Renamed(place)) => reference.renamed(place),
                Some(Becomes::Nothing) => reference.nobodys(),
                Some(Becomes::Same) | None => Vec::new(),
            })
            .collect();
        let body = (!edits.is_empty()).then(|| scan::replace(body, edits).into());
        Ok(Prepared { body, pins })
    }

    async fn settle(&self, named: Named) -> Result<Settled, CarryError> {
        let mut pins = None;
        let becomes = match &named {
            Named::Kept(place) => {
                let there = self.carrier.ensure(self.backend, place).await?;
                there.filter(|there| there != place).map_or(Becomes::Same, Becomes::Renamed)
            }
            Named::Made(holder, place) if holder == self.backend.name() => {
                Becomes::Renamed(place.clone())
            }
            Named::Made(holder, place) => {
                let holder = self.members.iter().find(|member| member.name() == holder);
                self.bring(holder, place, &mut pins).await?
            }
            Named::Loose(place) => self.settle_loose(place, &mut pins).await?,
        };
        Ok(Settled { named, becomes, pins })
    }

    /// A file without a prefix is meant only when one backend alone has it, or a job of the
    /// caller's made it.
    async fn settle_loose(
        &self,
        place: &Place,
        pins: &mut Option<Arc<Pins>>,
    ) -> Result<Becomes, CarryError> {
        let holders = self.carrier.remote.holders(self.members, place).await;
        match whose(&holders, &(self.made)(place)) {
            Some(holder) if holder == self.backend.id => Ok(Becomes::Same),
            Some(holder) => {
                let holder = self.members.iter().find(|member| member.id == holder);
                self.bring(holder, place, pins).await
            }
            None if holders.is_empty() => Ok(Becomes::Same),
            None => Ok(Becomes::Nothing),
        }
    }

    async fn bring(
        &self,
        holder: Option<&Arc<Backend>>,
        place: &Place,
        pins: &mut Option<Arc<Pins>>,
    ) -> Result<Becomes, CarryError> {
        let Some(holder) = holder else { return Ok(Becomes::Same) };
        let Some((brought, held)) = self.carrier.bring(holder, place).await? else {
            return Ok(Becomes::Same);
        };
        *pins = Some(held);
        let there = self.carrier.ensure(self.backend, &brought).await?;
        Ok(there.map_or(Becomes::Same, Becomes::Renamed))
    }
}

/// The uploads among the references.
pub(super) fn kept(references: &[Reference]) -> impl Iterator<Item = Place> {
    let kept = references.iter().filter_map(|reference| match &reference.named {
        Named::Kept(place) => Some(place.clone()),
        _ => None,
    });
    kept.collect::<HashSet<_>>().into_iter()
}

/// Each file once, of outputs only so many.
fn distinct(references: &[Reference]) -> Vec<Named> {
    let mut seen = HashSet::new();
    let mut outputs = 0;
    let fresh = references.iter().filter(|reference| {
        let fresh = seen.insert(&reference.named);
        let output = fresh
            && !matches!(&reference.named, Named::Kept(place) if place.folder() == Folder::Input);
        outputs += usize::from(output);
        fresh && (!output || outputs <= MAX_OUTPUTS)
    });
    fresh.map(|reference| reference.named.clone()).collect()
}
