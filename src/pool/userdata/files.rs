//! `/userdata/{file}`: a user's files, read, written, deleted and moved.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use axum::body::Body;
use futures_util::StreamExt;
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::disk::{self, Partial};
use super::list::{info, relative, walk};
use super::place::{below, leads_out};
use super::refusal::{ABSENT, Answer, FORBIDDEN, Refusal, empty, ok_json};
use super::{Asked, Folder, MAX_ENTRIES, UserData, blocking};
use crate::comfy::file_reply::{file as file_response, media_type};

const TAKEN: Refusal = Refusal::Text(StatusCode::CONFLICT, "File already exists");
/// What ComfyUI says where the system refuses a name.
const BAD_NAME: Refusal = Refusal::Bare(StatusCode::BAD_REQUEST);

impl Asked {
    /// Where a name leads in the user's folder.
    fn path(&self, name: &str) -> Result<PathBuf, Refusal> {
        let folder = self.data.folder_of(self.user()?);
        let path = folder.join(below(name).ok_or(FORBIDDEN)?);
        if leads_out(&folder, &path) { Err(FORBIDDEN) } else { Ok(path) }
    }

    fn written(&self, path: &Path) -> Answer {
        let name = relative(path, &self.data.folder_of(self.user()?));
        let full = self.is_true("full_info");
        Ok(ok_json(&if full { info(&path.metadata()?, &name) } else { Value::String(name) }))
    }

    fn overwrites(&self) -> bool {
        self.query("overwrite").as_deref() != Some("false")
    }
}

/// `GET /userdata/{file}`.
pub(super) async fn get(asked: Asked, name: String) -> Answer {
    let headers = asked.headers.clone();
    let path = blocking(move || {
        let path = asked.path(&name)?;
        match path.metadata() {
            Ok(found) if found.is_file() => Ok(path),
            // As aiohttp has it of what is no plain file.
            Ok(_) => Err(FORBIDDEN),
            Err(_) => Err(ABSENT),
        }
    })
    .await?;
    let guessed = media_type(&path);
    let runs = matches!(guessed, "text/html" | "image/svg+xml") || is_xml(&path);
    let kind = if runs { "application/octet-stream" } else { guessed };
    let mut response = file_response(&path, &headers, kind).await.map_err(|_| ABSENT)?;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if runs {
        headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    }
    Ok(response)
}

fn is_xml(path: &Path) -> bool {
    let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
    ["xml", "xhtml", "xht", "xsl", "svgz"].iter().any(|xml| suffix.eq_ignore_ascii_case(xml))
}

/// `POST /userdata/{file}`.
pub(super) async fn put(asked: Asked, name: String, body: Body) -> Answer {
    let (asked, path) = blocking(move || {
        let path = asked.path(&name)?;
        if !asked.overwrites() && path.symlink_metadata().is_ok() {
            Err(TAKEN)
        } else {
            Ok((asked, path))
        }
    })
    .await?;
    let partial = receive(&asked.data, body).await?;
    blocking(move || {
        let user = asked.user()?;
        let kept = asked.data.keep(user, partial, &path, asked.overwrites())?;
        if kept { asked.written(&path) } else { Err(TAKEN) }
    })
    .await
}

/// Writes a body to the disk, as far as the bound allows.
async fn receive(data: &UserData, body: Body) -> Result<Partial, Refusal> {
    let limit = data.max_body.load(Relaxed);
    let partials = data.partials();
    let (partial, file) = blocking(move || Ok(Partial::create(&partials)?)).await?;
    let mut file = tokio::fs::File::from_std(file);
    let mut body = body.into_data_stream();
    let mut size = 0u64;
    while let Some(piece) = body.next().await {
        // Who stops in the middle does not hear of it.
        let piece = piece.map_err(|_| BAD_NAME)?;
        size += piece.len() as u64;
        if size > limit {
            return Err(Refusal::TooLarge(limit));
        }
        file.write_all(&piece).await?;
    }
    // `sync_all` alone would pass over the failure of the last write.
    file.flush().await?;
    file.sync_all().await?;
    Ok(partial)
}

