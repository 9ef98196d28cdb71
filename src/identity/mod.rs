//! Who the client is.
//!
//! [`address`] finds the client's address behind trusted proxies, [`session`] makes and checks the
//! signed ids of sessions, [`cookie`] and [`tab`] carry them in a cookie or in the path of a
//! browser tab; [`user`] reads whom an authenticating proxy names. What comes out is a [`Caller`]; its [`ClientKey`] is what the map of placements is
//! keyed by. [`zone`] says where it is and [`mark`] what kind of work it asks for. [`crowd`] notices
//! when one address stands for many people. Nothing here reads a socket, a clock or a random source
//! of its own.

pub mod address;
pub mod cookie;
pub mod crowd;
pub mod mark;
pub mod session;
pub mod tab;
pub mod user;
pub mod zone;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};

use sha2::{Digest, Sha256};

use session::SessionId;

/// Sixteen bytes that stand for a client.
///
/// The first byte tells the kind, so that an address can never equal a session: IPv4 in full, IPv6
/// by its /64 (one subscriber has all addresses of one), sessions by 15 bytes of their id, users by
/// 15 bytes of their name's SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientKey([u8; 16]);

impl ClientKey {
    /// The key of nobody: no caller has it.
    pub const NOBODY: Self = Self([0; 16]);

    const V4: u8 = 4;
    const V6: u8 = 6;
    const SESSION: u8 = b's';
    const USER: u8 = b'u';

    /// The key of an address; IPv4-mapped IPv6 counts as IPv4.
    pub fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::tagged(Self::V4, &v4.octets()),
            IpAddr::V6(v6) => Self::tagged(Self::V6, &v6.octets()[..8]),
        }
    }

    /// The key of a session.
    pub fn of_session(id: &SessionId) -> Self {
        Self::tagged(Self::SESSION, &id.bytes()[..15])
    }

    /// The key of an authenticated user.
    pub fn of_user(name: &str) -> Self {
        Self::tagged(Self::USER, &Sha256::digest(name.as_bytes())[..15])
    }

    /// The key as the store keeps it.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// A key the store kept.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    fn tagged(kind: u8, bytes: &[u8]) -> Self {
        let mut key = [0; 16];
        key[0] = kind;
        for (to, from) in key[1..].iter_mut().zip(bytes) {
            *to = *from;
        }
        Self(key)
    }
}

impl Hash for ClientKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientKey({})", hex::encode(self.0))
    }
}

/// The caller, everywhere: the authenticated user, else the session of the affinity in force, else
/// the client's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// An authenticated user.
    User(String),
    /// A session of a cookie or a tab.
    Session(SessionId),
    /// A client's address.
    Address(IpAddr),
}

impl Caller {
    /// What placements are keyed by.
    pub fn key(&self) -> ClientKey {
        match self {
            Self::User(name) => ClientKey::of_user(name),
            Self::Session(id) => ClientKey::of_session(id),
            Self::Address(address) => ClientKey::of_address(*address),
        }
    }
}

/// For logs and `/lb/session`: a session by its short fingerprint, for its id lets others in; IPv6
/// by its /64, which is what counts.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => f.write_str(name),
            Self::Session(id) => write!(f, "session-{}", id.fingerprint()),
            Self::Address(address) => match address.to_canonical() {
                IpAddr::V4(v4) => write!(f, "{v4}"),
                IpAddr::V6(v6) => write!(f, "{}/64", network_64(v6)),
            },
        }
    }
}

/// The /64 an address is in, with the other half zero.
fn network_64(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(address: &str) -> ClientKey {
        ClientKey::of_address(address.parse().unwrap())
    }

    #[test]
    fn ipv6_counts_by_its_64_and_mapped_as_ipv4() {
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
    }

    #[test]
    fn a_caller_shows_neither_its_session_nor_half_an_address() {
        let id = SessionId::from_bytes([7; 16]);
        let shown = Caller::Session(id).to_string();
        assert!(shown.starts_with("session-") && shown.len() == 16, "{shown}");
        assert!(!shown.contains(&hex::encode([7; 4])), "{shown}");
        let address = Caller::Address("2001:db8::5".parse().unwrap());
        assert_eq!(address.to_string(), "2001:db8::/64");
        assert_eq!(Caller::Address("::ffff:10.0.0.1".parse().unwrap()).to_string(), "10.0.0.1");
    }

    proptest! {
        #[test]
        fn kinds_never_meet(address: IpAddr, id: [u8; 16], name: String) {
            let keys = [
                Caller::Address(address).key(),
                Caller::Session(SessionId::from_bytes(id)).key(),
                Caller::User(name).key(),
            ];
            prop_assert_ne!(keys[0], keys[1]);
            prop_assert_ne!(keys[0], keys[2]);
            prop_assert_ne!(keys[1], keys[2]);
        }

        #[test]
        fn distinct_ipv4_addresses_have_distinct_keys(a: std::net::Ipv4Addr, b: std::net::Ipv4Addr) {
            let equal = ClientKey::of_address(a.into()) == ClientKey::of_address(b.into());
            prop_assert_eq!(equal, a == b);
        }
    }
}
