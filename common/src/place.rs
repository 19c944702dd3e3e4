//! Places the nodes of a cluster: host, private address and ports, chosen once and kept.

mod address;
mod blocks;
mod hosts;
mod ports;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use blocks::next_blocks;
pub(crate) use ports::reserved;
pub use ports::used as used_ports;

use crate::{
    blueprint::{Blueprint, Role},
    generation::Incarnation,
    lab::{Cluster, Lab, Placement},
    name::{ClusterName, HostName, NodeName, RoleName, node_name},
    report::ForeignListener,
    spec::{COUNT_MAX, ClusterSpec, RoleSpec},
};

/// Why a cluster cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cluster {cluster}: {why}")]
pub struct PlaceError {
    /// The cluster.
    pub cluster: ClusterName,
    /// What is in the way, and what to do.
    pub why: String,
}

/// Listeners that are not the lab's, by host.
type Foreign = BTreeMap<HostName, Vec<ForeignListener>>;

/// Gives `next` the nodes that `spec` asks for. Nodes of `next.nodes` that are still asked for keep
/// every choice; others go; new ones get the next unused number, spread over the allowed hosts.
/// `foreign` are listeners of others, by host. `next` holds the new spec and blueprint already.
///
/// Of a role that shrinks, the highest numbers go. A changed `hosts` concerns only new nodes; a
/// node that is told another host than it has (`node.2.host`) is refused, since its data is here.
///
/// # Errors
/// No host fits, names clash or are too long, or no free port was found. `next` is then of no use.
pub fn place(
    lab: &Lab,
    name: &ClusterName,
    next: &mut Cluster,
    foreign: &BTreeMap<HostName, Vec<ForeignListener>>,
) -> Result<(), PlaceError> {
    let refuse = |why| PlaceError { cluster: name.clone(), why };
    let counts = counts(&next.spec, &next.blueprint);
    check_roles(&next.spec, &next.blueprint).map_err(refuse)?;
    check_counts(&counts, &next.blueprint).map_err(refuse)?;
    check_cluster_name(lab, name).map_err(refuse)?;
    next.nodes.retain(|_, node| counts.contains_key(&node.role));
    for (role, count) in &counts {
        shrink(next, role, *count);
    }
    check_kept(lab, next).map_err(refuse)?;
    for (role, count) in &counts {
        grow(lab, name, next, foreign, role, *count).map_err(refuse)?;
    }
    blocks::assign(lab, name, next, foreign).map_err(refuse)
}

/// How many nodes of each role `spec` asks for, defaults included.
#[must_use]
pub fn counts(spec: &ClusterSpec, blueprint: &Blueprint) -> BTreeMap<RoleName, u32> {
    blueprint
        .roles
        .iter()
        .map(|(name, role)| {
            let asked = spec.roles.get(name).and_then(|role| role.count);
            (name.clone(), asked.unwrap_or(role.count))
        })
        .collect()
}

/// Removes the highest numbers of a role until `count` are left.
fn shrink(next: &mut Cluster, role: &RoleName, count: u32) {
    let mut here: Vec<(u32, NodeName)> = next
        .nodes
        .iter()
        .filter(|(_, node)| &node.role == role)
        .map(|(name, node)| (node.index, name.clone()))
        .collect();
    here.sort_unstable();
    for (index, _) in &here {
        // Whatever wrote this cluster, no number that ever was is given again.
        let last = next.last_index.entry(role.clone()).or_default();
        *last = (*last).max(*index);
    }
    for (_, name) in here.split_off(here.len().min(count as usize)) {
        next.nodes.remove(&name);
    }
}

/// Adds nodes of a role until there are `count`.
fn grow(
    lab: &Lab,
    name: &ClusterName,
    next: &mut Cluster,
    foreign: &Foreign,
    role: &RoleName,
    count: u32,
) -> Result<(), String> {
    let here = next.nodes.values().filter(|node| &node.role == role).count();
    let missing = (count as usize).saturating_sub(here);
    let spec = next.spec.roles.get(role).cloned().unwrap_or_default();
    let allowed = hosts::allowed(lab, &spec.hosts).map_err(|why| format!("{role}.hosts: {why}"))?;
    for _ in 0..missing {
        let last = next.last_index.entry(role.clone()).or_default();
        *last += 1;
        let index = *last;
        let only = next.blueprint.only_role().is_some();
        let node = node_name(name, (!only).then_some(role), index)
            .map_err(|error| format!("{error}; choose a shorter name for the cluster"))?;
        check_node_name(lab, name, next, &node)?;
        let own = spec.node.get(&index).and_then(|own| own.host.as_ref());
        let host = match own {
            Some(host) => hosts::existing(lab, host.as_str())
                .and_then(|host| hosts::check_open(lab, host).map(|()| host.clone()))
                .map_err(|why| format!("{role}.node.{index}.host: {why}"))?,
            None => {
                let open = hosts::open(lab, &allowed).map_err(|why| format!("{role}: {why}"))?;
                hosts::emptiest(lab, name, next, role, &open)?
            }
        };
        let wanted_ports = &next.blueprint.roles[role].ports;
        let taken = ports::Taken::on(lab, name, next, &host, foreign);
        let placement = Placement {
            role: role.clone(),
            index,
            private: address::free(lab, name, next, foreign)?,
            ports: ports::choose(&node, &host, wanted_ports, &taken)?,
            // Given when all new nodes have their ports, which are fewer to choose from.
            block: None,
            host,
            wanted: crate::host_spec::Wanted::Running,
            incarnation: Incarnation(1),
            stop_by: crate::host_spec::StopBy::default(),
            wipes: 0,
            recalled: 0,
            joined: here > 0,
            pushed: None,
        };
        next.nodes.insert(node, placement);
    }
    check_overrides(next, role, &spec)
}

