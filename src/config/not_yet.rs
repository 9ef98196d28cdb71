//! Settings that are understood but not built yet, so that nobody relies on them by mistake.
//!
//! Whoever builds one deletes its line.

use super::checked::{Config, ProxyProtocol};

/// A setting without effect.
pub(super) struct NotYet {
    pub(super) key: &'static str,
    /// Whether a configuration asks for it.
    pub(super) asked: fn(&Config) -> bool,
    /// It is refused, since running without would be something else than what was asked for; what
    /// to do instead.
    pub(super) cure: &'static str,
}

pub(super) const NOT_YET: &[NotYet] = &[NotYet {
    key: "server.proxy_protocol",
    asked: |c| c.server.proxy_protocol != ProxyProtocol::Off,
    cure: "not built yet; use off, and X-Forwarded-For with trusted_proxies",
}];
