//! `remove NODE`: exactly these nodes leave their clusters for good.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    name::{ClusterName, NodeName},
    place::counts,
    target,
};

use super::{Refusal, change::Change, cluster, invalid, leaving};

/// Takes the nodes that `targets` name out of their clusters; the others keep their names.
pub(super) fn remove(change: &mut Change<'_>, targets: &[String]) -> Result<(), Refusal> {
    let (gone, targets) = leaving::split(change, targets);
    leaving::force(change, &gone)?;
    if targets.is_empty() && !gone.is_empty() {
        return Ok(());
    }
    let nodes = target::nodes(&change.lab, change.reports, &targets).map_err(invalid)?;
    change.own_nodes(&nodes)?;
    let mut by_cluster: BTreeMap<ClusterName, BTreeSet<NodeName>> = BTreeMap::new();
    for node in nodes.iter().filter_map(|node| change.lab.node(node)) {
        by_cluster.entry(node.cluster_name.clone()).or_default().insert(node.name.clone());
    }
    for (name, going) in by_cluster {
        let Some(cluster) = change.lab.clusters.get(&name) else { continue };
        let mut spec = cluster.spec.clone();
        let mut counts = counts(&spec, &cluster.blueprint);
        for node in &going {
            let Some(place) = cluster.nodes.get(node) else { continue };
            let count = counts.entry(place.role.clone()).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                return Err(invalid(format!(
                    "{node} is the last {} of cluster {name}; `faultbed delete cluster {name}` \
                     ends the cluster",
                    place.role
                )));
            }
            let role = spec.roles.entry(place.role.clone()).or_default();
            role.count = Some(*count);
            role.node.remove(&place.index);
        }
        let origin = cluster.origin.clone();
        let moves = cluster::Moves { going, ..cluster::Moves::default() };
        cluster::accept_with(change, &name, &spec, origin, moves)?;
    }
    Ok(())
}
