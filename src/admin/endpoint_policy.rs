//! Which addresses may be made backends at run time.
//!
//! Whoever may call the admin API could otherwise have the gateway fetch from places that only the
//! gateway reaches: a cloud's metadata service is at a link-local address. So, unless
//! `admin.allow_endpoints` says otherwise, link-local addresses are refused; loopback and private
//! ones are fine, for farms live there. With a list, only its networks are allowed, and link-local
//! ones of them only where the list names a link-local network, not by a wide `0.0.0.0/0`. The
//! unspecified address, multicast and broadcast are never a server's.
//!
//! A name is judged by everything it resolves to ([`resolve`], then [`check`]), and again each time
//! it is resolved anew, for names can be made to point elsewhere later. Backends of the
//! configuration file are not judged: who writes the file has the machine.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::Endpoint;
use crate::rejection::{Kind, Rejection};

/// A name that takes longer to resolve does not resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where servers added at run time may be: `admin.allow_endpoints`.
#[derive(Debug, Clone, Default)]
pub struct EndpointPolicy {
    allowed: Vec<IpNet>,
}

impl EndpointPolicy {
    /// The policy of a list of networks; an empty one allows all but link-local addresses.
    pub fn new(allowed: &[IpNet]) -> Self {
        Self { allowed: allowed.to_vec() }
    }

    fn judge(&self, address: IpAddr) -> Result<(), &'static str> {
        let address = embedded(address);
        if address.is_unspecified() || address.is_multicast() || is_broadcast(address) {
            return Err("no server can be at an unspecified, multicast or broadcast address");
        }
        let mut listed = self.allowed.iter().filter(|net| net.contains(&address));
        if is_link_local(address) {
            let named = listed.any(|net| is_link_local(net.network()));
            return named.then_some(()).ok_or("link-local addresses are not allowed");
        }
        if self.allowed.is_empty() || listed.next().is_some() {
            return Ok(());
        }
        Err("the address is in none of the networks of admin.allow_endpoints")
    }
}

/// Whether an endpoint may be a backend, by all addresses that its name resolves to.
pub fn check(
    endpoint: &Endpoint,
    addresses: &[IpAddr],
    policy: &EndpointPolicy,
) -> Result<(), Rejection> {
    if addresses.is_empty() {
        return Err(unresolvable(endpoint));
    }
    for &address in addresses {
        policy.judge(address).map_err(|why| {
            let message = format!("{} may not be added: {why}", endpoint.authority());
            Rejection::new(Kind::InvalidValue, message)
                .cure("admin.allow_endpoints names the networks that may be used")
        })?;
    }
    Ok(())
}

/// What an endpoint's name resolves to, or why it does not.
pub async fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, Rejection> {
    if let Ok(address) = endpoint.host.parse() {
        return Ok(vec![SocketAddr::new(address, endpoint.port)]);
    }
    let name = (endpoint.host.as_str(), endpoint.port);
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(name)).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    if addresses.is_empty() { Err(unresolvable(endpoint)) } else { Ok(addresses) }
}

fn unresolvable(endpoint: &Endpoint) -> Rejection {
    Rejection::new(Kind::InvalidValue, format!("the name {} does not resolve", endpoint.host))
        .cure("use a name that this machine can resolve, or an address")
}

/// The IPv4 address that an IPv6 one leads to: mapped, compatible, 6to4, or by way of NAT64.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [first, second, third, fourth, .., seventh, eighth] = v6.segments();
    let v4 = |high: u16, low: u16| IpAddr::V4((u32::from(high) << 16 | u32::from(low)).into());
    match v6.to_ipv4_mapped() {
        Some(mapped) => mapped.into(),
        None if first == 0x2002 => v4(second, third),
        None if (first, second, third, fourth) == (0x64, 0xff9b, 0, 0) => v4(seventh, eighth),
        // `::` and `::1` are themselves.
        None if v6.to_bits() >> 32 == 0 && v6.to_bits() > 1 => v4(seventh, eighth),
        None => address,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    const V4: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(169, 254, 0, 0), 16);
    const V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
    match address {
        IpAddr::V4(v4) => V4.contains(&v4),
        IpAddr::V6(v6) => V6.contains(&v6),
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allows(list: &str, addresses: &str) -> bool {
        let nets: Vec<IpNet> = list.split_whitespace().map(|net| net.parse().unwrap()).collect();
        let addresses: Vec<IpAddr> =
            addresses.split_whitespace().map(|address| address.parse().unwrap()).collect();
        check(&endpoint("gpu.example"), &addresses, &EndpointPolicy::new(&nets)).is_ok()
    }

    fn endpoint(host: &str) -> Endpoint {
        Endpoint { tls: false, host: host.into(), port: 8188, base: String::new() }
    }

    #[test]
    fn farms_are_allowed_and_metadata_services_are_not() {
        for fine in [
            "127.0.0.1",
            "::1",
            "10.1.2.3",
            "192.168.0.9",
            "172.17.0.2",
            "8.8.8.8",
            "fd00::7",
            "2001:db8::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(allows("", fine), "{fine}");
        }
        for refused in [
            "169.254.169.254",
            "169.254.0.1",
            "fe80::1",
            "febf::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "239.1.1.1",
            "ff02::1",
            "255.255.255.255",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "::169.254.169.254",
            "",
        ] {
            assert!(!allows("", refused), "{refused}");
        }
    }

    #[test]
    fn a_name_is_refused_for_any_bad_address_it_has() {
        assert!(allows("", "10.0.0.1 10.0.0.2"));
        assert!(!allows("", "10.0.0.1 169.254.169.254"));
        assert!(!allows("10.0.0.0/8", "10.0.0.1 192.168.0.1"));
    }

    #[test]
    fn a_list_is_exclusive_and_opens_link_local_only_by_name() {
        assert!(allows("10.0.0.0/8 fd00::/8", "10.9.9.9 fd00::1"));
        assert!(allows("10.0.0.0/8", "::ffff:10.0.0.1"));
        assert!(!allows("10.0.0.0/8", "127.0.0.1"));
        assert!(!allows("0.0.0.0/0", "169.254.169.254"), "a wide net names no link-local one");
        assert!(allows("0.0.0.0/0 169.254.7.0/24", "169.254.7.1"));
        assert!(!allows("0.0.0.0/0", "0.0.0.0"));
        assert!(!allows("224.0.0.0/4", "224.0.0.1"));
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_said_to() {
        let error = resolve(&endpoint("no-such-host.invalid")).await.unwrap_err();
        assert_eq!(error.kind, Kind::InvalidValue);
        assert!(error.message.contains("no-such-host.invalid does not resolve"), "{error:?}");
        let found = resolve(&endpoint("127.0.0.1")).await.unwrap();
        assert_eq!(found, ["127.0.0.1:8188".parse().unwrap()]);
    }

    proptest! {
        /// However an IPv4 address is wrapped, it is judged as itself.
        #[test]
        fn no_wrapping_hides_an_address(v4: std::net::Ipv4Addr) {
            let policy = EndpointPolicy::default();
            let [a, b, c, d] = v4.octets().map(u128::from);
            let bits = a << 24 | b << 16 | c << 8 | d;
            let wrapped = [v4.to_ipv6_mapped(),
                Ipv6Addr::from_bits(0x64_ff9b << 96 | bits),
                Ipv6Addr::from_bits(0x2002 << 112 | bits << 80 | 1)];
            for wrapped in wrapped {
                let (plain, wrapped) = (policy.judge(v4.into()), policy.judge(wrapped.into()));
                prop_assert_eq!(plain, wrapped);
            }
        }
    }
}
