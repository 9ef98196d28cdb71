//! The PROXY header that a load balancer in front puts before a connection's first byte, versions 1
//! (text) and 2 (binary): whose connection it really is.
//!
//! [`parse`] is pure and total; [`read`] takes the header off a connection and not a byte more, so
//! that a TLS handshake may follow. The addresses of a v2 header count, its TLVs are skipped.
//! `LOCAL` and `UNKNOWN` (health checks of the balancer) leave the connection its own peer.
//! Who may send one is for the caller to say: everybody else could be anyone.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::config::ProxyProtocol;

/// Bytes of a version 1 header at most, its line end included.
const MAX_V1: usize = 107;
/// Bytes behind the fixed part of a version 2 header at most: addresses, and TLVs to be skipped.
const MAX_V2: usize = 4096;
/// What both versions have at least: enough to tell them apart.
const FIRST: usize = 12;
/// The fixed part of a version 2 header.
const FIXED: usize = 16;
/// What version 2 opens with.
const SIGNATURE: &[u8; FIRST] = b"\r\n\r\n\0\r\nQUIT\n";

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The connection of this client.
    Client(SocketAddr),
    /// The balancer's own, or it does not know whose.
    Balancer,
}

/// No header that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoHeader {
    /// It opens with something else.
    #[error("it opens with no PROXY header of a version that is expected")]
    Missing,
    /// It cannot be read.
    #[error("its PROXY header is malformed")]
    Malformed,
    /// It is too long.
    #[error("its PROXY header is too long")]
    TooLong,
}

/// Takes the header off a connection.
pub async fn read<S>(stream: &mut S, expected: ProxyProtocol) -> io::Result<Source>
where
    S: AsyncRead + Unpin,
{
    let bad = |why: NoHeader| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut header = vec![0; FIRST];
    stream.read_exact(&mut header).await?;
    loop {
        match parse(&header, expected).map_err(bad)? {
            Parsed::Whole(source) => return Ok(source),
            Parsed::Lacking(more) => {
                let there = header.len();
                header.resize(there + more, 0);
                stream.read_exact(&mut header[there..]).await?;
            }
        }
    }
}

/// What became of a header's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// It is whole, and ends with these bytes.
    Whole(Source),
    /// At least so many more bytes belong to it.
    Lacking(usize),
}

/// Reads what is there of a header. Bytes behind a whole one make it malformed: whoever reads takes
/// as many as [`Parsed::Lacking`] says.
pub fn parse(bytes: &[u8], expected: ProxyProtocol) -> Result<Parsed, NoHeader> {
    if bytes.len() < FIRST {
        return Ok(Parsed::Lacking(FIRST - bytes.len()));
    }
    let takes = |version| expected == ProxyProtocol::On || expected == version;
    if bytes.starts_with(SIGNATURE) && takes(ProxyProtocol::V2) {
        v2(bytes)
    } else if bytes.starts_with(b"PROXY ") && takes(ProxyProtocol::V1) {
        v1(bytes)
    } else {
        Err(NoHeader::Missing)
    }
}

fn v1(bytes: &[u8]) -> Result<Parsed, NoHeader> {
    match bytes.iter().position(|&byte| byte == b'\n') {
        None if bytes.len() >= MAX_V1 => Err(NoHeader::TooLong),
        // It may end with the next byte, and what follows is not ours.
        None => Ok(Parsed::Lacking(
            if bytes.ends_with(b"\r") { 1 } else { 2 }.min(MAX_V1 - bytes.len()),
        )),
        Some(_) if bytes.len() > MAX_V1 => Err(NoHeader::TooLong),
        Some(end) if end + 1 == bytes.len() => {
            let line = bytes.strip_suffix(b"\r\n").ok_or(NoHeader::Malformed)?;
            let line = std::str::from_utf8(line).map_err(|_| NoHeader::Malformed)?;
            v1_line(line).map(Parsed::Whole).ok_or(NoHeader::Malformed)
        }
        Some(_) => Err(NoHeader::Malformed),
    }
}

