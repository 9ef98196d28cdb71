//! What a backend's WebSocket messages mean, and whose they are. Pure.
//!
//! [`parse`] reads of a message only what routing needs, without building a document: its name,
//! the prompt it names, its [`Kind`] and [`Meaning`](super::frame::Meaning). [`Attribution`]
//! follows one backend's two sockets and says of each message what the core is to be told and who
//! is to get it. Every byte of a message is the backend's: nothing in here panics on any of them,
//! and what is kept between messages is bounded.

mod attribution;
mod binary;
mod head;
mod heard;
mod held;
mod loose;
mod rewrite;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use attribution::{Attribution, Rewrite, Verdict};
pub use heard::{Heard, Kind, parse};

use super::job::{JobId, Owner};
use crate::backend::BackendId;

/// Which of the gateway's two sockets to a backend: `ComfyUI` sends previews in another form, and
/// in another order, to those that announced a flag, so each prompt is posted under the sid of the
/// socket that matches its owner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flavour {
    /// Announced nothing: previews of binary type 1.
    Plain,
    /// Announced `supports_preview_metadata`: previews of binary type 4.
    Flags,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Plain, Self::Flags];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Plain => Self::Flags,
            Self::Flags => Self::Plain,
        }
    }

    /// Its place in a pair.
    pub fn index(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Flags => 1,
        }
    }
}

/// A job at a backend, as its events need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub job: JobId,
    /// Whose it is.
    pub owner: Owner,
    /// The id that its owner knows it by.
    pub prompt_id: Arc<str>,
    /// The socket that it was posted under.
    pub flavour: Flavour,
}

/// Knows the jobs that are at a backend.
pub trait Directory {
    /// The job that this backend calls by this id: the job's own id, or the one that the backend
    /// minted for it (before 0.3.45). `None` once the job is no longer there as far as the gateway
    /// is concerned, so that a prompt that was given up and still runs tells nobody anything.
    fn job(&self, backend: BackendId, prompt_id: &str) -> Option<Known>;

    /// An event that goes to one socket only came on this one. True when it was not known which
    /// one it would be (an earlier process posted the prompt), and now is.
    fn is_of(&self, _: BackendId, _: &str, _: Flavour) -> bool {
        false
    }
}
