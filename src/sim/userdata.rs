//! `/users`, `/settings`, `/userdata`, `/v2/userdata`: the one user's files and settings.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::{OriginalUri, Path, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::Core;
use super::prompt::json_body;
use super::reply::{Answer, Query, Refusal, empty, ok_json};
use crate::comfy::file_reply::{file, media_type};
use crate::comfy::paths::{inside, modified_ns};

/// Most settings kept, and most files listed.
const MAX_SETTINGS: usize = 10_000;
const MAX_LISTED: usize = 100_000;

const FORBIDDEN: Refusal = Refusal::Bare(StatusCode::FORBIDDEN);
const ABSENT: Refusal = Refusal::Bare(StatusCode::NOT_FOUND);

fn line(status: StatusCode, text: &str) -> Refusal {
    Refusal::Text(status, text.to_owned())
}

impl Core {
    fn user_folder(&self) -> PathBuf {
        self.files.folder("user").join("default")
    }

    /// A path in the user's folder; a name that is still encoded is decoded once more.
    fn user_path(&self, name: &str) -> Option<PathBuf> {
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        inside(&self.user_folder(), &name)
    }

    fn relative<'a>(&self, path: &'a FsPath) -> std::borrow::Cow<'a, str> {
        path.strip_prefix(self.user_folder()).unwrap_or(path).to_string_lossy()
    }
}

/// `GET /users`.
pub(super) async fn users(State(core): State<Arc<Core>>) -> Response {
    ok_json(&json!({"storage": "server", "migrated": core.user_folder().exists()}))
}

/// `POST /users`: the one user is there already.
pub(super) async fn add_user(body: Bytes) -> Answer {
    let body = json_body(&body)?;
    let name = body.get("username").and_then(Value::as_str).ok_or(Refusal::Crash)?.trim();
    if name.is_empty() {
        return Err(super::reply::bad("username not provided"));
    }
    if name == "default" {
        return Err(super::reply::bad("Duplicate username."));
    }
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let plain: String = name.chars().map(keep).collect();
    Ok(ok_json(&json!(format!("{plain}_{}", uuid::Uuid::new_v4()))))
}

/// `GET /settings`.
pub(super) async fn settings(State(core): State<Arc<Core>>) -> Response {
    ok_json(&Value::Object(core.settings.lock().clone()))
}

