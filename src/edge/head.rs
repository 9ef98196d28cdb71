//! The head of a request, read by ourselves before Pingora sees it.
//!
//! Pingora's parser bounds neither the total time nor the size tightly, and repairs what should be
//! refused. So the head is read here within one total time and size, checked strictly (RFC 9112),
//! and only then handed on as it came. What two parsers could read differently is refused.

use std::str::FromStr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::io::AsyncRead;
use tokio::time::{Instant, timeout_at};

use super::conn::read_into;
use crate::config::Limits;
use crate::rejection::{Kind, Rejection};

/// Header lines that fit the parser's table; `limits.header_count` is checked below it.
pub const MAX_HEADERS: usize = 256;

/// Why no head came.
#[derive(Debug)]
pub enum NoHead {
    /// The client left, or was idle for too long: nothing to say.
    Gone,
    /// The client is to be told something.
    Refused(Rejection),
}

/// Reads into `buffer` until it holds a whole head, and says how long that is. What is already in
/// it counts as read. The connection may be idle for `idle` before the first byte.
pub async fn read_head<S>(
    stream: &mut S,
    buffer: &mut BytesMut,
    limits: &Limits,
    idle: Duration,
) -> Result<usize, NoHead>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let mut deadline =
        Instant::now() + if buffer.is_empty() { idle } else { limits.header_timeout };
    let mut scanned = 0;
    loop {
        skip_blank_lines(buffer, &mut scanned);
        match end_of_head(buffer, &mut scanned) {
            Ok(Some(end)) if end <= limits.header_bytes => return Ok(end),
            Ok(Some(_)) => return Err(NoHead::Refused(too_large(limits))),
            Ok(None) if buffer.len() > limits.header_bytes => {
                return Err(NoHead::Refused(too_large(limits)));
            }
            Ok(None) => {}
            Err(refused) => return Err(NoHead::Refused(refused)),
        }
        let was_empty = buffer.is_empty();
        match timeout_at(deadline, read_into(stream, buffer)).await {
            Ok(Ok(0) | Err(_)) => return Err(NoHead::Gone),
            Ok(Ok(_)) if was_empty => deadline = Instant::now() + limits.header_timeout,
            Ok(Ok(_)) => {}
            Err(_) if was_empty => return Err(NoHead::Gone),
            Err(_) => {
                let seconds = limits.header_timeout.as_secs_f64();
                return Err(NoHead::Refused(Rejection::new(
                    Kind::Timeout,
                    format!("the request's head took longer than {seconds} seconds"),
                )));
            }
        }
    }
}

fn too_large(limits: &Limits) -> Rejection {
    Rejection::new(
        Kind::HeadersTooLarge,
        format!(
            "the request's head is over the limit of {} bytes or {} headers",
            limits.header_bytes, limits.header_count
        ),
    )
}

/// Blank lines before a request line are leftovers of old clients and may be skipped (RFC 9112,
/// section 2.2).
fn skip_blank_lines(buffer: &mut BytesMut, scanned: &mut usize) {
    while buffer.starts_with(b"\r\n") {
        buffer.advance(2);
        *scanned = scanned.saturating_sub(2);
    }
}

/// The length of a head that is complete. A line feed without its carriage return is refused at
/// once: parsers disagree about what it ends.
fn end_of_head(buffer: &[u8], scanned: &mut usize) -> Result<Option<usize>, Rejection> {
    for at in *scanned..buffer.len() {
        if buffer[at] != b'\n' {
            continue;
        }
        if at == 0 || buffer[at - 1] != b'\r' {
            return Err(bad("a line of the head ends without a carriage return"));
        }
        if at >= 3 && &buffer[at - 3..=at] == b"\r\n\r\n" {
            return Ok(Some(at + 1));
        }
    }
    *scanned = buffer.len();
    Ok(None)
}

fn bad(message: &str) -> Rejection {
    Rejection::new(Kind::BadRequest, message)
}

