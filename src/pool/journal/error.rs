//! Why the journal cannot be opened, or cannot keep a job.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::record::SCHEMA;
use crate::rejection::{Kind, Rejection};

/// Why the journal cannot be opened.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The directory or a file in it cannot be made or used.
    #[error("journal {}: {cause}; make it writable for this user, or name another state_dir", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Another process has it.
    #[error(
        "journal {}: another comfygate uses this state_dir, and one process alone may own its jobs; \
         stop it, or name another directory",
        .0.display()
    )]
    InUse(PathBuf),
    /// It cannot be taken up again.
    #[error("the journal stays closed: {0}")]
    Closed(String),
    /// A later version wrote it.
    #[error(
        "journal {}: written by a newer comfygate (schema {found}, this one knows {SCHEMA}); run \
         that version, or move the directory away",
        path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
}

impl JournalError {
    pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |cause| Self::Directory { path: path.to_owned(), cause }
    }
}

/// A change could not be made durable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Seconds after which a refused job may come again.
const RETRY_AFTER: u32 = 5;

impl From<Unavailable> for Rejection {
    fn from(error: Unavailable) -> Self {
        Self::new(Kind::StorageUnavailable, "the job cannot be kept safely, so it is not accepted")
            .cure(error.0)
            .retry_after(RETRY_AFTER)
    }
}
