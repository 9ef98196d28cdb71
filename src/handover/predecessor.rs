//! The old process's side.

use std::fs::Permissions;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::{error, info, warn};
use tokio::net::UnixListener;
use tokio::runtime::Handle;

use super::wire::{GO, HELLO, RELEASE, RELEASED, SERVING, Wire};
use super::{Estate, SOCKET};
use crate::logging::TARGET;

/// For what the new process says at once.
const SOON: Duration = Duration::from_secs(5);
/// For each of its steps.
const STEP: Duration = Duration::from_mins(1);
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_secs(1);

/// A place that is offered.
pub struct Offer {
    socket: UnixListener,
    listeners: Arc<[TcpListener]>,
}

impl Offer {
    /// Offers the place of this process, which has `state_dir` for itself. Wants a Tokio runtime.
    pub fn new(state_dir: &Path, listeners: Vec<TcpListener>) -> io::Result<Self> {
        let path = state_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { socket, listeners: listeners.into() })
    }

    /// Waits until a successor has taken the place.
    pub async fn taken(self, estate: Estate) {
        let estate = Arc::new(estate);
        loop {
            let Ok((stream, _)) = self.socket.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (estate, listeners) = (Arc::clone(&estate), Arc::clone(&self.listeners));
            let runtime = Handle::current();
            let talk = tokio::task::spawn_blocking(move || {
                let wire = stream.into_std().and_then(Wire::new)?;
                negotiate(wire, &listeners, &estate, &runtime)
            });
            match talk.await {
                Ok(Ok(())) => return info!(target: TARGET, "a successor has taken over"),
                Ok(Err(error)) => warn!(target: TARGET, "an upgrade was not made: {error}"),
                Err(error) => error!(target: TARGET, "an upgrade was not made: {error}"),
            }
        }
    }
}

/// Hands over, or keeps everything. Blocks.
fn negotiate(
    mut wire: Wire,
    listeners: &[TcpListener],
    estate: &Estate,
    runtime: &Handle,
) -> io::Result<()> {
    wire.expect(HELLO, SOON)?;
    wire.say_listeners(listeners)?;
    wire.expect(RELEASE, STEP)?;
    info!(target: TARGET, "an upgrade: the state is handed over");
    runtime.block_on(estate.release());
    let taken =
        wire.say(RELEASED).and_then(|()| wire.expect(SERVING, STEP)).and_then(|()| wire.say(GO));
    // Whoever has not heard `go` by now does not serve.
    drop(wire);
    match taken {
        Ok(()) => estate.gone(),
        Err(_) => runtime.block_on(estate.reclaim()),
    }
    taken
}
