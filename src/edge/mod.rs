//! The front door: accepts connections, reads each request's head, decides what becomes of it.
//!
//! An ordinary request goes on to Pingora's `HttpProxy` with the bytes already read; a WebSocket
//! goes to our own relay; what is refused never reaches either. Between two requests of a
//! connection nothing is held but the socket.

pub mod admit;
pub mod conn;
mod entry;
pub mod envelope;
mod h2;
pub mod head;
mod local;
mod pooled;
pub mod redirect;
pub mod tls;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use http::HeaderValue;
use log::{debug, warn};
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::access::{self, Record};
use crate::config::Config;
use crate::gateway::Gateway;
use crate::logging::TARGET;
use crate::metrics;
use crate::proxy::Proxy;
use crate::rejection::Rejection;
use admit::{Admission, Body};
use conn::Conn;
use entry::admitted;
use head::{NoHead, read_head};
use tls::Acceptor;

/// A handshake of TLS takes at most this long.
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
/// A response's bytes must be taken within this time, or the client is cut.
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);
/// A connection without a request yet is kept so long when the gateway stops.
const NEWCOMER: Duration = Duration::from_millis(500);
/// After a refusal the client may go on sending for so long before the connection is cut.
const LINGER: Duration = Duration::from_secs(2);

/// Accepts and serves the data plane's connections.
pub struct FrontDoor {
    gateway: Arc<Gateway>,
    proxy: Arc<HttpProxy<Proxy>>,
    acceptor: Option<Arc<Acceptor>>,
    admin: axum::Router,
    tasks: TaskTracker,
}

impl FrontDoor {
    /// A door to a gateway. `admin` serves `/lb/*` on this port.
    pub fn new(
        gateway: Arc<Gateway>,
        proxy: Arc<HttpProxy<Proxy>>,
        acceptor: Option<Arc<Acceptor>>,
        admin: axum::Router,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let admin = metrics::count_local(admin, &gateway);
        Arc::new(Self { gateway, proxy, acceptor, admin, tasks })
    }

