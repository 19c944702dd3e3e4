//! Private addresses: one for each node, unique on the machine.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use crate::{
    lab::{Cluster, Lab},
    name::ClusterName,
    place::Foreign,
};

/// Where private addresses begin: 127.128.0.0/9 is shared by the labs of one machine.
const BASE: u32 = u32::from_be_bytes([127, 128, 0, 0]);

/// Addresses of one lab. 256 labs of this many are exactly the range.
const PER_LAB: u32 = 32768;

/// The smallest address of the lab that no node has, nor one that is leaving and still listens there. The first of the range is never given, and
/// neither is the last, which for the last lab is the broadcast address of 127.0.0.0/8.
///
/// # Errors
/// All are taken.
pub(super) fn free(
    lab: &Lab,
    name: &ClusterName,
    next: &Cluster,
    foreign: &Foreign,
) -> Result<IpAddr, String> {
    let others = lab.clusters.iter().filter(|(other, _)| *other != name).map(|(_, c)| &**c);
    let mut used: BTreeSet<IpAddr> =
        others.chain([next]).flat_map(|c| c.nodes.values()).map(|node| node.private).collect();
    used.extend(foreign.values().flatten().map(|listener| listener.address.ip()));
    let first = BASE + u32::from(lab.octet) * PER_LAB;
    (1..PER_LAB - 1)
        .map(|k| IpAddr::V4(Ipv4Addr::from(first + k)))
        .find(|address| !used.contains(address))
        .ok_or_else(|| format!("the lab has no private address left of {}", PER_LAB - 2))
}
