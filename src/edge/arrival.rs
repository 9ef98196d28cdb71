//! A connection from its acceptance to its first byte of HTTP or TLS: whether there is room for it,
//! and whose it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use log::warn;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::proxy_header::{self, Source};
use crate::clock::Moment;
use crate::config::ProxyProtocol;
use crate::gateway::Gateway;
use crate::identity::ClientKey;
use crate::limits::Cut;
use crate::limits::tally::Held;
use crate::logging::TARGET;

/// Bytes of an answer that wait in the kernel for a client who does not read, besides those on
/// their way.
const UNSENT: u32 = 128 << 10;

/// Counts a connection while it lives, if there is room for one more.
pub(super) fn place(gateway: &Arc<Gateway>, peer: SocketAddr) -> Option<Open> {
    let limit = gateway.config.load().limits.connections as u64;
    let open = Open::new(Arc::clone(gateway));
    if gateway.connections.load(Relaxed) > limit {
        cut(gateway, Cut::Connections, peer, &format!("limits.connections is {limit}"));
        return None;
    }
    Some(open)
}

/// Finds out whose connection it is, and counts it as that client's; `None` when it must end.
pub(super) async fn arrive(
    gateway: &Gateway,
    tcp: &mut TcpStream,
    peer: SocketAddr,
    proxy_protocol: ProxyProtocol,
) -> Option<(SocketAddr, Option<Held>)> {
    let client = match proxy_protocol {
        ProxyProtocol::Off => peer,
        expected => match told(gateway, tcp, peer, expected).await {
            Ok(client) => client,
            Err(why) => {
                cut(gateway, Cut::ProxyHeader, peer, &why);
                return None;
            }
        },
    };
    if gateway.trusted.load().contains(client.ip()) {
        return Some((client, None));
    }
    let config = gateway.config.load();
    match gateway.limits.connection(ClientKey::of_address(client.ip()), &config.limits) {
        Ok(held) => Some((client, Some(held))),
        Err(why) => {
            let limit = match why {
                Cut::ConnectionRate => "connections_per_second",
                _ => "connections",
            };
            cut(gateway, why, client, &format!("limits.per_client.{limit} is reached"));
            None
        }
    }
}

/// The client that a trusted peer's PROXY header names.
async fn told(
    gateway: &Gateway,
    tcp: &mut TcpStream,
    peer: SocketAddr,
    expected: ProxyProtocol,
) -> Result<SocketAddr, String> {
    if !gateway.trusted.load().contains(peer.ip()) {
        return Err("it is not one of server.trusted_proxies".to_owned());
    }
    let within = gateway.config.load().limits.header_timeout;
    match timeout(within, proxy_header::read(tcp, expected)).await {
        Ok(Ok(Source::Client(client))) => Ok(client),
        Ok(Ok(Source::Balancer)) => Ok(peer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its PROXY header did not come in time".to_owned()),
    }
}

/// Counts a connection that ends here, and says so now and then.
fn cut(gateway: &Gateway, cut: Cut, client: SocketAddr, why: &str) {
    gateway.limits.cuts.count(cut);
    if let Some(before) = gateway.limits.quiet.may_speak(Moment::now()) {
        let before = match before {
            0 => String::new(),
            before => format!(" ({before} others since the last such line)"),
        };
        warn!(target: TARGET, "a connection of {client} is closed: {why}{before}");
    }
}

/// What every client's socket is set to.
pub(super) fn set_options(tcp: &TcpStream) {
    let _ = tcp.set_nodelay(true);
    keep_alive(tcp);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT);
}

/// Has the kernel find out when a peer is gone without a word, as a closed laptop is: nothing else
/// would end an idle WebSocket.
pub(super) fn keep_alive(tcp: &TcpStream) {
    let every = socket2::TcpKeepalive::new()
        .with_time(Duration::from_mins(2))
        .with_interval(Duration::from_secs(20))
        .with_retries(4);
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&every);
}

/// Counts a connection while it lives.
pub(super) struct Open(Arc<Gateway>);

impl Open {
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        gateway.connections.fetch_add(1, Relaxed);
        Self(gateway)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}
