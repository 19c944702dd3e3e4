//! Resolves one parsed target in a lab, with the reports where a role is asked for.

use std::collections::BTreeSet;

use super::{
    Reports, TargetError,
    parse::{Group, Part, What, glob_matches},
    refuse,
};
use crate::{
    lab::{Cluster, Lab},
    link::Party,
    name::{ClusterName, HostName, NodeName, RoleName},
    nearest::nearest,
    report::{NodeReport, NodeState},
};

/// The parties that one part names.
pub(super) fn one(
    lab: &Lab,
    reports: &Reports,
    part: &Part,
) -> Result<BTreeSet<Party>, TargetError> {
    match &part.what {
        What::Leader(group) => {
            let leader = leader(lab, reports, part, group)?;
            Ok([Party::Node(leader)].into())
        }
        What::Follower(group) => followers(lab, reports, part, group),
        What::Clients
        | What::Name(_)
        | What::Role(_)
        | What::Host(_)
        | What::Label(..)
        | What::Glob(_) => candidates(lab, part),
    }
}

/// All that one part could ever name, whoever leads. Never empty.
pub(super) fn candidates(lab: &Lab, part: &Part) -> Result<BTreeSet<Party>, TargetError> {
    let nodes: BTreeSet<NodeName> = match &part.what {
        What::Clients => return Ok([Party::Clients].into()),
        What::Name(name) => by_name(lab, part, name)?,
        What::Role(group) | What::Leader(group) | What::Follower(group) => {
            members(lab, part, group)?
        }
        What::Host(host) => {
            if !lab.hosts.contains_key(host) {
                let why = unknown("host", host.as_str(), lab.hosts.keys().map(|h| h.as_str()));
                return Err(refuse(&part.text, why));
            }
            pick(lab, |node| node.placement.host == *host)
        }
        What::Label(key, value) => {
            let has = |host: &HostName| {
                lab.hosts.get(host).is_some_and(|host| host.labels.get(key) == Some(value))
            };
            if !lab.hosts.keys().any(has) {
                return Err(refuse(&part.text, no_label(lab)));
            }
            pick(lab, |node| has(&node.placement.host))
        }
        What::Glob(glob) => pick(lab, |node| glob_matches(glob, node.name.as_str())),
    };
    if nodes.is_empty() {
        let all: Vec<_> = lab.nodes().map(|node| node.name.as_str()).collect();
        return Err(refuse(&part.text, format!("matches no node; {}", there_are("nodes", &all))));
    }
    Ok(nodes.into_iter().map(Party::Node).collect())
}

fn by_name(lab: &Lab, part: &Part, name: &str) -> Result<BTreeSet<NodeName>, TargetError> {
    let cluster = ClusterName::parse(name).ok().and_then(|name| lab.clusters.get(&name));
    if let Some(cluster) = cluster {
        return Ok(cluster.nodes.keys().cloned().collect());
    }
    let found = pick(lab, |node| node.name.as_str() == name);
    if found.is_empty() {
        let nodes = lab.nodes().map(|node| node.name.as_str());
        let names = lab.clusters.keys().map(|name| name.as_str()).chain(nodes);
        return Err(refuse(&part.text, unknown("node or cluster", name, names)));
    }
    Ok(found)
}

fn members(lab: &Lab, part: &Part, group: &Group) -> Result<BTreeSet<NodeName>, TargetError> {
    let cluster = cluster(lab, part, group)?;
    let Some(role) = &group.role else { return Ok(cluster.nodes.keys().cloned().collect()) };
    if !cluster.blueprint.roles.contains_key(role) {
        let roles = cluster.blueprint.roles.keys().map(|role| role.as_str());
        let why = unknown(&format!("role of {}", group.cluster), role.as_str(), roles);
        return Err(refuse(&part.text, why));
    }
    Ok(cluster.of_role(role).map(|(name, _)| name.clone()).collect())
}

fn cluster<'a>(lab: &'a Lab, part: &Part, group: &Group) -> Result<&'a Cluster, TargetError> {
    lab.clusters.get(&group.cluster).map(|cluster| &**cluster).ok_or_else(|| {
        let names = lab.clusters.keys().map(|name| name.as_str());
        refuse(&part.text, unknown("cluster", group.cluster.as_str(), names))
    })
}

