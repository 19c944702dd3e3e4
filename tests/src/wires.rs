//! The connections between the nodes of a lab on this machine, as `ss -tnp` would show them: which go
//! through a proxy and which around it. Looked up apart from the agent, whose own word is under test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use faultbed_common::{name::NodeName, status::Status};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

/// Processes between a node's first one and any other of it; a longer line of parents is none of ours.
const ANCESTORS_MAX: usize = 16;

/// ESTABLISHED, as the kernel writes it.
const ESTABLISHED: &str = "01";

/// What connects nodes with each other.
#[derive(Debug, Default)]
pub struct Wires {
    /// Dialler and server of each connection to a proxy.
    pub proxied: BTreeSet<(NodeName, NodeName)>,
    /// Dialler and server of each connection to a private address.
    pub around: BTreeSet<(NodeName, NodeName)>,
}

impl Wires {
    /// Looks at all connections that processes of nodes hold now.
    ///
    /// # Panics
    /// Where `/proc` is not there, or the status holds no addresses.
    #[must_use]
    pub fn look(status: &Status) -> Self {
        let owners =
            |addresses: fn(&faultbed_common::status::NodeStatus) -> &BTreeMap<_, String>| {
                let nodes = status.nodes.iter();
                let all =
                    nodes.flat_map(|node| addresses(node).values().map(|at| (at, &node.name)));
                all.map(|(at, node)| (address(at), node.clone())).collect::<BTreeMap<_, _>>()
            };
        let private = owners(|node| &node.private);
        // A port without a proxy is advertised where it binds.
        let mut advertised = owners(|node| &node.endpoints);
        advertised.retain(|at, _| !private.contains_key(at));
        let dialled = established();
        let mut wires = Self::default();
        for (node, inode) in held(status) {
            let Some(to) = dialled.get(&inode) else { continue };
            let server = |of: &BTreeMap<SocketAddr, NodeName>| {
                of.get(to).filter(|server| **server != node).cloned()
            };
            if let Some(server) = server(&private) {
                wires.around.insert((node, server));
            } else if let Some(server) = server(&advertised) {
                wires.proxied.insert((node, server));
            }
        }
        wires
    }

    /// Whether a node has a connection with another one, whoever dialled.
    #[must_use]
    pub fn has(&self, node: &NodeName) -> bool {
        self.proxied.iter().any(|(from, to)| from == node || to == node)
    }
}

/// Where a status says that a port is, without the scheme.
///
/// # Panics
/// Where that is no address.
#[must_use]
pub fn address(text: &str) -> SocketAddr {
    text.rsplit("//").next().unwrap_or_default().parse().expect("an address and a port")
}

/// Dials as a node would, from its private address.
///
/// # Panics
/// Where the connection is not made.
#[must_use]
pub fn dial(from: IpAddr, to: SocketAddr, answer_within: Duration) -> TcpStream {
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket(family, SocketType::STREAM, None).expect("make a socket");
    bind(&fd, &SocketAddr::new(from, 0)).expect("bind to the private address");
    connect(&fd, &to).expect("connect to the proxy");
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(answer_within)).expect("bound the reads");
    stream
}

/// The sockets that processes of nodes hold.
fn held(status: &Status) -> Vec<(NodeName, u64)> {
    let first: BTreeMap<u32, &NodeName> =
        status.nodes.iter().filter_map(|node| Some((node.pid?, &node.name))).collect();
    let mut found = Vec::new();
    for pid in numbers("/proc") {
        let Some(node) = ancestors(pid).find_map(|pid| first.get(&pid)) else { continue };
        for fd in numbers(&format!("/proc/{pid}/fd")) {
            let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
            let inode = link.to_str().and_then(|l| l.strip_prefix("socket:[")?.strip_suffix(']'));
            if let Some(inode) = inode.and_then(|inode| inode.parse().ok()) {
                found.push(((*node).clone(), inode));
            }
        }
    }
    found
}

/// A process and those that it descends from.
fn ancestors(pid: u32) -> impl Iterator<Item = u32> {
    let parent = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let rest = stat.rsplit(") ").next()?;
        rest.split(' ').nth(1)?.parse().ok().filter(|parent| *parent > 1)
    };
    std::iter::successors(Some(pid), parent).take(ANCESTORS_MAX)
}

/// The entries of a directory that are numbers; what has gone meanwhile has none.
fn numbers(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The far ends of all connections of this machine, by inode.
fn established() -> BTreeMap<u64, SocketAddr> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let text = tables.map(|table| fs::read_to_string(table).unwrap_or_default()).concat();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_one = fields.get(3) == Some(&ESTABLISHED);
        is_one.then(|| Some((fields.get(9)?.parse().ok()?, remote(fields.get(2)?)?)))?
    };
    text.lines().filter_map(row).collect()
}

/// Reads `0100007F:1F90`: words of four bytes in the order of the machine, which is little-endian.
fn remote(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words = (0..ip.len() / 8).map(|i| u32::from_str_radix(&ip[8 * i..8 * i + 8], 16));
    let words: Vec<u32> = words.collect::<Result<_, _>>().ok()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => IpAddr::from(Ipv4Addr::from(four)),
        Err(_) => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_addresses_are_read_also_where_java_has_mapped_them() {
        let read = |text| remote(text).map(|at| at.to_string());
        assert_eq!(read("0100007F:1F90").as_deref(), Some("127.0.0.1:8080"));
        let mapped = "0000000000000000FFFF00000100007F:0050";
        assert_eq!(read(mapped).as_deref(), Some("127.0.0.1:80"));
        assert_eq!(read("nonsense"), None);
    }
}
