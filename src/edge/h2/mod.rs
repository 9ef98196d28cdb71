//! HTTP/2, as browsers speak it once TLS is there: a way in, not another door.
//!
//! hyper speaks the protocol. Each request is written as HTTP/1.1 to a pipe in memory ([`translate`]
//! says how, and what is refused), and [`FrontDoor::serve`] has the other end: so every rule about
//! heads, callers, bodies and answers holds here as it stands there, and there is one reader of
//! requests to be wrong. WebSockets stay on HTTP/1.1: browsers open them there, as the extended
//! CONNECT is not announced.
//!
//! What is bounded: requests at once, the size of a head, bytes that wait in either direction, time
//! without a request, and requests that are made to be taken back ([`resets`]).

mod body;
mod resets;
mod translate;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use log::debug;
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::arrival::Open;
use super::conn::{Conn, Origin, read_into};
use super::{FrontDoor, LINGER};
use crate::config::Limits;
use crate::logging::TARGET;
use crate::rejection::{Kind, Rejection};
use body::Answer;
use resets::Resets;

/// Requests of one connection at once; browsers use this many, and more must wait.
const STREAMS: u32 = 100;
/// Bytes of one request's body, and of all of a connection, that may wait to be read.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of one answer that may wait to be sent.
const SEND_BUFFER: usize = 64 << 10;
/// Bytes on their way between HTTP/2 and the front door, in each direction.
const PIPE: usize = 32 << 10;
/// Header lines of an answer at most, as the front door's own.
const MAX_HEADERS: usize = 256;
/// After its last word a connection may stand this long for the client to hear it.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves one connection.
pub(super) async fn serve(door: &Arc<FrontDoor>, conn: Conn, peer: SocketAddr) {
    let visit = Arc::new(Visit {
        door: Arc::clone(door),
        origin: conn.origin(),
        peer,
        open: watch::Sender::new(0),
        resets: Mutex::new(Resets::new(Instant::now())),
        flooded: watch::Sender::new(false),
    });
    let mut io = TokioIo::new(conn);
    if talk(&visit, &mut io).await == End::Said {
        linger(io.inner_mut()).await;
    }
}

/// How a connection ended.
#[derive(PartialEq)]
enum End {
    /// Both sides know.
    Said,
    /// It is of no use to wait for the client.
    Cut,
}

async fn talk(visit: &Arc<Visit>, io: &mut TokioIo<Conn>) -> End {
    let limits = visit.door.gateway.config.load().limits.clone();
    let (mut open, mut flooded) = (visit.open.subscribe(), visit.flooded.subscribe());
    let service = service_fn(|request| {
        let visit = Arc::clone(visit);
        async move { Ok::<_, std::convert::Infallible>(visit.answer(request).await) }
    });
    let mut serving = pin!(builder(&limits, &visit.door.tasks).serve_connection(io, service));
    let mut stopping = visit.door.gateway.stopping.subscribe();
    let mut ending = false;
    loop {
        let patience = if ending { FAREWELL } else { limits.keepalive_timeout };
        tokio::select! {
            end = serving.as_mut() => return if end.is_ok() { End::Said } else { End::Cut },
            _ = stopping.wait_for(|stopping| *stopping), if !ending => {}
            () = idle_for(&mut open, patience) => {
                if ending {
                    return End::Cut;
                }
            }
            _ = flooded.wait_for(|flooded| *flooded) => {
                let peer = visit.peer;
                debug!(target: TARGET, "connection of {peer} cut: too many requests taken back");
                return End::Cut;
            }
        }
        // Says which requests are still answered, and takes no more.
        serving.as_mut().graceful_shutdown();
        ending = true;
    }
}

/// Reads for a moment what the client still sends: a connection closed over unread bytes is reset,
/// and the reset overtakes the last answer.
async fn linger(conn: &mut Conn) {
    let farewell = async {
        AsyncWriteExt::shutdown(conn).await?;
        let mut sink = BytesMut::new();
        while read_into(conn, &mut sink).await? > 0 {
            sink.clear();
        }
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LINGER, farewell).await;
}