/// The ready node that leads in the highest term. Terms of different roles do not compare.
fn leader(
    lab: &Lab,
    reports: &Reports,
    part: &Part,
    group: &Group,
) -> Result<NodeName, TargetError> {
    let members = members(lab, part, group)?;
    let leading: Vec<(&NodeName, Option<u64>)> = members
        .iter()
        .filter_map(|name| Some((name, report(lab, reports, name)?)))
        .filter(|(_, seen)| seen.observed == NodeState::Ready && seen.leader == Some(true))
        .map(|(name, seen)| (name, seen.term))
        .collect();
    let roles: BTreeSet<&RoleName> =
        leading.iter().filter_map(|(name, _)| Some(&lab.node(name)?.placement.role)).collect();
    if roles.len() > 1 {
        let choices: Vec<String> =
            roles.iter().map(|role| format!("leader:{}/{role}", group.cluster)).collect();
        return Err(refuse(&part.text, format!("say which role: {}", choices.join(" or "))));
    }
    let newest = leading.iter().map(|(_, term)| *term).max();
    let first: Vec<&NodeName> =
        leading.iter().filter(|(_, term)| Some(*term) == newest).map(|(name, _)| *name).collect();
    match first.as_slice() {
        [] => Err(TargetError {
            target: part.text.clone(),
            why: format!("no ready node of {} is known to lead now", group.cluster),
            later: true,
        }),
        [one] => Ok((*one).clone()),
        many => {
            let names: Vec<&str> = many.iter().map(|name| name.as_str()).collect();
            let why = format!("{} all lead in the same term; name one of them", names.join(", "));
            Err(refuse(&part.text, why))
        }
    }
}

/// The nodes of the leader's role that say they do not lead.
fn followers(
    lab: &Lab,
    reports: &Reports,
    part: &Part,
    group: &Group,
) -> Result<BTreeSet<Party>, TargetError> {
    // Without a leader nobody follows: during an election every node would be named.
    let leader = leader(lab, reports, part, group)?;
    let role = lab.node(&leader).map(|node| &node.placement.role);
    let follows = |name: &NodeName| {
        lab.node(name).map(|node| &node.placement.role) == role
            && report(lab, reports, name).is_some_and(|seen| {
                seen.leader == Some(false)
                    && matches!(seen.observed, NodeState::Ready | NodeState::Unready)
            })
    };
    let found: BTreeSet<Party> =
        members(lab, part, group)?.into_iter().filter(follows).map(Party::Node).collect();
    if found.is_empty() {
        return Err(TargetError {
            target: part.text.clone(),
            why: format!("no node of {} is known to follow {leader} now", group.cluster),
            later: true,
        });
    }
    Ok(found)
}

fn report<'a>(lab: &Lab, reports: &'a Reports, name: &NodeName) -> Option<&'a NodeReport> {
    reports.get(&lab.node(name)?.placement.host)?.nodes.get(name)
}

fn pick(lab: &Lab, wanted: impl Fn(&crate::lab::NodeRef<'_>) -> bool) -> BTreeSet<NodeName> {
    lab.nodes().filter(wanted).map(|node| node.name.clone()).collect()
}

/// `no node or cluster has this name; did you mean "kv-1"?`
fn unknown<'a>(kind: &str, name: &str, valid: impl Iterator<Item = &'a str>) -> String {
    let valid: Vec<&str> = valid.collect();
    match nearest(name, valid.iter().copied()) {
        Some(near) => format!("there is no such {kind}; did you mean {near:?}?"),
        None => format!("there is no such {kind}; {}", there_are(kind, &valid)),
    }
}

fn there_are(kind: &str, names: &[&str]) -> String {
    /// Names listed in one message.
    const LISTED_MAX: usize = 12;
    match names.len() {
        0 => format!("there is no {} yet", kind.trim_end_matches('s')),
        n if n > LISTED_MAX => format!("there are {}, …", names[..LISTED_MAX].join(", ")),
        _ => format!("there are {}", names.join(", ")),
    }
}

fn no_label(lab: &Lab) -> String {
    let labels: BTreeSet<String> = lab
        .hosts
        .values()
        .flat_map(|host| host.labels.iter().map(|(key, value)| format!("{key}={value}")))
        .collect();
    if labels.is_empty() {
        return "no host has a label; write `labels = { KEY = \"VALUE\" }` in [host.NAME]"
            .to_owned();
    }
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    format!("no host has this label; {}", there_are("label", &labels))
}