fn v1_line(line: &str) -> Option<Source> {
    let mut words = line.split(' ');
    words.next().filter(|word| *word == "PROXY")?;
    let family = words.next()?;
    if family == "UNKNOWN" {
        // Whatever follows is to be ignored.
        return Some(Source::Balancer);
    }
    let [from, to, from_port, to_port] =
        [words.next()?, words.next()?, words.next()?, words.next()?];
    if words.next().is_some() {
        return None;
    }
    let (from, to): (IpAddr, IpAddr) = match family {
        "TCP4" => (from.parse::<Ipv4Addr>().ok()?.into(), to.parse::<Ipv4Addr>().ok()?.into()),
        "TCP6" => (from.parse::<Ipv6Addr>().ok()?.into(), to.parse::<Ipv6Addr>().ok()?.into()),
        _ => return None,
    };
    let _ = (to, port(to_port)?);
    Some(Source::Client(SocketAddr::new(from, port(from_port)?)))
}

/// A port in plain digits: `+80` and `080` are none.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = plain && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn v2(bytes: &[u8]) -> Result<Parsed, NoHeader> {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else {
        return Ok(Parsed::Lacking(FIXED - bytes.len()));
    };
    let [command, family, high, low] = [fixed[12], fixed[13], fixed[14], fixed[15]];
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2 {
        return Err(NoHeader::TooLong);
    }
    if rest.len() < length {
        return Ok(Parsed::Lacking(length - rest.len()));
    }
    if rest.len() > length {
        return Err(NoHeader::Malformed);
    }
    let source = match (command, family) {
        (0x20, _) => Some(Source::Balancer),
        (0x21, 0x11) => v2_source::<4>(rest),
        (0x21, 0x21) => v2_source::<16>(rest),
        // Unspecified, a datagram's or a Unix socket's: nothing to go by.
        (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Some(Source::Balancer),
        _ => None,
    };
    source.map(Parsed::Whole).ok_or(NoHeader::Malformed)
}

