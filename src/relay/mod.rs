//! (merged soon)
/// Why a relay must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// x
    BackendDown,
    /// x
    BackendDisabled,
    /// x
    BackendRemoved,
    /// x
    GatewayShutdown,
}
