//! `/upload/image` and `/upload/mask`: multipart bodies go to a temporary file as they come, so
//! that one of any size needs no memory; the name is decided afterwards.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::multipart::{Field, MultipartRejection};
use axum::extract::{Multipart, State};
use http::{HeaderMap, StatusCode, header};
use image::DynamicImage;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::Core;
use super::files::{Files, Upload};
use super::reply::{Answer, Refusal, ok_json};
use crate::comfy::paths::inside;
use crate::comfy::view::open;

/// Longest text field, and how many fields are read.
const MAX_TEXT: usize = 1 << 20;
const MAX_FIELDS: usize = 64;

/// The file of a form, on disk.
#[derive(Debug)]
struct Sent {
    path: PathBuf,
    name: String,
}

impl Drop for Sent {
    fn drop(&mut self) {
        // Gone already when it found its place.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A form as uploads send it.
#[derive(Debug, Default)]
struct Form {
    image: Option<Sent>,
    texts: Vec<(String, String)>,
}

impl Form {
    fn text(&self, name: &str) -> Option<&str> {
        self.texts.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str())
    }
}

/// `POST /upload/image`.
pub(super) async fn image(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Answer {
    let form = read(&core, &headers, form).await?;
    keep(core, form, None).await
}

/// `POST /upload/mask`: the alpha of the sent image on the pixels of `original_ref`.
pub(super) async fn mask(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Answer {
    let form = read(&core, &headers, form).await?;
    let original = form.text("original_ref").map(serde_json::from_str::<Value>);
    let original = original.and_then(Result::ok).unwrap_or_default();
    keep(core, form, Some(original)).await
}

async fn read(
    core: &Core,
    headers: &HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Form, Refusal> {
    let limit = core.config.max_upload_size;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|value| value.parse::<u64>().ok()).unwrap_or_default();
    if announced > limit {
        return Err(too_large(limit, announced));
    }
    let mut read = Form::default();
    // A body of another type has no fields, as aiohttp reads it.
    let Ok(mut form) = form else { return Ok(read) };
    let mut left = limit;
    for _ in 0..MAX_FIELDS {
        let Some(field) = form.next_field().await.map_err(|_| Refusal::Crash)? else { break };
        let name = field.name().unwrap_or_default().to_owned();
        if name == "image" && field.file_name().is_some() {
            read.image = Some(spool(core, field, &mut left).await?);
        } else if read.texts.iter().all(|(known, _)| *known != name) {
            let text = field.text().await.map_err(|_| Refusal::Crash)?;
            read.texts.push((name, text.chars().take(MAX_TEXT).collect()));
        }
    }
    Ok(read)
}

fn too_large(limit: u64, actual: u64) -> Refusal {
    let line = format!("Maximum request body size {limit} exceeded, actual body size {actual}");
    Refusal::Text(StatusCode::PAYLOAD_TOO_LARGE, line)
}

/// Writes a file field to disk.
async fn spool(core: &Core, mut field: Field<'_>, left: &mut u64) -> Result<Sent, Refusal> {
    let name = field.file_name().unwrap_or_default().to_owned();
    let path = core.files.folder("partial").join(uuid::Uuid::new_v4().to_string());
    let sent = Sent { path, name };
    let mut file = tokio::io::BufWriter::new(tokio::fs::File::create(&sent.path).await?);
    while let Some(chunk) = field.chunk().await.map_err(|_| Refusal::Crash)? {
        let limit = core.config.max_upload_size;
        *left = left
            .checked_sub(chunk.len() as u64)
            .ok_or_else(|| too_large(limit, limit.saturating_add(1)))?;
        file.write_all(&chunk).await?;
    }
    file.flush().await?;
    Ok(sent)
}

async fn keep(core: Arc<Core>, mut form: Form, original: Option<Value>) -> Answer {
    let folder = form.text("type").unwrap_or("input").to_owned();
    let base = core.files.by_type(&folder).ok_or(Refusal::Crash)?;
    let no_file = Refusal::Bare(StatusCode::BAD_REQUEST);
    let Some(sent) = form.image.take().filter(|sent| !sent.name.is_empty()) else {
        return Err(no_file);
    };
    let subfolder = form.text("subfolder").unwrap_or_default().to_owned();
    let directory = inside(&base, &subfolder).ok_or(Refusal::Bare(StatusCode::BAD_REQUEST))?;
    let path = inside(&base, &format!("{}/{}", directory.display(), sent.name));
    let path = path.filter(|path| *path != base).ok_or(no_file)?;
    let upload = Upload {
        name: sent.name.clone(),
        path,
        directory,
        spooled: sent.path.clone(),
        overwrite: matches!(form.text("overwrite"), Some("true" | "1")),
    };
    let files = core.files.clone();
    let name = tokio::task::spawn_blocking(move || {
        files.place(&upload, |path| match &original {
            None => std::fs::rename(&sent.path, path),
            Some(original) => write_mask(&files, original, &sent.path, path),
        })
    });
    let name = name.await.map_err(|_| Refusal::Crash)??;
    Ok(ok_json(&json!({"name": name, "subfolder": subfolder, "type": folder})))
}

/// Puts the mask's alpha on the original. An original that is absent or refused is no error
/// upstream: nothing is written.
fn write_mask(files: &Files, original: &Value, mask: &Path, path: &Path) -> io::Result<()> {
    let name = original["filename"].as_str().ok_or(io::ErrorKind::InvalidInput)?;
    if name.starts_with('/') || name.contains("..") {
        return Ok(());
    }
    let folder = original["type"].as_str().unwrap_or("output");
    let subfolder = original["subfolder"].as_str().unwrap_or_default();
    let name = if subfolder.is_empty() { name.to_owned() } else { format!("{subfolder}/{name}") };
    let Some(file) = files.annotated(&name, folder).filter(|file| file.is_file()) else {
        return Ok(());
    };
    let mut pixels = open(&file).map_err(io::Error::other)?.into_rgba8();
    let alpha = open(mask).map_err(io::Error::other)?.into_rgba8();
    if alpha.dimensions() != pixels.dimensions() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (pixel, with) in pixels.pixels_mut().zip(alpha.pixels()) {
        pixel.0[3] = with.0[3];
    }
    let mut out = std::fs::File::create(path)?;
    DynamicImage::from(pixels).write_to(&mut out, image::ImageFormat::Png).map_err(io::Error::other)
}