/// A head that can be read in one way only.
#[derive(Debug)]
pub struct Head<'b> {
    /// Method.
    pub method: Method,
    /// Path and query as they were sent.
    pub target: &'b str,
    /// Header lines in their order.
    pub headers: &'b [httparse::Header<'b>],
    /// `Content-Length`, if there is one.
    pub content_length: Option<u64>,
    /// Whether the body comes in chunks.
    pub chunked: bool,
}

impl<'b> Head<'b> {
    /// Parses and checks a whole head.
    pub fn parse(
        bytes: &'b [u8],
        table: &'b mut [httparse::Header<'b>; MAX_HEADERS],
        limits: &Limits,
    ) -> Result<Self, Rejection> {
        let mut request = httparse::Request::new(&mut table[..]);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(bad("the request's head is incomplete")),
            Err(httparse::Error::TooManyHeaders) => return Err(too_large(limits)),
            Err(error) => return Err(bad(&format!("the request's head is malformed: {error}"))),
        }
        let httparse::Request { method, path, version, headers } = request;
        if headers.len() > limits.header_count {
            return Err(too_large(limits));
        }
        let method = method
            .and_then(|method| Method::from_bytes(method.as_bytes()).ok())
            .ok_or_else(|| bad("the method is malformed"))?;
        let target = path.ok_or_else(|| bad("the request has no target"))?;
        check_lines(bytes)?;
        let framing = framing(headers, version == Some(1))?;
        check_host(headers, version == Some(1))?;
        let target = origin_form(&method, target, headers)?;
        let (content_length, chunked) = framing;
        Ok(Self { method, target, headers, content_length, chunked })
    }

    /// All values of a header.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'b [u8]> + 'a {
        values(self.headers, name)
    }

    /// The first value of a header, if it is text.
    pub fn get(&self, name: &str) -> Option<&'b str> {
        self.all(name).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The headers of some names, for those who want a map.
    pub fn subset(&self, names: &[HeaderName]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for header in self.headers {
            let wanted = names.iter().find(|name| header.name.eq_ignore_ascii_case(name.as_str()));
            if let (Some(name), Ok(value)) = (wanted, HeaderValue::from_bytes(header.value)) {
                map.append(name.clone(), value);
            }
        }
        map
    }

    /// Whether a header's comma-separated values hold a token.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }
}

fn values<'a, 'b>(
    headers: &'a [httparse::Header<'b>],
    name: &'a str,
) -> impl Iterator<Item = &'b [u8]> + 'a {
    headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value)
}

/// Line folding and a carriage return inside a line are obsolete or worse (RFC 9112, 5.2 and 2.2).
fn check_lines(bytes: &[u8]) -> Result<(), Rejection> {
    for (at, &byte) in bytes.iter().enumerate() {
        let next = bytes.get(at + 1);
        match byte {
            b'\r' if next != Some(&b'\n') => return Err(bad("a carriage return stands in a line")),
            b'\n' if matches!(next, Some(b' ' | b'\t')) => return Err(bad("a header is folded")),
            0 => return Err(bad("the head contains a NUL byte")),
            _ => {}
        }
    }
    Ok(())
}

