//! `GET /userdata?dir=` and `GET /v2/userdata?path=`.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use http::StatusCode;
use serde_json::{Value, json};

use super::place::{below, leads_out};
use super::refusal::{Answer, Refusal, ok_json};
use super::{Asked, MAX_ENTRIES, blocking};
use crate::comfy::paths::modified_ns;

const NO_DIR: Refusal = Refusal::Text(StatusCode::BAD_REQUEST, "Directory not provided");
const BAD_DIR: Refusal = Refusal::Text(StatusCode::FORBIDDEN, "Invalid directory");
const ABSENT_DIR: Refusal = Refusal::Text(StatusCode::NOT_FOUND, "Directory not found");

const BAD_USER: Refusal = Refusal::Text(StatusCode::FORBIDDEN, "Invalid user specified in request");
const BAD_PATH: Refusal = Refusal::Text(StatusCode::BAD_REQUEST, "Invalid path requested");
const ABSENT_PATH: Refusal = Refusal::Text(StatusCode::NOT_FOUND, "Requested path not found");
const NO_FOLDER: Refusal =
    Refusal::Text(StatusCode::BAD_REQUEST, "Requested path is not a directory");

/// `GET /userdata?dir=&recurse=&full_info=&split=`: files only, hidden ones left out.
pub(super) async fn list(asked: Asked) -> Answer {
    let given = asked.query("dir").filter(|given| !given.is_empty()).ok_or(NO_DIR)?;
    let root = asked.data.folder_of(asked.user()?);
    let folder = root.join(below(&given).ok_or(BAD_DIR)?);
    let recurse = asked.is_true("recurse");
    let (full_info, split) = (asked.is_true("full_info"), asked.is_true("split"));
    blocking(move || {
        if leads_out(&root, &folder) {
            return Err(BAD_DIR);
        }
        if !folder.exists() {
            return Err(ABSENT_DIR);
        }
        let files = walk(&folder, recurse, false).into_iter().filter(|(_, found)| found.is_file());
        let shown = files.map(|(path, found)| {
            let name = relative(&path, &folder);
            match (full_info, split) {
                (true, _) => info(&found, &name),
                (_, true) => std::iter::once(name.as_str()).chain(name.split('/')).collect(),
                _ => name.into(),
            }
        });
        Ok(ok_json(&shown.collect()))
    })
    .await
}

/// `GET /v2/userdata?path=`: files and folders, all the way down.
pub(super) async fn list_v2(asked: Asked) -> Answer {
    let root = asked.data.folder_of(asked.user.as_deref().ok_or(BAD_USER)?);
    let given = asked.query("path").unwrap_or_default();
    let folder = root.join(below(&given).ok_or(BAD_PATH)?);
    blocking(move || {
        if leads_out(&root, &folder) {
            return Err(BAD_PATH);
        }
        match folder.metadata() {
            Err(_) if folder == root => return Ok(ok_json(&json!([]))),
            Err(_) => return Err(ABSENT_PATH),
            Ok(found) if !found.is_dir() => return Err(NO_FOLDER),
            Ok(_) => {}
        }
        let mut found = walk(&folder, true, true);
        found.sort_by_cached_key(|(path, found)| (!found.is_dir(), file_name(path).to_lowercase()));
        let shown = found.iter().map(|(path, found)| entry(path, found, &root));
        Ok(ok_json(&shown.collect()))
    })
    .await
}

fn entry(path: &Path, found: &Metadata, root: &Path) -> Value {
    let kind = if found.is_dir() { "directory" } else { "file" };
    let mut entry = json!({"name": file_name(path), "path": relative(path, root), "type": kind});
    if found.is_file() {
        entry["size"] = found.len().into();
        entry["modified"] = (modified_ns(found) as f64 / 1e9).into();
    }
    entry
}

/// `get_file_info` of a file under its name.
pub(super) fn info(found: &Metadata, name: &str) -> Value {
    let modified = u64::try_from(modified_ns(found) / 1_000_000).unwrap_or_default();
    let created = found.ctime().saturating_mul(1000).saturating_add(found.ctime_nsec() / 1_000_000);
    json!({"path": name, "size": found.len(), "modified": modified, "created": created})
}

/// A path below a folder as clients write it.
pub(super) fn relative(path: &Path, folder: &Path) -> String {
    let below = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
    if below.is_empty() { ".".to_owned() } else { below }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Files and folders below a folder in the order of their paths. Links are neither followed nor
/// shown.
pub(super) fn walk(folder: &Path, recurse: bool, hidden: bool) -> Vec<(PathBuf, Metadata)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let Ok(about) = entry.metadata() else { continue };
            if (is_hidden && !hidden) || about.is_symlink() {
                continue;
            }
            if recurse && about.is_dir() {
                folders.push(entry.path());
            }
            found.push((entry.path(), about));
            if found.len() > MAX_ENTRIES {
                folders.clear();
                break;
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}
