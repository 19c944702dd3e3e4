//! Finds the listening sockets of a lab in /proc: hosts' addresses and nodes' private ones.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The state of a listening socket in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Private addresses of one lab.
const PRIVATE_COUNT: u32 = 32_768;

/// The addresses of a lab that are listened on, each once however many sockets share it.
#[must_use]
pub fn of_octet(octet: u8) -> BTreeSet<SocketAddr> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| parse(&table))
        .filter(|address| is_of(octet, address.ip()))
        .collect()
}

/// Whether an address is of the lab with this octet.
fn is_of(octet: u8, address: IpAddr) -> bool {
    let address = match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => address,
            None => return false,
        },
    };
    let base = u32::from(Ipv4Addr::new(127, 128, 0, 0)) + u32::from(octet) * PRIVATE_COUNT;
    let number = u32::from(address);
    address.octets()[..3] == [127, 77, octet] || (base..base + PRIVATE_COUNT).contains(&number)
}

/// The listeners of one table.
fn parse(table: &str) -> Vec<SocketAddr> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let local = words.next()?;
            let _remote = words.next()?;
            (words.next()? == LISTEN).then(|| parse_address(local))?
        })
        .collect()
}

fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each group of eight digits is one word in the byte order of the machine.
    let words: Option<Vec<u8>> = (0..ip.len() / 8)
        .map(|at| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect::<Option<Vec<[u8; 4]>>>()
        .map(|words| words.concat());
    let bytes = words?;
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_this_test_is_found() {
        let listener = std::net::TcpListener::bind("127.77.253.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(of_octet(253).contains(&address));
        assert!(!of_octet(252).contains(&address));
    }

    #[test]
    fn private_addresses_belong_to_one_lab_each() {
        assert!(is_of(1, "127.128.128.1".parse().unwrap()));
        assert!(is_of(1, "127.128.255.255".parse().unwrap()));
        assert!(!is_of(1, "127.129.0.0".parse().unwrap()));
        assert!(is_of(1, "::ffff:127.77.1.2".parse().unwrap()));
        assert!(!is_of(1, "::1".parse().unwrap()));
    }
}
