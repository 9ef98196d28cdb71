//! `pool.restart_hook`: what is called for a backend that shows no life, to restart it.
//!
//! A program is run as it is given, without a shell; what it is about stands in
//! `COMFYGATE_BACKEND` and `COMFYGATE_BACKEND_URL`, and no other variable of the gateway's own is
//! handed on, for they carry secrets. A URL gets the same as JSON.
//!
//! Bounds: each backend's hook is called once in [`EVERY`], [`AT_ONCE`] run at a time (more are left
//! out), each for [`TIME`] and with [`OUTPUT`] bytes of what it prints.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::backend::BackendId;
use crate::clock::Moment;
use crate::config::RestartHook;
use crate::logging::TARGET;

/// A backend needs time to start.
const EVERY: Duration = Duration::from_mins(2);
/// Hooks that run at a time.
const AT_ONCE: usize = 8;
/// One that takes longer is ended.
const TIME: Duration = Duration::from_mins(1);
/// How long after its end its output is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What is kept of what one prints.
const OUTPUT: usize = 2000;
/// Backends remembered; a fleet has fewer.
const MAX_KNOWN: usize = 4096;

/// Calls hooks.
#[derive(Debug)]
pub(super) struct Hooks {
    called: Mutex<HashMap<BackendId, Moment>>,
    room: Arc<Semaphore>,
}

/// Which backend a hook is called for.
#[derive(Debug, Clone)]
pub(super) struct Patient {
    pub(super) id: BackendId,
    pub(super) name: String,
    pub(super) url: String,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { called: Mutex::default(), room: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Hooks {
    /// Calls a hook for a backend, unless that was done lately or too many run; does not wait.
    pub(super) fn call(&self, hook: RestartHook, patient: Patient, now: Moment) {
        if !self.is_due(patient.id, now) {
            return;
        }
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            return warn!(target: TARGET, "too many restart hooks run: none for {}", patient.name);
        };
        tokio::spawn(async move {
            let name = &patient.name;
            match run(&hook, &patient).await {
                Ok(said) => info!(target: TARGET, "restart hook called for {name}{said}"),
                Err(why) => warn!(target: TARGET, "restart hook for {name} failed: {why}"),
            }
            drop(place);
        });
    }

    fn is_due(&self, id: BackendId, now: Moment) -> bool {
        let mut called = self.called.lock();
        if called.get(&id).is_some_and(|at| now.since(*at) < EVERY) {
            return false;
        }
        if called.len() >= MAX_KNOWN {
            called.retain(|_, at| now.since(*at) < EVERY);
        }
        called.insert(id, now);
        true
    }
}

/// What came of it, for the log.
async fn run(hook: &RestartHook, patient: &Patient) -> Result<String, String> {
    let done = async {
        match hook {
            RestartHook::Command(words) => command(words, patient).await,
            RestartHook::Url(url) => post(url.reveal(), patient).await,
        }
    };
    timeout(TIME, done).await.unwrap_or_else(|_| Err(format!("not done in {TIME:?}")))
}

async fn command(words: &[String], patient: &Patient) -> Result<String, String> {
    let (program, arguments) = words.split_first().ok_or("there is no program")?;
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("COMFYGATE") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .env("COMFYGATE_BACKEND", &patient.name)
        .env("COMFYGATE_BACKEND_URL", &patient.url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let said = tokio::spawn(async { tokio::join!(said(out), said(err)) });
    let status = child.wait().await.map_err(|error| error.to_string())?;
    // What it left running may hold the pipes.
    let (out, err) =
        timeout(LAST_WORDS, said).await.unwrap_or_else(|_| Ok(<_>::default())).unwrap_or_default();
    let words = match (out + &err).trim() {
        "" => String::new(),
        words => format!(": {}", words.escape_debug()),
    };
    if status.success() { Ok(words) } else { Err(format!("{status}{words}")) }
}

/// The beginning of what a program prints; the rest is read and dropped, so that it does not stand
/// still.
async fn said(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut kept, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        let room = OUTPUT - kept.len();
        kept.extend_from_slice(&piece[..read.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

async fn post(url: &str, patient: &Patient) -> Result<String, String> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| error.to_string())?;
    let told = json!({"event": "restart", "backend": patient.name, "url": patient.url});
    // The error would name the URL, which may carry a token.
    let sent = client.post(url).json(&told).send().await;
    let response = sent.map_err(|error| error.without_url().to_string())?;
    let status = response.status();
    if status.is_success() { Ok(String::new()) } else { Err(format!("it answered {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patient() -> Patient {
        Patient { id: BackendId(7), name: "gpu-7".into(), url: "http://gpu-7:8188".into() }
    }

    fn program(script: &str) -> RestartHook {
        RestartHook::Command(["sh", "-c", script].map(str::to_owned).to_vec())
    }

    #[tokio::test]
    async fn a_program_is_told_which_backend_and_what_it_says_is_bounded() {
        let hook = program("echo $COMFYGATE_BACKEND at $COMFYGATE_BACKEND_URL");
        let said = run(&hook, &patient()).await.unwrap();
        assert_eq!(said, ": gpu-7 at http://gpu-7:8188");
        let much =
            run(&program("head -c 300000 /dev/zero | tr '\\0' x"), &patient()).await.unwrap();
        assert_eq!(much.len(), OUTPUT + 2);
    }

    #[tokio::test]
    async fn what_fails_is_told() {
        let failed = run(&program("echo no such unit >&2; exit 5"), &patient()).await.unwrap_err();
        assert!(failed.contains('5') && failed.ends_with(": no such unit"), "{failed}");
        let missing = RestartHook::Command(vec!["/no/such/program".into()]);
        assert!(run(&missing, &patient()).await.unwrap_err().starts_with("/no/such/program: "));
    }

    #[tokio::test]
    async fn words_are_not_read_by_a_shell() {
        let hook = RestartHook::Command(vec!["echo".into(), "$HOME; ls".into()]);
        assert_eq!(run(&hook, &patient()).await.unwrap(), ": $HOME; ls");
    }

    #[test]
    fn each_backend_has_its_turn_once_in_a_while() {
        let hooks = Hooks::default();
        let at = |seconds: u64| Moment(seconds * 1000);
        assert!(hooks.is_due(BackendId(1), at(1)) && hooks.is_due(BackendId(2), at(1)));
        assert!(!hooks.is_due(BackendId(1), at(100)));
        assert!(hooks.is_due(BackendId(1), at(1).plus(EVERY)));
    }
}
