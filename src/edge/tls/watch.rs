//! Certificate files that change while the gateway runs, as they do when somebody renews them.
//!
//! The files' marks (time, size, number) are looked at every second. A change is taken once it has
//! stood still for a look, since certificate and key are two files that nobody replaces at the same
//! instant. What cannot be used is refused in one log line, and the running certificates stay.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::{error, info};

use super::Acceptor;
use crate::config::Tls;
use crate::logging::TARGET;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// What tells a file from the one that stood there before; `None`: there is none.
pub(super) type Mark = Option<(u64, u64, u64, i64, i64)>;

/// Watches the files of an acceptor for ever.
pub async fn watch(acceptor: Arc<Acceptor>) {
    let mut before = Vec::new();
    let mut refused = None;
    loop {
        tokio::time::sleep(EVERY).await;
        let tls = acceptor.tls();
        let Ok(now) = tokio::task::spawn_blocking(move || marks(&tls)).await else { return };
        let stands_still = now == before;
        before.clone_from(&now);
        if stands_still && !acceptor.is_of(&now) && refused.as_ref() != Some(&now) {
            refused = (!take(&acceptor)).then_some(now);
        }
    }
}

fn take(acceptor: &Acceptor) -> bool {
    let taken = acceptor.refresh();
    match &taken {
        Ok(()) => info!(target: TARGET, "server.tls: the certificates have changed and are served"),
        Err(why) => error!(
            target: TARGET,
            "server.tls: the certificates have changed and are refused, the running ones stay: \
             {why}"
        ),
    }
    taken.is_ok()
}

/// The marks of all files that are read.
pub(super) fn marks(tls: &Tls) -> Vec<Mark> {
    let pairs = tls.certificates.iter().flat_map(|pair| [&pair.cert, &pair.key]);
    pairs.chain(&tls.client_ca).map(|path| mark(path)).collect()
}

fn mark(path: &Path) -> Mark {
    let there = std::fs::metadata(path).ok()?;
    Some((there.dev(), there.ino(), there.size(), there.mtime(), there.mtime_nsec()))
}
