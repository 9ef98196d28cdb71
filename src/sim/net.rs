//! The listener and its connections, made so that a test can close the one and reset the others.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Core;

/// Pause before trying again to bind or to accept.
const AGAIN: Duration = Duration::from_millis(20);
const BACKLOG: u32 = 1024;

/// Binds with `SO_REUSEADDR`, so that a port can be taken again at once.
pub(super) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// The listener, which can be closed and opened again.
pub(super) struct Door {
    core: Arc<Core>,
    listener: Option<TcpListener>,
    refusing: watch::Receiver<bool>,
}

impl Door {
    /// A door that is open.
    pub(super) fn new(core: Arc<Core>, listener: TcpListener) -> Self {
        let refusing = core.fault.refusing.subscribe();
        Self { core, listener: Some(listener), refusing }
    }

    /// Brings the listener in line with what is wanted, and says so.
    async fn obey(&mut self) -> bool {
        let refusing = *self.refusing.borrow_and_update();
        if refusing {
            self.listener = None;
        } else if self.listener.is_none() {
            let Ok(listener) = bind(self.core.addr) else {
                tokio::time::sleep(AGAIN).await;
                return false;
            };
            self.listener = Some(listener);
        }
        self.core.fault.closed.send_replace(refusing);
        true
    }
}

impl axum::serve::Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            if !self.obey().await {
                continue;
            }
            let Some(listener) = &self.listener else {
                if self.refusing.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            };
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => return (Connection::new(stream, &self.core), peer),
                    Err(_) => tokio::time::sleep(AGAIN).await,
                },
                _ = self.refusing.changed() => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.core.addr)
    }
}

/// A connection that ends when its server wants it to.
pub(super) struct Connection {
    stream: TcpStream,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    core: Arc<Core>,
    ended: bool,
}

impl Connection {
    fn new(stream: TcpStream, core: &Arc<Core>) -> Self {
        // Frames must not wait for acknowledgements of earlier ones.
        let _ = stream.set_nodelay(true);
        let end = Box::pin(core.fault.connections().cancelled_owned());
        Self { stream, end, core: core.clone(), ended: false }
    }

    /// Whether the connection has been cut; the first time it may be made to reset.
    fn cut(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.ended && self.end.as_mut().poll(cx).is_ready() {
            self.ended = true;
            if self.core.fault.is_abrupt() {
                // Without lingering the close becomes a reset; if it fails it is a close.
                let _ = self.stream.set_zero_linger();
            }
        }
        self.ended
    }
}

fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut(cx) { gone() } else { Pin::new(&mut self.stream).poll_read(cx, buf) }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.cut(cx) { gone() } else { Pin::new(&mut self.stream).poll_write(cx, buf) }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.cut(cx) { gone() } else { Pin::new(&mut self.stream).poll_write_vectored(cx, bufs) }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut(cx) { gone() } else { Pin::new(&mut self.stream).poll_flush(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut(cx) { gone() } else { Pin::new(&mut self.stream).poll_shutdown(cx) }
    }
}
