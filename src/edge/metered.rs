//! A client's connection as requests see it: never a byte beyond the body under way, never slower
//! than the limits allow.
//!
//! While a request is served ([`Metered::serve`]), reads give its body and nothing else: chunks are
//! checked ([`Chunks`]), and what follows the body waits for the next request, however the bytes
//! came in. Stalling bodies and answers that nobody takes are cut (`Patience`). Outside of a
//! request ([`Metered::free`]) bytes pass as they come: heads have a time of their own, and
//! WebSockets may be silent.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::admit::Body;
use super::chunks::{BadChunk, Chunks};
use super::conn::Conn;
use super::patience::Patience;
use crate::config::Limits;
use crate::limits::{Cut, Cuts};

/// Bytes of later requests that are taken in while one is served.
const AHEAD: usize = 16 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; AHEAD].into_boxed_slice());
}

/// What may be read.
#[derive(Debug)]
enum Inbound {
    /// Whatever comes.
    Free,
    /// So many bytes of a body.
    Sized(u64),
    /// A body in chunks.
    Chunked(Chunks),
    /// Nothing: the body is over.
    Over,
}

/// The clocks of a request.
#[derive(Debug)]
struct Clocks {
    reading: Patience,
    writing: Patience,
}

/// The connection.
#[derive(Debug)]
pub struct Metered {
    conn: Conn,
    inbound: Inbound,
    clocks: Option<Box<Clocks>>,
    /// What was read beyond the body.
    ahead: BytesMut,
    /// The client will send no more.
    ended: bool,
    cuts: Arc<Cuts>,
}

impl Metered {
    /// A connection on which nothing is served yet.
    pub fn new(conn: Conn, cuts: Arc<Cuts>) -> Self {
        let (inbound, ahead) = (Inbound::Free, BytesMut::new());
        Self { conn, inbound, clocks: None, ahead, ended: false, cuts }
    }

    /// Begins a request. `behind` is what was read together with its head; says how much of that
    /// is its body's.
    pub fn serve(&mut self, body: Body, behind: &[u8], limits: &Limits) -> Result<usize, BadChunk> {
        let (inbound, length) = match body {
            Body::Sized(size) => {
                let there = size.min(behind.len() as u64);
                (Inbound::Sized(size - there), there as usize)
            }
            Body::Chunked => {
                let mut chunks = Chunks::default();
                let there = chunks.follow(behind)?;
                (Inbound::Chunked(chunks), there)
            }
        };
        self.inbound = inbound;
        self.settle();
        self.clocks = Some(Box::new(Clocks {
            reading: Patience::new(limits.body_timeout, limits.body_rate),
            writing: Patience::new(limits.write_timeout, limits.write_rate),
        }));
        Ok(length)
    }

    /// Ends a request: bytes pass as they come.
    pub fn free(&mut self) {
        self.inbound = Inbound::Free;
        self.clocks = None;
    }

    /// The connection that Pingora gives back after a request.
    pub fn back(stream: Stream) -> Option<Box<Self>> {
        let mut metered = stream.into_any().downcast::<Self>().ok()?;
        metered.free();
        Some(metered)
    }

    /// Nothing is read any more once a body is whole.
    fn settle(&mut self) {
        let over = match &self.inbound {
            Inbound::Sized(left) => *left == 0,
            Inbound::Chunked(chunks) => chunks.is_done(),
            Inbound::Free | Inbound::Over => false,
        };
        if over {
            self.inbound = Inbound::Over;
        }
    }

    fn poll_free(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..length]);
            self.ahead.advance(length);
            return Poll::Ready(Ok(()));
        }
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.conn).poll_read(cx, buf)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.conn).poll_read(cx, buf);
        let length = buf.filled().len() - before;
        let read = match &mut self.clocks {
            Some(clocks) => clocks.reading.judge(cx, read, |()| length),
            None => read,
        };
        ready!(read)?;
        let read = &buf.filled()[before..];
        let own = match &mut self.inbound {
            Inbound::Sized(left) => {
                let own = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left -= own as u64;
                own
            }
            Inbound::Chunked(chunks) => {
                let bad = |BadChunk| io::Error::from(io::ErrorKind::InvalidData);
                chunks.follow(read).map_err(bad)?
            }
            Inbound::Free | Inbound::Over => read.len(),
        };
        self.ahead.extend_from_slice(&read[own..]);
        buf.set_filled(before + own);
        self.settle();
        Poll::Ready(Ok(()))
    }

    /// Takes in what comes after the body, up to a bound; ready only when the client is gone and
    /// nothing it asked for is left.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.ahead.len() < AHEAD && !self.ended {
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let room = AHEAD - self.ahead.len();
                let mut buffer = ReadBuf::new(&mut scratch[..room]);
                ready!(Pin::new(&mut self.conn).poll_read(cx, &mut buffer))?;
                self.ahead.extend_from_slice(buffer.filled());
                Poll::Ready(io::Result::Ok(buffer.filled().len()))
            });
            self.ended = ready!(read)? == 0;
        }
        if self.ended && self.ahead.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        done: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let Some(clocks) = &mut self.clocks else { return done };
        let judged = clocks.writing.judge(cx, done, bytes);
        if let Poll::Ready(Err(error)) = &judged
            && error.kind() == io::ErrorKind::TimedOut
        {
            self.cuts.count(Cut::SlowReader);
        }
        judged
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.inbound {
            Inbound::Free => this.poll_free(cx, buf),
            Inbound::Sized(_) | Inbound::Chunked(_) => this.poll_body(cx, buf),
            Inbound::Over => this.poll_over(cx),
        }
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.conn).poll_write(cx, buf);
        this.written(cx, written, |bytes| *bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.conn).poll_flush(cx);
        this.written(cx, flushed, |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.conn).poll_shutdown(cx);
        this.written(cx, shut, |()| 0)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.conn).poll_write_vectored(cx, bufs);
        this.written(cx, written, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Metered {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut self.conn).await;
    }
}

impl UniqueID for Metered {
    fn id(&self) -> UniqueIDType {
        self.conn.id()
    }
}

impl Ssl for Metered {}

impl GetTimingDigest for Metered {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.conn.get_timing_digest()
    }
}

impl GetProxyDigest for Metered {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Metered {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.conn.get_socket_digest()
    }
}

impl Peek for Metered {}
