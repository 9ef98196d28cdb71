//! The body of an answer: the front door's, or a refusal of our own.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::task::AbortOnDropHandle;

use super::Held;

/// A body, and what is held until its end.
pub(super) struct Answer {
    source: Source,
    /// Moves what passes through the pipe.
    _driver: Option<AbortOnDropHandle<()>>,
    _held: Held,
}

enum Source {
    /// Comes from the front door.
    Passed(Incoming),
    Whole(Option<Bytes>),
}

impl Answer {
    pub(super) fn passed(body: Incoming, driver: AbortOnDropHandle<()>, held: Held) -> Self {
        Self { source: Source::Passed(body), _driver: Some(driver), _held: held }
    }

    pub(super) fn whole(body: Bytes, held: Held) -> Self {
        Self { source: Source::Whole(Some(body)), _driver: None, _held: held }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.source {
            Source::Passed(body) => Pin::new(body).poll_frame(cx),
            Source::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Passed(body) => body.is_end_stream(),
            Source::Whole(body) => body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Passed(body) => body.size_hint(),
            Source::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}
