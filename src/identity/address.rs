//! The client's address, and the `X-Forwarded-*` headers that tell a backend of it.
//!
//! `X-Forwarded-For` is believed only when the peer is one of `trusted_proxies` (none by default).
//! Then its entries, all header lines read as one list, are scanned from the right: each trusted
//! one is a proxy of ours, the first untrusted one is the client. This is nginx's
//! `real_ip_recursive on`, and so are the edges:
//! - an entry that is no address (`unknown`, a name, garbage) ends the scan, for nothing left of it
//!   can be vouched for: the last trusted hop is then the client;
//! - all entries trusted: the left-most of them is the client;
//! - empty entries are skipped.
//!
//! The scan looks at the right-most [`MAX_HOPS`] entries. Entries may have a port, brackets, quotes,
//! blanks and an IPv6 zone. IPv4-mapped IPv6 counts as IPv4. RFC 7239's `Forwarded` is not read:
//! one header must be the truth, and this is the one that proxies in front of ComfyUI set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use ipnet::{IpNet, Ipv4Net};

/// Entries of `X-Forwarded-For` looked at, and passed on, at most.
pub const MAX_HOPS: usize = 64;
/// Bytes of one entry at most; the longest address with zone, brackets and port is shorter.
const MAX_ENTRY: usize = 80;

/// A hop of which nothing is known, as RFC 7239 calls it.
const UNKNOWN: &str = "unknown";

const FOR: &str = "x-forwarded-for";
const PROTO: &str = "x-forwarded-proto";
const HOST: &str = "x-forwarded-host";

/// `server.trusted_proxies`: the peers whose `X-Forwarded-*` headers are believed.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Takes the networks of the configuration; IPv4-mapped ones become IPv4.
    pub fn new(nets: &[IpNet]) -> Self {
        Self(nets.iter().map(|net| canonical_net(*net)).collect())
    }

    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    /// The address of the client that sent a request with these headers over a connection from
    /// `peer`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if self.0.is_empty() || !self.contains(client) {
            return client;
        }
        for entry in entries_from_right(headers).take(MAX_HOPS) {
            let Some(hop) = parse_entry(entry) else { break };
            client = hop;
            if !self.contains(hop) {
                break;
            }
        }
        client
    }

    /// The headers to send upstream in place of the client's own. What a trusted peer said stays
    /// and gets the peer appended; what anyone else said is dropped.
    pub fn forwarded(&self, peer: IpAddr, headers: &HeaderMap, tls: bool) -> Forwarded {
        let trusted = self.contains(peer);
        let said = |name: &str| headers.get(name).filter(|_| trusted);
        Forwarded {
            chain: if trusted { chain(headers, peer) } else { peer.to_canonical().to_string() },
            proto: said(PROTO).and_then(scheme).unwrap_or(if tls { "https" } else { "http" }),
            host: said(HOST).or_else(|| headers.get(http::header::HOST)).cloned(),
        }
    }
}

/// Values of the `X-Forwarded-*` headers sent upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// `X-Forwarded-For`: the hops so far, the peer last.
    pub chain: String,
    /// `X-Forwarded-Proto`: `http` or `https`.
    pub proto: &'static str,
    /// `X-Forwarded-Host`; HTTP/1.0 requests may have none.
    pub host: Option<HeaderValue>,
}

fn canonical_net(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let mapped = v6.network().to_ipv4_mapped().filter(|_| v6.prefix_len() >= 96);
    let v4 = mapped.and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - 96).ok());
    v4.map_or(net, IpNet::V4)
}

/// The list's entries, right-most first, empty ones left out.
fn entries_from_right(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(FOR).iter().rev();
    lines
        .flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|entry| !entry.is_empty())
}

/// One entry as an address: `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]:80`, any of them
/// in quotes.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    if entry.len() > MAX_ENTRY {
        return None;
    }
    let text = std::str::from_utf8(entry).ok()?;
    let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text).trim();
    let address = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (inner, port) = bracketed.split_once(']')?;
            is_port_or_nothing(port).then(|| parse_v6(inner))?
        }
        None => parse_v4(text).or_else(|| parse_v6(text)),
    };
    address.map(|address| address.to_canonical())
}

fn parse_v4(text: &str) -> Option<IpAddr> {
    let plain = text.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    plain.or_else(|| text.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()))
}

