//! Which heads of a backend's replies go on to clients: those that every reader takes alike.
//!
//! Pingora has read the head by then, refused what is no HTTP, and put obsolete forms right (folded
//! lines, bare line feeds). It writes the framing anew, so that a client sees one only; what it
//! would pass on as it came is checked here. A reply with `Transfer-Encoding` and `Content-Length` is
//! read by its chunks (RFC 9112, section 6.3), the length is gone.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{StatusCode, Version};
use pingora_http::ResponseHeader;

/// Replies such as `100 Continue` before an answer.
const MAX_INFORMATIONAL: u32 = 8;
/// Bytes of a reply's head.
const MAX_BYTES: usize = 64 << 10;
/// Headers of a reply.
const MAX_HEADERS: usize = 200;

/// Says what is wrong with the head of a reply, if anything is.
pub(super) fn check(head: &ResponseHeader, informational: u32) -> Result<(), &'static str> {
    // WebSockets do not come this way, and nothing else was asked to change the protocol.
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err("it changes the protocol unasked");
    }
    if informational > MAX_INFORMATIONAL {
        return Err("it sends one informational reply after another");
    }
    let size = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.len() + 4
    };
    if head.headers.len() > MAX_HEADERS || head.headers.iter().map(size).sum::<usize>() > MAX_BYTES
    {
        return Err("its head is too large");
    }
    let control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    if head.headers.values().any(|value| value.as_bytes().iter().any(control)) {
        return Err("its head contains control bytes");
    }
    check_framing(head)
}

/// Takes off what a reply without a body says about its length: a client that believed it would
/// take the next reply for this one's body.
pub(super) fn unframe(head: &mut ResponseHeader) {
    if head.status == StatusCode::NO_CONTENT || head.status.is_informational() {
        head.remove_header(&CONTENT_LENGTH);
        head.remove_header(&TRANSFER_ENCODING);
    }
}

fn check_framing(head: &ResponseHeader) -> Result<(), &'static str> {
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let length = length.as_bytes();
        let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
        if !digits || lengths.next().is_some() {
            return Err("its Content-Length is malformed");
        }
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !chunked || codings.next().is_some() || head.version != Version::HTTP_11 {
            return Err("its Transfer-Encoding is malformed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, headers: &[(&'static str, &str)]) -> ResponseHeader {
        let mut head = ResponseHeader::build(status, None).unwrap();
        for (name, value) in headers {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    #[test]
    fn plain_replies_pass() {
        for headers in [
            &[][..],
            &[("Content-Length", "5"), ("Set-Cookie", "a"), ("Set-Cookie", "b")],
            &[("Transfer-Encoding", "Chunked"), ("X", "a\tb")],
        ] {
            assert_eq!(check(&head(200, headers), 0), Ok(()), "{headers:?}");
        }
        assert_eq!(check(&head(100, &[]), 1), Ok(()));
    }

    #[test]
    fn a_reply_without_a_body_has_no_length() {
        let lie = [("Content-Length", "4"), ("X", "y")];
        let mut empty = head(204, &lie);
        unframe(&mut empty);
        assert_eq!(empty.headers.keys().collect::<Vec<_>>(), ["x"]);
        let mut whole = head(200, &lie);
        unframe(&mut whole);
        assert_eq!(whole.headers.len(), 2);
    }

    #[test]
    fn what_clients_could_read_in_two_ways_does_not() {
        let long = "x".repeat(MAX_BYTES);
        for headers in [
            &[("Content-Length", "5"), ("Content-Length", "5")][..],
            &[("Content-Length", "5, 5")],
            &[("Content-Length", "+5")],
            &[("Content-Length", "")],
            &[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
            &[("Transfer-Encoding", "gzip, chunked")],
            &[("Transfer-Encoding", "identity")],
            &[("X", &long)],
            &[("X", "1"); 201],
        ] {
            assert!(check(&head(200, headers), 0).is_err(), "{headers:?}");
        }
        assert!(check(&head(101, &[("Upgrade", "h2c")]), 1).is_err());
        assert!(check(&head(100, &[]), 9).is_err());
        let mut old = head(200, &[("Transfer-Encoding", "chunked")]);
        old.set_version(Version::HTTP_10);
        assert!(check(&old, 0).is_err());
    }
}
