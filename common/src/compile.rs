//! Compiles the accepted lab into one host spec for each host. Deterministic: never reads reports.

#[cfg(test)]
mod tests;

mod parties;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use parties::Parties;

use crate::{
    duration::Span,
    fault::{FOR_DEFAULT, Lasts},
    generation::FaultRevision,
    host_spec::{HostSpec, LeaseTerm, NodeFault, NodeSpec, Terms},
    lab::{Fault, Lab, Lease, Phase},
    link::{Link, Party},
    name::{ClusterName, FaultName, HostName, NodeName},
    proxy_spec::{LinkFault, Listener, ProxySpec},
    render::{RenderError, Scene},
    shape,
};

/// Every host's share of the lab.
///
/// # Errors
/// A node cannot be rendered. `edit` refuses such a lab, so an accepted one always compiles.
pub fn compile(lab: &Lab) -> Result<BTreeMap<HostName, HostSpec>, RenderError> {
    let mut nodes: BTreeMap<NodeName, NodeSpec> = BTreeMap::new();
    for (name, cluster) in &lab.clusters {
        let scene = Scene::new(lab, name, cluster)?;
        for node in cluster.nodes.keys() {
            let mut spec = scene.node(node)?;
            spec.faults = node_faults(lab, &scene, node)?;
            nodes.insert(node.clone(), spec);
        }
    }
    let parties = Parties::new(lab, &nodes);
    for node in lab.nodes() {
        if let Some(spec) = nodes.get_mut(node.name) {
            parties.tell(spec, node.placement);
        }
    }

    let mut by_host: BTreeMap<HostName, BTreeMap<NodeName, NodeSpec>> =
        lab.hosts.keys().map(|host| (host.clone(), BTreeMap::new())).collect();
    for (name, place) in lab.clusters.values().flat_map(|cluster| &cluster.nodes) {
        if let (Some(host), Some(spec)) = (by_host.get_mut(&place.host), nodes.remove(name)) {
            host.insert(name.clone(), spec);
        }
    }
    Ok(by_host
        .into_iter()
        .map(|(host, nodes)| (host.clone(), host_spec(lab, host, nodes, &parties)))
        .collect())
}

fn host_spec(
    lab: &Lab,
    host: HostName,
    nodes: BTreeMap<NodeName, NodeSpec>,
    parties: &Parties<'_>,
) -> HostSpec {
    let mut listeners: Vec<Listener> =
        nodes.iter().flat_map(|(n, spec)| listeners(n, spec)).collect();
    listeners.sort_unstable();
    let proxy = ProxySpec {
        generation: lab.generation,
        listeners,
        diallers: parties.diallers(&host),
        blocks: parties.blocks.clone(),
        hosts: parties.others(&host),
        desk: parties.desk(&host),
        sources: parties.sources(&host, &nodes),
        faults: lab
            .faults
            .iter()
            .filter_map(|(name, fault)| Some((name.clone(), link_fault(name, fault, &nodes)?)))
            .collect(),
    };
    HostSpec {
        lab: lab.name.clone(),
        generation: lab.generation,
        clusters: lab.clusters.keys().cloned().collect(),
        wipe_removed: lab.removed_wiped.get(&host).cloned().unwrap_or_default(),
        terms: host_terms(lab, &nodes),
        host,
        nodes,
        proxy,
    }
}

/// Leases that are over have stopped their nodes, so hosts need not know of them.
fn host_terms(lab: &Lab, nodes: &BTreeMap<NodeName, NodeSpec>) -> Terms {
    let term = |lease: &Option<Lease>| {
        let lease = lease.as_ref().filter(|lease| !lease.ended)?;
        Some(LeaseTerm { revision: lease.revision, lasts: lease.lasts })
    };
    let here = |name: &ClusterName| nodes.values().any(|node| node.cluster == *name);
    let clusters = lab.clusters.iter().filter(|(name, _)| here(name));
    Terms {
        lab: term(&lab.settings.lease),
        clusters: clusters
            .filter_map(|(name, cluster)| Some((name.clone(), term(&cluster.lease)?)))
            .collect(),
        dead_man: lab.settings.dead_man,
    }
}

fn listeners<'a>(name: &'a NodeName, spec: &'a NodeSpec) -> impl Iterator<Item = Listener> + 'a {
    let proxied = spec.ports.iter().filter(|(_, port)| port.proxied);
    proxied.map(|(port_name, port)| Listener {
        node: name.clone(),
        port: port_name.clone(),
        listen: SocketAddr::new(spec.address, port.port),
        upstream: SocketAddr::new(spec.private, port.port),
    })
}

/// What the faults in force do to one node itself.
fn node_faults(
    lab: &Lab,
    scene: &Scene<'_>,
    node: &NodeName,
) -> Result<BTreeMap<FaultName, NodeFault>, RenderError> {
    let mut faults = BTreeMap::new();
    let meets = |fault: &&Fault| is_active(fault) && fault.resolved.nodes.contains(node);
    for (name, fault) in lab.faults.iter().filter(|(_, fault)| meets(fault)) {
        let effect = match &fault.spec.effect {
            Some(effect) => Some(scene.effect(node, effect, &fault.spec.values)?),
            None => shape::node_effect(&fault.spec, node),
        };
        if let Some(effect) = effect {
            let FaultTerms { revision, lasts } = terms(fault);
            faults.insert(name.clone(), NodeFault { revision, lasts, effect });
        }
    }
    Ok(faults)
}

/// A fault as far as it meets the links of the nodes of one host; `None` where it does not.
fn link_fault(
    name: &FaultName,
    fault: &Fault,
    nodes: &BTreeMap<NodeName, NodeSpec>,
) -> Option<LinkFault> {
    if !is_active(fault) {
        return None;
    }
    let meets = |link: &&Link| touches_any(link, nodes);
    let links: BTreeSet<Link> = fault.resolved.links.iter().filter(meets).cloned().collect();
    if links.is_empty() {
        return None;
    }
    let FaultTerms { revision, lasts } = terms(fault);
    Some(LinkFault {
        revision,
        lasts,
        effect: shape::effect(&fault.spec),
        grade: fault.spec.grade,
        heal: fault.spec.heal.unwrap_or_default(),
        links,
        seed: fault.spec.seed_for(name),
        probability: fault.spec.probability,
        canary: fault.spec.canary,
        fast_heal: fault.spec.fast_heal,
    })
}

fn is_active(fault: &Fault) -> bool {
    matches!(fault.phase, Phase::Active { .. })
}

fn touches_any(link: &Link, nodes: &BTreeMap<NodeName, NodeSpec>) -> bool {
    [&link.from, &link.to].iter().any(|party| match party {
        Party::Node(name) => nodes.contains_key(name),
        Party::Clients => false,
    })
}

/// What every host is told of a fault beside its effect.
struct FaultTerms {
    revision: FaultRevision,
    lasts: Option<Span>,
}

fn terms(fault: &Fault) -> FaultTerms {
    let lasts = match fault.spec.lasts {
        Some(Lasts::For(span)) => Some(span),
        Some(Lasts::UntilHealed) => None,
        // Files must say it and verbs fill it in; a hand edit may still lack it.
        None => Some(Span(FOR_DEFAULT)),
    };
    FaultTerms { revision: fault.revision, lasts }
}
