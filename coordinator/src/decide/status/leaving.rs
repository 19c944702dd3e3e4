//! Nodes that were taken out of their cluster and are not gone: their hosts still speak of them.

use faultbed_common::{
    host_spec::Wanted,
    lab::Cluster,
    name::{ClusterName, HostName, NodeName, RoleName, node_name},
    report::{NodeReport, NodeState},
    status::NodeStatus,
};

use super::{HostSeen, View};

/// All of them, host by host. Those of clusters that are gone as a whole only stop, which their hosts say
/// among what is pending.
pub(super) fn leaving(view: &View<'_>) -> Vec<NodeStatus> {
    let mut found = Vec::new();
    // Of a host that is out of the lab nobody hears more: its agent stops them when it hears of it.
    for (host, seen) in view.hosts.iter().filter(|(host, _)| view.lab.hosts.contains_key(*host)) {
        for (name, report) in &seen.report.nodes {
            let member = member_of(view, name).filter(|_| view.lab.node(name).is_none());
            found.extend(member.map(|of| status(host, seen, (name, report), of)));
        }
    }
    found
}

fn status(
    host: &HostName,
    seen: &HostSeen,
    (name, report): (&NodeName, &NodeReport),
    (cluster, role): (&ClusterName, &RoleName),
) -> NodeStatus {
    let up = seen.connected;
    let why = if up { report.why.clone() } else { Some(format!("{host} is down")) };
    let age_ms = match up {
        true => seen.report.now_ms.saturating_sub(report.since_ms).saturating_add(seen.age_ms),
        false => seen.age_ms,
    };
    NodeStatus {
        name: name.clone(),
        cluster: cluster.clone(),
        role: role.clone(),
        host: host.clone(),
        wanted: Wanted::Stopped,
        observed: if up { report.observed } else { NodeState::Unknown },
        pid: report.pid.filter(|_| up),
        incarnation: report.incarnation,
        leader: None,
        role_state: None,
        term: None,
        leads: None,
        exit: report.exit.clone(),
        endpoints: Default::default(),
        private: Default::default(),
        binary: report.binary.clone(),
        identity: report.identity.clone(),
        dial_ports: None,
        faults: Vec::new(),
        why,
        restarts: report.restarts,
        state_age_ms: Some(age_ms),
    }
}

/// The cluster and role that a node was of: its name says so.
fn member_of<'a>(view: &View<'a>, node: &NodeName) -> Option<(&'a ClusterName, &'a RoleName)> {
    let text = node.as_str();
    let index = text.rsplit('-').next()?.parse().ok()?;
    text.rmatch_indices('-').find_map(|(at, _)| {
        let cluster = ClusterName::parse(text.get(..at)?).ok()?;
        let (name, cluster) = view.lab.clusters.get_key_value(&cluster)?;
        Some((name, role_of(name, cluster, node, index)?))
    })
}

fn role_of<'a>(
    name: &ClusterName,
    cluster: &'a Cluster,
    node: &NodeName,
    index: u32,
) -> Option<&'a RoleName> {
    let roles = &cluster.blueprint.roles;
    roles.keys().find(|role| {
        let said = (roles.len() > 1).then_some(*role);
        node_name(name, said, index).is_ok_and(|called| called == *node)
    })
}
