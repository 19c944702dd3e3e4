//! What an agent tells of its host when it comes, as the kernel says it.

use std::fs;

/// Where the kernel says which ports it gives to sockets that ask for any.
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The ports this host's kernel gives to sockets that ask for any, first and last. The same range
/// holds for IPv6. `None` where it cannot be read.
#[must_use]
pub fn port_range() -> Option<(u16, u16)> {
    range_in(&fs::read_to_string(PORT_RANGE).ok()?)
}

fn range_in(text: &str) -> Option<(u16, u16)> {
    let mut ports = text.split_whitespace().map(str::parse::<u16>);
    let (first, last) = (ports.next()?.ok()?, ports.next()?.ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_two_ports_in_order() {
        assert_eq!(range_in("32768\t60999\n"), Some((32768, 60999)));
        assert_eq!(range_in("60999 32768"), None);
        assert_eq!(range_in("32768"), None);
        assert_eq!(range_in("0 70000"), None);
    }
}
