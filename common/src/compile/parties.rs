//! Who dials whom from where: what nodes are told of proxies, and proxies of nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use crate::{
    blueprint::DialSource,
    host_spec::NodeSpec,
    lab::{Host, Lab, Placement},
    name::{HostName, NodeName},
    port_block::FarDials,
    proxy_spec::{BlockOwner, DialSources, HostDesk},
};

/// What every host's share needs of the others.
pub(super) struct Parties<'a> {
    lab: &'a Lab,
    /// Which of the hosts each proxy is on.
    proxies: BTreeMap<SocketAddr, &'a Host>,
    /// Where each node has its private address.
    nodes: BTreeMap<NodeName, (IpAddr, &'a Host)>,
    /// Whose ports are whose, by the address of the host.
    pub(super) blocks: BTreeMap<IpAddr, Vec<BlockOwner>>,
}

impl<'a> Parties<'a> {
    pub(super) fn new(lab: &'a Lab, specs: &BTreeMap<NodeName, NodeSpec>) -> Self {
        let mut parties =
            Self { lab, proxies: BTreeMap::new(), nodes: BTreeMap::new(), blocks: BTreeMap::new() };
        for node in lab.nodes() {
            let host = lab.hosts.get(&node.placement.host);
            let (Some(host), Some(spec)) = (host, specs.get(node.name)) else { continue };
            parties.proxies.extend(advertised(spec).map(|address| (address, host)));
            parties.nodes.insert(node.name.clone(), (spec.private, host));
            if let Some(block) = node.placement.block {
                let owner = BlockOwner { block, node: node.name.clone() };
                parties.blocks.entry(host.address).or_default().push(owner);
            }
        }
        for owners in parties.blocks.values_mut() {
            owners.sort_unstable_by_key(|owner| owner.block);
        }
        parties
    }

    /// Tells a node which proxies it dials from its private address, and which it cannot.
    pub(super) fn tell(&self, spec: &mut NodeSpec, placement: &Placement) {
        let Some(own) = self.lab.hosts.get(&placement.host) else { return };
        let mut far = BTreeSet::new();
        for (proxy, host) in &self.proxies {
            // A socket of the newer protocol has no private address to come from.
            if own.shares_machine(host) && proxy.is_ipv4() == spec.private.is_ipv4() {
                spec.dials.insert(*proxy);
            } else {
                far.insert(*proxy);
            }
        }
        let far = FarDials { address: own.address, block: placement.block, dials: far };
        spec.far = (!far.dials.is_empty()).then_some(far);
    }

    /// Who dials from which private address on the machine of a host.
    pub(super) fn diallers(&self, host: &HostName) -> BTreeMap<IpAddr, NodeName> {
        let Some(own) = self.lab.hosts.get(host) else { return BTreeMap::new() };
        let here = self.nodes.iter().filter(|(_, (_, host))| own.shares_machine(host));
        here.map(|(node, (private, _))| (*private, node.clone())).collect()
    }

    /// Which of the host's nodes see the host of whoever dials them, and whose hosts are where.
    pub(super) fn sources(
        &self,
        host: &HostName,
        nodes: &BTreeMap<NodeName, NodeSpec>,
    ) -> DialSources {
        let asks = |spec: &NodeSpec| -> Vec<SocketAddr> {
            let ports = spec.ports.values();
            let asking = ports.filter(|port| port.proxied && port.source == DialSource::Host);
            asking.map(|port| SocketAddr::new(spec.private, port.port)).collect()
        };
        let upstreams: BTreeSet<SocketAddr> = nodes.values().flat_map(asks).collect();
        let own = self.lab.hosts.get(host).filter(|_| !upstreams.is_empty());
        let Some(own) = own else { return DialSources::default() };
        let here = self.nodes.values().filter(|(_, host)| own.shares_machine(host));
        DialSources { upstreams, hosts: here.map(|(ip, host)| (*ip, host.address)).collect() }
    }

    /// The addresses of the hosts that are other machines than this one.
    pub(super) fn others(&self, host: &HostName) -> BTreeMap<IpAddr, HostDesk> {
        let Some(own) = self.lab.hosts.get(host) else { return BTreeMap::new() };
        let others = self.lab.hosts.iter().filter(|(_, host)| !own.shares_machine(host));
        let desk = |name: &HostName, host: &Host| HostDesk {
            host: name.clone(),
            port: host.identity_port,
        };
        others.map(|(name, host)| (host.address, desk(name, host))).collect()
    }

    /// Where a host answers the others.
    pub(super) fn desk(&self, host: &HostName) -> Option<SocketAddr> {
        let own = self.lab.hosts.get(host)?;
        Some(SocketAddr::new(own.address, own.identity_port?))
    }
}

/// The addresses of a node that proxies own.
fn advertised(spec: &NodeSpec) -> impl Iterator<Item = SocketAddr> + '_ {
    let proxied = spec.ports.values().filter(|port| port.proxied);
    proxied.map(|port| SocketAddr::new(spec.address, port.port))
}
