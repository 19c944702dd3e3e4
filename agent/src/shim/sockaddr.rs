//! Socket addresses as they lie in a program's memory, and which of them get a source of their own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use faultbed_common::port_block::{FarDials, PortBlock};

use crate::node::ShimOrders;

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

/// Where a connect comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The node's private address, any port: the destination is on this machine.
    Private,
    /// The host's address; the block, where the node has one: the destination sees nothing else.
    Far(IpAddr, Option<PortBlock>),
}

/// The destinations that are proxies of the lab, and the sources that dials to them get.
#[derive(Debug, Default)]
pub(super) struct DialTable {
    near: Box<[SocketAddr]>,
    far: Box<[SocketAddr]>,
    own: Box<[SocketAddr]>,
    address: Option<IpAddr>,
    block: Option<PortBlock>,
}

impl DialTable {
    /// Takes the destinations over from the orders.
    pub(super) fn of(orders: &ShimOrders) -> Self {
        Self::new(&orders.dials, orders.far.as_ref(), &orders.own)
    }

    fn new(
        near: &BTreeSet<SocketAddr>,
        far: Option<&FarDials>,
        own: &BTreeSet<SocketAddr>,
    ) -> Self {
        let sorted = |dials: &BTreeSet<SocketAddr>| {
            let canonical =
                |dial: &SocketAddr| SocketAddr::new(dial.ip().to_canonical(), dial.port());
            let mut sorted: Vec<_> = dials.iter().map(canonical).collect();
            sorted.sort_unstable();
            sorted.into()
        };
        Self {
            near: sorted(near),
            own: sorted(own),
            far: far.map(|far| sorted(&far.dials)).unwrap_or_default(),
            address: far.map(|far| far.address.to_canonical()),
            block: far.and_then(|far| far.block),
        }
    }

    /// Where connects to this (canonical) destination come from; `None` where that is not ours.
    pub(super) fn source(&self, destination: &SocketAddr) -> Option<Source> {
        if self.near.binary_search(destination).is_ok() {
            return Some(Source::Private);
        }
        self.far.binary_search(destination).ok()?;
        self.address.map(|address| Source::Far(address, self.block))
    }

    /// Whether this (canonical) destination is where others reach the node itself.
    pub(super) fn is_own(&self, destination: &SocketAddr) -> bool {
        self.own.binary_search(destination).is_ok()
    }

    /// Whether a socket's own address leaves it to us to bind: not set yet, or set by us before, for
    /// an earlier connect to anywhere.
    pub(super) fn is_ours_to_bind(&self, own: SocketAddr, private: IpAddr) -> bool {
        let address = own.ip().to_canonical();
        let in_block = self.block.is_some_and(|block| block.holds(own.port()));
        address.is_unspecified() || address == private || self.address == Some(address) && in_block
    }
}

/// The address to bind a socket of this family to, so that it dials from `address`; `None` where a
/// socket of the family cannot.
pub(super) fn bindable(address: SocketAddr, socket_is_v6: bool) -> Option<SocketAddr> {
    match (address.ip(), socket_is_v6) {
        (IpAddr::V4(v4), true) => Some(SocketAddr::new(v4.to_ipv6_mapped().into(), address.port())),
        (IpAddr::V6(_), false) => None,
        _ => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv6Addr, sync::Arc};

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
        let table = DialTable::new(&["127.77.1.1:2379".parse().unwrap()].into(), None, &[].into());
        let plain = parse(&v4([127, 77, 1, 1], 2379)).unwrap();
        let mapped = parse(&v6("::ffff:127.77.1.1".parse().unwrap(), 2379)).unwrap();
        assert_eq!(plain, mapped);
        assert_eq!(table.source(&plain), Some(Source::Private));
        assert_eq!(table.source(&parse(&v4([127, 77, 1, 1], 2380)).unwrap()), None);
        assert_eq!(table.source(&parse(&v6(Ipv6Addr::LOCALHOST, 2379)).unwrap()), None);
        let private = "127.128.128.5:7".parse().unwrap();
        assert_eq!(bindable(private, false).unwrap().to_string(), "127.128.128.5:7");
        assert_eq!(bindable(private, true).unwrap().to_string(), "[::ffff:127.128.128.5]:7");
        assert_eq!(bindable("[::1]:7".parse().unwrap(), false), None);
    }

    #[test]
    fn what_is_on_another_host_is_dialled_from_the_block_and_what_we_bound_stays_ours() {
        let far = FarDials {
            address: "10.0.0.1".parse().unwrap(),
            block: Some(PortBlock { first: 10240, count: 8 }),
            dials: Arc::new(["10.0.0.2:2379".parse().unwrap()].into()),
        };
        let table = DialTable::new(
            &["10.0.0.1:2379".parse().unwrap()].into(),
            Some(&far),
            &["10.0.0.1:2379".parse().unwrap()].into(),
        );
        assert!(table.is_own(&"10.0.0.1:2379".parse().unwrap()));
        assert!(!table.is_own(&"10.0.0.2:2379".parse().unwrap()));
        let source = |text: &str| table.source(&text.parse().unwrap());
        assert_eq!(source("10.0.0.1:2379"), Some(Source::Private));
        assert_eq!(source("10.0.0.2:2379"), Some(Source::Far(far.address, far.block)));
        assert_eq!(source("10.0.0.2:22"), None);
        let private = "127.128.128.5".parse().unwrap();
        let ours = |own: &str| table.is_ours_to_bind(own.parse().unwrap(), private);
        for own in ["0.0.0.0:0", "[::]:0", "127.128.128.5:40000", "[::ffff:10.0.0.1]:10247"] {
            assert!(ours(own), "{own}");
        }
        for own in ["10.0.0.1:10248", "127.0.0.1:10240", "10.0.0.9:10240"] {
            assert!(!ours(own), "{own}");
        }
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
