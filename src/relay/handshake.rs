//! The HTTP/1.1 heads around a WebSocket upgrade, written and read by hand.
//!
//! The gateway asks the backend itself ([`write_upgrade_request`], [`read_response_head`]) and
//! passes the answer on ([`write_response_head`]), since after that the streams belong to the relay.
//! Nothing here has a timeout: the caller wraps it.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a caller without other needs gives [`read_response_head`].
pub const HEAD_LIMIT: usize = 64 * 1024;
/// More header lines than this are refused.
const MAX_HEADERS: usize = 128;

/// Why a head could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// A method, target, name or value with bytes that would break the head apart.
    #[error("{0} holds bytes that cannot stand in an HTTP head")]
    Unwritable(&'static str),
    /// The stream ended inside the head.
    #[error("the connection ended before the response's head was complete")]
    Ended,
    /// The head is longer than the limit.
    #[error("the response's head is longer than {0} bytes")]
    TooLong(usize),
    /// Not HTTP/1.x, or more than 128 header lines.
    #[error("the response's head cannot be read: {0}")]
    Invalid(#[from] httparse::Error),
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// Status code.
    pub status: u16,
    /// Reason phrase, possibly empty.
    pub reason: String,
    /// Header lines in their order, names as they were written, values as bytes.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl ResponseHead {
    /// The first value of a header, whose name is compared without regard to case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        values(&self.headers, name).next()
    }

    /// Whether this accepts an upgrade to WebSocket: 101, `Upgrade: websocket`,
    /// `Connection: upgrade`.
    pub fn is_websocket(&self) -> bool {
        self.status == 101
            && has_token(&self.headers, "upgrade", "websocket")
            && has_token(&self.headers, "connection", "upgrade")
    }
}

/// Writes the head of an HTTP/1.1 request with the header lines given, none added.
///
/// Refuses whatever would end a line early, so that nothing smuggles a header or a second request.
pub fn write_upgrade_request<'a>(
    method: &str,
    target: &str,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Vec<u8>, HandshakeError> {
    if !is_token(method) {
        return Err(HandshakeError::Unwritable("the method"));
    }
    if target.is_empty() || !target.bytes().all(|byte| byte > b' ' && byte != 0x7f) {
        return Err(HandshakeError::Unwritable("the target"));
    }
    let mut head = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    write_headers(&mut head, headers)?;
    Ok(head)
}

/// Writes the head of an HTTP/1.1 response with the header lines given, none added.
pub fn write_response_head<'a>(
    status: u16,
    reason: &str,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Vec<u8>, HandshakeError> {
    if !(100..=999).contains(&status) || !is_value(reason.as_bytes()) {
        return Err(HandshakeError::Unwritable("the status line"));
    }
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
    write_headers(&mut head, headers)?;
    Ok(head)
}