/// An IPv6 address; a zone (`%eth0`) is this host's business only and dropped.
fn parse_v6(text: &str) -> Option<IpAddr> {
    let address = text.split_once('%').map_or(text, |(address, _zone)| address);
    address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

fn is_port_or_nothing(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

/// The right-most hops as they came, then the peer. Entries that are no addresses are kept, for
/// they say that somebody was there: left out, a backend that looks for the client would go on to
/// what stands behind them. What is not printable ASCII stays as [`UNKNOWN`].
fn chain(headers: &HeaderMap, peer: IpAddr) -> String {
    let printable = |entry: &&str| {
        entry.len() <= MAX_ENTRY && entry.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let text = |entry| std::str::from_utf8(entry).ok().filter(printable).unwrap_or(UNKNOWN);
    let mut hops: Vec<&str> = entries_from_right(headers).take(MAX_HOPS - 1).map(text).collect();
    hops.reverse();
    let peer = peer.to_canonical().to_string();
    hops.push(&peer);
    hops.join(", ")
}

/// The scheme a trusted proxy named; of several, the first: the one the client used.
fn scheme(value: &HeaderValue) -> Option<&'static str> {
    let first = value.as_bytes().split(|byte| *byte == b',').next()?.trim_ascii();
    match first.to_ascii_lowercase().as_slice() {
        b"https" | b"wss" => Some("https"),
        b"http" | b"ws" => Some("http"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trusted(nets: &str) -> TrustedProxies {
        let nets: Vec<IpNet> = nets.split_whitespace().map(|net| net.parse().unwrap()).collect();
        TrustedProxies::new(&nets)
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FOR, HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    fn client(nets: &str, peer: &str, lines: &[&str]) -> IpAddr {
        trusted(nets).client(peer.parse().unwrap(), &headers(lines))
    }

    /// `trusted | peer | line ⏎ line | client`, one case a line.
    #[test]
    fn the_corpus_gives_the_clients_it_names() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/forwarded_for/cases.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let cases = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let mut seen = 0;
        for case in cases {
            let fields: Vec<&str> = case.split('|').map(str::trim).collect();
            let [nets, peer, lines, expected] = fields[..] else { panic!("four fields: {case}") };
            let lines: Vec<&str> = lines.split('⏎').map(str::trim).collect();
            assert_eq!(client(nets, peer, &lines), expected.parse::<IpAddr>().unwrap(), "{case}");
            seen += 1;
        }
        assert!(seen >= 25, "{seen} cases");
    }

    #[test]
    fn only_the_right_most_64_entries_are_looked_at() {
        let far = format!("203.0.113.9{}", ", 10.0.0.2".repeat(1000));
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &[&far]).to_string(), "10.0.0.2");
        let near = format!("203.0.113.9{}", ", 10.0.0.2".repeat(MAX_HOPS - 1));
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &[&near]).to_string(), "203.0.113.9");
        let lines = vec!["10.0.0.2"; 1000];
        let upstream =
            trusted("10.0.0.0/8").forwarded("10.0.0.1".parse().unwrap(), &headers(&lines), false);
        assert_eq!(upstream.chain.split(',').count(), MAX_HOPS);
    }

    #[test]
    fn a_trusted_peer_is_appended_and_its_word_kept() {
        let mut headers = headers(&["203.0.113.9", "unknown, 10.0.0.7"]);
        headers.insert(PROTO, HeaderValue::from_static("HTTPS, http"));
        headers.insert(HOST, HeaderValue::from_static("farm.example"));
        headers.insert("host", HeaderValue::from_static("inner:8100"));
        let said = trusted("10.0.0.0/8").forwarded("10.0.0.1".parse().unwrap(), &headers, false);
        assert_eq!(said.chain, "203.0.113.9, unknown, 10.0.0.7, 10.0.0.1");
        assert_eq!(said.proto, "https");
        assert_eq!(said.host.unwrap(), "farm.example");
    }

    #[test]
    fn anyone_else_is_replaced() {
        let mut headers = headers(&["203.0.113.9"]);
        headers.insert(PROTO, HeaderValue::from_static("https"));
        headers.insert(HOST, HeaderValue::from_static("evil.example"));
        headers.insert("host", HeaderValue::from_static("farm:8100"));
        let said = trusted("10.0.0.0/8").forwarded("8.8.8.8".parse().unwrap(), &headers, false);
        assert_eq!((said.chain.as_str(), said.proto), ("8.8.8.8", "http"));
        assert_eq!(said.host.unwrap(), "farm:8100");
    }

    #[test]
    fn bytes_that_are_not_text_end_the_scan_here_and_at_the_backend() {
        let mut headers = HeaderMap::new();
        headers.append(FOR, HeaderValue::from_bytes(b"9.9.9.9, \xff\xfe, 10.0.0.3").unwrap());
        let proxies = trusted("10.0.0.0/8");
        let peer = "10.0.0.1".parse().unwrap();
        assert_eq!(proxies.client(peer, &headers).to_string(), "10.0.0.3");
        assert_eq!(
            proxies.forwarded(peer, &headers, false).chain,
            "9.9.9.9, unknown, 10.0.0.3, 10.0.0.1"
        );
    }

    fn entry() -> impl Strategy<Value = String> {
        prop_oneof![
            (0u8..4, 0u8..4).prop_map(|(c, d)| format!("10.0.{c}.{d}")),
            any::<Ipv4Addr>().prop_map(|v4| format!("{v4}:80")),
            any::<Ipv6Addr>().prop_map(|v6| format!("[{v6}]:443")),
            "[ -~]{0,20}".prop_map(|text| text.replace(',', "")),
        ]
    }

    proptest! {
        /// The client is trusted only when every entry up to it was a trusted address.
        #[test]
        fn a_trusted_address_comes_out_only_when_no_other_stands_right_of_the_garbage(
            list in prop::collection::vec(entry(), 0..12), split in 0usize..12,
        ) {
            let proxies = trusted("10.0.0.0/8");
            let split = split.min(list.len());
            let lines = [list[..split].join(","), list[split..].join(", ")];
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let found = proxies.client("10.9.9.9".parse().unwrap(), &headers(&lines));
            let readable = list.iter().rev().filter(|entry| !entry.trim().is_empty());
            let mut readable = readable.map_while(|entry| parse_entry(entry.trim().as_bytes()));
            let outsider = readable.find(|hop| !proxies.contains(*hop));
            prop_assert_eq!(!proxies.contains(found), outsider.is_some());
            if let Some(outsider) = outsider {
                prop_assert_eq!(found, outsider);
            }
        }

        #[test]
        fn an_untrusted_peer_is_itself_whatever_it_says(
            peer: Ipv4Addr, list in prop::collection::vec(entry(), 0..6),
        ) {
            let line = list.join(",");
            let found = trusted("").client(peer.into(), &headers(&[&line]));
            prop_assert_eq!(found, IpAddr::V4(peer));
        }
    }
}
