//! Leases: the time that a cluster or the whole lab may run. Hosts enforce them alone; here they
//! begin, begin again, and are found to be over.

use std::collections::BTreeSet;

use faultbed_common::{
    duration::{Span, millis},
    host_spec::{StopBy, Wanted},
    lab::{Cluster, Lab, Lease},
    name::{ClusterName, NodeName},
    report::LeaseReport,
    spec::ClusterSpec,
    target::Reports,
};

use super::{Refusal, change::Change, invalid};

/// A lease that begins now.
pub(super) fn begin(change: &Change<'_>, lasts: Span) -> Lease {
    let since_unix_ms = change.asked.now_unix_ms;
    Lease { lasts, since_unix_ms, revision: change.revision(), ended: false }
}

/// Reads `24h`, or `none` for no lease.
pub(super) fn parse(value: &str) -> Result<Option<Span>, Refusal> {
    if value == "none" {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|error| invalid(format!("{error}, or \"none\" for no lease")))
}

/// Whether a cluster that is there is asked for again as it is, with a lease.
pub(super) fn is_asked_again(there: &ClusterSpec, asked: &ClusterSpec) -> bool {
    asked.lease.is_some() && *there == ClusterSpec { lease: there.lease, ..asked.clone() }
}

/// Gives a cluster another lease, from now on; `None` takes it away.
pub(super) fn set(change: &mut Change<'_>, name: &ClusterName, lasts: Option<Span>) {
    let lease = lasts.map(|lasts| begin(change, lasts));
    let Some(cluster) = change.lab.clusters.get_mut(name) else { return };
    let was_over = cluster.lease.as_ref().is_some_and(|lease| lease.ended);
    cluster.spec.lease = lasts;
    cluster.lease = lease;
    let note = match lasts {
        Some(lasts) => format!("cluster {name} may run for {lasts} from now on"),
        None => format!("cluster {name} may run until somebody stops it"),
    };
    change.note(note);
    if was_over {
        change.note(format!(
            "its nodes stay down, as the end of its lease left them; `faultbed start {name}` starts \
             them"
        ));
    }
}

/// Whoever starts a node of a cluster whose lease is over gives it as much time again.
pub(super) fn begin_again(change: &mut Change<'_>, nodes: &[NodeName]) {
    let over: BTreeSet<ClusterName> = nodes
        .iter()
        .filter_map(|name| change.lab.node(name))
        .filter(|node| node.cluster.lease.as_ref().is_some_and(|lease| lease.ended))
        .map(|node| node.cluster_name.clone())
        .collect();
    for name in over {
        let lasts = change.lab.clusters.get(&name).and_then(|cluster| cluster.spec.lease);
        let lease = lasts.map(|lasts| begin(change, lasts));
        if let Some(cluster) = change.lab.clusters.get_mut(&name) {
            cluster.lease = lease;
        }
        if let Some(lasts) = lasts {
            change.note(format!("the lease of {name} was over and begins again: {lasts}"));
        }
    }
}

/// The lease of the whole lab. Returns what was asked, in words.
pub(super) fn lab(change: &mut Change<'_>, lasts: Option<Span>) -> String {
    change.lab.settings.lease = lasts.map(|lasts| begin(change, lasts));
    match lasts {
        Some(lasts) => format!("the lab lasts {lasts}"),
        None => "the lab lasts until it is taken down".to_owned(),
    }
}

/// Ends what is over, in words: its nodes are down on purpose from now on. What a chore does.
pub(in crate::decide) fn end_those_over(change: &mut Change<'_>, done: &mut Vec<String>) {
    let (lab, reports, now) = (&change.lab, change.reports, change.asked.now_unix_ms);
    let is_lab_over = lab.settings.lease.as_ref().is_some_and(|lease| {
        is_over(lease, reports.values().filter_map(|host| host.lab_lease.as_ref()), now)
    });
    let over: Vec<ClusterName> = lab
        .clusters
        .iter()
        .filter(|(name, cluster)| {
            let of_hosts = |lease: &Lease| is_over(lease, of_cluster(reports, name), now);
            is_lab_over || cluster.lease.as_ref().is_some_and(of_hosts)
        })
        .map(|(name, _)| name.clone())
        .collect();
    if is_lab_over {
        if let Some(lease) = &mut change.lab.settings.lease {
            lease.ended = true;
        }
        done.push("the lease of the lab ended".to_owned());
    }
    for name in over {
        if let Some(cluster) = change.lab.clusters.get_mut(&name) {
            stop(cluster);
        }
        done.push(if is_lab_over {
            format!("{name} is stopped")
        } else {
            format!("lease of {name} ended: it is stopped")
        });
    }
}

fn stop(cluster: &mut Cluster) {
    if let Some(lease) = &mut cluster.lease {
        lease.ended = true;
    }
    for placement in cluster.nodes.values_mut() {
        if placement.wanted == Wanted::Running {
            placement.wanted = Wanted::Stopped;
            placement.stop_by = StopBy::Grace;
        }
    }
}

/// What hosts say of a cluster's lease.
pub(in crate::decide) fn of_cluster<'a>(
    reports: &'a Reports,
    name: &'a ClusterName,
) -> impl Iterator<Item = &'a LeaseReport> {
    reports.values().filter_map(move |host| host.leases.get(name))
}

/// Whether a lease ends now. Hosts count it down by a clock that nobody can set, so where any of
/// them speaks of this lease its word goes before our own clock.
fn is_over<'a>(
    lease: &Lease,
    said: impl Iterator<Item = &'a LeaseReport>,
    now_unix_ms: u64,
) -> bool {
    if lease.ended {
        return false;
    }
    let mut said = said.filter(|said| said.revision == lease.revision).peekable();
    if said.peek().is_some() {
        return said.any(|said| said.remaining_ms == 0);
    }
    ends_at(lease).is_some_and(|at| at <= now_unix_ms)
}

/// When a lease is over by the coordinator's clock; `None` where it has ended.
fn ends_at(lease: &Lease) -> Option<u64> {
    let end = lease.since_unix_ms.saturating_add(millis(lease.lasts.0));
    (!lease.ended).then_some(end)
}

/// When the next lease ends by the coordinator's clock.
pub(in crate::decide) fn next_end(lab: &Lab) -> Option<u64> {
    let of_clusters = lab.clusters.values().filter_map(|cluster| cluster.lease.as_ref());
    of_clusters.chain(&lab.settings.lease).filter_map(ends_at).min()
}
