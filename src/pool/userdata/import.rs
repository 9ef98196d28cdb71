//! Taking over what the backends have kept for their users, once per backend.
//!
//! The first backend in the order of the configuration wins: nothing that is here is ever
//! overwritten, neither a file nor a setting, and what differs is named in the log. A backend
//! that is down is taken over when it first comes up. `.imported-NAME` in the folder says that it
//! is done.
//!
//! Whether there are several users is decided by the first import: they are when any backend that
//! answers then has several. **Bounds**: [`MAX_FILES`] and [`MAX_BYTES`] of a backend, within
//! [`TIME`]. Failures are logged and never fatal: a backend that breaks off is taken up again
//! after [`RETRY`], then ever more rarely, as each time reads its files anew.

mod copy;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use log::{info, warn};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Mutex as Turn;
use tokio::time::{Instant, sleep, timeout};

use super::users::{DEFAULT, Users};
use super::{UserData, blocking, disk};
use crate::backend::Backend;
use crate::comfy::lenient;
use crate::fleet::Fleet;
use crate::logging::TARGET;
use crate::pool::merged::fetch::{Bounds, Fetcher};

/// Files of one backend at most.
pub const MAX_FILES: usize = 20_000;
/// Bytes of one backend's files at most.
pub const MAX_BYTES: u64 = 2 << 30;
/// Time for one backend.
pub const TIME: Duration = Duration::from_mins(10);
/// Pause before a backend that failed is asked again, doubled with each failure.
pub const RETRY: Duration = Duration::from_mins(1);
const MAX_DOUBLINGS: u32 = 6;

const MARK: &str = ".imported-";
const USERS_BOUNDS: Bounds =
    Bounds { bytes: 4 << 20, time: Duration::from_secs(10), grace: Duration::from_secs(5) };

/// Which backends have been taken over.
#[derive(Debug)]
pub(super) struct Importing {
    done: Mutex<HashSet<String>>,
    /// When each may be asked again that has failed, and how often it has.
    failed: Mutex<HashMap<String, (Instant, u32)>>,
    /// Held for an import: there is one at a time.
    turn: Turn<()>,
}

impl Importing {
    /// As the folder tells.
    pub(super) fn of(root: &Path) -> Self {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let done = names.filter_map(|name| Some(name.strip_prefix(MARK)?.to_owned())).collect();
        Self { done: Mutex::new(done), failed: Mutex::default(), turn: Turn::default() }
    }

    fn is_due(&self, backend: &Backend) -> bool {
        let resting = |(until, _): &(Instant, u32)| *until > Instant::now();
        !self.done.lock().contains(backend.name())
            && !self.failed.lock().get(backend.name()).is_some_and(resting)
    }
}

/// What was taken over of a backend.
#[derive(Debug, Default)]
struct Taken {
    files: usize,
    bytes: u64,
    settings: usize,
    /// Files that are here with another content, and those that could not be kept.
    left_out: Vec<String>,
}

impl UserData {
    /// Takes over these backends, as far as they answer and it was not done before. Their order
    /// is the order of precedence.
    pub async fn import(self: &Arc<Self>, fetcher: &Fetcher, backends: &[Arc<Backend>]) {
        let _turn = self.importing.turn.lock().await;
        let due = |backend: &&Arc<Backend>| self.importing.is_due(backend);
        let due: Vec<_> = backends.iter().filter(due).cloned().collect();
        if due.is_empty() {
            return;
        }
        let answers = fetcher.fetch_all(&due, "/users", USERS_BOUNDS).await;
        let mut told: HashMap<_, Value> = answers
            .into_iter()
            .filter(|reply| reply.status == StatusCode::OK)
            .filter_map(|reply| Some((reply.backend.id, lenient::from_slice(&reply.body).ok()?)))
            .collect();
        if let Err(why) = self.decide(&told).await {
            warn!(target: TARGET, "users' data of the backends not taken over: {why}");
            return;
        }
        for backend in due {
            let Some(users) = told.remove(&backend.id) else {
                self.failed(&backend, "it does not tell its users");
                continue;
            };
            let taken = timeout(TIME, self.take_over(fetcher, &backend, &users)).await;
            match taken.unwrap_or_else(|_| Err("it takes too long".to_owned())) {
                Ok(taken) => self.taken_over(&backend, taken).await,
                Err(why) => self.failed(&backend, &why),
            }
        }
    }

