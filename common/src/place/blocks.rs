//! The ports a new node dials other hosts from: a block that nothing else of its host uses.

use std::collections::BTreeSet;

use crate::{
    lab::{Cluster, Host, Lab, Placement},
    name::{ClusterName, HostName, NodeName},
    place::{Foreign, ports},
    port_block::{BLOCK_DEFAULT, BLOCK_MAX, PortBlock},
    spec::RoleSpec,
};

/// Below it are the ports of services, and what programs of other labs are used to.
const FIRST: u16 = 10240;
/// What Linux gives to connections that name no port, where a host has not said.
const RANGE_DEFAULT: (u16, u16) = (32768, 60999);

/// What blocks of one host may not meet.
struct Occupied {
    ports: BTreeSet<u16>,
    blocks: Vec<PortBlock>,
}

impl Occupied {
    fn on(
        lab: &Lab,
        name: &ClusterName,
        next: &Cluster,
        at: (&HostName, &Host),
        foreign: &Foreign,
    ) -> Self {
        let (host_name, host) = at;
        let listeners = foreign.get(host_name).into_iter().flatten();
        let there = listeners.filter(|listener| {
            let ip = listener.address.ip();
            ip.is_unspecified() || ip == host.address
        });
        let mut found = Self {
            ports: there.map(|listener| listener.address.port()).collect(),
            blocks: Vec::new(),
        };
        let others = lab.clusters.iter().filter(|(other, _)| *other != name).map(|(_, c)| &**c);
        for cluster in others.chain([next]) {
            for place in cluster.nodes.values() {
                // Two hosts can be one address: their agents then share its ports.
                let same = lab.hosts.get(&place.host).is_some_and(|h| h.address == host.address);
                if same {
                    found.ports.extend(ports::used(place, &cluster.blueprint));
                    found.blocks.extend(place.block);
                }
            }
        }
        found
    }

    /// The first thing in the way of a block: where the search goes on behind it.
    fn behind(&self, block: PortBlock) -> Option<u32> {
        let port = self.ports.range(block.first..=block.last()).next_back().copied();
        let other = self.blocks.iter().filter(|other| other.overlaps(block));
        let last = other.map(|other| other.last()).max();
        port.max(last).map(|last| u32::from(last) + 1)
    }
}

/// How many ports a node of a role dials other hosts from, and whether anybody asked for that.
fn asked(next: &Cluster, placement: &Placement) -> (u16, bool) {
    let of_spec = next.spec.roles.get(&placement.role).and_then(|spec| spec.dial_ports);
    let of_role = next.blueprint.roles.get(&placement.role).and_then(|role| role.dial_ports);
    let asked = of_spec.or(of_role);
    (asked.unwrap_or(BLOCK_DEFAULT), asked.is_some())
}

/// Gives a block to each node of `next` on a host that is a machine of its own and that has none:
/// new ones, and those placed before the host had told enough. A node without one is named by
/// asking its host, so that only a block that was asked for is worth a refusal.
///
/// # Errors
/// A host has no room for a block that somebody asked for.
pub(super) fn assign(
    lab: &Lab,
    name: &ClusterName,
    next: &mut Cluster,
    foreign: &Foreign,
) -> Result<(), String> {
    let bare: Vec<NodeName> = next
        .nodes
        .iter()
        .filter(|(_, place)| place.block.is_none())
        .map(|(node, _)| node.clone())
        .collect();
    let mut cursors: std::collections::BTreeMap<HostName, u16> = std::collections::BTreeMap::new();
    for node in bare {
        let Some(place) = next.nodes.get(&node) else { continue };
        let Some((host_name, host)) = lab.hosts.get_key_value(&place.host) else { continue };
        if host.is_simulated() {
            continue;
        }
        let (count, is_asked) = asked(next, place);
        let occupied = Occupied::on(lab, name, next, (host_name, host), foreign);
        let from = cursors.get(host_name).copied().or(host.next_block);
        let found = find(host.port_range.unwrap_or(RANGE_DEFAULT), &occupied, count, from);
        if found.is_none() && is_asked {
            return Err(format!(
                "host {host_name} has no {count} free ports in a row for {node} to dial other \
                 hosts from; ask for less with dial_ports, or place it on another host"
            ));
        }
        if let Some(block) = found {
            cursors.insert(host_name.clone(), block.last().saturating_add(1));
        }
        if let Some(place) = next.nodes.get_mut(&node) {
            place.block = found;
        }
    }
    Ok(())
}

/// The first free block from a port on, and then from the beginning.
fn find(
    range: (u16, u16),
    occupied: &Occupied,
    count: u16,
    from: Option<u16>,
) -> Option<PortBlock> {
    let from = from.map_or(FIRST, |from| from.max(FIRST));
    let search = |from: u16| search(range, occupied, count, from);
    search(from).or_else(|| (from > FIRST).then(|| search(FIRST)).flatten())
}

fn search(
    (low, high): (u16, u16),
    occupied: &Occupied,
    count: u16,
    from: u16,
) -> Option<PortBlock> {
    let kernel = PortBlock { first: low, count: high.saturating_sub(low).saturating_add(1) };
    let mut first = u32::from(from);
    loop {
        if count == 0 || first + u32::from(count) - 1 > u32::from(u16::MAX) {
            return None;
        }
        let block = PortBlock { first: u16::try_from(first).ok()?, count };
        let behind_kernel = kernel.overlaps(block).then(|| u32::from(kernel.last()) + 1);
        match occupied.behind(block).max(behind_kernel) {
            None => return Some(block),
            Some(next) => first = next,
        }
    }
}

/// Where the search for the next block begins on each host, once `next` is in the lab: behind what
/// was given last.
#[must_use]
pub fn next_blocks(before: &Lab, name: &ClusterName, next: &Cluster) -> Vec<(HostName, u16)> {
    let old = before.clusters.get(name);
    let mut given = std::collections::BTreeMap::new();
    for (node, place) in &next.nodes {
        let had = old.and_then(|old| old.nodes.get(node)).and_then(|place| place.block);
        if let (None, Some(block)) = (had, place.block) {
            let after = block.last().checked_add(1).unwrap_or(FIRST);
            let known = given.entry(place.host.clone()).or_insert((block.first, after));
            // Blocks are given upwards; after a turn at the end the low ones are the last.
            let turned = before.hosts.get(&place.host).and_then(|host| host.next_block);
            let key = |first: u16| (turned.is_some_and(|from| first < from), first);
            if key(block.first) > key(known.0) {
                *known = (block.first, after);
            }
        }
    }
    given.into_iter().map(|(host, (_, after))| (host, after)).collect()
}

/// What is wrong with what a role asks for, if anything.
pub(super) fn check(spec: &RoleSpec) -> Option<String> {
    let asked = spec.dial_ports?;
    (!(1..=BLOCK_MAX).contains(&asked))
        .then(|| format!("dial_ports is {asked}; it goes from 1 to {BLOCK_MAX}"))
}
