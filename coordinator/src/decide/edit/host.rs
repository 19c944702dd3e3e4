//! Hosts come, are labelled and drained, and go.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    lab::{Cluster, Host, LABELS_MAX, Lab, REMOVED_HOSTS_MAX, RemovedHost, Said, check_label},
    name::{ClusterName, HostName, NodeName, RoleName},
    target::Reports,
};

use super::{
    Asked, Decision, Refusal,
    change::{Change, did_you_mean},
    invalid,
};

/// Enters `host` into the lab, or takes over where it is now. Labels that come with it are those it
/// joined with; where none come, it keeps those of its last join. What files and verbs said stays.
///
/// # Errors
/// The host was removed, or the lab would not compile with the host as it is now.
pub fn host_joins(
    lab: &Lab,
    (name, host): (&HostName, Host),
    asked: &Asked,
) -> Result<Decision, Refusal> {
    if let Some(why) = removed(lab, name) {
        return Err(invalid(format!(
            "{why}; `faultbed host token --name {name}` lets it join anew"
        )));
    }
    let reports = Reports::new();
    let mut change = Change::new(lab, &reports, asked);
    let known = lab.hosts.get(name).cloned();
    let mut next = known.unwrap_or_else(|| Host::new(host.address, host.dir.clone()));
    next.address = host.address;
    next.dir = host.dir;
    next.port_range = host.port_range;
    next.identity_port = host.identity_port;
    if !host.labels.is_empty() {
        check_labels(name, &host.labels)?;
        next.relabel(|said| said.join = host.labels);
    }
    change.lab.hosts.insert(name.clone(), next);
    change.finish(format!("host {name} joins"))
}

/// Forgets that a host was removed, since it was admitted anew: [`host_joins`] lets it in again.
///
/// # Errors
/// The lab would not compile.
pub fn host_readmitted(lab: &Lab, name: &HostName, asked: &Asked) -> Result<Decision, Refusal> {
    let reports = Reports::new();
    let mut change = Change::new(lab, &reports, asked);
    change.lab.removed_hosts.remove(name);
    change.finish(format!("host {name} is admitted again"))
}

/// Why a host does not belong to the lab any more; `None` where nobody removed it.
#[must_use]
pub fn removed(lab: &Lab, name: &HostName) -> Option<String> {
    let RemovedHost { by, generation } = lab.removed_hosts.get(name)?;
    Some(format!("host {name} was removed from lab {} by {by}, generation {generation}", lab.name))
}

/// `host drain` and `host undrain`.
pub(super) fn drain(
    change: &mut Change<'_>,
    name: &HostName,
    drained: bool,
) -> Result<String, Refusal> {
    there_is(change, name)?;
    if let Some(host) = change.lab.hosts.get_mut(name) {
        host.drained = drained;
    }
    if drained {
        let stay: Vec<String> = placed_on(&change.lab, name).map(|node| node.to_string()).collect();
        change.note(if stay.is_empty() {
            format!("nothing is placed on {name}; `faultbed host remove {name}` takes it out")
        } else {
            format!("{name} keeps what it has, and that goes on: {}", stay.join(", "))
        });
        if change.lab.hosts.values().all(|host| host.drained) {
            change.note("every host is drained: no new node can be placed anywhere".to_owned());
        }
    }
    Ok(format!("host {} {name}", if drained { "drain" } else { "undrain" }))
}

/// `host label`.
pub(super) fn label(
    change: &mut Change<'_>,
    name: &HostName,
    set: &BTreeMap<String, String>,
    unset: &BTreeSet<String>,
) -> Result<String, Refusal> {
    there_is(change, name)?;
    check_labels(name, set)?;
    if let Some(key) = unset.iter().find(|key| set.contains_key(*key)) {
        return Err(invalid(format!("label {key} cannot be both given and taken back; say one")));
    }
    let Some(mut host) = change.lab.hosts.get(name).cloned() else { return Ok(String::new()) };
    for key in unset {
        if host.labels.contains_key(key) && !host.said.verb.contains_key(key) {
            let (who, help) =
                if host.said.join.contains_key(key) && !host.said.file.contains_key(key) {
                    ("the host joined with it", "another value goes before it".to_owned())
                } else {
                    ("the file says it", format!("leave it out of [host.{name}] and apply"))
                };
            return Err(invalid(format!(
                "label {key} of {name} cannot be taken back: {who}; {help}"
            )));
        }
    }
    host.relabel(|said| {
        said.verb.extend(set.clone());
        said.verb.retain(|key, _| !unset.contains(key));
    });
    if host.said.verb.len() > LABELS_MAX {
        return Err(invalid(format!("{name} would have more than {LABELS_MAX} labels; use fewer")));
    }
    for key in unset {
        if let (Some(value), Some(who)) = (host.labels.get(key), speaker(&host.said, key)) {
            change.note(format!("{key} of {name} is {value} now, as {who} says"));
        }
    }
    for key in set.keys().filter(|key| host.said.file.contains_key(*key)) {
        change.note(format!(
            "the file says {key} = \"{}\" of {name}; this goes before it until \
             `faultbed host label {name} {key}-`",
            host.said.file[key]
        ));
    }
    change.lab.hosts.insert(name.clone(), host);
    let mut words: Vec<String> = set.iter().map(|(key, value)| format!("{key}={value}")).collect();
    words.extend(unset.iter().map(|key| format!("{key}-")));
    Ok(format!("host label {name} {}", words.join(" ")))
}

/// Who has the word on a label that no verb speaks of.
fn speaker(said: &Said, key: &str) -> Option<&'static str> {
    if said.file.contains_key(key) {
        return Some("the file");
    }
    said.join.contains_key(key).then_some("the join")
}