/// A number in `node.N` that never was a node is a slip of the finger.
fn check_overrides(next: &Cluster, role: &RoleName, spec: &RoleSpec) -> Result<(), String> {
    let last = next.last_index.get(role).copied().unwrap_or(0);
    match spec.node.keys().find(|index| **index == 0 || **index > last) {
        Some(index) => {
            Err(format!("{role}.node.{index} names no node; the numbers of {role} go to {last}"))
        }
        None => Ok(()),
    }
}

/// Files are checked when they are read; verbs and hand edits come by no file. A role whose blueprint has 0 for
/// the least may be left out, as long as there is another.
fn check_counts(counts: &BTreeMap<RoleName, u32>, blueprint: &Blueprint) -> Result<(), String> {
    let is_some = counts.values().any(|count| *count > 0);
    let least = |role| {
        let may_be_none = blueprint.roles.get(role).is_some_and(Role::may_be_none);
        u32::from(!may_be_none || !is_some)
    };
    match counts.iter().find(|(role, count)| !(least(role)..=COUNT_MAX).contains(*count)) {
        Some((role, count)) => {
            Err(format!("count of {role} is {count}; it goes from 1 to {COUNT_MAX}"))
        }
        None => Ok(()),
    }
}

/// Every role that the spec names must be one of the blueprint's.
fn check_roles(spec: &ClusterSpec, blueprint: &Blueprint) -> Result<(), String> {
    for role in spec.roles.keys() {
        if blueprint.roles.contains_key(role) {
            if let Some(why) = spec.roles.get(role).and_then(blocks::check) {
                return Err(format!("{role}.{why}"));
            }
            continue;
        }
        let hint = match crate::nearest::did_you_mean(role.as_str(), blueprint.roles.keys()) {
            Some(hint) => hint,
            None => format!("it has {}", hosts::join(blueprint.roles.keys())),
        };
        return Err(format!("blueprint {} has no role {role}; {hint}", blueprint.name));
    }
    Ok(())
}

/// A target `kv-1` must never be both a cluster and a node.
fn check_cluster_name(lab: &Lab, name: &ClusterName) -> Result<(), String> {
    let others = lab.clusters.iter().filter(|(other, _)| *other != name);
    for (other, cluster) in others {
        if cluster.nodes.keys().any(|node| node.as_str() == name.as_str()) {
            return Err(format!(
                "{name} is already a node of cluster {other}; choose another name"
            ));
        }
    }
    Ok(())
}

/// Two clusters can make the same node name: role `x` of `db`, and a cluster `db-x` of one role.
fn check_node_name(
    lab: &Lab,
    name: &ClusterName,
    next: &Cluster,
    node: &NodeName,
) -> Result<(), String> {
    if next.nodes.contains_key(node) {
        return Err(format!("two of its nodes would be called {node}; rename a role"));
    }
    for (other, cluster) in lab.clusters.iter().filter(|(other, _)| *other != name) {
        if cluster.nodes.contains_key(node) {
            return Err(format!(
                "its node {node} would be called like one of cluster {other}; choose another name"
            ));
        }
    }
    if lab.clusters.keys().chain([name]).any(|other| other.as_str() == node.as_str()) {
        return Err(format!(
            "its node {node} would be called like the cluster {node}; choose another name"
        ));
    }
    Ok(())
}

/// Nodes that stay must be able to stay as they are.
fn check_kept(lab: &Lab, next: &mut Cluster) -> Result<(), String> {
    for (name, node) in &mut next.nodes {
        if !lab.hosts.contains_key(&node.host) {
            return Err(format!("node {name} is on host {}, which is not in the lab", node.host));
        }
        let spec = next.spec.roles.get(&node.role);
        let told = spec.and_then(|spec| spec.node.get(&node.index)?.host.as_ref());
        if let Some(told) = told.filter(|told| **told != node.host) {
            return Err(format!(
                "node {name} is on host {} and its data cannot move to {told}; \
                 delete the cluster first, or leave out host",
                node.host
            ));
        }
        // A blueprint of the user's may have changed under a cluster that runs.
        let role = next.blueprint.roles.get(&node.role);
        let known: BTreeSet<_> = role.iter().flat_map(|role| role.ports.keys()).collect();
        if known != node.ports.keys().collect() {
            return Err(format!(
                "the ports of role {} have changed in its blueprint while {name} has its own; \
                 delete the cluster first",
                node.role
            ));
        }
    }
    Ok(())
}
