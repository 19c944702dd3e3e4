//! The ports of a node: its defaults, or the whole set moved to where all of it is free.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    blueprint::{Blueprint, Port},
    lab::{Cluster, Lab, Placement},
    name::{ClusterName, HostName, NodeName, PortName},
    place::Foreign,
    port_block::PortBlock,
};

/// A set that is not free moves by multiples of this, so that ports keep their last digit.
const STEP: u16 = 10;

/// What holds each port of one host.
pub(super) struct Taken {
    ports: BTreeMap<u16, String>,
    blocks: Vec<(PortBlock, String)>,
}

impl Taken {
    /// The ports of a host that a new node cannot have: those of the lab's nodes there, what their
    /// programs take beside them, and those of listeners that are not the lab's.
    pub(super) fn on(
        lab: &Lab,
        name: &ClusterName,
        next: &Cluster,
        host: &HostName,
        foreign: &Foreign,
    ) -> Self {
        let mut taken = BTreeMap::new();
        let mut blocks = Vec::new();
        let address = lab.hosts.get(host).map(|host| host.address);
        for listener in foreign.get(host).into_iter().flatten() {
            let ip = listener.address.ip();
            // A listener on every address takes the port of the proxy and of the node alike.
            if ip.is_unspecified() || Some(ip) == address {
                taken.insert(listener.address.port(), listener.holder.clone());
            }
        }
        let others = lab.clusters.iter().filter(|(other, _)| *other != name).map(|(_, c)| &**c);
        for cluster in others.chain([next]) {
            for (node, place) in cluster.nodes.iter().filter(|(_, n)| &n.host == host) {
                for port in used(place, &cluster.blueprint) {
                    taken.insert(port, format!("node {node}"));
                }
                blocks.extend(place.block.map(|block| (block, format!("node {node}"))));
            }
        }
        Self { ports: taken, blocks }
    }

    fn holder(&self, port: u16) -> Option<&str> {
        let by_port = self.ports.get(&port).map(String::as_str);
        let block = || self.blocks.iter().find(|(block, _)| block.holds(port));
        by_port.or_else(|| block().map(|(_, holder)| holder.as_str()))
    }
}

/// The ports of a placed node and those its program takes beside them.
#[must_use]
pub fn used(place: &Placement, blueprint: &Blueprint) -> BTreeSet<u16> {
    let rules = blueprint.roles.get(&place.role).map(|role| &role.ports);
    let mut ports: BTreeSet<u16> = place.ports.values().copied().collect();
    for (name, number) in &place.ports {
        let rule = rules.and_then(|rules| rules.get(name));
        for offset in rule.into_iter().flat_map(|rule| &rule.reserve) {
            ports.extend(reserved(offset).and_then(|by| number.checked_add(by)));
        }
    }
    ports
}

/// Reads `+1`.
pub(crate) fn reserved(offset: &str) -> Option<u16> {
    let digits = offset.strip_prefix('+')?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten().filter(|by| *by > 0)
}

/// The ports of a new node: all moved by the least multiple of ten with which all are free.
///
/// # Errors
/// The host has no such ports left; says what holds the default ones.
pub(super) fn choose(
    node: &NodeName,
    host: &HostName,
    wanted: &BTreeMap<PortName, Port>,
    taken: &Taken,
) -> Result<BTreeMap<PortName, u16>, String> {
    let mut all: BTreeSet<u16> = BTreeSet::new();
    for port in wanted.values() {
        all.insert(port.default);
        let beside = port.reserve.iter().filter_map(|offset| reserved(offset));
        all.extend(beside.filter_map(|by| port.default.checked_add(by)));
    }
    let free = |by: u16| {
        all.iter()
            .all(|port| port.checked_add(by).is_some_and(|moved| taken.holder(moved).is_none()))
    };
    let Some(by) = (0..=u16::MAX / STEP).map(|n| n * STEP).find(|by| free(*by)) else {
        let holder = all.iter().find_map(|port| Some((port, taken.holder(*port)?)));
        let first = match holder {
            Some((port, holder)) => format!("; port {port} is held by {holder}"),
            None => String::new(),
        };
        return Err(format!("host {host} has no free ports for node {node}{first}"));
    };
    Ok(wanted.iter().map(|(name, port)| (name.clone(), port.default + by)).collect())
}
