//! Why a relay ends: what it is told, and what it tells afterwards.

use std::fmt;

use super::frames::FrameError;

/// Why the gateway ends a relay that both sides would have kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The backend failed its health check.
    BackendDown,
    /// The backend failed real requests, and is out for a time.
    BackendEjected,
    /// An operator disabled the backend.
    BackendDisabled,
    /// The backend is no longer configured.
    BackendRemoved,
    /// The client may no longer be here: its key or login ended.
    AccessEnded,
    /// The gateway itself is going.
    GatewayShutdown,
}

impl StopReason {
    /// The close code and text that the client gets.
    pub fn close(self) -> (u16, &'static str) {
        match self {
            Self::BackendDown => (1012, "backend down"),
            Self::BackendEjected => (1012, "backend ejected"),
            Self::BackendDisabled => (1012, "backend disabled"),
            Self::BackendRemoved => (1012, "backend removed"),
            Self::AccessEnded => (1008, "access ended"),
            Self::GatewayShutdown => (1001, "gateway shutting down"),
        }
    }
}

/// One of the two ends of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who connected to the gateway.
    Client,
    /// Whom the gateway connected to.
    Backend,
}

/// What ended a relay first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// The client sent a Close (1005: without a code).
    ClientClosed {
        /// Its code.
        code: u16,
    },
    /// The backend sent a Close (1005: without a code).
    BackendClosed {
        /// Its code.
        code: u16,
    },
    /// The client's connection ended without a Close.
    ClientGone,
    /// The backend's connection ended without a Close.
    BackendGone,
    /// The gateway ended it.
    Stopped(StopReason),
    /// One side sent what cannot be passed on.
    Refused {
        /// Who sent it.
        from: Side,
        /// What was wrong with it.
        error: FrameError,
    },
}

impl EndCause {
    /// A word out of a small fixed set, for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientClosed { .. } => "client_closed",
            Self::BackendClosed { .. } => "backend_closed",
            Self::ClientGone => "client_gone",
            Self::BackendGone => "backend_gone",
            Self::Stopped(StopReason::BackendDown) => "backend_down",
            Self::Stopped(StopReason::BackendEjected) => "backend_ejected",
            Self::Stopped(StopReason::BackendDisabled) => "backend_disabled",
            Self::Stopped(StopReason::BackendRemoved) => "backend_removed",
            Self::Stopped(StopReason::AccessEnded) => "access_ended",
            Self::Stopped(StopReason::GatewayShutdown) => "gateway_shutdown",
            Self::Refused { error: FrameError::Malformed, .. } => "malformed_frame",
            Self::Refused { error: FrameError::TooBig, .. } => "frame_too_big",
        }
    }
}

impl fmt::Display for EndCause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientClosed { code } => write!(out, "closed by the client ({code})"),
            Self::BackendClosed { code } => write!(out, "closed by the backend ({code})"),
            Self::ClientGone => out.write_str("the client's connection ended"),
            Self::BackendGone => out.write_str("the backend's connection ended"),
            Self::Stopped(reason) => out.write_str(reason.close().1),
            Self::Refused { from: Side::Client, error } => write!(out, "from the client: {error}"),
            Self::Refused { from: Side::Backend, error } => {
                write!(out, "from the backend: {error}")
            }
        }
    }
}

/// What passed in one direction. Frames that the relay wrote itself are not among it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes, headers of frames included.
    pub bytes: u64,
    /// Whole frames.
    pub frames: u64,
}

/// How a relay went, for log and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayEnd {
    /// What ended it.
    pub cause: EndCause,
    /// From client to backend.
    pub up: Traffic,
    /// From backend to client.
    pub down: Traffic,
    /// The code of the Close that the relay itself wrote to the client, if it did. It may not have
    /// arrived, when the client did not read.
    pub told_client: Option<u16>,
}
