//! How the gateway connects to backends.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pingora_core::upstreams::peer::HttpPeer;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

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
    // Never an empty SNI: Pingora's rustls connector would skip verification.
    let mut peer = Box::new(HttpPeer::new(address, endpoint.tls, endpoint.host.clone()));
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

static TLS: LazyLock<Option<TlsConnector>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
});

/// Shakes hands with a backend's TLS.
pub async fn tls(host: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connector = TLS.as_ref().ok_or_else(|| io::Error::other("TLS cannot be set up"))?;
    connector.connect(name, tcp).await
}
