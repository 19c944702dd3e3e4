//! Nodes whose leave does not succeed: `remove NODE --force` takes them away all the same, and
//! `start NODE` calls them back.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    host_spec::Wanted,
    lab::{KeptData, Leaving},
    name::{ClusterName, NodeName},
    place::{counts, used_ports},
    report::HostReport,
};

use super::{Refusal, change::Change, cluster, invalid};

/// Takes out of `targets` the names of nodes that are leaving their clusters, with their clusters.
pub(super) fn split(
    change: &Change<'_>,
    targets: &[String],
) -> (BTreeMap<NodeName, ClusterName>, Vec<String>) {
    let (mut leaving, mut rest) = (BTreeMap::new(), Vec::new());
    for target in targets.iter().flat_map(|targets| targets.split(',')) {
        match target.trim().parse::<NodeName>().ok().and_then(|name| find(change, name)) {
            Some((name, of)) => drop(leaving.insert(name, of)),
            None => rest.push(target.to_owned()),
        }
    }
    (leaving, rest)
}

fn find(change: &Change<'_>, name: NodeName) -> Option<(NodeName, ClusterName)> {
    if change.lab.node(&name).is_some() {
        return None;
    }
    let mut kept = change.lab.kept.iter().filter(|(of, _)| change.lab.clusters.contains_key(*of));
    let (of, _) = kept.find(|(_, kept)| {
        kept.leaving.get(&name).is_some_and(|node| is_here(change, &name, node))
    })?;
    Some((name, of.clone()))
}

/// Whether a node may not have gone yet: its host speaks of it, or is not heard.
fn is_here(change: &Change<'_>, name: &NodeName, node: &Leaving) -> bool {
    let host = &node.placement.host;
    let speaks = |report: &HostReport| report.nodes.contains_key(name);
    change.lab.hosts.contains_key(host)
        && change.reports.get(host).is_none_or(|report| speaks(report))
}

/// Forgets those that have gone.
pub(super) fn prune(change: &mut Change<'_>, of: &ClusterName) {
    let Some(kept) = change.lab.kept.get(of) else { return };
    let here = kept.leaving.iter().filter(|(name, node)| is_here(change, name, node));
    let here: BTreeSet<NodeName> = here.map(|(name, _)| name.clone()).collect();
    if let Some(kept) = change.lab.kept.get_mut(of) {
        kept.leaving.retain(|name, _| here.contains(name));
    }
}

/// Ends the leave of nodes that are leaving already, so that they go at once.
///
/// # Errors
/// Nobody said that they shall go by force.
pub(super) fn force(
    change: &mut Change<'_>,
    leaving: &BTreeMap<NodeName, ClusterName>,
) -> Result<(), Refusal> {
    own(change, leaving)?;
    for (name, of) in leaving {
        if !change.force {
            return Err(invalid(format!(
                "{name} is leaving {of} already; `faultbed remove {name} --force` takes it away without \
                 its leave, `faultbed start {name}` calls it back"
            )));
        }
        let kept = change.lab.kept.get_mut(of);
        let Some(node) = kept.and_then(|kept| kept.leaving.get_mut(name)) else { continue };
        node.forced = true;
        change.note(format!("{name} goes without its leave: {of} may take it for a member still"));
    }
    Ok(())
}

fn own(change: &Change<'_>, leaving: &BTreeMap<NodeName, ClusterName>) -> Result<(), Refusal> {
    for of in leaving.values() {
        if let Some(cluster) = change.lab.clusters.get(of) {
            change.own(&format!("cluster {of}"), &cluster.origin)?;
        }
    }
    Ok(())
}

/// Makes nodes that are leaving members again, as they were: their roles have so many more.
///
/// # Errors
/// One goes by force already, or what it had was given to another node.
pub(super) fn recall(
    change: &mut Change<'_>,
    leaving: &BTreeMap<NodeName, ClusterName>,
) -> Result<(), Refusal> {
    own(change, leaving)?;
    for (name, of) in leaving {
        let Some(cluster) = change.lab.clusters.get(of).cloned() else { continue };
        let kept = change.lab.kept.get(of).and_then(|kept| kept.leaving.get(name));
        let Some(Leaving { placement, forced }) = kept.cloned() else { continue };
        if forced {
            return Err(invalid(format!(
                "{name} goes by force and cannot be called back; `faultbed scale` makes a new node"
            )));
        }
        let mut placement = placement;
        placement.recalled += 1;
        placement.wanted = Wanted::Running;
        let used: BTreeSet<u16> = used_ports(&placement, &cluster.blueprint).into_iter().collect();
        for (other, held) in change.lab.clusters.values().flat_map(|c| {
            c.nodes.iter().map(move |(name, held)| (name, (held, used_ports(held, &c.blueprint))))
        }) {
            let (held, ports) = held;
            let shares =
                held.host == placement.host && ports.into_iter().any(|p| used.contains(&p));
            if shares || held.private == placement.private {
                return Err(invalid(format!(
                    "{name} cannot be called back: {other} has its ports or its address now; \
                     `faultbed remove {other}` first"
                )));
            }
            if held.block.zip(placement.block).is_some_and(|(held, own)| held.overlaps(own)) {
                placement.block = None;
            }
        }
        let mut spec = cluster.spec.clone();
        let count = counts(&spec, &cluster.blueprint).get(&placement.role).copied().unwrap_or(0);
        spec.roles.entry(placement.role.clone()).or_default().count = Some(count + 1);
        let moves = cluster::Moves {
            coming: BTreeMap::from([(name.clone(), placement)]),
            ..cluster::Moves::default()
        };
        cluster::accept_with(change, of, &spec, cluster.origin.clone(), moves)?;
        if let Some(kept) = change.lab.kept.get_mut(of) {
            kept.left.remove(name);
            kept.leaving.remove(name);
        }
        change.lab.kept.retain(|_, kept| *kept != KeptData::default());
        change.note(format!(
            "{name} stays in {of}; what its leave had begun in the database is not undone"
        ));
    }
    Ok(())
}
