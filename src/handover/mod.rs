//! `comfygate run --upgrade`: a new process takes the place of the running one, and no connection is
//! refused.
//!
//! The running one offers its place on a socket in `state_dir` (0600, in a directory of its owner's).
//! What is said there, a line each:
//!
//! | New | Old |
//! |---|---|
//! | `comfygate upgrade 1` | `listeners`, with the descriptors of the listening sockets |
//! | `release`, once all is prepared that needs no state | |
//! | | takes no more prompts, closes journal, event sockets and state; `released` |
//! | opens them; `serving` | |
//! | | `go`; accepts no more, drains what is open, ends |
//!
//! Whatever goes wrong before `go`, an end of the connection included, leaves the old one serving: it
//! opens again what it closed. Nobody dispatches a prompt in between. Both processes share the
//! listening sockets, so that whoever connects is accepted by one of them.
//!
//! Bounds: one upgrade at a time; the new one has a minute for each of its steps, the old one ten
//! seconds for its own.

mod estate;
mod predecessor;
mod successor;
mod wire;

pub use estate::Estate;
pub use predecessor::Offer;
pub use successor::Successor;

/// The socket in `state_dir`.
const SOCKET: &str = "upgrade.sock";
