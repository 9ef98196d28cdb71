//! Files in pool mode: outputs are never confused, uploads are where a job needs them.
//!
//! - Outputs. Two backends both write `ComfyUI_00001_.png`, so every backend's outputs appear
//!   under the subfolder `@NAME` ([`prefix`]). A request whose query carries it goes to that
//!   backend without it ([`prefix::in_query`]); one for an output without it is answered only when
//!   one backend alone has such a file or a job of the caller's made it ([`Files::holder`]).
//! - Uploads are kept here ([`uploads`]), taken in as ComfyUI does ([`Files::router`]), shown from
//!   here ([`Files::view`]), and pushed to a backend before a job that names them
//!   ([`Files::prepare`]), so that a backend that joins needs no copying of everything.
//! - A prompt that names an output runs where that is, or the file is brought along: the body
//!   that [`Files::prepare`] returns names it as the backend knows it.
//!
//! Hazards: what a backend's own folders hold is not watched. A file that somebody removes there
//! by hand is pushed again only after [`Files::forget`], to be called when a backend has restarted
//! or refused a job; an upload's name is compared with what reachable backends have, for a push
//! would overwrite it.

mod carry;
pub mod copies;
mod flights;
mod form;
mod mask;
mod original;
mod paced;
pub mod place;
pub mod prefix;
mod prepare;
pub mod references;
mod remote;
pub mod scan;
mod upload;
pub mod uploads;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, Uri};

pub use carry::{Carrier, CarryError, SUBFOLDER};
pub use prepare::Prepared;
pub use remote::{Remote, Trouble};

use crate::backend::{Backend, BackendId};
use crate::comfy::file_reply::Stamp;
use crate::comfy::reply::Query;
use crate::comfy::view::Asked;
use place::{Folder, Place};
use prepare::Preparation;
use uploads::{Digest, Named, Pins, Spooled, StoreError, Uploads};

/// The backends that answer now, in the fleet's order.
pub type Members = Arc<dyn Fn() -> Vec<Arc<Backend>> + Send + Sync>;

/// The backends on which jobs of a caller's made this very file (its place there), newest first.
pub type MadeBy = Arc<dyn Fn(&Place) -> Vec<BackendId> + Send + Sync>;

/// What a caller's own jobs made; an extension of the requests to [`Files::router`].
#[derive(Clone)]
pub struct Own(pub MadeBy);

impl Default for Own {
    fn default() -> Self {
        Self(Arc::new(|_| Vec::new()))
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own").finish_non_exhaustive()
    }
}

/// Whose file is meant when several backends may have one of that name: the one that a job of the
/// caller's made, the newest of several, else the only one there is. A file of the caller's that
/// is gone is not replaced by another's.
pub fn whose(holders: &[BackendId], made: &[BackendId]) -> Option<BackendId> {
    match (made, holders) {
        ([], [only]) => Some(*only),
        (made, holders) => made.iter().copied().find(|made| holders.contains(made)),
    }
}

/// The files of the farm.
pub struct Files {
    carrier: Arc<Carrier>,
    members: Members,
}

impl Files {
    /// The files of a store and of the backends that `members` names.
    pub fn new(uploads: Arc<Uploads>, remote: Arc<Remote>, members: Members) -> Arc<Self> {
        Arc::new(Self { carrier: Carrier::new(uploads, remote), members })
    }

    /// The store: its names for merged lists, pins for open jobs.
    pub fn uploads(&self) -> &Arc<Uploads> {
        &self.carrier.uploads
    }

    /// `POST /upload/image` and `/upload/mask`, with and without `/api`; bodies over `max_body`
    /// bytes get 413. A request should carry an [`Own`] as an extension.
    pub fn router(self: &Arc<Self>, max_body: u64) -> Router {
        upload::router(Arc::clone(self), max_body)
    }

    /// Answers `GET /view` (or HEAD: without the body) from the store, or refuses what ComfyUI
    /// refuses; `None` when the store does not have the file.
    pub async fn view(&self, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
        let asked = match Asked::of(&Query::of(uri)) {
            Ok(asked) => asked,
            Err(refusal) => return Some(refusal.into_response()),
        };
        let held = self.carrier.uploads.get(&place_of(&asked)?)?;
        let stamp = Stamp {
            etag: format!("\"{}\"", &held.digest.to_string()[..32]),
            modified: i64::try_from(held.added_ms / 1000).unwrap_or_default(),
        };
        let shown = asked.show(&held.path, Some(&stamp), headers).await;
        Some(shown.unwrap_or_else(IntoResponse::into_response))
    }