/// Source address and port out of two addresses of `N` bytes and two ports.
fn v2_source<const N: usize>(rest: &[u8]) -> Option<Source>
where
    IpAddr: From<[u8; N]>,
{
    let (addresses, ports) = rest.split_at_checked(2 * N)?;
    let from: [u8; N] = addresses.first_chunk().copied()?;
    let &[high, low, _, _] = ports.first_chunk::<4>()?;
    Some(Source::Client(SocketAddr::new(from.into(), u16::from_be_bytes([high, low]))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &[u8]) -> Result<Parsed, NoHeader> {
        parse(bytes, ProxyProtocol::On)
    }

    fn client(address: &str) -> Parsed {
        Parsed::Whole(Source::Client(address.parse().unwrap()))
    }

    fn v2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[command, family], &length, rest].concat()
    }

    #[test]
    fn text_headers_name_the_client() {
        let ipv4 = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";
        assert_eq!(whole(ipv4), Ok(client("192.0.2.7:56324")));
        let ipv6 = b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n";
        assert_eq!(whole(ipv6), Ok(client("[2001:db8::7]:1")));
        for unknown in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff::1 whatever\r\n"] {
            assert_eq!(whole(unknown.as_bytes()), Ok(Parsed::Whole(Source::Balancer)));
        }
    }

    #[test]
    fn malformed_text_headers_are_none() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for line in [
            "PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 56324 443 1\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 1 0443\r\n",
            "PROXY TCP4 192.0.2.256 10.0.0.1 1 443\r\n",
            "PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.7 10.0.0.1 1 443\r\n",
            "PROXY  TCP4 192.0.2.7 10.0.0.1 1 443\r\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 1 443\r\n",
            "proxy TCP4 192.0.2.7 10.0.0.1 1 443\r\n",
            "GET / HTTP/1.1\r\n",
            "PROXY UNKNOWN\r\nG",
            &long,
        ] {
            assert!(whole(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn binary_headers_name_the_client_and_their_tlvs_are_skipped() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
        assert_eq!(whole(&v2_header(0x21, 0x11, &v4)), Ok(client("192.0.2.7:56324")));
        let with_tlv = [&v4[..], &[4, 0, 3, 1, 2, 3]].concat();
        assert_eq!(whole(&v2_header(0x21, 0x11, &with_tlv)), Ok(client("192.0.2.7:56324")));
        let from: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let v6 = [&from.octets()[..], &[0; 16], &[0, 1, 0, 2]].concat();
        assert_eq!(whole(&v2_header(0x21, 0x21, &v6)), Ok(client("[2001:db8::7]:1")));
        for (command, family) in [(0x20, 0), (0x20, 0x11), (0x21, 0), (0x21, 0x31)] {
            let header = v2_header(command, family, &[0; 5]);
            assert_eq!(whole(&header), Ok(Parsed::Whole(Source::Balancer)), "{command} {family}");
        }
    }

    #[test]
    fn malformed_binary_headers_are_none() {
        for header in [
            v2_header(0x21, 0x11, &[0; 11]),
            v2_header(0x21, 0x21, &[0; 35]),
            v2_header(0x22, 0x11, &[0; 12]),
            v2_header(0x11, 0x11, &[0; 12]),
            v2_header(0x21, 0x13, &[0; 12]),
            v2_header(0x21, 0x11, &[0; 5000]),
            [v2_header(0x21, 0x11, &[0; 12]), vec![0]].concat(),
        ] {
            assert!(whole(&header).is_err(), "{header:?}");
        }
    }

    #[test]
    fn only_the_version_that_is_expected_counts() {
        let (text, binary) = (b"PROXY UNKNOWN\r\n".to_vec(), v2_header(0x20, 0, &[]));
        for (expected, v1, v2) in [
            (ProxyProtocol::On, true, true),
            (ProxyProtocol::V1, true, false),
            (ProxyProtocol::V2, false, true),
        ] {
            assert_eq!(parse(&text, expected).is_ok(), v1, "{expected:?}");
            assert_eq!(parse(&binary, expected).is_ok(), v2, "{expected:?}");
        }
    }

    #[tokio::test]
    async fn not_a_byte_behind_the_header_is_read() {
        let from = [1, 2, 3, 4, 0, 0, 0, 0, 0, 5, 0, 6];
        for header in [b"PROXY TCP4 1.2.3.4 0.0.0.0 5 6\r\n".to_vec(), v2_header(0x21, 0x11, &from)]
        {
            let all = [header, b"GET / HTTP/1.1\r\n".to_vec()].concat();
            let mut rest = &all[..];
            let source = read(&mut rest, ProxyProtocol::On).await.unwrap();
            assert_eq!(source, Source::Client("1.2.3.4:5".parse().unwrap()));
            assert_eq!(rest, b"GET / HTTP/1.1\r\n");
        }
        assert!(read(&mut &b"PROXY TCP4 1.2"[..], ProxyProtocol::On).await.is_err());
    }

    proptest! {
        /// What a header lacks is never more than it has.
        #[test]
        fn reading_as_told_never_takes_too_much(
            rest in prop::collection::vec(any::<u8>(), 0..200), command: u8, family: u8,
            behind in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            for header in [
                v2_header(command, family, &rest),
                format!("PROXY UNKNOWN {}\r\n", "y".repeat(rest.len() % 90)).into_bytes(),
            ] {
                let all = [&header[..], &behind].concat();
                let mut there = 0;
                while let Ok(Parsed::Lacking(more)) = whole(&all[..there]) {
                    prop_assert!(more > 0);
                    there += more;
                    prop_assert!(there <= header.len());
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = whole(&bytes);
            let _ = whole(&[SIGNATURE, &bytes[..]].concat());
            let _ = whole(&[b"PROXY ", &bytes[..]].concat());
        }
    }
}
