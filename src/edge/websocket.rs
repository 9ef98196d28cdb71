//! A WebSocket from its handshake to its end: finds the backend, repeats the handshake there, then
//! leaves the bytes to the relay.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::MaybeTlsStream;
use tokio_util::io::InspectReader;

use super::admit::Handshake;
use super::envelope::{DROPPED, Envelope};
use super::{keep_alive, refuse, send_and_linger};
use crate::access::{self, Record};
use crate::affinity::SocketGuard;
use crate::auth::grant::ended;
use crate::backend::{Backend, BackendId, Standing};
use crate::clock::Moment;
use crate::comfy::class::Class;
use crate::comfy::routes::{bare, query_value};
use crate::config::Affinity;
use crate::connections::Connection;
use crate::gateway::Gateway;
use crate::logging::{TARGET, is_verbose};
use crate::outlier::Evidence;
use crate::rejection::{Kind, Rejection, full};
use crate::relay::handshake::{
    HEAD_LIMIT, ResponseHead, check_accept, read_response_head, write_response_head,
    write_upgrade_request,
};
use crate::relay::{Prefix, RelayOptions, StopReason, relay};
use crate::retry::{Failure, RetryCase, Verdict, may_retry};
use crate::upstream;

/// The backend's answer to a handshake must come within this time.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream to a backend.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A backend that accepted the handshake.
struct Opened {
    backend: Arc<Backend>,
    stream: Box<dyn Io>,
    head: ResponseHead,
    behind: BytesMut,
    /// Counts it among those that the backend holds.
    connection: Connection,
}

/// Serves a WebSocket client to its end.
pub(super) async fn serve(
    gateway: &Arc<Gateway>,
    stream: Stream,
    envelope: Box<Envelope>,
    handshake: Handshake,
) {
    if gateway.config.load().session.affinity == Affinity::Ip
        && let Some(client_id) = query_value(&handshake.target, "clientId")
    {
        gateway.saw_client_id(envelope.address, client_id);
    }
    if let Some(pool) = gateway.pool()
        && bare(&handshake.target) == "/ws"
    {
        return super::pooled::serve(gateway, pool, stream, &envelope, &handshake).await;
    }
    match Box::pin(open(gateway, &envelope, &handshake)).await {
        Ok(opened) => {
            Box::pin(answer_and_relay(gateway, stream, &envelope, &handshake, opened)).await;
        }
        Err(refused) => {
            gateway.metrics.refused("GET", &refused);
            refuse(stream, &refused.to_http1()).await;
        }
    }
}

/// Shakes hands with the client's backend, or the next best one while that is allowed.
async fn open(
    gateway: &Arc<Gateway>,
    envelope: &Envelope,
    handshake: &Handshake,
) -> Result<Opened, Rejection> {
    let _request = gateway.budget.request();
    let failover = gateway.config.load().failover.clone();
    let max_attempts = if failover.enabled { failover.attempts } else { 1 };
    let class = Class::of(&http::Method::GET, &handshake.target);
    let mut tried: Vec<BackendId> = Vec::new();
    let mut retry = None;
    loop {
        let destination = gateway.destination(envelope, &tried)?;
        let backend = destination.backend;
        if is_verbose() {
            log::info!(
                target: TARGET,
                "WS {} → {} [client: {}] (load balanced)",
                handshake.target, backend.spec.endpoint.url(), envelope.address
            );
        }
        let most = backend.spec.max_connections;
        let connection = backend.live.connections.take(most).ok_or_else(full)?;
        let limit = gateway.config.load().timeouts.connect;
        let (failure, sent, why) = match try_open(&backend, limit, envelope, handshake).await {
            Ok((stream, head, behind)) => {
                if let Some(seen) = Evidence::of_status(class, head.status) {
                    gateway.warden.saw(&backend, seen);
                }
                return Ok(Opened { backend, stream, head, behind, connection });
            }
            Err(failed) => failed,
        };
        gateway.suspects(&backend, &why);
        if let Some(seen) = Evidence::of_failure(class, failure, true) {
            gateway.warden.saw(&backend, seen);
        }
        tried.push(backend.id);
        let verdict = may_retry(&RetryCase {
            method: &http::Method::GET,
            is_prompt_post: false,
            bytes_sent: sent,
            body_lost: false,
            response_started: false,
            failure,
            attempt: tried.len() as u32,
            max_attempts,
        });
        drop(retry.take());
        if verdict == Verdict::Retry {
            retry = gateway.budget.retry().await;
        }
        match retry {
            Some(_) => gateway.metrics.retried(),
            _ if failure == Failure::Timeout => {
                let message = "the ComfyUI server did not answer the WebSocket handshake in time";
                return Err(Rejection::new(Kind::UpstreamTimeout, message));
            }
            _ => {
                let message = "the ComfyUI server could not be reached";
                return Err(Rejection::new(Kind::UpstreamFailed, message));
            }
        }
    }
}

