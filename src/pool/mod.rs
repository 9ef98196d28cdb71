//! Pool mode: the farm as one big ComfyUI.
//!
//! A prompt becomes a [`job`] that waits here, not in a server, until a server is free for it.
//! [`core`] decides, as a pure state machine: what happened goes in as an
//! [`Input`](core::Input), what is to be done comes out as [`Action`](core::Action)s. [`frame`] is
//! what passes from a backend to a job's owner.

pub mod core;
pub mod frame;
pub mod job;
pub mod journal;
