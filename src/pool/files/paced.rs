//! A body that comes no faster than it is read.
//!
//! The parser of forms takes in all that the connection has before it gives anything out, and
//! looks for the end of a part's head however long that is. So this body hands over one piece at
//! a time, counts what was handed over and not yet used, and ends with an error beyond
//! [`MAX_UNUSED`] or the whole body's limit.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::Stream;

/// Bytes that may be handed over without any use, more than one piece: the heads of parts.
const MAX_UNUSED: usize = 64 << 10;

/// Counts a body.
#[derive(Debug)]
pub(super) struct Meter {
    limit: u64,
    total: AtomicU64,
    unused: AtomicUsize,
}

impl Meter {
    /// What was handed over has been used.
    pub(super) fn used(&self) {
        self.unused.store(0, Relaxed);
    }

    /// Whether the body is over its limit.
    pub(super) fn is_over(&self) -> bool {
        self.total.load(Relaxed) > self.limit
    }
}

/// A body of at most `limit` bytes, and what counts it.
pub(super) fn paced(body: Body, limit: u64) -> (Body, Arc<Meter>) {
    let (total, unused) = (AtomicU64::new(0), AtomicUsize::new(0));
    let meter = Arc::new(Meter { limit, total, unused });
    let body = Paced { body: body.into_data_stream(), meter: Arc::clone(&meter), pause: false };
    (Body::from_stream(body), meter)
}

struct Paced {
    body: BodyDataStream,
    meter: Arc<Meter>,
    pause: bool,
}

impl Stream for Paced {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.meter.unused.load(Relaxed) > MAX_UNUSED {
            return Poll::Ready(Some(Err(io::ErrorKind::InvalidData.into())));
        }
        let polled = Pin::new(&mut self.body).poll_next(cx);
        if let Poll::Ready(Some(Ok(piece))) = &polled {
            self.pause = true;
            self.meter.unused.fetch_add(piece.len(), Relaxed);
            self.meter.total.fetch_add(piece.len() as u64, Relaxed);
            if self.meter.is_over() {
                return Poll::Ready(Some(Err(io::ErrorKind::InvalidData.into())));
            }
        }
        polled.map(|piece| piece.map(|piece| piece.map_err(io::Error::other)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt, stream};

    fn endless(limit: u64) -> (BodyDataStream, Arc<Meter>) {
        let piece = || Some(Ok::<_, io::Error>(Bytes::from_static(&[b'x'; 1000])));
        let body = Body::from_stream(stream::iter(std::iter::from_fn(piece)));
        let (body, meter) = paced(body, limit);
        (body.into_data_stream(), meter)
    }

    #[tokio::test]
    async fn what_nobody_uses_ends() {
        let (body, meter) = endless(u64::MAX);
        let good = body.take_while(|piece| std::future::ready(piece.is_ok())).count().await;
        assert_eq!((good, meter.is_over()), (MAX_UNUSED / 1000 + 1, false));
    }

    #[tokio::test]
    async fn what_is_used_ends_at_its_limit() {
        let (mut body, meter) = endless(200_000);
        let mut good = 0;
        while let Some(Ok(_)) = body.next().await {
            meter.used();
            good += 1;
        }
        assert_eq!((good, meter.is_over()), (200, true));
    }

    #[test]
    fn one_piece_comes_at_a_time() {
        let (mut body, _) = endless(200_000);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..3 {
            assert!(body.poll_next_unpin(&mut cx).is_ready());
            assert!(body.poll_next_unpin(&mut cx).is_pending());
        }
    }
}
