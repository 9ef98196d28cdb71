//! How the gateway connects to backends.
//!
//! There are three ways: Pingora's connector for what it proxies ([`peer`]), reqwest for what the
//! gateway asks for its own sake ([`clients`]), and WebSockets ([`socket`]). All three believe the
//! same certificates ([`trust`]).

pub mod clients;
pub mod socket;
pub mod trust;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use pingora_core::upstreams::peer::HttpPeer;

use crate::backend::Backend;
use crate::comfy::class::Class;
use crate::config::Timeouts;

/// A connection of the gateway's own that takes longer has failed.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Idle connections are dropped before aiohttp's keep-alive of 75 s would race with a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Numbers the connections of a single request, see [`peer`]. 0 is the group of the shared ones.
static ALONE: AtomicU64 = AtomicU64::new(1);

/// The backend as Pingora connects to it; `None` while its name does not resolve.
///
/// A prompt always gets a connection of its own (`alone`): on a kept-alive one the backend's close
/// could cross the prompt's way, and nobody could tell whether it was queued.
pub fn peer(
    backend: &Backend,
    alone: bool,
    class: Class,
    timeouts: &Timeouts,
) -> Option<Box<HttpPeer>> {
    let address = *backend.live.address.load().as_deref()?;
    let endpoint = &backend.spec.endpoint;
    let trust = endpoint.tls.then(|| trust::of(backend));
    // Never an empty SNI: Pingora's rustls connector would skip verification.
    let name = trust.as_ref().map_or(&endpoint.host, |trust| &trust.name);
    let mut peer = Box::new(HttpPeer::new(address, endpoint.tls, name.clone()));
    if let Some(trust) = trust {
        trust.ready.set(&mut peer.options);
    }
    peer.options.connection_timeout = Some(timeouts.connect);
    // With the handshake of TLS.
    peer.options.total_connection_timeout = Some(timeouts.connect * 2);
    peer.options.read_timeout = Some(silence(class, timeouts));
    peer.options.write_timeout = Some(timeouts.write);
    peer.options.idle_timeout = Some(if alone { Duration::ZERO } else { IDLE_TIMEOUT });
    if alone {
        // Pingora pools a connection for an instant even when it is to be idle for no time at all:
        // only a group of its own keeps another request from taking it.
        peer.group_key = ALONE.fetch_add(1, Relaxed);
    }
    Some(peer)
}

/// How long a backend may be silent, before or within its answer. Pingora starts anew with each
/// piece of the request's body too, so that a slow upload is not taken for a silent backend.
fn silence(class: Class, timeouts: &Timeouts) -> Duration {
    match class {
        Class::Control => timeouts.read,
        Class::Transfer | Class::Custom => timeouts.transfer,
    }
}
