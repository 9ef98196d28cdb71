//! The head of a request, and what another server would read in the same bytes.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use http::HeaderName;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};

use super::http1;
use crate::comfy::routes::unescaped;
use crate::config::{Limits, parse};
use crate::edge::head::{Head, MAX_HEADERS, NoHead, read_head, rewrite};

static LIMITS: LazyLock<Limits> =
    LazyLock::new(|| parse("backends: ['http://127.0.0.1:1']").expect("a configuration").limits);

thread_local! {
    static RUNTIME: RefCell<Option<Runtime>> =
        RefCell::new(Builder::new_current_thread().enable_all().build().ok());
}

/// Runs a future to its end.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> Option<T> {
    RUNTIME.with_borrow(|runtime| runtime.as_ref().map(|runtime| runtime.block_on(future)))
}

/// Bytes that come in pieces, and then no more.
struct Pieces<'a>(&'a [u8], usize);

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let size = self.1.min(self.0.len()).min(buffer.remaining());
        let (piece, rest) = self.0.split_at(size);
        buffer.put_slice(piece);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

fn read(data: &[u8], size: usize) -> Option<(BytesMut, usize)> {
    let mut buffer = BytesMut::new();
    let idle = Duration::from_mins(1);
    let mut pieces = Pieces(data, size);
    let read = block_on(read_head(&mut pieces, &mut buffer, &LIMITS, idle))?;
    assert!(buffer.len() <= LIMITS.header_bytes + (64 << 10), "no more is buffered than may be");
    match read {
        Ok(length) => Some((buffer, length)),
        Err(NoHead::Gone) => None,
        Err(NoHead::Refused(refusal)) => {
            assert!((400..500).contains(&refusal.kind.status().as_u16()));
            None
        }
    }
}

/// The bytes of a connection: its first head, whole and in pieces, and how hyper reads it.
pub fn head(data: &[u8]) {
    let whole = read(data, usize::MAX);
    let pieces = read(data, 1 + data.len() / 5);
    let head_of = |read: &Option<(BytesMut, usize)>| {
        read.as_ref().map(|(buffer, length)| buffer[..*length].to_vec())
    };
    assert_eq!(head_of(&whole), head_of(&pieces), "pieces make no difference");
    let Some((buffer, length)) = whole else { return };
    assert!(data.windows(length).any(|window| window == &buffer[..length]), "as it came");
    let bytes = &buffer[..length];
    assert!(bytes.ends_with(b"\r\n\r\n"));
    let mut table = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let Ok(head) = Head::parse(bytes, &mut table, &LIMITS) else { return };
    assert!(!(head.chunked && head.content_length.is_some()), "one length");
    assert!(head.target.starts_with('/'));
    compare(bytes, &head);
    rewritten(bytes, &head);
}

/// Another server reads the same request.
fn compare(bytes: &[u8], head: &Head<'_>) {
    // The last two are no lengths to hyper; nor is there a body of such a size.
    if head.content_length >= Some(u64::MAX - 1) {
        return;
    }
    let seen = http1::as_hyper_reads(bytes).expect("hyper reads it, too");
    assert_eq!(seen.method, head.method);
    let target = seen.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    assert_eq!(unescaped(&target), unescaped(head.target), "the same, plain characters plain");
    assert_eq!(seen.headers.len(), head.headers.len());
    for line in head.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes()).expect("a name");
        assert!(seen.headers.get_all(name).iter().any(|value| value == line.value));
    }
    assert_eq!(seen.chunked, head.chunked);
    if !head.chunked {
        assert_eq!(seen.length, head.content_length.unwrap_or(0));
    }
}

/// What a backend gets is a head again, with the other target and without the headers that go.
fn rewritten(bytes: &[u8], head: &Head<'_>) {
    let sent = rewrite(bytes, "/other?x=1", &["x-secret", "cookie"]);
    let mut table = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let again = Head::parse(&sent, &mut table, &LIMITS).expect("a head");
    assert_eq!((again.target, &again.method), ("/other?x=1", &head.method));
    assert_eq!((again.content_length, again.chunked), (head.content_length, head.chunked));
    let goes = |name: &str| {
        ["upgrade", "x-secret", "cookie"].iter().any(|gone| name.eq_ignore_ascii_case(gone))
    };
    let stays: Vec<_> = head.headers.iter().filter(|line| !goes(line.name)).collect();
    assert_eq!(again.headers.iter().collect::<Vec<_>>(), stays);
}