/// `host remove`.
pub(super) fn remove(
    change: &mut Change<'_>,
    name: &HostName,
    force: bool,
) -> Result<String, Refusal> {
    there_is(change, name)?;
    let nodes: BTreeSet<NodeName> = placed_on(&change.lab, name).cloned().collect();
    if !nodes.is_empty() && !force {
        let list: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
        return Err(invalid(format!(
            "{name} still has {}; scale or delete their clusters first, or take these nodes out \
             of their clusters too: `faultbed host remove {name} --force`",
            list.join(", ")
        )));
    }
    change.own_nodes(&nodes)?;
    let clusters: Vec<ClusterName> = change.lab.clusters.keys().cloned().collect();
    for cluster in clusters {
        leave(change, &cluster, name, force)?;
    }
    let host = change.lab.hosts.remove(name);
    change.lab.removed_wiped.remove(name);
    super::kept::forget_host(change, name);
    if let Some(host) = host.filter(|_| !nodes.is_empty()) {
        let list: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
        change.note(format!(
            "{} stop{} when {name} hears of it; the data is kept there, below {}",
            list.join(", "),
            if list.len() == 1 { "s" } else { "" },
            host.dir.display()
        ));
    }
    let generation = change.before.generation.next();
    let by = change.asked.by.clone();
    change.lab.removed_hosts.insert(name.clone(), RemovedHost { by, generation });
    while change.lab.removed_hosts.len() > REMOVED_HOSTS_MAX {
        let oldest = change.lab.removed_hosts.iter().min_by_key(|(_, host)| host.generation);
        let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
        change.lab.removed_hosts.remove(&oldest);
    }
    Ok(format!("host remove {name}{}", if force { " --force" } else { "" }))
}

/// Takes a host out of a cluster: its nodes there, and its name where the spec allows hosts.
fn leave(
    change: &mut Change<'_>,
    cluster_name: &ClusterName,
    host: &HostName,
    force: bool,
) -> Result<(), Refusal> {
    let Some(mut cluster) = change.lab.clusters.get(cluster_name).cloned() else { return Ok(()) };
    if let Some(place) = named_in(&cluster, host)
        && !force
    {
        return Err(invalid(format!(
            "cluster {cluster_name} names {host} in {place}; leave it out there first, or \
             `faultbed host remove {host} --force`"
        )));
    }
    let before = cluster.clone();
    cluster.nodes.retain(|_, placement| placement.host != *host);
    for role in before.blueprint.roles.keys() {
        let (was, is) = (before.of_role(role).count(), cluster.of_role(role).count());
        if was == is {
            continue;
        }
        if is == 0 {
            return Err(invalid(format!(
                "cluster {cluster_name} would have no {role} left; delete it first: \
                 `faultbed delete cluster {cluster_name}`"
            )));
        }
        // The next change of the cluster would place as many nodes elsewhere.
        let spec = cluster.spec.roles.entry(role.clone()).or_default();
        spec.count = u32::try_from(is).ok();
        change.note(format!("cluster {cluster_name} has {is} of {role} now, not {was}"));
    }
    forget(&mut cluster, host);
    if cluster != before {
        change.lab.clusters.insert(cluster_name.clone(), cluster);
    }
    Ok(())
}

/// Where a cluster's spec names a host: `etcd.hosts`.
fn named_in(cluster: &Cluster, host: &HostName) -> Option<String> {
    cluster.spec.roles.iter().find_map(|(role, spec)| {
        if spec.hosts.iter().any(|text| is_host(text, host)) {
            return Some(format!("{role}.hosts"));
        }
        let there = |index: &u32| is_there(cluster, role, *index);
        let mut own = spec.node.iter().filter(|(_, own)| own.host.as_ref() == Some(host));
        own.find(|(index, _)| there(index)).map(|(index, _)| format!("{role}.node.{index}.host"))
    })
}

fn is_there(cluster: &Cluster, role: &RoleName, index: u32) -> bool {
    cluster.of_role(role).any(|(_, placement)| placement.index == index)
}

fn is_host(text: &str, host: &HostName) -> bool {
    text.strip_prefix("host:").unwrap_or(text) == host.as_str()
}

/// Takes a host's name out of a spec: placing would refuse one that is not in the lab.
fn forget(cluster: &mut Cluster, host: &HostName) {
    for spec in cluster.spec.roles.values_mut() {
        spec.hosts.retain(|text| !is_host(text, host));
        for own in spec.node.values_mut().filter(|own| own.host.as_ref() == Some(host)) {
            own.host = None;
        }
    }
}

/// The nodes that are placed on a host, also those that are stopped.
fn placed_on<'a>(lab: &'a Lab, host: &'a HostName) -> impl Iterator<Item = &'a NodeName> {
    lab.nodes().filter(move |node| node.placement.host == *host).map(|node| node.name)
}

/// # Errors
/// The lab has no such host; says which is meant, or who removed it.
fn there_is(change: &Change<'_>, name: &HostName) -> Result<(), Refusal> {
    if change.lab.hosts.contains_key(name) {
        return Ok(());
    }
    if let Some(why) = removed(&change.lab, name) {
        return Err(invalid(format!("{why}; `faultbed host list` shows those there are")));
    }
    let near = did_you_mean(name.as_str(), change.lab.hosts.keys().map(|host| host.as_str()));
    Err(invalid(format!("there is no host {name}{near}")))
}

fn check_labels(name: &HostName, labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    for (key, value) in labels {
        check_label(key, value).map_err(|why| invalid(format!("host {name}: {why}")))?;
    }
    if labels.len() > LABELS_MAX {
        return Err(invalid(format!("host {name}: at most {LABELS_MAX} labels; use fewer")));
    }
    Ok(())
}
