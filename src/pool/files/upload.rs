//! `POST /upload/image` and `/upload/mask`, with ComfyUI's rules and replies: a name that has
//! another content becomes `name (1).ext`, an equal content takes the name it has.
//!
//! A name counts as taken also when a backend has a file of that name that the store does not
//! know: a push would overwrite it. Uploads of type `output` and `temp` are kept here too, under
//! their type, and shown from here; a job that names one gets it as an input of the gateway's.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::Response;
use axum::routing::{MethodRouter, Router, post};
use serde_json::{Value, json};

use super::form::{BAD, Form, No, Sent};
use super::original::Original;
use super::place::{Folder, Place};
use super::uploads::Spooled;
use super::{Files, Own, mask};
use crate::comfy::paths::split_suffix;
use crate::comfy::reply::{Refusal, ok_json};
use crate::comfy::view::decoding;

/// What names of uploaded files are tried before giving up.
const MAX_RENAMES: u32 = 10_000;

/// What the handlers work on.
#[derive(Clone)]
struct Desk {
    files: Arc<Files>,
    max_body: u64,
}

/// The two routes, with and without `/api`. Bodies over `max_body` bytes get 413. A request may
/// carry an [`Own`] as an extension.
pub(super) fn router(files: Arc<Files>, max_body: u64) -> Router {
    let routes: [(&str, MethodRouter<Desk>); 2] =
        [("/upload/image", post(image)), ("/upload/mask", post(upload_mask))];
    let mut router = Router::new();
    for (path, handler) in routes {
        router = router.route(&format!("/api{path}"), handler.clone()).route(path, handler);
    }
    // The body is counted as it comes.
    router.layer(DefaultBodyLimit::disable()).with_state(Desk { files, max_body })
}

async fn image(State(desk): State<Desk>, request: Request) -> Result<Response, No> {
    let form = Form::read(request, &desk.files.carrier.uploads, desk.max_body).await?;
    Upload::of(form)?.keep(&desk.files, None).await
}

async fn upload_mask(
    State(desk): State<Desk>,
    own: Option<Extension<Own>>,
    request: Request,
) -> Result<Response, No> {
    let form = Form::read(request, &desk.files.carrier.uploads, desk.max_body).await?;
    let original = form.text("original_ref").map(serde_json::from_str::<Value>);
    let original = original.and_then(Result::ok).unwrap_or_default();
    let own = own.map(|Extension(own)| own).unwrap_or_default();
    Upload::of(form)?.keep(&desk.files, Some((&original, &own))).await
}

/// An upload that makes sense so far.
struct Upload {
    sent: Sent,
    folder: Folder,
    subfolder: String,
    overwrite: bool,
}

impl Upload {
    fn of(mut form: Form) -> Result<Self, Refusal> {
        let folder = Folder::of(form.text("type").unwrap_or("input")).ok_or(Refusal::Crash)?;
        let sent = form.image.take().filter(|sent| !sent.name.is_empty()).ok_or(BAD)?;
        let subfolder = form.text("subfolder").unwrap_or_default().to_owned();
        let overwrite = matches!(form.text("overwrite"), Some("true" | "1"));
        Ok(Self { sent, folder, subfolder, overwrite })
    }

    /// Finds the name and keeps the content: the one sent, or what a mask makes of it.
    async fn keep(self, files: &Files, mask: Option<(&Value, &Own)>) -> Result<Response, No> {
        let (stem, suffix) = split_suffix(&self.sent.name);
        let sent = &self.sent.content;
        let mut made = None;
        for number in 0..MAX_RENAMES {
            let name = match number {
                0 => self.sent.name.clone(),
                number => format!("{stem} ({number}){suffix}"),
            };
            let place = Place::new(self.folder, &self.subfolder, &name).ok_or(BAD)?;
            let there = if self.overwrite { None } else { files.is_same(&place, sent).await };
            match there {
                Some(true) => return Ok(self.reply(&name)),
                Some(false) => continue,
                None => {}
            }
            if let (Some((original, own)), None) = (mask, &made) {
                made = self.composite(files, original, own, &name).await?;
                if made.is_none() {
                    // No error upstream either: nothing is written.
                    return Ok(self.reply(&name));
                }
            }
            let content = made.as_ref().unwrap_or(sent);
            if files.give_name(content, sent.digest, &place, self.overwrite).await? {
                return Ok(self.reply(&name));
            }
        }
        Err(Refusal::Crash.into())
    }

    fn reply(&self, name: &str) -> Response {
        let folder = self.folder.name();
        ok_json(&json!({"name": name, "subfolder": self.subfolder, "type": folder}))
    }

    /// The mask's alpha on the original; `None` when there is no such original.
    async fn composite(
        &self,
        files: &Files,
        original: &Value,
        own: &Own,
        name: &str,
    ) -> Result<Option<Arc<Spooled>>, No> {
        original["filename"].as_str().ok_or(Refusal::Crash)?;
        let Some(original) = Original::find(files, original, own).await? else { return Ok(None) };
        let (mask, name) = (self.sent.content.path().to_owned(), name.to_owned());
        let made = decoding(move || {
            let made = mask::composite(original.path(), &mask, &name);
            drop(original);
            made
        });
        let made = made.await.ok_or(Refusal::Crash)?.map_err(|error| {
            log::debug!("a mask is not made: {error}");
            Refusal::Crash
        })?;
        let mut spool = files.carrier.uploads.spool().await?;
        spool.write(&made).await?;
        Ok(Some(Arc::new(spool.finish().await?)))
    }
}