    /// Takes over each backend when it first answers, for ever.
    pub async fn keep_importing(self: Arc<Self>, fleet: Arc<Fleet>, fetcher: Arc<Fetcher>) {
        let mut changes = fleet.watch();
        loop {
            let up = |backend: &&Arc<Backend>| backend.live.standing().is_healthy();
            let up: Vec<_> = fleet.view().backends.iter().filter(up).cloned().collect();
            self.import(&fetcher, &up).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep(RETRY) => {}
            }
        }
    }

    /// Whether there are several users, unless that is decided already.
    async fn decide<K>(self: &Arc<Self>, told: &HashMap<K, Value>) -> Result<(), String> {
        if told.is_empty() || self.is_decided() {
            return Ok(());
        }
        let multi = told.values().any(has_several);
        let data = Arc::clone(self);
        let decided = blocking(move || {
            Ok(data.change_users(|users| {
                if users.multi != multi {
                    *users = Users::new(multi);
                }
            })?)
        });
        decided.await.map_err(|_| "their users cannot be kept".to_owned())
    }

    async fn take_over(
        self: &Arc<Self>,
        fetcher: &Fetcher,
        backend: &Arc<Backend>,
        users: &Value,
    ) -> Result<Taken, String> {
        let mut taken = Taken::default();
        for (theirs, name) in users_of(users) {
            let Some(ours) = self.adopt(theirs, name).await? else {
                taken.left_out.push(format!("user {}", short(name)));
                continue;
            };
            let mut headers = HeaderMap::new();
            if has_several(users)
                && let Ok(value) = theirs.parse()
            {
                headers.insert("comfy-user", value);
            }
            let from = copy::Source { fetcher, backend, headers };
            copy::copy(self, &from, &ours, &mut taken).await?;
        }
        Ok(taken)
    }

    /// The user here that a backend's user is; `None` when there can be none.
    async fn adopt(self: &Arc<Self>, id: &str, name: &str) -> Result<Option<String>, String> {
        if !self.users.load().multi {
            return Ok((id == DEFAULT).then(|| DEFAULT.to_owned()));
        }
        let (data, id, name) = (Arc::clone(self), id.to_owned(), name.to_owned());
        let adopted = blocking(move || Ok(data.change_users(|users| users.adopt(&id, &name))?));
        adopted.await.map_err(|_| "its users cannot be kept".to_owned())
    }

    async fn taken_over(self: &Arc<Self>, backend: &Backend, taken: Taken) {
        let name = backend.name().to_owned();
        let Taken { files, settings, left_out, .. } = taken;
        if files + settings > 0 {
            info!(target: TARGET, "users' data of {name} taken over: {files} files, {settings} settings");
        }
        if !left_out.is_empty() {
            let (count, first) = (left_out.len(), left_out[..left_out.len().min(5)].join(", "));
            warn!(
                target: TARGET,
                "users' data of {name}: {count} left out, which differ from what is kept or cannot be kept: {first}"
            );
        }
        let (data, mark) = (Arc::clone(self), self.root.join(format!("{MARK}{name}")));
        let marked = blocking(move || Ok(disk::write(&data.partials(), &mark, b"")?)).await;
        if marked.is_ok() {
            self.importing.done.lock().insert(name);
        } else {
            self.failed(backend, "that it is done cannot be kept");
        }
    }

    fn failed(&self, backend: &Backend, why: &str) {
        warn!(target: TARGET, "users' data of {} not taken over yet: {why}", backend.name());
        let mut failed = self.importing.failed.lock();
        let (until, times) = failed.entry(backend.name().to_owned()).or_insert((Instant::now(), 0));
        *until = Instant::now() + RETRY * (1 << (*times).min(MAX_DOUBLINGS));
        *times += 1;
    }
}

/// Whether a reply to `/users` is that of a server with several users.
fn has_several(users: &Value) -> bool {
    users.get("users").is_some_and(Value::is_object)
}

/// Ids and names of a backend's users.
fn users_of(users: &Value) -> Vec<(&str, &str)> {
    match users.get("users").and_then(Value::as_object) {
        Some(users) => {
            users.iter().filter_map(|(id, name)| Some((id.as_str(), name.as_str()?))).collect()
        }
        None => vec![(DEFAULT, DEFAULT)],
    }
}

/// A text of a backend as it may be logged.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}