fn builder(limits: &Limits, tasks: &TaskTracker) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(Tasks(tasks.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER);
    builder
}

/// Resolves when no request has been open for this long.
async fn idle_for(open: &mut watch::Receiver<u32>, patience: Duration) {
    loop {
        let _ = open.wait_for(|open| *open == 0).await;
        if tokio::time::timeout(patience, open.changed()).await.is_err() {
            return;
        }
    }
}

/// Runs what belongs to connections where their end is waited for.
#[derive(Clone)]
struct Tasks(TaskTracker);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// A client that is here by HTTP/2.
struct Visit {
    door: Arc<FrontDoor>,
    origin: Origin,
    peer: SocketAddr,
    /// Requests that are not answered to their end.
    open: watch::Sender<u32>,
    resets: Mutex<Resets>,
    /// Too many requests were taken back.
    flooded: watch::Sender<bool>,
}

impl Visit {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Answer> {
        let present = Present::new(Arc::clone(&self));
        let gateway = &self.door.gateway;
        let limit = gateway.config.load().limits.connections as u64;
        let counted = Open::new(Arc::clone(gateway));
        let method = request.method().clone();
        let answered = if gateway.connections.load(Relaxed) > limit {
            Err(Rejection::new(Kind::RateLimited, "too many requests are open").retry_after(1))
        } else {
            match translate::request(request) {
                Ok(request) => self.through_the_door(request).await,
                Err(refused) => Err(refused),
            }
        };
        let mut response = match answered {
            Ok((response, driver)) => translate::response(response)
                .map(|body| Answer::passed(body, driver, (present.answered(), counted))),
            Err(refused) => {
                gateway.metrics.refused(method.as_str(), &refused);
                refusal(&refused, (present.answered(), counted))
            }
        };
        if let Some(value) = super::hsts(&gateway.config.load()) {
            response.headers_mut().insert(http::header::STRICT_TRANSPORT_SECURITY, value);
        }
        response
    }

    /// Hands a request to the front door and takes its answer.
    async fn through_the_door(
        &self,
        request: Request<Incoming>,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), Rejection> {
        let lost = |_| Rejection::new(Kind::UpstreamFailed, "the request could not be answered");
        let (near, far) = tokio::io::duplex(PIPE);
        let conn = Conn::request(far, &self.origin);
        self.door.tasks.spawn(Box::pin(Arc::clone(&self.door).serve(conn, self.peer)));
        let (mut sender, connection) = handshake(near).await.map_err(lost)?;
        let driver = self.door.tasks.spawn(async move {
            let _ = connection.await;
        });
        let driver = AbortOnDropHandle::new(driver);
        let response = sender.send_request(request).await.map_err(lost)?;
        Ok((response, driver))
    }
}

type Handshake = (http1::SendRequest<Incoming>, http1::Connection<TokioIo<DuplexStream>, Incoming>);

async fn handshake(near: DuplexStream) -> hyper::Result<Handshake> {
    http1::Builder::new()
        .max_buf_size(SEND_BUFFER)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(near))
        .await
}

/// What is held while a request is answered.
type Held = (Present, Open);

fn refusal(refused: &Rejection, held: Held) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(refused.body(), held));
    *response.status_mut() = refused.kind.status();
    for (name, value) in refused.headers() {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Counts a request while it is open, and as taken back when it ends without an answer.
struct Present {
    visit: Arc<Visit>,
    answered: bool,
}

impl Present {
    fn new(visit: Arc<Visit>) -> Self {
        visit.open.send_modify(|open| *open += 1);
        Self { visit, answered: false }
    }

    fn answered(mut self) -> Self {
        self.answered = true;
        self
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.visit.open.send_modify(|open| *open -= 1);
        if !self.answered && !self.visit.resets.lock().may_take_back(Instant::now()) {
            self.visit.flooded.send_replace(true);
        }
    }
}
