//! Data that clusters left on their hosts: found again only by a cluster that is the same.

use std::collections::BTreeMap;

use faultbed_common::{
    lab::{Cluster, KeptData, KeptNode, Leaving, Placement},
    name::{ClusterName, HostName, NodeName},
};

use super::{Refusal, change::Change, invalid, leaving};

/// Remembers where a cluster that goes leaves its data.
pub(super) fn keep(change: &mut Change<'_>, name: &ClusterName, cluster: &Cluster) {
    let kept = change.lab.kept.entry(name.clone()).or_default();
    kept.blueprint = Some(cluster.blueprint.name.clone());
    kept.nodes = members(cluster);
    // Of a cluster that goes as a whole nobody leaves.
    kept.leaving.clear();
}

/// Remembers where a node that goes leaves its data, while its cluster stays.
pub(super) fn keep_node(
    change: &mut Change<'_>,
    of: &ClusterName,
    node: &NodeName,
    placement: &Placement,
) {
    leaving::prune(change, of);
    let kept = change.lab.kept.entry(of.clone()).or_default();
    kept.left.insert(node.clone(), placement.host.clone());
    let leaving = Leaving { placement: placement.clone(), forced: false };
    kept.leaving.insert(node.clone(), leaving);
}

/// Nothing is left on a host that went.
pub(super) fn forget_host(change: &mut Change<'_>, host: &HostName) {
    for kept in change.lab.kept.values_mut() {
        kept.nodes.retain(|_, node| node.host != *host);
        kept.left.retain(|_, on| on != host);
        kept.leaving.retain(|_, node| node.placement.host != *host);
    }
    change.lab.kept.retain(|_, kept| !kept.nodes.is_empty() || !kept.left.is_empty());
}

/// Has the hosts delete what a cluster that is gone left there; says whether there was anything.
pub(super) fn wipe(change: &mut Change<'_>, name: &ClusterName) -> bool {
    let Some(kept) = change.lab.kept.remove(name) else { return false };
    let members = kept.nodes.into_iter().map(|(node, at)| (node, at.host));
    for (node, host) in members.chain(kept.left) {
        change.lab.removed_wiped.entry(host).or_default().insert(node);
    }
    true
}

/// A cluster that begins may find the data of an earlier one of its name: it must be the same one.
///
/// # Errors
/// Some of its nodes would find data that is not theirs.
pub(super) fn take_up(
    change: &mut Change<'_>,
    name: &ClusterName,
    next: &Cluster,
) -> Result<(), Refusal> {
    let Some(kept) = change.lab.kept.get(name) else { return Ok(()) };
    let found: Vec<String> = next
        .nodes
        .iter()
        .filter(|(node, placement)| on(kept, node) == Some(&placement.host))
        .map(|(node, placement)| format!("{node} on {}", placement.host))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    let is_left = |node: &NodeName| kept.left.contains_key(node);
    let why = match &kept.blueprint {
        Some(blueprint) if *blueprint != next.blueprint.name => {
            format!("it is of {blueprint} and this is {}", next.blueprint.name)
        }
        _ if next.nodes.keys().any(is_left) => {
            "some of it is of nodes that had left their cluster".to_owned()
        }
        _ if kept.nodes != members(next) => {
            "its members were other nodes, on other hosts or at other ports".to_owned()
        }
        _ => {
            change.lab.kept.remove(name);
            change.note(format!("cluster {name} goes on with the data that was kept"));
            return Ok(());
        }
    };
    Err(invalid(format!(
        "cluster {name}: an earlier one of this name left its data where this one would find it ({}), \
         and {why}; `faultbed delete cluster {name} --wipe` deletes it, or take another name",
        found.join(", ")
    )))
}

/// Which host has data of a node.
fn on<'a>(kept: &'a KeptData, node: &NodeName) -> Option<&'a HostName> {
    kept.nodes.get(node).map(|node| &node.host).or_else(|| kept.left.get(node))
}

fn members(cluster: &Cluster) -> BTreeMap<NodeName, KeptNode> {
    let members = cluster.nodes.iter().map(|(node, placement)| {
        let at = KeptNode { host: placement.host.clone(), ports: placement.ports.clone() };
        (node.clone(), at)
    });
    members.collect()
}
