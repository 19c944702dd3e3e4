//! Who dials whom from where: what nodes are told of proxies, and proxies of nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    blueprint::DialSource,
    host_spec::{Dials, NodeSpec},
    lab::{Host, Lab},
    name::{ClusterName, HostName, NodeName},
    proxy_spec::{BlockOwner, DialSources, HostDesk},
};

/// What every host's share needs of the others.
pub(super) struct Parties<'a> {
    lab: &'a Lab,
    /// The proxies of each host.
    proxies: BTreeMap<&'a HostName, BTreeSet<SocketAddr>>,
    /// All proxies, of which every host is told.
    all: Arc<BTreeSet<SocketAddr>>,
    /// Where each node has its private address.
    nodes: BTreeMap<NodeName, (IpAddr, &'a Host)>,
    /// All clusters, likewise.
    pub(super) clusters: Arc<BTreeSet<ClusterName>>,
    /// Whose ports are whose, by the address of the host.
    pub(super) blocks: Arc<BTreeMap<IpAddr, Vec<BlockOwner>>>,
}

impl<'a> Parties<'a> {
    pub(super) fn new(lab: &'a Lab, specs: &BTreeMap<NodeName, NodeSpec>) -> Self {
        let mut proxies: BTreeMap<&HostName, BTreeSet<SocketAddr>> = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        let mut blocks: BTreeMap<IpAddr, Vec<BlockOwner>> = BTreeMap::new();
        for node in lab.nodes() {
            let host_name = &node.placement.host;
            let (Some(host), Some(spec)) = (lab.hosts.get(host_name), specs.get(node.name)) else {
                continue;
            };
            proxies.entry(host_name).or_default().extend(advertised(spec));
            nodes.insert(node.name.clone(), (spec.private, host));
            if let Some(block) = node.placement.block {
                let owner = BlockOwner { block, node: node.name.clone() };
                blocks.entry(host.address).or_default().push(owner);
            }
        }
        for owners in blocks.values_mut() {
            owners.sort_unstable_by_key(|owner| owner.block);
        }
        let all = Arc::new(proxies.values().flatten().copied().collect());
        let clusters = Arc::new(lab.clusters.keys().cloned().collect());
        Self { lab, proxies, all, clusters, nodes, blocks: Arc::new(blocks) }
    }

    /// The proxies that nodes of a host dial from their private addresses, and those that they cannot.
    pub(super) fn dials(&self, host: &HostName) -> Dials {
        let Some(own) = self.lab.hosts.get(host) else { return Dials::default() };
        let is_here = |host: &&HostName| {
            self.lab.hosts.get(*host).is_some_and(|host| own.shares_machine(host))
        };
        let here = self.proxies.iter().filter(|(host, _)| is_here(host));
        // Private addresses are of the older protocol, so a socket of the newer has none to come from.
        let near: BTreeSet<SocketAddr> = here
            .flat_map(|(_, proxies)| proxies)
            .filter(|proxy| proxy.is_ipv4())
            .copied()
            .collect();
        let all = if near == *self.all { Arc::default() } else { Arc::clone(&self.all) };
        Dials { near: Arc::new(near), all }
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
