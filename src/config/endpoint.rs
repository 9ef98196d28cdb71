//! Where a backend listens, in one form whatever way it was written.

use url::Url;

/// Where a backend listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// True for https.
    pub tls: bool,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path in front of every request path: empty or `/base` without a trailing slash.
    pub base: String,
}

impl Endpoint {
    /// The endpoint as a URL, for people and for HTTP clients.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.base)
    }

    /// `host:port`, IPv6 in brackets, the port always given: the `Host` header's value.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Reads an endpoint from an http or https URL.
    pub fn from_url(url: &Url) -> Option<Self> {
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        let base = url.path().trim_end_matches('/').to_owned();
        Some(Self { tls, host, port: url.port_or_known_default()?, base })
    }
}