    /// Whether the store answers this `GET /view`, or it is to be refused as ComfyUI would.
    pub fn has(&self, uri: &Uri) -> bool {
        match Asked::of(&Query::of(uri)) {
            Ok(asked) => {
                place_of(&asked).is_some_and(|place| self.carrier.uploads.get(&place).is_some())
            }
            Err(_) => true,
        }
    }

    /// Where `GET /view` without a prefix goes when [`Files::view`] has no answer; `None`: 404.
    /// An input may be on every backend alike: any that has it will do. `only_own`: what others
    /// made is not there.
    pub async fn holder(&self, uri: &Uri, own: &Own, only_own: bool) -> Option<BackendId> {
        let place = place_of(&Asked::of(&Query::of(uri)).ok()?)?;
        let holders = self.carrier.remote.holders(&(self.members)(), &place).await;
        match place.folder() {
            Folder::Input => holders.first().copied(),
            Folder::Output | Folder::Temp => {
                let own = (own.0)(&place);
                let holder = whose(&holders, &own);
                holder.filter(|holder| !only_own || own.contains(holder))
            }
        }
    }

    /// Makes a job ready for a backend: what it names is brought there. The body, when another
    /// one is returned, is for this backend only; the pins are to be held until the job has ended.
    pub async fn prepare(
        &self,
        body: &Bytes,
        backend: &Arc<Backend>,
        own: &Own,
    ) -> Result<Prepared, CarryError> {
        let members = (self.members)();
        let carrier = &self.carrier;
        Preparation { carrier, backend, members: &members, made: &own.0 }.prepare(body).await
    }

    /// Keeps the uploads that a job names while it waits.
    pub async fn pin(&self, body: &Bytes) -> Pins {
        let references = prepare::read(&self.carrier, body).await;
        self.carrier.uploads.pin(prepare::kept(&references))
    }

    /// The backends whose outputs a prompt names: it had best run there.
    pub fn named_backends(&self, body: &[u8]) -> BTreeSet<String> {
        references::named_backends(body, &self.carrier.uploads)
    }

    /// A backend has restarted, or refused a job: what was pushed there may be gone.
    pub fn forget(&self, backend: BackendId) {
        self.carrier.forget(backend);
    }

    /// Whether a name has this content; `None` when it is free, in the store and on every backend
    /// that answers.
    async fn is_same(&self, place: &Place, content: &Spooled) -> Option<bool> {
        if let Some(held) = self.carrier.uploads.get(place) {
            return Some(held.digest == content.digest);
        }
        let members = (self.members)();
        let holders = self.carrier.remote.holders(&members, place).await;
        let holder = members.iter().find(|member| Some(&member.id) == holders.first())?;
        let same = self.carrier.remote.is_same(holder, place, content).await;
        // One that had it and now does not say leaves the name taken.
        if same == Ok(Some(true)) { None } else { Some(false) }
    }

    /// Gives a content its name in the store; false when it is taken meanwhile.
    async fn give_name(
        &self,
        content: &Arc<Spooled>,
        of: Digest,
        place: &Place,
        overwrite: bool,
    ) -> Result<bool, StoreError> {
        let (store, content) = (Arc::clone(&self.carrier.uploads), Arc::clone(content));
        let place = place.clone();
        let named =
            tokio::task::spawn_blocking(move || store.name(&content, of, &place, overwrite));
        let named = named.await.map_err(std::io::Error::other)??;
        Ok(!matches!(named, Named::Taken))
    }
}

/// The file that a `GET /view` asks for.
pub(super) fn asked_place(uri: &Uri) -> Option<Place> {
    place_of(&Asked::of(&Query::of(uri)).ok()?)
}

fn place_of(asked: &Asked) -> Option<Place> {
    Place::new(Folder::of(asked.folder)?, &asked.subfolder, &asked.name)
}

#[cfg(test)]
mod tests;