type Shaken = (Box<dyn Io>, ResponseHead, BytesMut);

async fn try_open(
    backend: &Backend,
    limit: Duration,
    envelope: &Envelope,
    handshake: &Handshake,
) -> Result<Shaken, (Failure, bool, String)> {
    let connect_failed = |error: io::Error| (Failure::Connect, false, error.to_string());
    let mut stream = connect(backend, limit).await.map_err(connect_failed)?;
    let lost = |why: String| (Failure::Reset, true, why);
    let request = request_head(backend, envelope, handshake).map_err(|e| lost(e.to_string()))?;
    let exchange = async {
        stream.write_all(&request).await.map_err(|error| lost(error.to_string()))?;
        stream.flush().await.map_err(|error| lost(error.to_string()))?;
        read_response_head(&mut stream, HEAD_LIMIT, BytesMut::new())
            .await
            .map_err(|error| lost(error.to_string()))
    };
    match timeout(HANDSHAKE_TIMEOUT, exchange).await {
        Ok(shaken) => shaken.map(|(head, behind)| (stream, head, behind)),
        Err(_) => Err((Failure::Timeout, true, "no answer to a WebSocket handshake".into())),
    }
}

async fn connect(backend: &Backend, limit: Duration) -> io::Result<Box<dyn Io>> {
    let address = backend.live.address.load().as_deref().copied();
    let address = address.ok_or_else(|| io::Error::other("its name does not resolve"))?;
    match upstream::socket::connect(backend, address, limit).await? {
        MaybeTlsStream::Plain(tcp) => {
            keep_alive(&tcp);
            Ok(Box::new(tcp))
        }
        MaybeTlsStream::Rustls(tls) => {
            keep_alive(tls.get_ref().0);
            Ok(Box::new(tls))
        }
        other => Ok(Box::new(other)),
    }
}

fn request_head(
    backend: &Backend,
    envelope: &Envelope,
    handshake: &Handshake,
) -> Result<Vec<u8>, crate::relay::handshake::HandshakeError> {
    let target = format!("{}{}", backend.spec.endpoint.base, handshake.target);
    let ours = envelope.outgoing(backend);
    let hop_by_hop =
        ["connection", "upgrade", "keep-alive", "te", "proxy-authorization", "proxy-connection"];
    let replaced = |name: &str| {
        DROPPED.contains(&name)
            || hop_by_hop.contains(&name)
            || ours.iter().any(|(our_name, _)| our_name == name)
            || (name == "cookie" && envelope.cookies.is_some())
    };
    let theirs = handshake.headers.iter().filter(|(name, _)| !replaced(name));
    let headers = ours
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .chain(theirs.map(|(name, value)| (name.as_str(), value.as_slice())))
        .chain(envelope.cookies.iter().flatten().map(|value| ("cookie", value.as_bytes())))
        .chain([("connection", &b"Upgrade"[..]), ("upgrade", &b"websocket"[..])]);
    write_upgrade_request("GET", &target, headers)
}

