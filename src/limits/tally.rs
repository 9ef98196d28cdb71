//! How many of something each client has open.
//!
//! A client stands in the map only while it has one open, so the map is never larger than what is
//! open in all, which is bounded by `limits.connections`.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::identity::ClientKey;

/// Maps that are locked one at a time.
const SHARDS: usize = 16;

/// Counts per client.
#[derive(Debug)]
pub struct Tally {
    hasher: RandomState,
    shards: [Mutex<HashMap<ClientKey, u32>>; SHARDS],
}

impl Default for Tally {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Tally {
    /// One more of a client, unless it has `most` already; 0 is any number.
    pub fn enter(self: &Arc<Self>, client: ClientKey, most: u32) -> Option<Held> {
        let mut shard = self.shard(client).lock();
        let count = shard.entry(client).or_default();
        if most > 0 && *count >= most {
            return None;
        }
        *count = count.saturating_add(1);
        drop(shard);
        Some(Held { tally: Arc::clone(self), client })
    }

    fn leave(&self, client: ClientKey) {
        let mut shard = self.shard(client).lock();
        if let Some(count) = shard.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&client);
            }
        }
    }

    fn shard(&self, client: ClientKey) -> &Mutex<HashMap<ClientKey, u32>> {
        &self.shards[self.hasher.hash_one(client) as usize % SHARDS]
    }

    #[cfg(test)]
    fn clients(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct Held {
    tally: Arc<Tally>,
    client: ClientKey,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tally.leave(self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_clients_that_are_gone() {
        let tally = Arc::new(Tally::default());
        let client = |n: u32| ClientKey::of_address(std::net::Ipv4Addr::from_bits(n).into());
        let held: Vec<_> = (0..1000).filter_map(|n| tally.enter(client(n % 100), 10)).collect();
        assert_eq!((held.len(), tally.clients()), (1000, 100));
        assert!((0..100).all(|n| tally.enter(client(n), 10).is_none()));
        drop(held);
        assert_eq!(tally.clients(), 0);
    }
}
