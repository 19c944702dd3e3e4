//! The kernel's tables of TCP sockets, and who holds a socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Established, in `/proc/net/tcp`.
pub const ESTABLISHED: u8 = 0x01;

/// Listening, in `/proc/net/tcp`.
pub const LISTEN: u8 = 0x0a;

/// One socket of the kernel's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// Its own address.
    pub local: SocketAddr,
    /// Its peer's.
    pub remote: SocketAddr,
    /// Its inode, by which a process's descriptor names it.
    pub inode: u64,
}

/// The sockets in one state, of both address families.
#[must_use]
pub fn in_state(state: u8) -> Vec<Socket> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| parse(&text, state))
        .collect()
}

fn parse(table: &str, state: u8) -> Vec<Socket> {
    table.lines().skip(1).filter_map(|line| parse_line(line, state)).collect()
}

fn parse_line(line: &str, state: u8) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (fields.next()?, fields.next()?);
    if u8::from_str_radix(fields.next()?, 16).ok()? != state {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Socket { local: parse_address(local)?, remote: parse_address(remote)?, inode })
}

/// The kernel prints addresses as words in the machine's byte order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = address.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut bytes = [0; 16];
        for at in 0..4 {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
        }
        // A mapped address is the IPv4 address it maps.
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    };
    Some(SocketAddr::new(ip, port))
}

/// The inodes of the sockets a process holds; empty where it is gone or not ours to see.
#[must_use]
pub fn held_by(pid: u32) -> BTreeSet<u64> {
    numbered(pid).map(|(_, inode)| inode).collect()
}

/// The same, each with the number of its descriptor first.
pub fn numbered(pid: u32) -> impl Iterator<Item = (i32, u64)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, inode))
    })
}

/// The number that a socket has in a process; `None` where it has none, or the process is over.
///
/// # Errors
/// Its descriptors cannot be looked at now.
pub fn number_of(pid: u32, inode: u64) -> io::Result<Option<i32>> {
    match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(_) => Ok(numbered(pid).find(|(_, found)| *found == inode).map(|(number, _)| number)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every process there is.
pub fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Which process holds each of these sockets, as far as we may see. Looks at every process, so
/// callers ask only about what they cannot explain.
#[must_use]
pub fn holders(inodes: &BTreeSet<u64>) -> BTreeMap<u64, u32> {
    let mut found = BTreeMap::new();
    if inodes.is_empty() {
        return found;
    }
    for pid in processes() {
        for inode in held_by(pid).intersection(inodes) {
            found.insert(*inode, pid);
        }
        if found.len() == inodes.len() {
            break;
        }
    }
    found
}

/// A process for people: `pid 123 (curl)`.
#[must_use]
pub fn describe(pid: Option<u32>) -> String {
    let Some(pid) = pid else { return "another user's process".to_owned() };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("pid {pid} ({})", name.trim()),
        Err(_) => format!("pid {pid}"),
    }
}

/// The parent of a process.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also parentheses; the last one ends it.
    let after = stat.rsplit_once(')')?.1;
    after.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The process itself, its parent, and so on, up to a bound that no real tree reaches.
pub fn ancestors(pid: u32) -> impl Iterator<Item = u32> {
    const DEPTH_MAX: usize = 64;
    std::iter::successors(Some(pid), |pid| parent(*pid)).take_while(|pid| *pid > 1).take(DEPTH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_tables_of_the_kernel() {
        faultbed_fuzz::fuzz!(faultbed_fuzz::corpus("proc"), |table: &[u8]| {
            let _skipped = parse(&String::from_utf8_lossy(table), ESTABLISHED);
        });
    }

    #[test]
    fn tables_of_both_families_are_read() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:0BEB 0200807F:094B 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1\n   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1\n";
        let found = parse(v4, ESTABLISHED);
        assert_eq!(
            found,
            [Socket {
                local: "127.0.0.1:3051".parse().unwrap(),
                remote: "127.128.0.2:2379".parse().unwrap(),
                inode: 4242,
            }]
        );
        assert_eq!(parse(v4, LISTEN)[0].local, "0.0.0.0:22".parse().unwrap());
        let mapped = "0000000000000000FFFF00000100007F:0BEB";
        assert_eq!(parse_address(mapped), Some("127.0.0.1:3051".parse().unwrap()));
    }

    #[test]
    fn a_listener_of_ours_is_found_with_its_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = in_state(LISTEN).into_iter().find(|s| s.local == address).unwrap();
        let holders = holders(&BTreeSet::from([socket.inode]));
        assert_eq!(holders.get(&socket.inode), Some(&std::process::id()));
        assert!(ancestors(std::process::id()).next() == Some(std::process::id()));
    }
}