/// `GET /settings/{id}`.
pub(super) async fn setting(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Response {
    ok_json(core.settings.lock().get(&id).unwrap_or(&Value::Null))
}

/// `POST /settings`.
pub(super) async fn merge_settings(State(core): State<Arc<Core>>, body: Bytes) -> Answer {
    let new = json_body(&body)?;
    store(&core, new)
}

/// `POST /settings/{id}`.
pub(super) async fn set_setting(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer {
    let value: Value = serde_json::from_slice(&body).map_err(|_| Refusal::Crash)?;
    store(&core, [(id, value)].into_iter().collect())
}

fn store(core: &Core, new: serde_json::Map<String, Value>) -> Answer {
    std::fs::create_dir_all(core.user_folder())?;
    let mut settings = core.settings.lock();
    if settings.len() + new.len() > MAX_SETTINGS {
        return Err(Refusal::Crash);
    }
    settings.extend(new);
    Ok(empty(StatusCode::OK))
}

/// `GET /userdata?dir=`.
pub(super) async fn list(State(core): State<Arc<Core>>, OriginalUri(uri): OriginalUri) -> Answer {
    let query = Query::of(&uri);
    let given = query.get("dir").unwrap_or_default();
    if given.is_empty() {
        return Err(line(StatusCode::BAD_REQUEST, "Directory not provided"));
    }
    let folder = core.user_path(given);
    let folder = folder.ok_or_else(|| line(StatusCode::FORBIDDEN, "Invalid directory"))?;
    if !folder.exists() {
        return Err(line(StatusCode::NOT_FOUND, "Directory not found"));
    }
    let (full_info, split) = (query.is_true("full_info"), query.is_true("split"));
    let files = walk(&folder, query.is_true("recurse"));
    let shown = files.iter().filter(|path| path.is_file()).map(|path| {
        let relative = path.strip_prefix(&folder).unwrap_or(path).to_string_lossy().into_owned();
        if full_info {
            info(path, &relative)
        } else if split {
            let parts = std::iter::once(relative.as_str()).chain(relative.split('/'));
            parts.collect::<Vec<_>>().into()
        } else {
            relative.into()
        }
    });
    Ok(ok_json(&shown.collect::<Vec<_>>().into()))
}

/// `GET /v2/userdata?path=`.
pub(super) async fn list_v2(
    State(core): State<Arc<Core>>,
    OriginalUri(uri): OriginalUri,
) -> Answer {
    let query = Query::of(&uri);
    let folder = core.user_path(query.get("path").unwrap_or_default());
    let folder = folder.ok_or_else(|| line(StatusCode::BAD_REQUEST, "Invalid path requested"))?;
    if !folder.exists() {
        if folder == core.user_folder() {
            return Ok(ok_json(&json!([])));
        }
        return Err(line(StatusCode::NOT_FOUND, "Requested path not found"));
    }
    if !folder.is_dir() {
        return Err(line(StatusCode::BAD_REQUEST, "Requested path is not a directory"));
    }
    let mut entries: Vec<Value> =
        walk(&folder, true).iter().map(|path| entry(&core, path)).collect();
    entries.sort_by_key(|entry| {
        let name = entry["name"].as_str().unwrap_or_default().to_lowercase();
        (entry["type"] != "directory", name)
    });
    Ok(ok_json(&entries.into()))
}

fn entry(core: &Core, path: &FsPath) -> Value {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kind = if path.is_dir() { "directory" } else { "file" };
    let mut entry = json!({"name": name, "path": core.relative(path), "type": kind});
    if let Ok(found) =
        path.metadata().map_err(|_| ()).and_then(|m| m.is_file().then_some(m).ok_or(()))
    {
        entry["size"] = found.len().into();
        entry["modified"] = (modified_ns(&found) as f64 / 1e9).into();
    }
    entry
}

/// Everything below a folder, at most so many entries.
fn walk(folder: &FsPath, recurse: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if found.len() >= MAX_LISTED {
                return found;
            }
            let path = entry.path();
            if recurse && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

fn info(path: &FsPath, relative: &str) -> Value {
    let Ok(found) = path.metadata() else { return Value::Null };
    let created = found.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = (modified_ns(&found) / 1_000_000) as u64;
    let created = created.map_or(modified, |since| since.as_millis() as u64);
    json!({"path": relative, "size": found.len(), "modified": modified, "created": created})
}

/// `GET /userdata/{file}`.
pub(super) async fn get(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let path = core.user_path(&name).ok_or(FORBIDDEN)?;
    if !path.is_file() {
        return Err(ABSENT);
    }
    file(&path, &headers, media_type(&path)).await
}

/// `POST /userdata/{file}`.
pub(super) async fn put(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    OriginalUri(uri): OriginalUri,
    body: Bytes,
) -> Answer {
    let query = Query::of(&uri);
    let path = core.user_path(&name).ok_or(FORBIDDEN)?;
    make_way(&query, &path)?;
    tokio::fs::write(&path, &body).await?;
    Ok(written(&core, &query, &path))
}

/// `DELETE /userdata/{file}`.
pub(super) async fn delete(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Answer {
    let path = core.user_path(&name).ok_or(FORBIDDEN)?;
    if !path.exists() {
        return Err(ABSENT);
    }
    tokio::fs::remove_file(&path).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `POST /userdata/{file}/move/{dest}`.
pub(super) async fn rename(
    State(core): State<Arc<Core>>,
    Path((from, to)): Path<(String, String)>,
    OriginalUri(uri): OriginalUri,
) -> Answer {
    let query = Query::of(&uri);
    let from = core.user_path(&from).ok_or(FORBIDDEN)?;
    if !from.exists() {
        return Err(ABSENT);
    }
    let to = core.user_path(&to).ok_or(FORBIDDEN)?;
    make_way(&query, &to)?;
    tokio::fs::rename(&from, &to).await?;
    Ok(written(&core, &query, &to))
}

/// Makes the folders of a path; with `overwrite=false` it must be free.
fn make_way(query: &Query, path: &FsPath) -> Result<(), Refusal> {
    if query.get("overwrite") == Some("false") && path.exists() {
        return Err(line(StatusCode::CONFLICT, "File already exists"));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    Ok(())
}

fn written(core: &Core, query: &Query, path: &FsPath) -> Response {
    let relative = core.relative(path);
    let full = query.is_true("full_info");
    ok_json(&if full { info(path, &relative) } else { Value::String(relative.into_owned()) })
}
