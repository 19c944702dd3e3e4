//! Socket addresses as they lie in a program's memory, and which of them get a source of their own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

/// The most that is read of an address: a `sockaddr_in6`.
pub(super) const ADDRESS_BYTES_MAX: usize = 28;

const FAMILY_INET: u16 = 2;
const FAMILY_INET6: u16 = 10;

/// Parses a `sockaddr_in` or `sockaddr_in6`; IPv4 mapped into IPv6 comes out as IPv4, for that is
/// what a dual-stack socket (every one of Java's) will dial. `None` for anything else.
pub(super) fn parse(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.first_chunk::<2>().copied()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let address = match family {
        FAMILY_INET => IpAddr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?),
        FAMILY_INET6 => IpAddr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// The destinations that are proxies of the lab, and the source that dials to them get.
#[derive(Debug, Default)]
pub(super) struct DialTable {
    sorted: Box<[SocketAddr]>,
}

impl DialTable {
    /// Takes the destinations over from the orders.
    pub(super) fn new(dials: &BTreeSet<SocketAddr>) -> Self {
        let mut sorted: Vec<_> = dials
            .iter()
            .map(|dial| SocketAddr::new(dial.ip().to_canonical(), dial.port()))
            .collect();
        sorted.sort_unstable();
        Self { sorted: sorted.into() }
    }

    /// Whether connects to this (canonical) destination are to be bound.
    pub(super) fn holds(&self, destination: &SocketAddr) -> bool {
        self.sorted.binary_search(destination).is_ok()
    }
}

/// The address to bind a socket of this family to, so that it dials from `private`; `None` where a
/// socket of the family cannot.
pub(super) fn source(private: IpAddr, socket_is_v6: bool) -> Option<SocketAddr> {
    match (private, socket_is_v6) {
        (IpAddr::V4(v4), true) => Some(SocketAddr::new(v4.to_ipv6_mapped().into(), 0)),
        (IpAddr::V6(_), false) => None,
        _ => Some(SocketAddr::new(private, 0)),
    }
}

/// Whether a socket's own address leaves it to us to bind: not set yet, or set by us before.
pub(super) fn is_ours_to_bind(own: IpAddr, private: IpAddr) -> bool {
    let own = own.to_canonical();
    own.is_unspecified() || own == private
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn fuzz_whatever_lies_in_the_memory_of_a_program() {
        let v6 = SocketAddr::from(([0xfd, 0, 0, 0, 0, 0, 0, 1], 2379));
        faultbed_fuzz::fuzz!(
            [v4([127, 77, 1, 1], 2379), vec![10; 28], v6.to_string().into()],
            |raw: &[u8]| {
                let _foreign = parse(&raw[..raw.len().min(ADDRESS_BYTES_MAX)]);
            }
        );
    }

    fn v4(bytes: [u8; 4], port: u16) -> Vec<u8> {
        let mut raw = FAMILY_INET.to_ne_bytes().to_vec();
        raw.extend(port.to_be_bytes());
        raw.extend(bytes);
        raw.extend([0; 8]);
        raw
    }

    fn v6(address: Ipv6Addr, port: u16) -> Vec<u8> {
        let mut raw = FAMILY_INET6.to_ne_bytes().to_vec();
        raw.extend(port.to_be_bytes());
        raw.extend([0; 4]);
        raw.extend(address.octets());
        raw.extend([0; 4]);
        raw
    }

    #[test]
    fn mapped_addresses_are_what_they_map() {
        let table = DialTable::new(&["127.77.1.1:2379".parse().unwrap()].into());
        let plain = parse(&v4([127, 77, 1, 1], 2379)).unwrap();
        let mapped = parse(&v6("::ffff:127.77.1.1".parse().unwrap(), 2379)).unwrap();
        assert_eq!(plain, mapped);
        assert!(table.holds(&plain));
        assert!(!table.holds(&parse(&v4([127, 77, 1, 1], 2380)).unwrap()));
        assert!(!table.holds(&parse(&v6(Ipv6Addr::LOCALHOST, 2379)).unwrap()));
        let private = "127.128.128.5".parse().unwrap();
        assert_eq!(source(private, false).unwrap().to_string(), "127.128.128.5:0");
        assert_eq!(source(private, true).unwrap().to_string(), "[::ffff:127.128.128.5]:0");
        assert_eq!(source("::1".parse().unwrap(), false), None);
    }

    #[test]
    fn what_is_no_internet_address_is_left_alone() {
        let whole = v4([127, 0, 0, 1], 80);
        for length in 0..8 {
            assert_eq!(parse(&whole[..length]), None);
        }
        assert_eq!(parse(b"\x01\x00/run/socket"), None);
        assert_eq!(parse(&v6(Ipv6Addr::LOCALHOST, 80)[..20]), None);
    }
}
