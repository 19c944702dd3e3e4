//! Which host a node goes to.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    lab::{Cluster, Host, Lab},
    name::{ClusterName, HostName, RoleName},
    nearest,
};

/// The hosts that `hosts = […]` of a role allows; all where nothing is said. Drained ones are among
/// them: see [`open`].
///
/// # Errors
/// A host or a label that the lab does not have.
pub(super) fn allowed<'a>(
    lab: &'a Lab,
    wanted: &[String],
) -> Result<BTreeSet<&'a HostName>, String> {
    if lab.hosts.is_empty() {
        return Err("the lab has no hosts".to_owned());
    }
    if wanted.is_empty() {
        return Ok(lab.hosts.keys().collect());
    }
    let mut hosts = BTreeSet::new();
    for text in wanted {
        match text.strip_prefix("label:") {
            Some(label) => hosts.extend(labelled(lab, label)?),
            None => {
                let name = text.strip_prefix("host:").unwrap_or(text);
                hosts.insert(existing(lab, name)?);
            }
        }
    }
    Ok(hosts)
}

/// Those of `allowed` that new nodes may come to.
///
/// # Errors
/// All of them are drained.
pub(super) fn open<'a>(
    lab: &'a Lab,
    allowed: &BTreeSet<&'a HostName>,
) -> Result<BTreeSet<&'a HostName>, String> {
    let is_open = |host: &&HostName| check_open(lab, host).is_ok();
    let open: BTreeSet<&HostName> = allowed.iter().copied().filter(is_open).collect();
    match allowed.first() {
        Some(first) if open.is_empty() => {
            let all = join(allowed);
            Err(format!("no new node may go to {all}: drained; `faultbed host undrain {first}`"))
        }
        Some(_) | None => Ok(open),
    }
}

/// # Errors
/// The host is drained.
pub(super) fn check_open(lab: &Lab, host: &HostName) -> Result<(), String> {
    match lab.hosts.get(host) {
        Some(Host { drained: true, .. }) => Err(format!(
            "no new node may go to {host}: it is drained; `faultbed host undrain {host}`"
        )),
        Some(_) | None => Ok(()),
    }
}

/// The host of the lab that is called so.
///
/// # Errors
/// There is none; says which is meant, or which there are.
pub(super) fn existing<'a>(lab: &'a Lab, name: &str) -> Result<&'a HostName, String> {
    lab.hosts.keys().find(|host| host.as_str() == name).ok_or_else(|| {
        let hint = match nearest::did_you_mean(name, lab.hosts.keys()) {
            Some(hint) => hint,
            None => format!("the lab has {}", join(lab.hosts.keys())),
        };
        format!("there is no host {name:?}; {hint}")
    })
}

fn labelled<'a>(lab: &'a Lab, label: &str) -> Result<BTreeSet<&'a HostName>, String> {
    let Some((key, value)) = label.split_once('=') else {
        return Err(format!("\"label:{label}\" is written label:KEY=VALUE"));
    };
    let fits = |host: &&HostName| lab.hosts[*host].labels.get(key).is_some_and(|v| v == value);
    let hosts: BTreeSet<&HostName> = lab.hosts.keys().filter(fits).collect();
    if !hosts.is_empty() {
        return Ok(hosts);
    }
    let known: BTreeSet<String> = lab
        .hosts
        .values()
        .flat_map(|host| host.labels.iter().map(|(key, value)| format!("{key}={value}")))
        .collect();
    let hint = match nearest::did_you_mean(label, &known) {
        Some(hint) => hint,
        None if known.is_empty() => "no host has any label".to_owned(),
        None => format!("hosts have {}", join(&known)),
    };
    Err(format!("no host has the label {label:?}; {hint}"))
}

/// The allowed host with the fewest nodes of the same role, since copies of the same data belong
/// apart; among those the one with the fewest nodes of the lab; among those the first by name.
///
/// # Errors
/// No host is allowed.
pub(super) fn emptiest(
    lab: &Lab,
    name: &ClusterName,
    next: &Cluster,
    role: &RoleName,
    allowed: &BTreeSet<&HostName>,
) -> Result<HostName, String> {
    let others = || lab.clusters.iter().filter(|(other, _)| *other != name).map(|(_, c)| &**c);
    // How many of the role, and how many in all: counted once, for there may be hundreds of hosts.
    let mut loads: BTreeMap<&HostName, (usize, usize)> = BTreeMap::new();
    for node in others().chain([next]).flat_map(|c| c.nodes.values()) {
        loads.entry(&node.host).or_default().1 += 1;
    }
    for node in next.nodes.values().filter(|node| &node.role == role) {
        loads.entry(&node.host).or_default().0 += 1;
    }
    let load = |host: &HostName| loads.get(host).copied().unwrap_or_default();
    allowed
        .iter()
        .min_by_key(|host| (load(host), **host))
        .map(|host| (*host).clone())
        .ok_or_else(|| format!("no host is allowed for {role}"))
}

/// Names with commas between them.
pub(super) fn join<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
    names.join(", ")
}
