//! Notices that one address stands for many people.
//!
//! With `affinity: ip` everybody behind one NAT shares a backend. Behind Docker's, or behind a proxy
//! that is not in `trusted_proxies`, that is the whole farm's traffic on one server, and nothing
//! looks broken. Each open page of ComfyUI has a `clientId` of its own: [`CrowdWatch::saw`] counts
//! the different ones of an address and says once, for the whole process, that there are too many.
//! [`WARNING`] names the cures.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::ClientKey;

/// Different clientIds of one address that are too many for one person's tabs.
pub const CROWD: usize = 16;
/// Addresses watched at a time; when they are all taken the watch starts over.
const MAX_ADDRESSES: usize = 4096;

/// The warning, to be preceded by the address.
pub const WARNING: &str = "carries many ComfyUI clients and all of them share one backend \
    (session.affinity is ip); if it is a proxy or a Docker gateway, add it to \
    server.trusted_proxies, else set session.affinity to tab or cookie";

/// Counts clientIds per address until one address has a crowd of them.
#[derive(Default)]
pub struct CrowdWatch {
    hasher: RandomState,
    told: AtomicBool,
    seen: Mutex<HashMap<ClientKey, Vec<u64>>>,
}

impl CrowdWatch {
    /// A watch that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a WebSocket's `clientId`; true once in the life of the process, when its address has
    /// [`CROWD`] different ones: the time to warn.
    pub fn saw(&self, address: IpAddr, client_id: &str) -> bool {
        if self.told.load(Ordering::Relaxed) {
            return false;
        }
        let (key, id) = (ClientKey::of_address(address), self.hasher.hash_one(client_id));
        let mut seen = self.seen.lock();
        if seen.len() >= MAX_ADDRESSES && !seen.contains_key(&key) {
            seen.clear();
        }
        let ids = seen.entry(key).or_default();
        if !ids.contains(&id) {
            ids.push(id);
        }
        let crowd = ids.len() >= CROWD;
        if crowd {
            *seen = HashMap::new();
        }
        crowd && !self.told.swap(true, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn a_crowd_is_told_of_once() {
        let watch = CrowdWatch::new();
        let told: Vec<usize> = (0..100).filter(|n| watch.saw(address(1), &n.to_string())).collect();
        assert_eq!(told, [CROWD - 1]);
        assert!(!(0..100).any(|n| watch.saw(address(2), &n.to_string())));
    }

    #[test]
    fn many_visits_of_few_tabs_are_no_crowd() {
        let watch = CrowdWatch::new();
        let tabs = |n: usize| (n % (CROWD - 1)).to_string();
        assert!(!(0..1000).any(|n| watch.saw(address(1), &tabs(n))));
    }

    #[test]
    fn any_number_of_addresses_is_watched_in_bounded_memory() {
        let watch = CrowdWatch::new();
        assert!(!(0..10_000).any(|n| watch.saw(address(n), "tab")));
        assert!(watch.seen.lock().len() <= MAX_ADDRESSES);
    }
}
