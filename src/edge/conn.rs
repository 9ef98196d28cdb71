//! A client's connection, plain or TLS, as Pingora wants to see one.
//!
//! Pingora's own stream type brings a 64 KiB read buffer per connection. Ours brings none: heads
//! are read through a buffer that the thread's connections share ([`read_into`]), bodies through
//! Pingora's body reader.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A client's connection.
#[derive(Debug)]
pub enum Conn {
    /// As it came.
    Plain(TcpStream, Arc<SocketDigest>),
    /// Inside TLS.
    Tls(Box<TlsStream<TcpStream>>, Arc<SocketDigest>),
    /// One request of an HTTP/2 connection, which is inside TLS.
    Request(DuplexStream, Origin),
}

/// The connection that a request came over.
#[derive(Debug, Clone)]
pub struct Origin(UniqueIDType, Arc<SocketDigest>);

impl Conn {
    /// A plain connection.
    pub fn plain(tcp: TcpStream, peer: SocketAddr) -> Self {
        let digest = digest(&tcp, peer);
        Self::Plain(tcp, digest)
    }

    /// A connection whose TLS handshake is done.
    pub fn tls(tls: TlsStream<TcpStream>, peer: SocketAddr) -> Self {
        let digest = digest(tls.get_ref().0, peer);
        Self::Tls(Box::new(tls), digest)
    }

    /// A request that came by HTTP/2 over the connection of `origin`, as HTTP/1.1 on `stream`.
    pub fn request(stream: DuplexStream, origin: &Origin) -> Self {
        Self::Request(stream, origin.clone())
    }

    /// What a request over this connection is to know of it.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Plain(_, digest) | Self::Tls(_, digest) => Origin(self.id(), Arc::clone(digest)),
            Self::Request(_, origin) => origin.clone(),
        }
    }

    /// Whether it is one request of HTTP/2.
    pub fn is_request(&self) -> bool {
        matches!(self, Self::Request(..))
    }

    /// Whether it is inside TLS.
    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(..))
    }
}

/// Says who the peer is without asking the kernel again.
fn digest(tcp: &TcpStream, peer: SocketAddr) -> Arc<SocketDigest> {
    let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
    let _ = digest.peer_addr.set(Some(PeerAddr::Inet(peer)));
    Arc::new(digest)
}

/// Bytes a head is read in at most.
const SCRATCH: usize = 16 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Reads what is there and appends it; 0 at the end of the stream. Takes no memory while waiting.
pub async fn read_into<S>(stream: &mut S, into: &mut BytesMut) -> io::Result<usize>
where
    S: AsyncRead + Unpin + ?Sized,
{
    poll_fn(|cx| {
        BUFFER.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            std::task::ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            into.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    })
    .await
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io, _) => Pin::new(io.as_mut()).poll_read(cx, buf),
            Self::Request(io, ..) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io, _) => Pin::new(io.as_mut()).poll_write(cx, buf),
            Self::Request(io, ..) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_flush(cx),
            Self::Tls(io, _) => Pin::new(io.as_mut()).poll_flush(cx),
            Self::Request(io, ..) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io, _) => Pin::new(io.as_mut()).poll_shutdown(cx),
            Self::Request(io, ..) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io, _) => Pin::new(io.as_mut()).poll_write_vectored(cx, bufs),
            Self::Request(io, ..) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io, _) => io.is_write_vectored(),
            Self::Tls(io, _) => io.is_write_vectored(),
            Self::Request(io, ..) => io.is_write_vectored(),
        }
    }
}

#[async_trait]
impl Shutdown for Conn {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Conn {
    fn id(&self) -> UniqueIDType {
        match self {
            Self::Plain(tcp, _) => tcp.as_raw_fd(),
            Self::Tls(tls, _) => tls.get_ref().0.as_raw_fd(),
            Self::Request(_, origin) => origin.0,
        }
    }
}

impl Ssl for Conn {}

impl GetTimingDigest for Conn {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Conn {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Conn {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.origin().1)
    }
}

impl Peek for Conn {}
