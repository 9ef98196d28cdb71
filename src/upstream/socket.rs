//! Connections to backends that are ours from the first byte: WebSockets.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_with_config};

use super::{CONNECT_TIMEOUT, trust};
use crate::backend::Backend;

/// A WebSocket to a backend.
pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Connects to a backend at one of these addresses, by TLS where it speaks that; each of the two
/// within a limit.
pub async fn connect(
    backend: &Backend,
    address: impl ToSocketAddrs,
    limit: Duration,
) -> io::Result<MaybeTlsStream<TcpStream>> {
    let tcp = in_time(limit, TcpStream::connect(address)).await?;
    tcp.set_nodelay(true)?;
    if !backend.spec.endpoint.tls {
        return Ok(MaybeTlsStream::Plain(tcp));
    }
    let trust = trust::of(backend);
    let name = ServerName::try_from(trust.name).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::clone(&trust.ready.client));
    Ok(MaybeTlsStream::Rustls(in_time(limit, connector.connect(name, tcp)).await?))
}

async fn in_time<T>(limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    timeout(limit, step).await.map_err(late)?
}

/// The request for a WebSocket at this path (below the backend's base), to be given more headers.
pub fn request(backend: &Backend, path: &str) -> Option<Request> {
    let endpoint = &backend.spec.endpoint;
    let scheme = if endpoint.tls { "wss" } else { "ws" };
    let url = format!("{scheme}://{}{}{path}", endpoint.authority(), endpoint.base);
    url.into_client_request().ok()
}

/// Opens a WebSocket; the caller sees to the time it takes.
pub async fn open(backend: &Backend, request: Request, config: WebSocketConfig) -> Option<Socket> {
    let endpoint = &backend.spec.endpoint;
    let address = (endpoint.host.as_str(), endpoint.port);
    let stream = connect(backend, address, CONNECT_TIMEOUT).await.ok()?;
    let (socket, _) = client_async_with_config(request, stream, Some(config)).await.ok()?;
    Some(socket)
}
