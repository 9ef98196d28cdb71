//! The core of pool mode: which job goes where and when, as a pure state machine.
//!
//! [`Core::handle`] takes what happened as an [`Input`] and the time, and adds what is to be done
//! to a list of [`Action`]s. It meets no socket, clock or random source of its own, so that a
//! simulation can drive it through years of failures, and the shell around it is only plumbing.

mod api;

pub use api::*;
