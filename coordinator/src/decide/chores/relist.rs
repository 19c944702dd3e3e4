//! Restarts nodes whose files list others that came or went: one at a time, each ready before the next.

use faultbed_common::{
    host_spec::{StopBy, Wanted},
    lab::{Cluster, Placement, Relist},
    name::NodeName,
    report::{NodeReport, NodeState},
    target::Reports,
};

use super::super::edit::change::Change;

/// Restarts at most one node of each cluster.
pub(super) fn restart_next(change: &mut Change<'_>, done: &mut Vec<String>) {
    let reports = change.reports;
    for cluster in change.lab.clusters.values_mut().filter(|cluster| !cluster.relist.is_empty()) {
        let Some(name) = next(reports, cluster) else { continue };
        let moved: Vec<&str> = cluster.relist.moved.iter().map(AsRef::as_ref).collect();
        let moved = moved.join(", ");
        match cluster.nodes.get_mut(&name) {
            Some(placement) if should_run(placement) => {
                let seen = seen(reports, placement, &name);
                let incarnation = seen.map(|seen| seen.incarnation).unwrap_or_default();
                placement.incarnation = placement.incarnation.max(incarnation).next();
                placement.stop_by = StopBy::Grace;
                done.push(format!("restart {name}, which lists {moved}"));
            }
            _ => done.push(format!("{name} is down, and lists {moved} when it starts")),
        }
        cluster.relist.restart.remove(&name);
        if cluster.relist.is_empty() {
            cluster.relist = Relist::default();
        }
    }
}

/// The node that may restart now: what came is ready, what went is gone, and so is the one before.
fn next(reports: &Reports, cluster: &Cluster) -> Option<NodeName> {
    let is_settled = |name: &NodeName| match cluster.nodes.get(name) {
        Some(placement) => !should_run(placement) || is_ready(reports, placement, name),
        None => !reports.values().any(|report| {
            let seen = report.nodes.get(name);
            seen.is_some_and(|seen| !seen.observed.is_down())
        }),
    };
    let name = cluster.relist.restart.first()?;
    let Some(placement) = cluster.nodes.get(name).filter(|placement| should_run(placement)) else {
        return Some(name.clone());
    };
    let role = &placement.role;
    let mut others = cluster.of_role(role).filter(|(other, _)| *other != name);
    let are_others_well = others
        .all(|(other, placement)| !should_run(placement) || is_ready(reports, placement, other));
    (are_others_well && cluster.relist.moved.iter().all(is_settled)).then(|| name.clone())
}

fn should_run(placement: &Placement) -> bool {
    placement.wanted == Wanted::Running
}

fn seen<'a>(
    reports: &'a Reports,
    placement: &Placement,
    name: &NodeName,
) -> Option<&'a NodeReport> {
    reports.get(&placement.host)?.nodes.get(name)
}

fn is_ready(reports: &Reports, placement: &Placement, name: &NodeName) -> bool {
    seen(reports, placement, name).is_some_and(|seen| {
        seen.observed == NodeState::Ready && seen.incarnation >= placement.incarnation
    })
}
