//! The front door: accepts connections, reads each request's head, decides what becomes of it.
//!
//! An ordinary request goes on to Pingora's `HttpProxy` with the bytes already read; a WebSocket
//! goes to our own relay; what is refused never reaches either. Between two requests of a
//! connection nothing is held but the socket.

pub mod admit;
mod arrival;
pub mod chunks;
pub mod conn;
mod entry;
pub mod envelope;
pub mod head;
mod local;
pub mod metered;
mod patience;
mod pooled;
pub mod proxy_header;
mod target;
pub mod tls;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use log::warn;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::access::{self, Record};
use crate::config::ProxyProtocol;
use crate::gateway::Gateway;
use crate::logging::TARGET;
use crate::metrics;
use crate::proxy::Proxy;
use crate::rejection::{Kind, Rejection};
use admit::Admission;
use arrival::keep_alive;
use conn::Conn;
use entry::admitted;
use head::{NoHead, read_head};
use metered::Metered;
use tls::Acceptor;

/// A handshake of TLS takes at most this long.
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
/// Pingora's own timeouts come later than ours.
const SLACK: Duration = Duration::from_secs(5);
const BAD_CHUNKS: &str = "the body's chunks are malformed";
const EARLY_FRAMES: &str = "bytes follow a WebSocket's handshake before it is answered";
/// A connection without a request yet is kept so long when the gateway stops.
const NEWCOMER: Duration = Duration::from_millis(500);
/// After a refusal the client may go on sending for so long before the connection is cut.
const LINGER: Duration = Duration::from_secs(2);

/// Accepts and serves the data plane's connections.
pub struct FrontDoor {
    gateway: Arc<Gateway>,
    proxy: Arc<HttpProxy<Proxy>>,
    acceptor: Option<Acceptor>,
    admin: axum::Router,
    proxy_protocol: ProxyProtocol,
    tasks: TaskTracker,
}

impl FrontDoor {
    /// A door to a gateway. `admin` serves `/lb/*` on this port.
    pub fn new(
        gateway: Arc<Gateway>,
        proxy: Arc<HttpProxy<Proxy>>,
        acceptor: Option<Acceptor>,
        admin: axum::Router,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let admin = metrics::count_local(admin, &gateway);
        let proxy_protocol = gateway.config.load().server.proxy_protocol;
        Arc::new(Self { gateway, proxy, acceptor, admin, proxy_protocol, tasks })
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
        let Some(place) = arrival::place(&self.gateway, peer) else { return };
        let door = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut tcp = tcp;
            let arrived = arrival::arrive(&door.gateway, &mut tcp, peer, door.proxy_protocol).await;
            let Some((peer, _counted)) = arrived else { return };
            let _place = place;
            arrival::set_options(&tcp);
            match &door.acceptor {
                None => door.serve(Conn::plain(tcp, peer), peer).await,
                Some(acceptor) => {
                    if let Ok(Ok(tls)) = timeout(TLS_HANDSHAKE, acceptor.accept(tcp)).await {
                        Box::pin(door.serve(Conn::tls(tls, peer), peer)).await;
                    }
                }
            }
        });
    }

    /// Serves one connection, request by request.
    async fn serve(self: Arc<Self>, conn: Conn, peer: SocketAddr) {
        let tls = conn.is_tls();
        let mut stream = Box::new(Metered::new(conn, Arc::clone(&self.gateway.limits.cuts)));
        let mut settings: Option<HttpPersistentSettings> = None;
        let mut served = 0;
        let mut buffer = BytesMut::new();
        let stopping = self.gateway.stopping.subscribe();
        // Whoever has just connected is about to ask, and could not know better.
        let mut patience = NEWCOMER;
        loop {
            let leaving = left(stopping.clone(), patience);
            let head = self.next_head(&mut stream, &mut buffer, leaving).await;
            let Some(length) = head else { return };
            served += 1;
            patience = Duration::ZERO;
            let admission = admitted(&self.gateway, &buffer[..length], peer, tls).await;
            match admission {
                Admission::Proxy { envelope, head, body } => {
                    let limits = self.gateway.config.load();
                    let begun = stream.serve(body, &buffer[length..], &limits.limits);
                    let Ok(of_body) = begun else {
                        let refused = Rejection::new(Kind::BadRequest, BAD_CHUNKS);
                        return self.turn_away(stream, &buffer[..length], peer, &refused).await;
                    };
                    drop(limits);
                    let request = take_request(&mut buffer, length, head, of_body);
                    let mut session = ServerSession::new_http1(stream);
                    self.prepare(&mut session, settings.take(), served);
                    session.set_pipelined_prefix(request);
                    session.set_connection_user_context(Some(envelope));
                    let Some(reused) = self.proxy.process_new_http(session, &stopping).await else {
                        return;
                    };
                    let (back, kept) = reused.consume();
                    let Some(back) = Metered::back(back) else { return };
                    (stream, settings) = (back, kept);
                }
                Admission::WebSocket(envelope, handshake) => {
                    if buffer.len() > length {
                        // Frames before the 101 belong to no agreed protocol.
                        let refused = Rejection::new(Kind::BadRequest, EARLY_FRAMES);
                        return self.turn_away(stream, &buffer[..length], peer, &refused).await;
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
                    return self.turn_away(stream, &buffer[..length], peer, &refused).await;
                }
            }
        }
    }

    /// Answers a request that goes no further, and closes.
    async fn turn_away(&self, stream: Stream, head: &[u8], peer: SocketAddr, refused: &Rejection) {
        self.gateway.metrics.refused(method_of(head), refused);
        log_refusal(head, peer, refused);
        refuse(stream, &refused.to_http1()).await;
    }

    /// Waits for the next request's head; `None` when the connection is done.
    async fn next_head(
        &self,
        stream: &mut Metered,
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

    /// Prepares the connection's `nth` request.
    fn prepare(
        &self,
        session: &mut ServerSession,
        settings: Option<HttpPersistentSettings>,
        nth: u32,
    ) {
        if let Some(settings) = settings {
            settings.apply_to_session(session);
        }
        let config = self.gateway.config.load();
        let limits = &config.limits;
        let most = limits.requests_per_connection;
        let seconds = limits.keepalive_timeout.as_secs().max(1);
        let stopping = *self.gateway.stopping.borrow();
        session.set_keepalive((!stopping).then_some(seconds));
        // The head that is read next sets the former anew, and this is not asked of it.
        session.set_keepalive_reuses_remaining((most > 0 && nth >= most).then_some(0));
        // Replies that are no answer are for those who asked for them.
        session.set_ignore_info_resp(true);
        // Both say when it was too slow; the connection itself counts more finely.
        session.set_read_timeout(Some(limits.body_timeout + SLACK));
        session.set_write_timeout(Some(limits.write_timeout + SLACK));
    }
}

/// When a connection that waits for a request is to end.
async fn left(mut stopping: ShutdownWatch, patience: Duration) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
    tokio::time::sleep(patience).await;
}

/// Takes from the buffer what Pingora is to parse: the head and what belongs to the body. The rest
/// is the next request's, which comes through this door again.
fn take_request(
    buffer: &mut BytesMut,
    length: usize,
    head: Option<BytesMut>,
    of_body: usize,
) -> BytesMut {
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
async fn send_and_linger<S>(stream: &mut S, response: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
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
