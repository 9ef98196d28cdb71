//! What stands before and behind a head: the PROXY header, a body in chunks.

use std::net::SocketAddr;

use super::bytes::Input;
use super::head::block_on;
use super::http1;
use crate::config::ProxyProtocol;
use crate::edge::chunks::Chunks;
use crate::edge::proxy_header::{Parsed, Source, parse, read};

/// A connection's first bytes; the first one says which versions are expected.
pub fn proxy(data: &[u8]) {
    let mut input = Input(data);
    let expected = [ProxyProtocol::On, ProxyProtocol::V1, ProxyProtocol::V2];
    let expected = expected[usize::from(input.byte()) % expected.len()];
    let _ = parse(input.0, expected);
    let mut rest = input.0;
    let Some(Ok(source)) = block_on(read(&mut rest, expected)) else { return };
    let (header, behind) = input.0.split_at(input.0.len() - rest.len());
    assert_eq!(parse(header, expected), Ok(Parsed::Whole(source)), "what was taken is the header");
    assert!(header.len() <= 16 + 4096, "it is bounded");
    for cut in [0, header.len() / 2, header.len() - 1] {
        let there = parse(&header[..cut], expected);
        let lacking =
            matches!(there, Ok(Parsed::Lacking(more)) if more > 0 && more <= header.len() - cut);
        assert!(lacking, "{there:?} of {cut} bytes: never more than belongs to it");
    }
    assert!(input.0.ends_with(behind));
    if let Source::Client(client) = source {
        let written = v2_header(client);
        assert_eq!(parse(&written, ProxyProtocol::V2), Ok(Parsed::Whole(source)));
    }
}

fn v2_header(client: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let (family, address) = match client {
        SocketAddr::V4(v4) => (0x11, v4.ip().octets().to_vec()),
        SocketAddr::V6(v6) => (0x21, v6.ip().octets().to_vec()),
    };
    header.push(family);
    header.extend_from_slice(&(2 * address.len() as u16 + 4).to_be_bytes());
    header.extend_from_slice(&[&address[..], &address[..]].concat());
    header.extend_from_slice(&client.port().to_be_bytes());
    header.extend_from_slice(&[0, 80]);
    header
}

/// A body in chunks, in pieces of any size; what is accepted hyper reads to the same end.
pub fn chunks(data: &[u8]) {
    let followed = |size: usize| {
        let (mut chunks, mut end) = (Chunks::default(), 0);
        for piece in data.chunks(size) {
            let Ok(used) = chunks.follow(piece) else { return None };
            end += used;
            if used < piece.len() {
                assert!(chunks.is_done(), "only what is over leaves bytes");
                break;
            }
        }
        Some((end, chunks.is_done()))
    };
    let whole = followed(data.len().max(1));
    for size in [1, 2, 7] {
        assert_eq!(followed(size), whole, "in pieces of {size}");
    }
    let Some((end, true)) = whole else { return };
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let request = [&head[..], &data[..end]].concat();
    let body = http1::body_as_hyper_reads(&request);
    assert!(body.is_some_and(|body| body.len() <= end), "hyper reads it to its end");
}
