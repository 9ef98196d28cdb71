//! The image that `/upload/mask` puts an alpha on: in the store, or on the backend that made it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::place::{Folder, Place};
use super::remote::{DownloadError, Fetched, download};
use super::uploads::{Pins, Spooled};
use super::{Files, Own, prefix};
use crate::backend::Backend;
use crate::comfy::paths::split_annotation;

/// A file that stays readable while this lives.
pub(super) enum Original {
    /// In the store.
    Held { path: PathBuf, _pins: Pins },
    /// Fetched for this.
    Fetched(Spooled),
}

impl Original {
    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Held { path, .. } => path,
            Self::Fetched(content) => content.path(),
        }
    }

    /// The file that an `original_ref` names; `None` when there is none, or the name is refused.
    pub(super) async fn find(
        files: &Files,
        reference: &Value,
        own: &Own,
    ) -> Result<Option<Self>, DownloadError> {
        let Some(place) = place(reference) else { return Ok(None) };
        let uploads = &files.carrier.uploads;
        let pins = uploads.pin(std::iter::once(place.clone()));
        if let Some(held) = uploads.get(&place) {
            return Ok(Some(Self::Held { path: held.path, _pins: pins }));
        }
        let Some((holder, place)) = holder(files, place, own).await else { return Ok(None) };
        match files.carrier.remote.fetch(&holder, &place, None).await? {
            Fetched::File(response) => {
                let (content, _) = download(response, uploads).await?;
                Ok(Some(Self::Fetched(content)))
            }
            Fetched::Absent | Fetched::Unchanged => Ok(None),
        }
    }
}

/// The place that a reference names, as ComfyUI reads it.
fn place(reference: &Value) -> Option<Place> {
    let (name, chosen) = split_annotation(reference["filename"].as_str()?);
    if name.starts_with('/') || name.contains("..") {
        return None;
    }
    let folder = chosen.or(reference["type"].as_str()).unwrap_or("output");
    let subfolder = reference["subfolder"].as_str().unwrap_or_default();
    Place::new(Folder::of(folder)?, subfolder, name)
}

/// The backend that has it, and its own place there.
async fn holder(files: &Files, place: Place, own: &Own) -> Option<(Arc<Backend>, Place)> {
    let members = (files.members)();
    if place.folder() != Folder::Input
        && let Some((name, rest)) = prefix::split(place.path())
    {
        let holder = members.iter().find(|member| member.name() == name)?;
        return Some((Arc::clone(holder), Place::new(place.folder(), "", rest)?));
    }
    let holders = files.carrier.remote.holders(&members, &place).await;
    let holder = match place.folder() {
        Folder::Input => *holders.first()?,
        Folder::Output | Folder::Temp => super::whose(&holders, &(own.0)(&place))?,
    };
    let holder = members.into_iter().find(|member| member.id == holder)?;
    Some((holder, place))
}
