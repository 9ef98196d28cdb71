//! Copies one user's settings and files from a backend.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::{MAX_BYTES, MAX_FILES, Taken, short};
use crate::backend::Backend;
use crate::comfy::lenient;
use crate::pool::merged::fetch::{Bounds, Fetcher, Question, Reply, too_long};
use crate::pool::userdata::disk::Partial;
use crate::pool::userdata::place::{exactly, leads_out};
use crate::pool::userdata::refusal::Refusal;
use crate::pool::userdata::{UserData, blocking, settings};

const BOUNDS: Bounds =
    Bounds { bytes: 32 << 20, time: Duration::from_secs(30), grace: Duration::ZERO };
/// Bytes of a file at most: what ComfyUI takes by default.
const FILE_BOUNDS: Bounds = Bounds { bytes: 100 << 20, ..BOUNDS };

/// A user of a backend.
pub(super) struct Source<'a> {
    pub(super) fetcher: &'a Fetcher,
    pub(super) backend: &'a Arc<Backend>,
    pub(super) headers: HeaderMap,
}

impl Source<'_> {
    async fn get(&self, path: &str, bounds: Bounds) -> Result<Reply, String> {
        let question = Question { headers: self.headers.clone(), ..Question::get(path) };
        self.fetcher.ask(self.backend, question, bounds).await
    }

    async fn json(&self, path: &str) -> Result<Option<Value>, String> {
        let reply = self.get(path, BOUNDS).await?;
        if reply.status != StatusCode::OK {
            return Ok(None);
        }
        let read = lenient::from_slice(&reply.body);
        read.map(Some).map_err(|_| format!("{path} is no JSON"))
    }

    /// The names of the user's files. Versions before 0.3.31 have the older listing only.
    async fn files(&self) -> Result<Vec<String>, String> {
        if let Some(found) = self.json("/v2/userdata").await? {
            let entries = found.as_array().map_or(&[][..], Vec::as_slice);
            let files = entries.iter().filter(|entry| entry["type"] == "file");
            return Ok(files.filter_map(|file| text(&file["path"])).take(MAX_FILES).collect());
        }
        let found = self.json("/userdata?dir=.&recurse=true").await?.unwrap_or_default();
        let names = found.as_array().map_or(&[][..], Vec::as_slice);
        Ok(names.iter().filter_map(text).take(MAX_FILES).collect())
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Copies what user `ours` lacks. An error when the backend breaks off in the middle.
pub(super) async fn copy(
    data: &Arc<UserData>,
    from: &Source<'_>,
    ours: &str,
    taken: &mut Taken,
) -> Result<(), String> {
    if let Some(Value::Object(theirs)) = from.json("/settings").await? {
        taken.settings += copy_settings(data, ours, theirs).await?;
    }
    for name in from.files().await? {
        if name != settings::FILE {
            copy_file(data, from, ours, &name, taken).await?;
        }
    }
    Ok(())
}

async fn copy_file(
    data: &Arc<UserData>,
    from: &Source<'_>,
    ours: &str,
    name: &str,
    taken: &mut Taken,
) -> Result<(), String> {
    let Some(path) = exactly(name).filter(|path| path.file_name().is_some()) else {
        taken.left_out.push(short(name));
        return Ok(());
    };
    let reply = match from.get(&url_of(name), FILE_BOUNDS).await {
        Err(why) if why != too_long(FILE_BOUNDS.bytes) => return Err(why),
        reply => reply.ok().filter(|reply| reply.status == StatusCode::OK),
    };
    let Some(reply) = reply else {
        taken.left_out.push(short(name));
        return Ok(());
    };
    taken.bytes += reply.body.len() as u64;
    if taken.bytes > MAX_BYTES {
        return Err(format!("its files have more than {MAX_BYTES} bytes"));
    }
    match keep(data, ours, path, reply.body).await? {
        Kept::New => taken.files += 1,
        Kept::Same => {}
        Kept::Other => taken.left_out.push(short(name)),
    }
    Ok(())
}

/// The address of a file. ComfyUI decodes once more what still has a `%`.
fn url_of(name: &str) -> String {
    let encode = |name: &str| utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
    let name = if name.contains('%') { encode(name) } else { name.to_owned() };
    format!("/userdata/{}", encode(&name))
}

async fn copy_settings(
    data: &Arc<UserData>,
    ours: &str,
    theirs: Map<String, Value>,
) -> Result<usize, String> {
    if theirs.is_empty() {
        return Ok(0);
    }
    let (data, ours) = (Arc::clone(data), ours.to_owned());
    let copied = blocking(move || {
        let mut copied = 0;
        data.change_settings(&ours, |settings| {
            for (key, value) in theirs {
                if !settings.contains_key(&key) {
                    settings.insert(key, value);
                    copied += 1;
                }
            }
        })?;
        Ok(copied)
    });
    copied.await.map_err(|why| unkept(&why))
}

/// What became of a file.
enum Kept {
    New,
    /// It is here already.
    Same,
    /// Another one of its name is, or it cannot be kept under that name.
    Other,
}

async fn keep(
    data: &Arc<UserData>,
    ours: &str,
    path: PathBuf,
    body: Bytes,
) -> Result<Kept, String> {
    let (data, ours) = (Arc::clone(data), ours.to_owned());
    let kept = blocking(move || {
        let root = data.folder_of(&ours);
        let path = root.join(path);
        if leads_out(&root, &path) {
            return Ok(Kept::Other);
        }
        let (partial, mut file) = Partial::create(&data.partials())?;
        std::io::Write::write_all(&mut file, &body)?;
        file.sync_all()?;
        if data.keep(&ours, partial, &path, false)? {
            return Ok(Kept::New);
        }
        let same = path.metadata().is_ok_and(|found| found.len() == body.len() as u64)
            && std::fs::read(&path).is_ok_and(|there| there == body);
        Ok(if same { Kept::Same } else { Kept::Other })
    });
    match kept.await {
        // A folder is here where there is a file there, or a name does not fit.
        Err(Refusal::Crash | Refusal::Bare(_)) => Ok(Kept::Other),
        other => other.map_err(|why| unkept(&why)),
    }
}

fn unkept(why: &Refusal) -> String {
    match why {
        Refusal::Storage(what) => format!("the gateway's storage {what}"),
        _ => "its settings cannot be kept".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_sign_is_encoded_twice() {
        assert_eq!(url_of("a/b c.json"), "/userdata/a%2Fb%20c%2Ejson");
        assert_eq!(url_of("1%"), "/userdata/1%2525");
    }
}
