//! Settings that are understood but not built yet, so that nobody relies on them by mistake.
//!
//! Whoever builds one deletes its line.

use super::checked::{Config, ProxyProtocol};

/// A setting without effect.
pub(super) struct NotYet {
    pub(super) key: &'static str,
    /// Whether a configuration asks for it.
    pub(super) asked: fn(&Config) -> bool,
    /// What becomes of a configuration that asks for it.
    pub(super) then: Then,
}

/// What becomes of a configuration that asks for what is not there.
pub(super) enum Then {
    /// It is refused: running without would be something else than what was asked for.
    Refuse(&'static str),
    /// It runs, with a warning.
    Warn,
}

pub(super) const NOT_YET: &[NotYet] = &[
    NotYet {
        key: "server.proxy_protocol",
        asked: |c| c.server.proxy_protocol != ProxyProtocol::Off,
        then: Then::Refuse("not built yet; use off, and X-Forwarded-For with trusted_proxies"),
    },
    NotYet { key: "pool.keep_outputs", asked: |c| c.pool.keep_outputs > 0, then: Then::Warn },
];