/// How long the body is (RFC 9112, section 6), refusing whatever two readers could see differently.
fn framing(
    headers: &[httparse::Header<'_>],
    is_1_1: bool,
) -> Result<(Option<u64>, bool), Rejection> {
    let mut lengths = values(headers, "content-length");
    let mut encodings = values(headers, "transfer-encoding");
    match (lengths.next(), lengths.next(), encodings.next(), encodings.next()) {
        (None, None, None, None) => Ok((None, false)),
        (Some(length), None, None, None) => {
            let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(length).ok().filter(|_| digits);
            let length = length.and_then(|text| text.parse().ok());
            length
                .map(|length| (Some(length), false))
                .ok_or_else(|| bad("Content-Length is malformed"))
        }
        (None, None, Some(encoding), None) if encoding.eq_ignore_ascii_case(b"chunked") => {
            if is_1_1 { Ok((None, true)) } else { Err(bad("HTTP/1.0 has no Transfer-Encoding")) }
        }
        (None, None, Some(_), _) => Err(bad("the only Transfer-Encoding accepted is chunked")),
        (Some(_), Some(_), ..) => Err(bad("there is more than one Content-Length")),
        _ => Err(bad("Content-Length and Transfer-Encoding contradict each other")),
    }
}

fn check_host(headers: &[httparse::Header<'_>], is_1_1: bool) -> Result<(), Rejection> {
    let mut hosts = values(headers, "host");
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if host.iter().all(|&b| is_host_byte(b)) => Ok(()),
        (None, None) if !is_1_1 => Ok(()),
        (Some(_), None) => Err(bad("Host is malformed")),
        (None, _) => Err(bad("Host is missing")),
        (Some(_), Some(_)) => Err(bad("there is more than one Host")),
    }
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-_:[]~%!$&'()*+,;=".contains(&byte)
}

/// The target as path and query. The absolute form must name the same host as `Host` does.
fn origin_form<'b>(
    method: &Method,
    target: &'b str,
    headers: &[httparse::Header<'_>],
) -> Result<&'b str, Rejection> {
    if *method == Method::CONNECT {
        let message = "CONNECT is not served here";
        return Err(Rejection::new(Kind::MethodNotAllowed, message));
    }
    if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(bad("the target contains control bytes"));
    }
    if target.starts_with('/') {
        return checked(target);
    }
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    let Some(rest) = rest else { return Err(bad("the target is neither a path nor a URL")) };
    let path = rest.find('/').ok_or_else(|| bad("the target's URL has no path"))?;
    if path == 0 {
        return Err(bad("the target's URL names no host"));
    }
    let host = values(headers, "host").next().unwrap_or_default();
    if !rest.as_bytes()[..path].eq_ignore_ascii_case(host) {
        return Err(bad("the target names another host than Host"));
    }
    checked(&rest[path..])
}

/// What Pingora would refuse in its own words, or cut off: behind a `#` the backend would see
/// another path than we do.
fn checked(target: &str) -> Result<&str, Rejection> {
    if target.contains('#') || PathAndQuery::from_str(target).is_err() {
        return Err(bad("the target contains a character that must be percent-encoded"));
    }
    Ok(target)
}

