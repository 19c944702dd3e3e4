//! What people see of nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use faultbed_common::{
    host_spec::Wanted,
    lab::NodeRef,
    name::{ClusterName, FaultName, NodeName, RoleName},
    report::{Identity, NodeReport, NodeState},
    status::NodeStatus,
};

use super::View;

/// The nodes that each fault in force touches.
type Touched<'a> = Vec<(&'a FaultName, &'a BTreeSet<&'a NodeName>)>;

/// All nodes, by cluster and in natural order.
pub(super) fn nodes(view: &View<'_>) -> Vec<NodeStatus> {
    let in_force = view.lab.faults.iter().filter(|(_, fault)| fault.is_active());
    let touched: Touched<'_> =
        in_force.filter_map(|(name, _)| Some((name, &view.touched.get(name)?.nodes))).collect();
    let mut nodes: Vec<NodeStatus> =
        view.lab.nodes().map(|found| node(view, found, &touched)).collect();
    settle_leaders(&mut nodes);
    nodes
}

fn node(view: &View<'_>, found: NodeRef<'_>, touched: &Touched<'_>) -> NodeStatus {
    let NodeRef { name, placement, cluster_name, cluster } = found;
    let seen = view.host(&placement.host);
    let up = view.up(&placement.host).is_some();
    let nothing = NodeReport::default();
    let known = seen.and_then(|seen| seen.report.nodes.get(name));
    let report = known.unwrap_or(&nothing);
    let runs = up && is_live(report.observed);
    let age_ms = seen.map(|seen| match (up, known) {
        (true, Some(report)) => {
            Some(seen.report.now_ms.saturating_sub(report.since_ms).saturating_add(seen.age_ms))
        }
        (true, None) => None,
        (false, _) => Some(seen.age_ms),
    });
    let ended = cluster.lease.as_ref().or(view.lab.settings.lease.as_ref());
    let is_over = ended.is_some_and(|lease| lease.ended) && placement.wanted == Wanted::Stopped;
    let why = if up && is_over && report.observed.is_down() {
        Some("lease ended".to_owned())
    } else if up {
        report.why.clone()
    } else if seen.is_some() {
        Some(format!("{} is down", placement.host))
    } else {
        Some(format!("{} has not reported yet", placement.host))
    };
    NodeStatus {
        name: name.clone(),
        cluster: cluster_name.clone(),
        role: placement.role.clone(),
        host: placement.host.clone(),
        wanted: placement.wanted,
        observed: if up { report.observed } else { NodeState::Unknown },
        pid: report.pid.filter(|_| up),
        incarnation: report.incarnation,
        leader: report.leader.filter(|_| runs),
        role_state: report.role_state.clone().filter(|_| runs),
        term: report.term.filter(|_| runs),
        leads: report.leads.filter(|_| runs),
        exit: report.exit.clone(),
        endpoints: addresses(view, &found, true),
        private: addresses(view, &found, false),
        binary: report.binary.clone(),
        identity: if up { report.identity.clone() } else { Identity::Unknown },
        dial_ports: placement.block,
        faults: touched
            .iter()
            .filter(|(_, nodes)| nodes.contains(name))
            .map(|(fault, _)| (*fault).clone())
            .collect(),
        why,
        restarts: report.restarts,
        state_age_ms: age_ms.flatten(),
    }
}

/// Whether what its database says of itself can still be so.
fn is_live(state: NodeState) -> bool {
    match state {
        NodeState::Starting | NodeState::Ready | NodeState::Unready | NodeState::Paused => true,
        NodeState::Absent
        | NodeState::Preparing
        | NodeState::Stopping
        | NodeState::Stopped
        | NodeState::Killed
        | NodeState::Crashed
        | NodeState::Unknown => false,
    }
}

/// Addresses by port name, with the scheme people put before them.
fn addresses(view: &View<'_>, node: &NodeRef<'_>, advertised: bool) -> BTreeMap<String, String> {
    let placement = node.placement;
    let role = node.cluster.blueprint.roles.get(&placement.role);
    let host = view.lab.hosts.get(&placement.host).map(|host| host.address);
    let address = |(name, port): (&faultbed_common::name::PortName, &u16)| {
        let rule = role.and_then(|role| role.ports.get(name));
        // A port without a proxy is reached where the node itself listens.
        let is_proxied = rule.is_none_or(|rule| rule.proxied);
        let ip = host.filter(|_| advertised && is_proxied).unwrap_or(placement.private);
        let socket = SocketAddr::new(ip, *port);
        let is_tls = node.cluster.authority.is_some();
        let text = match role.and_then(|role| role.url(name, is_tls)) {
            Some(scheme) => format!("{scheme}://{socket}"),
            None => socket.to_string(),
        };
        (name.to_string(), text)
    };
    placement.ports.iter().map(address).collect()
}

/// A node that was cut off may go on claiming to lead: within a role only the newest term leads.
/// What its database says of itself stays in `role_state`.
fn settle_leaders(nodes: &mut [NodeStatus]) {
    let mut newest: BTreeMap<(ClusterName, RoleName), Option<u64>> = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.leader == Some(true)) {
        let term = newest.entry((node.cluster.clone(), node.role.clone())).or_default();
        *term = (*term).max(node.term);
    }
    for node in nodes.iter_mut().filter(|node| node.leader == Some(true)) {
        let key = (node.cluster.clone(), node.role.clone());
        if newest.get(&key).is_some_and(|term| *term > node.term) {
            node.leader = Some(false);
        }
    }
}
