//! The ketama ring: which backend owns a client when nothing else speaks.
//!
//! pingora-load-balancing's [`KetamaHashing`] hashes socket addresses. Ours must not care where a
//! backend listens today, so each backend enters under a synthetic address made from its *name*:
//! a changed address moves nobody, and every replica with the same names has the same ring.
//! Algorithm: R. Jones, "libketama: a consistent hashing algo for memcache clients", 2007;
//! 160 points per unit of weight.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_load_balancing::selection::consistent::KetamaHashing;
use pingora_load_balancing::selection::{BackendIter, BackendSelection};
use sha2::{Digest, Sha256};

/// A weighted consistent-hash ring over positions `0..n` of a list of backends.
pub struct Ring {
    hashing: Arc<KetamaHashing>,
    positions: HashMap<PeerAddr, usize>,
    /// Steps after which a walk has surely met every backend.
    points: usize,
}

impl Ring {
    /// Builds the ring of `(name, weight)` in the order of the caller's list.
    pub fn new<'a>(backends: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut set = BTreeSet::new();
        let mut positions = HashMap::new();
        let mut points = 0;
        for (position, (name, weight)) in backends.into_iter().enumerate() {
            let addr = PeerAddr::Inet(synthetic_address(name));
            let weight = weight.max(1) as usize;
            points += weight * 160;
            positions.insert(addr.clone(), position);
            set.insert(pingora_load_balancing::Backend {
                addr,
                weight,
                ext: http::Extensions::new(),
            });
        }
        Self { hashing: Arc::new(KetamaHashing::build(&set)), positions, points }
    }

    /// The first position on the walk from `key` that `accept` takes.
    pub fn first(&self, key: &[u8], accept: impl Fn(usize) -> bool) -> Option<usize> {
        let mut walk = self.hashing.iter(key);
        for _ in 0..self.points {
            let position = *self.positions.get(&walk.next()?.addr)?;
            if accept(position) {
                return Some(position);
            }
        }
        None
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("backends", &self.positions.len()).finish_non_exhaustive()
    }
}

/// An address nobody dials, as unique as the name it stands for.
fn synthetic_address(name: &str) -> SocketAddr {
    let digest: [u8; 32] = Sha256::digest(name.as_bytes()).into();
    let mut octets = [0u8; 16];
    octets.copy_from_slice(&digest[..16]);
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(octets), 1, 0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(ring: &Ring, key: u64) -> usize {
        ring.first(&key.to_be_bytes(), |_| true).unwrap()
    }

    #[test]
    fn shares_follow_weights() {
        let ring = Ring::new([("a", 1), ("b", 1), ("c", 2)]);
        let mut shares = [0u32; 3];
        for key in 0..20_000 {
            shares[owner(&ring, key)] += 1;
        }
        let of_c = f64::from(shares[2]) / 20_000.0;
        assert!((0.42..0.58).contains(&of_c), "{shares:?}");
        assert!(f64::from(shares[0].max(shares[1])) < 1.5 * f64::from(shares[0].min(shares[1])));
    }

    #[test]
    fn an_empty_or_refusing_ring_ends_its_walk() {
        assert_eq!(Ring::new([]).first(b"x", |_| true), None);
        assert_eq!(Ring::new([("a", 1)]).first(b"x", |_| false), None);
    }

    proptest! {
        #[test]
        fn a_leaving_backend_moves_only_its_own_keys(keys in prop::collection::vec(any::<u64>(), 1..50)) {
            let all = Ring::new([("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
            let fewer = Ring::new([("a", 1), ("b", 1), ("d", 1)]);
            for key in keys {
                let before = ["a", "b", "c", "d"][owner(&all, key)];
                let after = ["a", "b", "d"][owner(&fewer, key)];
                prop_assert!(before == "c" || before == after);
            }
        }

        #[test]
        fn skipping_a_backend_equals_its_absence(key in any::<u64>()) {
            let all = Ring::new([("a", 1), ("b", 1), ("c", 1)]);
            let fewer = Ring::new([("a", 1), ("c", 1)]);
            let skipped = all.first(&key.to_be_bytes(), |position| position != 1).unwrap();
            prop_assert_eq!(["a", "b", "c"][skipped], ["a", "c"][owner(&fewer, key)]);
        }
    }
}
