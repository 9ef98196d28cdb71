//! What may go wrong, and the bugs that are planted to see whether they are found.

/// What may go wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chaos {
    pub(super) servers: bool,
    pub(super) crashes: bool,
    pub(super) bug: Bug,
}

/// A bug planted in the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    None,
    /// Resets and returns of servers are not told.
    ForgetReconcile,
    /// Each waiting job is posted twice.
    DoubleDispatch,
    /// A POST that broke off is taken for one that never left.
    UnknownIsNotSent,
    /// A job is called accepted before it is on the disk.
    SkipFsync,
    /// After a restart the queues are believed empty without a look.
    BlindRestart,
}

impl Chaos {
    pub(super) fn none() -> Self {
        Self { servers: false, crashes: false, bug: Bug::None }
    }

    pub(super) fn servers() -> Self {
        Self { servers: true, ..Self::none() }
    }

    pub(super) fn all() -> Self {
        Self { crashes: true, ..Self::servers() }
    }

    pub(super) fn with(self, bug: Bug) -> Self {
        Self { bug, ..self }
    }
}