impl UserData {
    /// Puts a file, which is synced, in its place; false when one is there and is to stay. Blocks.
    pub(super) fn keep(
        &self,
        user: &str,
        partial: Partial,
        path: &Path,
        overwrite: bool,
    ) -> Result<bool, Refusal> {
        let lock = self.lock_of(user);
        let mut entries = lock.entries.lock();
        let there = path.symlink_metadata().is_ok();
        if there && !overwrite {
            return Ok(false);
        }
        let folder = path.parent().ok_or(BAD_NAME)?;
        if !there {
            self.count(user, &mut entries, folder)?;
        }
        let made = disk::make_folders(folder)?;
        partial.place(path).map_err(unplaced)?;
        if let Some(entries) = entries.as_mut() {
            *entries += made + usize::from(!there);
        }
        Ok(true)
    }

    /// Counts a user's entries on first need, and refuses one more than there may be.
    fn count(&self, user: &str, entries: &mut Option<usize>, folder: &Path) -> Result<(), Refusal> {
        let all = || walk(&self.folder_of(user), true, true).len();
        let known = *entries.get_or_insert_with(all);
        let new = folder.ancestors().take_while(|folder| !folder.exists()).count() + 1;
        if known + new > MAX_ENTRIES {
            return Err(Refusal::Storage("holds as many files of this user as it may"));
        }
        Ok(())
    }
}

/// Where a file cannot be put: a name the system refuses is the client's fault, a full disk not.
fn unplaced(error: io::Error) -> Refusal {
    match error.kind() {
        ErrorKind::InvalidFilename
        | ErrorKind::IsADirectory
        | ErrorKind::NotADirectory
        | ErrorKind::DirectoryNotEmpty
        | ErrorKind::InvalidInput => BAD_NAME,
        _ => error.into(),
    }
}

/// `DELETE /userdata/{file}`.
pub(super) async fn delete(asked: Asked, name: String) -> Answer {
    blocking(move || {
        let path = asked.path(&name)?;
        let lock = asked.data.lock_of(asked.user()?);
        let mut entries = lock.entries.lock();
        if !path.exists() {
            return Err(ABSENT);
        }
        disk::remove(&path)?;
        if let Some(entries) = entries.as_mut() {
            *entries = entries.saturating_sub(1);
        }
        Ok(empty(StatusCode::NO_CONTENT))
    })
    .await
}

/// `POST /userdata/{file}/move/{dest}`.
pub(super) async fn rename(asked: Asked, from: String, to: String) -> Answer {
    blocking(move || {
        let from = asked.path(&from)?;
        if !from.exists() {
            return Err(ABSENT);
        }
        let to = asked.path(&to)?;
        let lock = asked.data.lock_of(asked.user()?);
        asked.move_locked(&lock, &from, &to)?;
        asked.written(&to)
    })
    .await
}

impl Asked {
    fn move_locked(&self, lock: &Folder, from: &Path, to: &Path) -> Result<(), Refusal> {
        let mut entries = lock.entries.lock();
        if !self.overwrites() && to.exists() {
            return Err(TAKEN);
        }
        // `shutil.move` moves into a folder that is there.
        let into = to.is_dir() && to != from;
        let target =
            if into { to.join(from.file_name().ok_or(Refusal::Crash)?) } else { to.into() };
        if into && target.exists() {
            return Err(Refusal::Crash);
        }
        let folder = target.parent().ok_or(Refusal::Crash)?;
        self.data.count(self.user()?, &mut entries, folder)?;
        // What vanishes and what is made is counted anew when it next matters.
        *entries = None;
        disk::make_folders(folder)?;
        Ok(disk::rename(from, &target)?)
    }
}
