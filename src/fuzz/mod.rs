//! What fuzzers call: for each parser of bytes from outside one function that takes any bytes and
//! panics when the parser breaks a promise.
//!
//! Built for tests, which run the corpora in `tests/corpus/fuzz`, and for cargo-fuzz (`make fuzz`,
//! `docs/fuzzing.md`), which finds new inputs; no other build has it. A target checks more than that
//! nothing panics: what is accepted must agree with another reading of the same bytes, what is
//! written must read back, and what comes in pieces must not depend on where they break.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a target tells of a broken promise by panicking"
)]

mod bytes;
mod config;
mod edge;
mod events;
mod head;
mod history;
mod http1;
mod identity;
mod inventory;
mod paths;
mod prompt;
mod queue;
mod references;
mod registration;
mod relay;
mod routes;

pub use crate::pool::files::fuzz::form;
pub use crate::pool::journal::fuzz::journal;
pub(crate) use bytes::Input;
pub use config::config;
pub use edge::{chunks, proxy};
pub use events::events;
pub(crate) use head::block_on;
pub use head::head;
pub use history::history;
pub use identity::{cookie, forwarded, tab};
pub use inventory::inventory;
pub use paths::paths;
pub use prompt::prompt;
pub use queue::queue;
pub use references::references;
pub use registration::registration;
pub use relay::{frames, handshake};
pub use routes::routes;

/// A target: it panics when a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by its name, which its corpus and its program have too.
pub const TARGETS: &[(&str, Target)] = &[
    ("chunks", chunks),
    ("config", config),
    ("cookie", cookie),
    ("events", events),
    ("form", form),
    ("forwarded", forwarded),
    ("frames", frames),
    ("handshake", handshake),
    ("head", head),
    ("history", history),
    ("inventory", inventory),
    ("journal", journal),
    ("paths", paths),
    ("prompt", prompt),
    ("proxy", proxy),
    ("queue", queue),
    ("references", references),
    ("registration", registration),
    ("routes", routes),
    ("tab", tab),
];

#[cfg(test)]
mod tests;
