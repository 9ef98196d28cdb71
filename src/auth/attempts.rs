//! How often an address may try a password: [`ATTEMPTS`]. A right one is not counted.
//!
//! An attempt is counted before the password is looked at, and given back when it was right, so
//! that many at once are no way around. Bounded: addresses that have waited long enough make room,
//! and when none has, all are forgotten; guesses are slow then, too ([`super::password`]).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;

use super::rate::Rate;
use crate::clock::Moment;
use crate::identity::ClientKey;

/// Wrong passwords of one address (IPv6: its /64).
pub const ATTEMPTS: Rate = Rate { count: 10, period: Duration::from_mins(1) };
/// Addresses that are remembered.
const MAX_ADDRESSES: usize = 10_000;

/// Wrong attempts by address.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<HashMap<ClientKey, u64>>);

impl Attempts {
    /// Counts one, or says how long to wait.
    pub fn begin(&self, address: IpAddr, now: Moment) -> Result<(), Duration> {
        let key = ClientKey::of_address(address);
        let mut addresses = self.0.lock();
        let paid = ATTEMPTS.take(addresses.get(&key).copied().unwrap_or(0), now)?;
        if addresses.len() >= MAX_ADDRESSES && !addresses.contains_key(&key) {
            addresses.retain(|_, paid| *paid > now.0.saturating_mul(1000));
            if addresses.len() >= MAX_ADDRESSES {
                addresses.clear();
            }
        }
        addresses.insert(key, paid);
        Ok(())
    }

    /// Takes one back that was right.
    pub fn was_right(&self, address: IpAddr) {
        if let Some(paid) = self.0.lock().get_mut(&ClientKey::of_address(address)) {
            *paid = ATTEMPTS.give_back(*paid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn an_address_has_ten_wrong_tries_a_minute_and_any_number_of_right_ones() {
        let attempts = Attempts::default();
        let begin = |n, at| attempts.begin(address(n), Moment(at));
        for _ in 0..100 {
            begin(1, 1000).unwrap();
            attempts.was_right(address(1));
        }
        for _ in 0..10 {
            begin(1, 1000).unwrap();
        }
        assert_eq!(begin(1, 1000), Err(Duration::from_secs(6)));
        assert_eq!(begin(2, 1000), Ok(()));
        assert_eq!(begin(1, 7000), Ok(()));
    }

    #[test]
    fn any_number_of_addresses_takes_bounded_memory() {
        let attempts = Attempts::default();
        for n in 0..30_000 {
            attempts.begin(address(n), Moment(1000)).unwrap();
        }
        assert!(attempts.0.lock().len() <= MAX_ADDRESSES);
    }
}