    /// Accepts until the gateway stops.
    pub async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut stopping = self.gateway.stopping.subscribe();
        loop {
            let accepted = tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => self.welcome(tcp, peer),
                Err(error) => {
                    // Out of descriptors, most likely: others must close before it is better.
                    warn!(target: TARGET, "a connection could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn welcome(self: &Arc<Self>, tcp: TcpStream, peer: SocketAddr) {
        let limit = self.gateway.config.load().limits.connections as u64;
        let open = Open::new(Arc::clone(&self.gateway));
        if self.gateway.connections.load(Relaxed) > limit {
            debug!(target: TARGET, "connection of {peer} closed: limits.connections is {limit}");
            return;
        }
        let door = Arc::clone(self);
        self.tasks.spawn(async move {
            let _open = open;
            let _ = tcp.set_nodelay(true);
            keep_alive(&tcp);
            match &door.acceptor {
                None => door.serve(Conn::plain(tcp, peer), peer).await,
                Some(acceptor) => match timeout(TLS_HANDSHAKE, acceptor.accept(tcp)).await {
                    Ok(Ok(tls)) if tls::is_http2(&tls) => {
                        Box::pin(h2::serve(&door, Conn::tls(tls, peer), peer)).await;
                    }
                    Ok(Ok(tls)) => {
                        Box::pin(door.serve(Conn::tls(tls, peer), peer)).await;
                    }
                    Ok(Err(_)) | Err(_) => {}
                },
            }
        });
    }

    /// Serves one connection, request by request.
    async fn serve(self: Arc<Self>, conn: Conn, peer: SocketAddr) {
        let tls = conn.is_tls();
        // A request of HTTP/2 is let in already, and answered whatever happens to its connection.
        let (_never, never) = watch::channel(false);
        let stopping = if conn.is_request() { never } else { self.gateway.stopping.subscribe() };
        let mut stream: Stream = Box::new(conn);
        let mut settings: Option<HttpPersistentSettings> = None;
        let mut buffer = BytesMut::new();
        // Whoever has just connected is about to ask, and could not know better.
        let mut patience = NEWCOMER;
        loop {
            let leaving = left(stopping.clone(), patience);
            let head = self.next_head(&mut stream, &mut buffer, leaving).await;
            let Some(length) = head else { return };
            patience = Duration::ZERO;
            let admission = admitted(&self.gateway, &buffer[..length], peer, tls).await;
            match admission {
                Admission::Proxy { envelope, head, body } => {
                    let request = take_request(&mut buffer, length, head, body);
                    let mut session = ServerSession::new_http1(stream);
                    self.prepare(&mut session, settings.take());
                    session.set_pipelined_prefix(request);
                    session.set_connection_user_context(Some(envelope));
                    let Some(reused) = self.proxy.process_new_http(session, &stopping).await else {
                        return;
                    };
                    (stream, settings) = reused.consume();
                }
                Admission::WebSocket(envelope, handshake) => {
                    if buffer.len() > length {
                        // Frames before the 101 belong to no agreed protocol.
                        return;
                    }
                    drop(buffer);
                    return websocket::serve(&self.gateway, stream, envelope, handshake).await;
                }
                Admission::Local { visitor, head } => {
                    if let Some(mut head) = head {
                        head.extend_from_slice(&buffer[length..]);
                        buffer = head;
                    }
                    let router = self.admin.clone().layer(axum::Extension(visitor));
                    return local::serve(router, stream, buffer, peer).await;
                }
                Admission::Redirect { location, has_body } => {
                    let method = method_of(&buffer);
                    self.gateway.metrics.front.answered(method, 302, Duration::ZERO);
                    let _ = buffer.split_to(length);
                    let response = admit::redirect(&location);
                    if has_body {
                        return refuse(stream, &response).await;
                    }
                    if stream.write_all(&response).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
                Admission::Answer(answer) => {
                    let (method, status) = (method_of(&buffer), answer.status.as_u16());
                    self.gateway.metrics.front.answered(method, status, Duration::ZERO);
                    return refuse(stream, &answer.to_http1()).await;
                }
                // Asked and answered on the way here.
                Admission::Ask(_) => return,
                Admission::Refuse(refused) => {
                    self.gateway.metrics.refused(method_of(&buffer), &refused);
                    log_refusal(&buffer[..length], peer, &refused);
                    return refuse(stream, &refused.to_http1()).await;
                }
            }
        }
    }

    /// Waits for the next request's head; `None` when the connection is done.
    async fn next_head(
        &self,
        stream: &mut Stream,
        buffer: &mut BytesMut,
        leaving: impl Future<Output = ()>,
    ) -> Option<usize> {
        let limits = self.gateway.config.load().limits.clone();
        let head = tokio::select! {
            biased;
            head = read_head(stream, buffer, &limits, limits.keepalive_timeout) => head,
            () = leaving => return None,
        };
        match head {
            Ok(length) => Some(length),
            Err(NoHead::Gone) => None,
            Err(NoHead::Refused(refused)) => {
                self.gateway.metrics.refused(method_of(buffer), &refused);
                send_and_linger(stream, &refused.to_http1()).await;
                None
            }
        }
    }

    fn prepare(&self, session: &mut ServerSession, settings: Option<HttpPersistentSettings>) {
        if let Some(settings) = settings {
            settings.apply_to_session(session);
        }
        let seconds = self.gateway.config.load().limits.keepalive_timeout.as_secs();
        let stopping = *self.gateway.stopping.borrow();
        session.set_keepalive((!stopping).then_some(seconds.max(1)));
        session.set_write_timeout(Some(WRITE_TIMEOUT));
    }
}

/// What browsers are told about coming back, if anything (RFC 6797).
fn hsts(config: &Config) -> Option<HeaderValue> {
    let seconds = config.server.tls.as_ref()?.hsts.as_secs();
    (seconds > 0).then(|| HeaderValue::try_from(format!("max-age={seconds}")).ok())?
}

/// When a connection that waits for a request is to end.
async fn left(mut stopping: ShutdownWatch, patience: Duration) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
    tokio::time::sleep(patience).await;
}

/// Has the kernel find out when a peer is gone without a word, as a closed laptop is: nothing else
/// would end an idle WebSocket.
fn keep_alive(tcp: &TcpStream) {
    let every = socket2::TcpKeepalive::new()
        .with_time(Duration::from_mins(2))
        .with_interval(Duration::from_secs(20))
        .with_retries(4);
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&every);
}

/// Takes from the buffer what Pingora is to parse: the head and what belongs to the body. The rest
/// is the next request's, which comes through this door again.
fn take_request(
    buffer: &mut BytesMut,
    length: usize,
    head: Option<BytesMut>,
    body: Body,
) -> BytesMut {
    let behind = buffer.len() - length;
    let of_body = match body {
        Body::Chunked => behind,
        Body::Sized(size) => behind.min(usize::try_from(size).unwrap_or(usize::MAX)),
    };
    match head {
        None => buffer.split_to(length + of_body),
        Some(mut head) => {
            let request = buffer.split_to(length + of_body);
            head.extend_from_slice(&request[length..]);
            head
        }
    }
}

/// A request's method, as far as its first line can be read.
fn method_of(head: &[u8]) -> &str {
    let word = head.split(|&byte| byte == b' ').next().unwrap_or_default();
    std::str::from_utf8(word).unwrap_or_default()
}

/// Refused requests stand in the access log too, as far as their first line can be read.
fn log_refusal(head: &[u8], peer: SocketAddr, refused: &Rejection) {
    if !access::is_on() {
        return;
    }
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    access::write(&Record {
        method: words.next().unwrap_or("-"),
        target: words.next().unwrap_or("-"),
        status: refused.kind.status().as_u16(),
        bytes: refused.body().len() as u64,
        connect: None,
        first_byte: None,
        total: Duration::ZERO,
        backend: "-",
        client: peer.ip(),
        request_id: "-",
        retries: 0,
        reason: refused.kind.name(),
    });
}

async fn refuse(mut stream: Stream, response: &[u8]) {
    send_and_linger(&mut stream, response).await;
}

/// Answers and closes. What the client still sends is read for a moment: a connection closed
/// over unread bytes is reset, and the reset overtakes the answer.
async fn send_and_linger(stream: &mut Stream, response: &[u8]) {
    let farewell = async {
        stream.write_all(response).await?;
        stream.flush().await?;
        AsyncWriteExt::shutdown(stream).await?;
        let mut sink = BytesMut::new();
        while conn::read_into(stream, &mut sink).await? > 0 {
            sink.clear();
        }
        std::io::Result::Ok(())
    };
    let _ = timeout(LINGER, farewell).await;
}

/// Counts a connection while it lives.
struct Open(Arc<Gateway>);

impl Open {
    fn new(gateway: Arc<Gateway>) -> Self {
        gateway.connections.fetch_add(1, Relaxed);
        Self(gateway)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}
