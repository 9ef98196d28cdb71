//! Signs of life: a stream to a backend that notes on the backend whenever bytes come from it.
//! What passes to clients is how sticky mode sees that a running prompt still runs.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::backend::Live;
use crate::clock::Moment;

/// A stream whose incoming bytes are signs of life of a backend.
pub(super) struct Signs<S> {
    stream: S,
    live: Arc<Live>,
}

impl<S> Signs<S> {
    pub(super) fn new(stream: S, live: Arc<Live>) -> Self {
        Self { stream, live }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Signs<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.live.event(Moment::now());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Signs<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
