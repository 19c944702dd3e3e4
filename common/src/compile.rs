//! Compiles the accepted lab into one host spec for each host. Deterministic: never reads reports.

#[cfg(test)]
mod tests;

mod parties;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
};

use parties::Parties;

use crate::{
    duration::Span,
    fault::{FOR_DEFAULT, Lasts},
    generation::FaultRevision,
    host_spec::{HostSpec, LeaseTerm, NodeEffect, NodeFault, NodeSpec, Terms},
    lab::{Fault, Lab, Lease, Phase},
    link::{Link, Party},
    name::{ClusterName, FaultName, HostName, NodeName},
    proxy_spec::{LinkFault, Listener, ProxySpec},
    render::{RenderError, Scene},
    shape,
};

/// Each host's share.
pub type Specs = BTreeMap<HostName, HostSpec>;

/// Every host's share of the lab.
///
/// # Errors
/// A node cannot be rendered. `edit` refuses such a lab, so an accepted one always compiles.
pub fn compile(lab: &Lab) -> Result<Specs, RenderError> {
    let mut nodes: BTreeMap<NodeName, NodeSpec> = BTreeMap::new();
    for (name, cluster) in &lab.clusters {
        let scene = Scene::new(lab, name, cluster)?;
        for node in cluster.nodes.keys() {
            nodes.insert(node.clone(), scene.node(node)?);
        }
    }
    let parties = Parties::new(lab, &nodes);
    let mut by_host: BTreeMap<HostName, BTreeMap<NodeName, NodeSpec>> =
        lab.hosts.keys().map(|host| (host.clone(), BTreeMap::new())).collect();
    for (name, place) in lab.clusters.values().flat_map(|cluster| &cluster.nodes) {
        if let (Some(host), Some(spec)) = (by_host.get_mut(&place.host), nodes.remove(name)) {
            host.insert(name.clone(), spec);
        }
    }
    let share = |(host, nodes): (HostName, BTreeMap<NodeName, NodeSpec>)| {
        (host.clone(), host_spec(lab, host, nodes, &parties))
    };
    let mut specs: Specs = by_host.into_iter().map(share).collect();
    put_faults(lab, &mut specs)?;
    Ok(specs)
}

/// The same as [`compile`], from what an earlier lab was compiled to: where nothing but faults and times
/// has changed, as in most changes, nobody is placed or rendered anew.
///
/// # Errors
/// As [`compile`].
pub fn compile_after((before, compiled): (&Lab, &Specs), lab: &Lab) -> Result<Specs, RenderError> {
    if !has_same_nodes(before, lab) {
        return compile(lab);
    }
    let mut specs = compiled.clone();
    for (host, spec) in &mut specs {
        spec.generation = lab.generation;
        spec.proxy.generation = lab.generation;
        spec.wipe_removed = lab.removed_wiped.get(host).cloned().unwrap_or_default();
        spec.forced = forced(lab, host);
        spec.terms = host_terms(lab, &spec.nodes);
        spec.proxy.faults.clear();
        spec.nodes.values_mut().for_each(|node| node.faults.clear());
    }
    put_faults(lab, &mut specs)?;
    Ok(specs)
}

/// Whether a lab that came from one that compiles does so as well: what is as it was is not tried again.
///
/// # Errors
/// As [`compile`].
pub fn check_after(before: &Lab, lab: &Lab) -> Result<(), RenderError> {
    let same_hosts = before.name == lab.name && before.hosts == lab.hosts;
    for (name, cluster) in &lab.clusters {
        let is_same = same_hosts && before.clusters.get(name) == Some(cluster);
        let of_cluster = |node: &&NodeName| cluster.nodes.contains_key(*node);
        let custom =
            lab.faults.values().filter(|fault| is_active(fault) && fault.spec.effect.is_some());
        let met: Vec<(&Fault, &NodeName)> = custom
            .flat_map(|fault| {
                fault.resolved.nodes.iter().filter(of_cluster).map(move |n| (&**fault, n))
            })
            .collect();
        if is_same && met.is_empty() {
            continue;
        }
        let scene = Scene::new(lab, name, cluster)?;
        for node in cluster.nodes.keys().filter(|_| !is_same) {
            scene.node(node)?;
        }
        for (fault, node) in met {
            node_effect(&scene, node, fault)?;
        }
    }
    Ok(())
}