/// Passes the backend's answer on and, when it is an upgrade, relays until the end.
async fn answer_and_relay(
    gateway: &Arc<Gateway>,
    mut stream: Stream,
    envelope: &Envelope,
    handshake: &Handshake,
    opened: Opened,
) {
    let Opened { backend, stream: upstream, head, behind, connection: _connection } = opened;
    if head.status == 101 && !(head.is_websocket() && check_accept(&handshake.key, &head.headers)) {
        let refused = Rejection::new(
            Kind::UpstreamFailed,
            "the ComfyUI server's WebSocket handshake makes no sense",
        );
        gateway.metrics.refused("GET", &refused);
        return refuse(stream, &refused.to_http1()).await;
    }
    let answered = || {
        backend.live.traffic.answered("GET", head.status, envelope.started.elapsed());
    };
    let show_backend = gateway.config.load().server.backend_header;
    let name = show_backend.then(|| backend.name());
    if head.status != 101 {
        answered();
        return pass_refusal(stream, upstream, &head, behind, name).await;
    }
    let Ok(response) = response_head(&head, name) else { return };
    let written = async {
        stream.write_all(&response).await?;
        stream.flush().await
    };
    if !matches!(timeout(HANDSHAKE_TIMEOUT, written).await, Ok(Ok(()))) {
        return;
    }
    answered();
    let _open = OpenSocket::new(gateway, &backend, envelope);
    let prefix = Prefix { backend: behind.freeze(), ..Prefix::default() };
    let grant = ended(Arc::clone(gateway), envelope.grant.clone());
    let stop = stop_reason(backend.live.watch(), gateway.stopping_hard(), grant);
    // What passes to clients is how sticky mode sees that a running prompt still runs.
    let live = Arc::clone(&backend.live);
    let upstream = InspectReader::new(upstream, move |bytes: &[u8]| {
        if !bytes.is_empty() {
            live.event(Moment::now());
        }
    });
    let end = relay(stream, upstream, prefix, stop, RelayOptions::default()).await;
    if access::is_on() {
        access::write(&Record {
            method: "GET",
            target: &handshake.target,
            status: 101,
            bytes: end.down.bytes,
            connect: None,
            first_byte: None,
            total: envelope.started.elapsed(),
            backend: backend.name(),
            client: envelope.address,
            request_id: &envelope.request_id,
            retries: 0,
            reason: end.cause.label(),
        });
    }
}

fn response_head(
    head: &ResponseHead,
    backend: Option<&str>,
) -> Result<Vec<u8>, crate::relay::handshake::HandshakeError> {
    let theirs = head
        .headers
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("x-comfygate-backend"))
        .map(|(name, value)| (name.as_str(), value.as_slice()));
    let ours = backend.map(|name| ("x-comfygate-backend", name.as_bytes()));
    write_response_head(head.status, &head.reason, theirs.chain(ours))
}

/// Bytes of a refusal that are passed on at most.
const MAX_REFUSAL: usize = 64 << 10;

/// A backend that answers a handshake with something else than 101: its answer, whole if it is
/// short, and the end of the connection.
async fn pass_refusal(
    mut stream: Stream,
    mut upstream: Box<dyn Io>,
    head: &ResponseHead,
    mut body: BytesMut,
    backend: Option<&str>,
) {
    let length = head.header("content-length").and_then(|v| std::str::from_utf8(v).ok());
    let length = length.and_then(|v| v.trim().parse::<usize>().ok()).unwrap_or(0).min(MAX_REFUSAL);
    let rest = async {
        while body.len() < length && super::conn::read_into(&mut upstream, &mut body).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(HANDSHAKE_TIMEOUT, rest).await;
    body.truncate(length);
    let theirs = head.headers.iter().filter(|(name, _)| {
        let framing =
            ["connection", "keep-alive", "content-length", "transfer-encoding", "upgrade"];
        !framing.iter().any(|framing| name.eq_ignore_ascii_case(framing))
    });
    let size = body.len().to_string();
    let headers = theirs
        .map(|(name, value)| (name.as_str(), value.as_slice()))
        .chain([("content-length", size.as_bytes()), ("connection", &b"close"[..])])
        .chain(backend.map(|name| ("x-comfygate-backend", name.as_bytes())));
    if let Ok(mut response) = write_response_head(head.status, &head.reason, headers) {
        response.extend_from_slice(&body);
        send_and_linger(&mut stream, &response).await;
    }
}

/// Resolves when the sockets of a backend must end.
async fn stop_reason(
    mut standing: tokio::sync::watch::Receiver<Standing>,
    stopping: impl Future<Output = ()>,
    access_ended: impl Future<Output = ()>,
) -> StopReason {
    let backend = async {
        match standing.wait_for(|standing| standing.stop_reason().is_some()).await {
            Ok(standing) => standing.stop_reason().unwrap_or(StopReason::BackendRemoved),
            Err(_) => StopReason::BackendRemoved,
        }
    };
    tokio::select! {
        reason = backend => reason,
        () = stopping => StopReason::GatewayShutdown,
        () = access_ended => StopReason::AccessEnded,
    }
}

/// Counts an open WebSocket, and keeps its client's placement alive.
struct OpenSocket {
    backend: Arc<Backend>,
    _placement: Option<SocketGuard>,
}

impl OpenSocket {
    fn new(gateway: &Gateway, backend: &Arc<Backend>, envelope: &Envelope) -> Self {
        backend.live.sockets.fetch_add(1, Relaxed);
        let placement = gateway.affinity.open_socket(envelope.key, gateway.clock.now());
        Self { backend: Arc::clone(backend), _placement: placement }
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.backend.live.sockets.fetch_sub(1, Relaxed);
    }
}
