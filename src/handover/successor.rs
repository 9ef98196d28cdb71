//! The new process's side.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::SOCKET;
use super::wire::{GO, HELLO, RELEASE, RELEASED, SERVING, Wire};

/// For what the old process does at once.
const SOON: Duration = Duration::from_secs(5);
/// For its closing.
const CLOSING: Duration = Duration::from_secs(40);

/// A process that is about to take over. Dropped before [`serving`](Self::serving) it leaves the old
/// one in its place.
pub struct Successor {
    wire: Wire,
    listeners: Vec<TcpListener>,
}

impl Successor {
    /// Speaks to the process that serves from this `state_dir`; `None` when there is none.
    pub fn find(state_dir: &Path) -> Result<Option<Self>> {
        let path = state_dir.join(SOCKET);
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error) => {
                let none = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
                return if none.contains(&error.kind()) {
                    Ok(None)
                } else {
                    Err(error).with_context(|| format!("{}", path.display()))
                };
            }
        };
        let greet = || {
            let mut wire = Wire::new(stream)?;
            wire.say(HELLO)?;
            let listeners = wire.hear_listeners(SOON)?;
            Ok::<_, io::Error>(Self { wire, listeners })
        };
        greet().map(Some).context("the running comfygate does not hand its place over")
    }

    /// The old process's listening socket for an address; port 0 means any.
    pub fn listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let fits = |listener: &TcpListener| {
            let its = listener.local_addr().ok();
            let port = |its: SocketAddr| address.port() == 0 || its.port() == address.port();
            its.is_some_and(|its| its.ip() == address.ip() && port(its))
        };
        let at = self.listeners.iter().position(fits)?;
        Some(self.listeners.remove(at))
    }

    /// Has the old process close journal, sids and state. Blocks.
    pub fn release(&mut self) -> Result<()> {
        let asked = self.wire.say(RELEASE).and_then(|()| self.wire.expect(RELEASED, CLOSING));
        asked.context("the running comfygate does not give its state free")
    }

    /// Takes over: the old process drains and ends. Blocks.
    pub fn serving(mut self) -> Result<()> {
        let taken = self.wire.say(SERVING).and_then(|()| self.wire.expect(GO, SOON));
        taken.context("the running comfygate has kept its place")
    }
}
