//! The guard that counts an open WebSocket of a client, so that no early return leaks a count.

use std::sync::Arc;

use super::AffinityMap;
use crate::identity::ClientKey;

/// Keeps its client's placement alive; dropping it starts the placement's time to live anew.
///
/// The guard belongs to the placement it was opened under: when that was evicted or its backend
/// removed meanwhile, dropping the guard changes nothing.
pub struct SocketGuard {
    map: Arc<AffinityMap>,
    key: ClientKey,
    generation: u32,
}

impl SocketGuard {
    pub(super) fn new(map: Arc<AffinityMap>, key: ClientKey, generation: u32) -> Self {
        Self { map, key, generation }
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.map.unpin(self.key, self.generation);
    }
}