/// Reads one response head of at most `limit` bytes, of which `prefix` has been read already.
///
/// Returns it with what was read past it. Interim responses (1xx but 101) are passed over; they
/// count towards the limit.
pub async fn read_response_head<R>(
    stream: &mut R,
    limit: usize,
    prefix: BytesMut,
) -> Result<(ResponseHead, BytesMut), HandshakeError>
where
    R: AsyncRead + Unpin,
{
    let mut buffer = prefix;
    let mut budget = limit;
    let mut searched = 0;
    loop {
        while let Some(end) = end_of_head(&buffer, searched) {
            if end > budget {
                return Err(HandshakeError::TooLong(limit));
            }
            let head = parse(&buffer[..end])?;
            buffer.advance(end);
            if head.status == 101 || head.status >= 200 {
                return Ok((head, buffer));
            }
            budget -= end;
            searched = 0;
        }
        if buffer.len() >= budget {
            return Err(HandshakeError::TooLong(limit));
        }
        // The end may straddle two reads: its last three bytes are looked at again.
        searched = buffer.len().saturating_sub(3);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(HandshakeError::Ended);
        }
    }
}

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`.
pub fn accept_key(key: &str) -> String {
    tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes())
}

/// Whether a response's headers hold exactly one `Sec-WebSocket-Accept`, the right one for `key`.
pub fn check_accept(key: &str, headers: &[(String, Vec<u8>)]) -> bool {
    let mut found = values(headers, "sec-websocket-accept");
    let first = found.next();
    first.is_some_and(|value| value.trim_ascii() == accept_key(key).as_bytes())
        && found.next().is_none()
}

fn write_headers<'a>(
    head: &mut Vec<u8>,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<(), HandshakeError> {
    for (name, value) in headers {
        if !is_token(name) {
            return Err(HandshakeError::Unwritable("a header's name"));
        }
        if !is_value(value) {
            return Err(HandshakeError::Unwritable("a header's value"));
        }
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    Ok(())
}

/// Where the head ends: behind the first empty line at or after `from`.
fn end_of_head(buffer: &[u8], from: usize) -> Option<usize> {
    let tail = &buffer[from..];
    let mut newlines = tail.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    newlines.find_map(|(at, _)| match &tail[at + 1..] {
        [b'\n', ..] => Some(from + at + 2),
        [b'\r', b'\n', ..] => Some(from + at + 3),
        _ => None,
    })
}

fn parse(bytes: &[u8]) -> Result<ResponseHead, HandshakeError> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut lines);
    // The bytes end with an empty line; if the parser wants more, they began with one.
    if response.parse(bytes)?.is_partial() {
        return Err(HandshakeError::Invalid(httparse::Error::Status));
    }
    Ok(ResponseHead {
        status: response.code.unwrap_or_default(),
        reason: response.reason.unwrap_or_default().to_owned(),
        headers: response
            .headers
            .iter()
            .map(|line| (line.name.to_owned(), line.value.to_vec()))
            .collect(),
    })
}

fn values<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_slice())
}

fn has_token(headers: &[(String, Vec<u8>)], name: &str, token: &str) -> bool {
    values(headers, name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn is_token(name: &str) -> bool {
    let special = |byte| b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || special(byte))
}

fn is_value(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const ACCEPTED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\n\
        connection: keep-alive, Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    /// Writes `bytes` in pieces of `size` and reads a head from them.
    async fn read(
        bytes: &[u8],
        size: usize,
        limit: usize,
    ) -> Result<(ResponseHead, BytesMut), HandshakeError> {
        let (mut near, mut far) = tokio::io::duplex(size);
        let writes = async {
            let _ = near.write_all(bytes).await;
            drop(near);
        };
        let reads = async {
            let result = read_response_head(&mut far, limit, BytesMut::new()).await;
            let mut rest = Vec::new();
            far.read_to_end(&mut rest).await.unwrap();
            result.map(|(head, mut read)| {
                read.extend_from_slice(&rest);
                (head, read)
            })
        };
        tokio::join!(writes, reads).1
    }

    #[tokio::test]
    async fn a_head_is_read_from_pieces_of_any_size_and_the_rest_is_given_back() {
        let mut wire = ACCEPTED.to_vec();
        wire.extend_from_slice(b"\x81\x02hi\r\n\r\n");
        for size in [1, 2, 3, 5, 64, 4096] {
            let (head, rest) = read(&wire, size, HEAD_LIMIT).await.unwrap();
            assert_eq!((head.status, head.reason.as_str()), (101, "Switching Protocols"));
            assert!(head.is_websocket());
            assert_eq!(head.header("UPGRADE"), Some(&b"WebSocket"[..]));
            assert!(check_accept("dGhlIHNhbXBsZSBub25jZQ==", &head.headers));
            assert!(!check_accept("dGhlIHNhbXBsZSBub25jZR==", &head.headers));
            assert_eq!(&rest[..], b"\x81\x02hi\r\n\r\n", "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn a_prefix_that_holds_the_whole_head_needs_no_reading() {
        let (near, mut far) = tokio::io::duplex(16);
        let prefix = BytesMut::from(&b"HTTP/1.1 403 Forbidden\r\n\r\nbody"[..]);
        let (head, rest) = read_response_head(&mut far, HEAD_LIMIT, prefix).await.unwrap();
        assert_eq!((head.status, head.is_websocket(), &rest[..]), (403, false, &b"body"[..]));
        drop(near);
    }

    #[tokio::test]
    async fn interim_responses_are_passed_over() {
        let mut wire =
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".to_vec();
        wire.extend_from_slice(ACCEPTED);
        for size in [1, 4096] {
            assert_eq!(read(&wire, size, HEAD_LIMIT).await.unwrap().0.status, 101);
        }
    }

    #[tokio::test]
    async fn a_head_ends_in_an_error_when_it_is_too_long_cut_or_no_http() {
        let limit = ACCEPTED.len();
        assert!(read(ACCEPTED, 4096, limit).await.is_ok());
        assert!(matches!(read(ACCEPTED, 7, limit - 1).await, Err(HandshakeError::TooLong(_))));
        assert!(matches!(read(&ACCEPTED[..40], 7, limit).await, Err(HandshakeError::Ended)));
        let endless = [&b"HTTP/1.1 101 x\r\nA: "[..], &[b'a'; 4096]].concat();
        assert!(matches!(read(&endless, 512, 1024).await, Err(HandshakeError::TooLong(1024))));
        let interim = b"HTTP/1.1 100 x\r\n\r\n".repeat(100);
        assert!(matches!(read(&interim, 512, 1024).await, Err(HandshakeError::TooLong(1024))));
        for junk in [&b"\x15\x03\x01\n\n"[..], b"\r\n\r\n", b"HTTP/2 200\r\n\r\n"] {
            assert!(matches!(read(junk, 9, 1024).await, Err(HandshakeError::Invalid(_))));
        }
        let many = [b"HTTP/1.1 101 x\r\n".to_vec(), b"a: b\r\n".repeat(129), b"\r\n".to_vec()];
        assert!(matches!(read(&many.concat(), 999, 9999).await, Err(HandshakeError::Invalid(_))));
    }

    #[test]
    fn a_request_is_written_as_given() {
        let headers = [("Host", &b"10.0.0.1:8188"[..]), ("X-Name", "é".as_bytes())];
        let head = write_upgrade_request("GET", "/api/ws?clientId=a%2Fb", headers).unwrap();
        let text =
            "GET /api/ws?clientId=a%2Fb HTTP/1.1\r\nHost: 10.0.0.1:8188\r\nX-Name: é\r\n\r\n";
        assert_eq!(head, text.as_bytes());
    }

    #[test]
    fn nothing_that_breaks_a_line_is_written() {
        let good = [("Host", &b"x"[..])];
        for method in ["", "G ET", "GET\r\n"] {
            assert!(write_upgrade_request(method, "/", good).is_err());
        }
        for target in ["", "/ws HTTP/1.1\r\nX: y", "/a b", "/\n", "/\u{7f}"] {
            assert!(write_upgrade_request("GET", target, good).is_err());
        }
        for header in
            [("", &b"x"[..]), ("a b", b"x"), ("a:", b"x"), ("a", b"x\r\ny: z"), ("a", b"\0")]
        {
            assert!(write_upgrade_request("GET", "/", [header]).is_err());
            assert!(write_response_head(101, "ok", [header]).is_err());
        }
        assert!(write_response_head(101, "a\r\nb: c", good).is_err());
        assert!(write_response_head(99, "", good).is_err());
    }

    #[test]
    fn two_accepts_or_none_are_no_accept() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let right = ("Sec-WebSocket-Accept".to_owned(), accept_key(key).into_bytes());
        assert!(check_accept(key, std::slice::from_ref(&right)));
        assert!(!check_accept(key, &[right.clone(), right]));
        assert!(!check_accept(key, &[]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_reads_back(
            status in 200u16..1000,
            reason in "[!-~]{0,10}",
            headers in prop::collection::vec(("[A-Za-z-]{1,12}", "[!-~]{0,40}"), 0..20),
        ) {
            let lines = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
            let wire = write_response_head(status, &reason, lines).unwrap();
            let head = parse(&wire).unwrap();
            prop_assert_eq!((head.status, head.reason), (status, reason));
            let read: Vec<_> = head
                .headers
                .into_iter()
                .map(|(name, value)| (name, String::from_utf8(value).unwrap()))
                .collect();
            prop_assert_eq!(read, headers);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(end) = end_of_head(&bytes, 0) {
                prop_assert!(end <= bytes.len());
                let _ = parse(&bytes[..end]);
            }
        }
    }
}