/// The same head with another target, without `Upgrade` (of upgrades only WebSockets are served,
/// and those take another way) and without the headers of some more names.
pub fn rewrite(bytes: &[u8], target: &str, without: &[&str]) -> BytesMut {
    let goes = |line: &[u8]| {
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or_default();
        let is = |name: &&str| line[..colon].eq_ignore_ascii_case(name.as_bytes());
        is(&"upgrade") || without.iter().any(is)
    };
    let mut head = BytesMut::with_capacity(bytes.len() + target.len());
    for (number, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        if number == 0 {
            let mut words = line.splitn(3, |&byte| byte == b' ');
            let (method, _, rest) = (words.next(), words.next(), words.next());
            head.extend_from_slice(method.unwrap_or_default());
            head.extend_from_slice(b" ");
            head.extend_from_slice(target.as_bytes());
            head.extend_from_slice(b" ");
            head.extend_from_slice(rest.unwrap_or_default());
        } else if !goes(line) {
            head.extend_from_slice(line);
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        header_bytes: 4096,
        header_count: 20,
        header_timeout: Duration::from_secs(10),
        body_size: 1000,
        keepalive_timeout: Duration::from_mins(1),
        connections: 10,
        per_user: crate::config::PerUser { queued: 0, running: 0, prompts_per_minute: 0 },
    };

    fn refusal(head: &str) -> Option<String> {
        let mut table = [httparse::EMPTY_HEADER; MAX_HEADERS];
        Head::parse(head.as_bytes(), &mut table, &LIMITS).err().map(|r| r.message)
    }

    #[test]
    fn plain_heads_pass() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a:8100\r\n\r\n",
            "GET /userdata/workflows%2Fa.json?x=%20 HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            "POST /prompt HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n",
            "POST /prompt HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /x HTTP/1.0\r\n\r\n",
        ] {
            assert_eq!(refusal(head), None, "{head}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (head, word) in [
            ("GET / HTTP/1.1\r\n\r\n", "Host is missing"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "more than one Host"),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "Host is malformed"),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                "more than one Content-Length",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
                "Content-Length is malformed",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
                "Content-Length is malformed",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
                "Content-Length is malformed",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "contradict",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                "only Transfer-Encoding",
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \tchunked\x0b\r\n\r\n", ""),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0"),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", ""),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", ""),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", ""),
            ("GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n", "another host"),
            ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", "neither a path"),
            ("GET http:///x HTTP/1.0\r\n\r\n", "names no host"),
            ("POST /prompt#x HTTP/1.1\r\nHost: a\r\n\r\n", "percent-encoded"),
            ("GET /x?q=\"y\" HTTP/1.1\r\nHost: a\r\n\r\n", "percent-encoded"),
            ("GET http://a/<x> HTTP/1.1\r\nHost: a\r\n\r\n", "percent-encoded"),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "neither a path"),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT"),
        ] {
            let message = refusal(head).unwrap_or_else(|| panic!("passed: {head:?}"));
            assert!(message.contains(word), "{head:?}: {message}");
        }
    }

    #[test]
    fn a_rewritten_head_has_another_target_and_no_upgrade() {
        let head = b"GET /@x/a HTTP/1.1\r\nHost: a\r\nUPGRADE: h2c\r\nX-SECRET: a\r\nX: Upgrade: y\r\n\r\n";
        let head = rewrite(head, "/a", &["x-secret"]);
        assert_eq!(&head[..], b"GET /a HTTP/1.1\r\nHost: a\r\nX: Upgrade: y\r\n\r\n");
    }

    async fn read(pieces: &[&[u8]]) -> Result<(usize, BytesMut), NoHead> {
        let mut builder = tokio_test_io(pieces);
        let mut buffer = BytesMut::new();
        let length = read_head(&mut builder, &mut buffer, &LIMITS, Duration::from_secs(1)).await?;
        Ok((length, buffer))
    }

    fn tokio_test_io(pieces: &[&[u8]]) -> tokio::io::DuplexStream {
        let (client, mut server) = tokio::io::duplex(64 << 10);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        tokio::spawn(async move {
            for piece in pieces {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut server, &piece).await;
                tokio::task::yield_now().await;
            }
            std::future::pending::<()>().await;
        });
        client
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_in_pieces_is_read_whole_and_no_further() {
        let (length, buffer) =
            read(&[b"\r\nGET / HT", b"TP/1.1\r\nHost: a\r", b"\n\r\nbody"]).await.unwrap();
        assert_eq!(&buffer[..length], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(&buffer[length..], b"body");
    }

    /// Kept, it would stand where a rewritten head has its request line.
    #[tokio::test(start_paused = true)]
    async fn a_blank_line_is_skipped_wherever_it_breaks() {
        for pieces in
            [&[&b"\r"[..], b"\nGET / HTTP/1.1\r\n\r\n"], &[b"\r\n\r", b"\nGET / HTTP/1.1\r\n\r\n"]]
        {
            let (length, buffer) = read(pieces).await.unwrap();
            assert_eq!(&buffer[..length], b"GET / HTTP/1.1\r\n\r\n");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn heads_that_drip_swell_or_end_lines_badly_are_refused() {
        let kind = |result: Result<(usize, BytesMut), NoHead>| match result {
            Err(NoHead::Refused(refusal)) => Some(refusal.kind),
            _ => None,
        };
        assert_eq!(kind(read(&[b"GET / HTTP/1.1\r\n"]).await), Some(Kind::Timeout));
        assert_eq!(kind(read(&[&[b'a'; 5000]]).await), Some(Kind::HeadersTooLarge));
        assert_eq!(kind(read(&[b"GET / HTTP/1.1\n"]).await), Some(Kind::BadRequest));
        assert!(matches!(read(&[]).await, Err(NoHead::Gone)));
    }
}
