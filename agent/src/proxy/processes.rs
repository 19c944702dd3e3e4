//! Reads /proc: which processes are a node's, which sockets a process holds, who has a port.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use faultbed_common::name::{LabName, NodeName};

use crate::node::tags;

/// Ancestors looked at before a process counts as nobody's.
const ANCESTORS_MAX: u32 = 64;
/// The state of a listening socket in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Processes that are some node's.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    pub(crate) nodes: BTreeMap<u32, NodeName>,
}

/// Every process that is, or descends from, one whose environment names a node of `lab`.
pub(crate) fn node_processes(lab: Option<&LabName>) -> Owners {
    let mut parents = BTreeMap::new();
    let mut tagged = BTreeMap::new();
    for pid in pids() {
        if let Some(parent) = parent_of(pid) {
            parents.insert(pid, parent);
        }
        if let Some(node) = tags::node_of(pid, lab) {
            tagged.insert(pid, node);
        }
    }
    let nodes = parents.keys().filter_map(|pid| Some((*pid, owner(*pid, &parents, &tagged)?)));
    Owners { nodes: nodes.collect() }
}

/// The nearest tag on the way up.
fn owner(
    pid: u32,
    parents: &BTreeMap<u32, u32>,
    tagged: &BTreeMap<u32, NodeName>,
) -> Option<NodeName> {
    let mut at = pid;
    for _ in 0..ANCESTORS_MAX {
        if let Some(node) = tagged.get(&at) {
            return Some(node.clone());
        }
        at = *parents.get(&at)?;
    }
    None
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, also parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The inodes of the sockets that a process holds; none where it may not be looked at.
pub(crate) fn sockets_of(pid: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode = |link: std::path::PathBuf| {
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    links.filter_map(inode).collect()
}

/// Who listens on an address, or on every address of its port: `pid 123 (etcd)`.
pub(crate) fn holder(address: SocketAddr) -> Option<String> {
    let inodes = listening_inodes(address);
    if inodes.is_empty() {
        return None;
    }
    for pid in pids() {
        if !sockets_of(pid).is_disjoint(&inodes) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(format!("pid {pid} ({})", name.trim()));
        }
    }
    Some("another user's process".to_owned())
}

fn listening_inodes(wanted: SocketAddr) -> BTreeSet<u32> {
    let mut inodes = BTreeSet::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(file).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(local), Some(&LISTEN), Some(inode)) =
                (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            let Some(local) = parse_address(local) else { continue };
            let same = local.ip() == wanted.ip() || local.ip().is_unspecified();
            if same && local.port() == wanted.port() {
                inodes.extend(inode.parse::<u32>());
            }
        }
    }
    inodes
}

/// An address as the kernel prints it: words in the machine's byte order, in hexadecimal.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| -> Option<[u8; 4]> {
        Some(u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes())
    };
    let address = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut bytes = [0; 16];
        for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
            part.copy_from_slice(&word(at)?);
        }
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_addresses_of_the_kernel() {
        let texts = ["0100007F:0BEB", "0000000000000000FFFF00000100007F:0BEB"];
        faultbed_fuzz::fuzz!(texts, |text: &[u8]| {
            let _refused = parse_address(&String::from_utf8_lossy(text));
        });
    }

    #[test]
    fn a_process_belongs_to_the_nearest_tagged_ancestor() {
        let parents = BTreeMap::from([(1, 0), (10, 1), (11, 10), (12, 11), (20, 1)]);
        let node: NodeName = "kv-1".parse().unwrap();
        let tagged = BTreeMap::from([(10, node.clone())]);
        assert_eq!(owner(12, &parents, &tagged), Some(node));
        assert_eq!(owner(20, &parents, &tagged), None);
    }

    #[test]
    fn the_kernels_addresses_are_read() {
        assert_eq!(parse_address("0100007F:1F90"), Some("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(
            parse_address("00000000000000000000000001000000:0050"),
            Some("[::1]:80".parse().unwrap())
        );
        assert_eq!(parse_address("zz:1"), None);
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = holder(listener.local_addr().unwrap()).unwrap();
        assert!(holder.starts_with(&format!("pid {} (", std::process::id())), "{holder}");
    }
}
