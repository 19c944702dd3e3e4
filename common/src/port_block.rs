//! The block of ports a node dials from when it dials a proxy on another host.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Ports of a block where nothing else is asked for. The bound is on connections that one node has to
/// one address and port at a time: enough for a database, not for a load generator.
pub const BLOCK_DEFAULT: u16 = 128;
/// The most ports that a node can ask for.
pub const BLOCK_MAX: u16 = 16384;

/// Ports that follow one another. Never empty where `place` made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortBlock {
    /// The first.
    pub first: u16,
    /// How many.
    pub count: u16,
}

impl PortBlock {
    /// The last port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.first.saturating_add(self.count.saturating_sub(1))
    }

    /// Whether a port is one of them.
    #[must_use]
    pub fn holds(self, port: u16) -> bool {
        self.count > 0 && (self.first..=self.last()).contains(&port)
    }

    /// Whether the two share a port.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.count > 0
            && other.count > 0
            && self.first <= other.last()
            && other.first <= self.last()
    }
}

/// Where a node dials from its host's own address, and with which ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FarDials {
    /// Its host's address.
    pub address: std::net::IpAddr,
    /// Its ports; without them its dials are named by asking its host's proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<PortBlock>,
    /// The proxies that see it come from there, unless they are named as near as well: those of other
    /// hosts, and those of its own host where the private address is of another protocol.
    pub dials: Arc<BTreeSet<SocketAddr>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_touch_share_nothing_and_the_last_port_of_all_is_one() {
        let block = |first, count| PortBlock { first, count };
        assert!(!block(10240, 128).overlaps(block(10368, 128)));
        assert!(block(10240, 129).overlaps(block(10368, 128)));
        assert!(block(65535, 1).holds(65535));
        assert_eq!(block(65408, 128).last(), 65535);
        assert!(!block(10240, 0).holds(10240));
    }
}
