//! Where a client is: the zone whose backends it prefers.
//!
//! What a trusted proxy says in `scheduler.zone_header` goes first: such a proxy knows. Anybody
//! else's word is not taken, for then a client could choose the less busy zone. Otherwise the
//! first of `scheduler.zones` that the client's address is in.

use std::net::IpAddr;

use crate::config::Scheduler;

/// Bytes of a zone's name in a header.
const MAX_NAME: usize = 256;

/// The client's zone; `said` is the header's value, if the peer is a trusted proxy.
pub fn zone_of(address: IpAddr, said: Option<&str>, scheduler: &Scheduler) -> Option<String> {
    let said = said.map(str::trim).filter(|zone| (1..=MAX_NAME).contains(&zone.len()));
    if let Some(zone) = said {
        return Some(zone.to_owned());
    }
    let address = address.to_canonical();
    let zones = scheduler.zones.iter();
    zones
        .filter(|(_, nets)| nets.iter().any(|net| net.contains(&address)))
        .map(|(zone, _)| zone.clone())
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn zone(address: &str, said: Option<&str>) -> Option<String> {
        let config = parse(
            "{backends: ['http://a'], scheduler: {zones: {lab: [10.1.2.0/24, '2001:db8::/32'], \
             eu: [10.1.0.0/16]}}}",
        );
        zone_of(address.parse().unwrap(), said, &config.unwrap().scheduler)
    }

    #[test]
    fn the_first_network_counts_unless_a_proxy_knows_better() {
        assert_eq!(zone("10.1.2.3", None).as_deref(), Some("lab"));
        assert_eq!(zone("10.1.3.3", None).as_deref(), Some("eu"));
        assert_eq!(zone("::ffff:10.1.3.3", None).as_deref(), Some("eu"));
        assert_eq!(zone("2001:db8::5", None).as_deref(), Some("lab"));
        assert_eq!(zone("8.8.8.8", None), None);
        assert_eq!(zone("8.8.8.8", Some(" us ")).as_deref(), Some("us"));
        assert_eq!(zone("10.1.3.3", Some(" ")).as_deref(), Some("eu"));
        assert_eq!(zone("8.8.8.8", Some(&"z".repeat(300))), None);
    }
}
