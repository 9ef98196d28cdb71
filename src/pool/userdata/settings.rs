//! `/settings`: one JSON object per user, in `comfy.settings.json` of the user's folder.

use std::io;
use std::path::{Path, PathBuf};

use axum::body::Body;
use http::StatusCode;
use serde_json::{Map, Value};

use super::refusal::{Answer, Refusal, empty, ok_json};
use super::{Asked, MAX_SETTINGS, UserData, blocking, disk, json_body};

/// The file, which `/userdata` shows too.
pub(super) const FILE: &str = "comfy.settings.json";
/// What a user that is not known gets here.
const UNKNOWN_USER: Refusal = Refusal::Text(StatusCode::UNAUTHORIZED, "401: Unauthorized");

/// `GET /settings`.
pub(super) async fn all(asked: Asked) -> Answer {
    Ok(ok_json(&Value::Object(settings_of(asked).await?)))
}

/// `GET /settings/{id}`.
pub(super) async fn one(asked: Asked, id: String) -> Answer {
    let mut settings = settings_of(asked).await?;
    Ok(ok_json(&settings.remove(&id).unwrap_or_default()))
}

/// `POST /settings`.
pub(super) async fn merge(asked: Asked, body: Body) -> Answer {
    match json_body(&asked, body).await? {
        Value::Object(new) => store(asked, new).await,
        _ => Err(Refusal::Crash),
    }
}

/// `POST /settings/{id}`.
pub(super) async fn set(asked: Asked, id: String, body: Body) -> Answer {
    let value = json_body(&asked, body).await?;
    store(asked, [(id, value)].into_iter().collect()).await
}

async fn settings_of(asked: Asked) -> Result<Map<String, Value>, Refusal> {
    let user = asked.user.ok_or(UNKNOWN_USER)?;
    blocking(move || Ok(read(&asked.data.settings_file(&user))?)).await
}

async fn store(asked: Asked, new: Map<String, Value>) -> Answer {
    let user = asked.user.ok_or(UNKNOWN_USER)?;
    blocking(move || {
        asked.data.change_settings(&user, |settings| settings.extend(new))?;
        Ok(empty(StatusCode::OK))
    })
    .await
}

impl UserData {
    fn settings_file(&self, user: &str) -> PathBuf {
        self.folder_of(user).join(FILE)
    }

    /// Changes a user's settings; they are on the disk when this returns. Blocks.
    pub(super) fn change_settings(
        &self,
        user: &str,
        change: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<(), Refusal> {
        let lock = self.lock_of(user);
        let mut entries = lock.entries.lock();
        let file = self.settings_file(user);
        let mut settings = read(&file)?;
        change(&mut settings);
        // As `json.dumps(settings, indent=4)`, but for the escapes.
        let mut bytes = Vec::new();
        let style = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut writer = serde_json::Serializer::with_formatter(&mut bytes, style);
        serde::Serialize::serialize(&settings, &mut writer).map_err(|_| Refusal::Crash)?;
        if bytes.len() > MAX_SETTINGS {
            return Err(Refusal::TooLarge(MAX_SETTINGS as u64));
        }
        if !file.exists() {
            // Its folder may be new, too.
            *entries = None;
        }
        disk::make_folders(&self.folder_of(user))?;
        disk::write(&self.partials(), &file, &bytes)?;
        Ok(())
    }
}

/// The settings in a file; none where there is no file, or not one that ComfyUI could read. A
/// file that is there and cannot be read is an error: it must not be overwritten as if empty.
fn read(file: &Path) -> io::Result<Map<String, Value>> {
    let bytes = match std::fs::metadata(file) {
        Ok(found) if found.is_file() && found.len() <= MAX_SETTINGS as u64 => std::fs::read(file)?,
        Ok(_) => return Ok(Map::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(error),
    };
    Ok(serde_json::from_slice(&bytes).unwrap_or_default())
}
