//! How hyper reads a request: another reading to compare with.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use parking_lot::Mutex;

/// What it saw.
pub(super) struct Seen {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) chunked: bool,
    /// Bytes of the body, unless it comes in chunks.
    pub(super) length: u64,
}

/// A connection that brings these bytes and then nothing.
struct Wire<'a>(&'a [u8]);

impl Read for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let (piece, rest) = self.0.split_at(self.0.len().min(buffer.remaining()));
        buffer.put_slice(piece);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Hands a whole head to hyper; `None` when it refuses it.
pub(super) fn as_hyper_reads(head: &[u8]) -> Option<Seen> {
    let seen = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let exact = request.body().size_hint().exact();
        let (parts, _) = request.into_parts();
        *slot.lock() = Some(Seen {
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
            chunked: exact.is_none(),
            length: exact.unwrap_or(0),
        });
        async { Ok::<_, Infallible>(Response::new(String::new())) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    // A buffer that any head below our own limit fits in.
    let connection =
        server.max_headers(256).max_buf_size(1 << 20).serve_connection(Wire(head), service);
    let _ = connection.now_or_never();
    seen.lock().take()
}

/// The body of a whole request, to its end; `None` when hyper does not come to one.
pub(super) fn body_as_hyper_reads(request: &[u8]) -> Option<Vec<u8>> {
    let read = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&read);
    let service = service_fn(move |request: Request<Incoming>| {
        let slot = Arc::clone(&slot);
        async move {
            let mut body = request.into_body();
            let mut bytes = Vec::new();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                let Ok(frame) = frame else { return Ok(Response::new(String::new())) };
                bytes.extend(frame.into_data().unwrap_or_default());
            }
            *slot.lock() = Some(bytes);
            Ok::<_, Infallible>(Response::new(String::new()))
        }
    });
    let server = hyper::server::conn::http1::Builder::new();
    let mut connection = pin!(server.serve_connection(Wire(request), service));
    let mut context = Context::from_waker(Waker::noop());
    // The connection and whoever reads the body wake each other, once for each chunk at most.
    for _ in 0..request.len() {
        if connection.as_mut().poll(&mut context).is_ready() || read.lock().is_some() {
            break;
        }
    }
    read.lock().take()
}
