//! Settings that are understood but not built yet, so that nobody relies on them by mistake.
//!
//! Whoever builds one deletes its line.

use super::checked::Config;

/// A setting without effect. A configuration that asks for it runs, with a warning.
pub(super) struct NotYet {
    pub(super) key: &'static str,
    /// Whether a configuration asks for it.
    pub(super) asked: fn(&Config) -> bool,
}

pub(super) const NOT_YET: &[NotYet] =
    &[NotYet { key: "pool.keep_outputs", asked: |c| c.pool.keep_outputs > 0 }];