/// Whether two labs are of the same nodes in the same places, whatever their faults: then hosts are told the
/// same of the rest of the lab.
#[must_use]
pub fn has_same_nodes(before: &Lab, lab: &Lab) -> bool {
    before.name == lab.name && before.hosts == lab.hosts && before.clusters == lab.clusters
}

/// A host's share without its faults.
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
        blocks: Arc::clone(&parties.blocks),
        hosts: parties.others(&host),
        desk: parties.desk(&host),
        sources: parties.sources(&host, &nodes),
        faults: BTreeMap::new(),
    };
    HostSpec {
        lab: lab.name.clone(),
        generation: lab.generation,
        dials: Arc::new(parties.dials(&host)),
        clusters: Arc::clone(&parties.clusters),
        wipe_removed: lab.removed_wiped.get(&host).cloned().unwrap_or_default(),
        forced: forced(lab, &host),
        terms: host_terms(lab, &nodes),
        host,
        nodes,
        proxy,
    }
}

/// The nodes of a host that go without their leave.
fn forced(lab: &Lab, host: &HostName) -> BTreeSet<NodeName> {
    let leaving = lab.kept.values().flat_map(|kept| &kept.leaving);
    let forced = leaving.filter(|(_, node)| node.forced && node.placement.host == *host);
    forced.map(|(name, _)| name.clone()).collect()
}

/// Puts the faults in force where they act.
fn put_faults(lab: &Lab, specs: &mut Specs) -> Result<(), RenderError> {
    for (name, fault) in lab.faults.iter().filter(|(_, fault)| is_active(fault)) {
        put_on_nodes(lab, (name, fault), specs)?;
        put_on_links(lab, (name, fault), specs);
    }
    Ok(())
}

/// What a fault in force does to nodes themselves.
fn put_on_nodes(
    lab: &Lab,
    (name, fault): (&FaultName, &Fault),
    specs: &mut Specs,
) -> Result<(), RenderError> {
    let mut scenes: BTreeMap<&ClusterName, Scene<'_>> = BTreeMap::new();
    for node in fault.resolved.nodes.iter().filter_map(|node| lab.node(node)) {
        let scene = match scenes.entry(node.cluster_name) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => free.insert(Scene::new(lab, node.cluster_name, node.cluster)?),
        };
        let spec = specs.get_mut(&node.placement.host);
        let spec = spec.and_then(|spec| spec.nodes.get_mut(node.name));
        if let (Some(effect), Some(spec)) = (node_effect(scene, node.name, fault)?, spec) {
            let FaultTerms { revision, lasts } = terms(fault);
            spec.faults.insert(name.clone(), NodeFault { revision, lasts, effect });
        }
    }
    Ok(())
}

fn node_effect(
    scene: &Scene<'_>,
    node: &NodeName,
    fault: &Fault,
) -> Result<Option<NodeEffect>, RenderError> {
    match &fault.spec.effect {
        Some(effect) => scene.effect(node, effect, &fault.spec.values).map(Some),
        None => Ok(shape::node_effect(&fault.spec, node)),
    }
}

/// A fault in force, for each host as far as it meets the links of its nodes.
fn put_on_links(lab: &Lab, (name, fault): (&FaultName, &Fault), specs: &mut Specs) {
    let host_of = |party: &Party| Some(&lab.node(party.node()?)?.placement.host);
    let mut by_host: BTreeMap<&HostName, BTreeSet<Link>> = BTreeMap::new();
    for link in &fault.resolved.links {
        for host in [&link.from, &link.to].into_iter().filter_map(host_of) {
            by_host.entry(host).or_default().insert(link.clone());
        }
    }
    for (host, links) in by_host {
        let Some(spec) = specs.get_mut(host) else { continue };
        let FaultTerms { revision, lasts } = terms(fault);
        let fault = LinkFault {
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
        };
        spec.proxy.faults.insert(name.clone(), fault);
    }
}

/// Leases that are over have stopped their nodes, so hosts need not know of them.
fn host_terms(lab: &Lab, nodes: &BTreeMap<NodeName, NodeSpec>) -> Terms {
    let term = |lease: &Option<Lease>| {
        let lease = lease.as_ref().filter(|lease| !lease.ended)?;
        Some(LeaseTerm { revision: lease.revision, lasts: lease.lasts })
    };
    let here: BTreeSet<&ClusterName> = nodes.values().map(|node| &node.cluster).collect();
    let clusters = here.into_iter().filter_map(|name| lab.clusters.get_key_value(name));
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

fn is_active(fault: &Fault) -> bool {
    matches!(fault.phase, Phase::Active { .. })
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
