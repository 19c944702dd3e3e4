//! Who dials, as far as an address and a port tell.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use faultbed_common::{
    name::NodeName,
    proxy_spec::{BlockOwner, DialSources, HostDesk, ProxySpec},
};
use serde::{Deserialize, Serialize};

/// Whose addresses and ports are whose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Carried")]
pub(crate) struct Diallers {
    /// Private addresses of this machine.
    pub(crate) addresses: BTreeMap<IpAddr, NodeName>,
    /// Ports of hosts' addresses, in their order.
    pub(crate) blocks: BTreeMap<IpAddr, Vec<BlockOwner>>,
    /// Hosts that can be asked.
    pub(crate) hosts: BTreeMap<IpAddr, HostDesk>,
    /// Which nodes shall see the host of whoever dials them.
    pub(crate) sources: DialSources,
}

/// What another process hands over; before there were blocks it was only addresses.
#[derive(Deserialize)]
#[serde(untagged)]
enum Carried {
    Whole {
        addresses: BTreeMap<IpAddr, NodeName>,
        blocks: BTreeMap<IpAddr, Vec<BlockOwner>>,
        hosts: BTreeMap<IpAddr, HostDesk>,
        #[serde(default)]
        sources: DialSources,
    },
    Addresses(BTreeMap<IpAddr, NodeName>),
}

impl From<Carried> for Diallers {
    fn from(carried: Carried) -> Self {
        match carried {
            Carried::Whole { addresses, blocks, hosts, sources } => {
                Self { addresses, blocks, hosts, sources }
            }
            Carried::Addresses(addresses) => Self { addresses, ..Self::default() },
        }
    }
}

impl Diallers {
    /// What the orders say.
    pub(crate) fn of(spec: &ProxySpec) -> Self {
        Self {
            addresses: spec.diallers.clone(),
            blocks: spec.blocks.as_ref().clone(),
            hosts: spec.hosts.clone(),
            sources: spec.sources.clone(),
        }
    }

    /// Whether this is what the orders say.
    pub(crate) fn is_of(&self, spec: &ProxySpec) -> bool {
        self.addresses == spec.diallers
            && self.blocks == *spec.blocks
            && self.hosts == spec.hosts
            && self.sources == spec.sources
    }

    /// Where the connection of `from` to a node's private address shall come from, if it matters.
    pub(crate) fn source(&self, from: SocketAddr, upstream: SocketAddr) -> Option<IpAddr> {
        let shown = self.sources.upstreams.contains(&upstream);
        shown.then(|| self.sources.hosts.get(&from.ip()).copied()).flatten()
    }

    /// Who dials from there; `None` where that must be found out.
    pub(crate) fn node(&self, from: SocketAddr) -> Option<&NodeName> {
        self.addresses.get(&from.ip()).or_else(|| {
            let owners = self.blocks.get(&from.ip())?;
            // The last block that does not begin behind the port.
            let at = owners.partition_point(|owner| owner.block.first <= from.port());
            let owner = owners.get(at.checked_sub(1)?)?;
            owner.block.holds(from.port()).then_some(&owner.node)
        })
    }
}

#[cfg(test)]
mod tests {
    use faultbed_common::port_block::PortBlock;

    use super::*;

    #[test]
    fn two_nodes_behind_one_address_are_told_apart_by_their_ports() {
        let owner = |first, node: &str| BlockOwner {
            block: PortBlock { first, count: 4 },
            node: node.parse().unwrap(),
        };
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let diallers = Diallers {
            addresses: [("127.128.0.1".parse().unwrap(), "kv-3".parse().unwrap())].into(),
            blocks: [(address, vec![owner(10240, "kv-1"), owner(10250, "kv-2")])].into(),
            ..Diallers::default()
        };
        let node = |text: &str| diallers.node(text.parse().unwrap()).map(NodeName::as_str);
        assert_eq!(node("10.0.0.1:10240"), Some("kv-1"));
        assert_eq!(node("10.0.0.1:10243"), Some("kv-1"));
        assert_eq!(node("10.0.0.1:10244"), None);
        assert_eq!(node("10.0.0.1:10253"), Some("kv-2"));
        assert_eq!(node("10.0.0.1:9"), None);
        assert_eq!(node("10.0.0.2:10240"), None);
        assert_eq!(node("127.128.0.1:9"), Some("kv-3"));
    }

    #[test]
    fn what_an_older_process_hands_over_is_understood() {
        let old = BTreeMap::from([("127.128.0.1".parse::<IpAddr>().unwrap(), "kv-1")]);
        let read: Diallers = serde_json::from_str(&serde_json::to_string(&old).unwrap()).unwrap();
        assert_eq!(read.addresses.len(), 1);
        let again: Diallers = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
        assert_eq!(again, read);
    }
}
