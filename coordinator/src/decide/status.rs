//! Puts lab and reports together into what people see.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use faultbed_common::{
    generation::Generation,
    host_spec::Wanted,
    lab::{Cluster, Fault, Lab},
    name::{ClusterName, FaultName, HostName, NodeName},
    report::{HostReport, NodeState, ProxyReport},
    status::{
        BypassStatus, ClusterState, ClusterStatus, HostState, HostStatus, NodeStatus, Status,
    },
};

mod evidence;
mod fault;
mod lease;
mod leaving;
mod leftover;
mod node;
mod progress;

pub(super) use progress::exit_words;

/// The version of the document.
const API: u32 = 1;

/// What is known of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostSeen {
    /// Its last report.
    pub report: Arc<HostReport>,
    /// Whether its agent is connected to some coordinator.
    pub connected: bool,
    /// How old the report is, in milliseconds.
    pub age_ms: u64,
    /// When the host's clock was at 0, in milliseconds since the epoch; `None` where a release that did
    /// not tell took the report.
    pub boot_unix_ms: Option<u64>,
}

/// How much is said of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Everything.
    All,
    /// Everything but what each link met.
    NoEvidenceOfLinks,
    /// Everything but their links, one by one.
    NoLinks,
    /// As that, and nothing of nodes, clusters and what is pending.
    OnlyFaults,
}

/// Everything that the parts of a status are made of.
#[derive(Debug, Clone, Copy)]
struct View<'a> {
    lab: &'a Lab,
    hosts: &'a BTreeMap<HostName, HostSeen>,
    now_unix_ms: u64,
    detail: Detail,
    /// Whom each fault meets, also those that are over.
    touched: &'a BTreeMap<&'a FaultName, Touched<'a>>,
}

/// Whom a fault meets.
#[derive(Debug)]
struct Touched<'a> {
    nodes: BTreeSet<&'a NodeName>,
    /// The hosts of these nodes: a link is met at both its ends.
    hosts: BTreeSet<&'a HostName>,
}

impl<'a> Touched<'a> {
    fn of(lab: &'a Lab, fault: &'a Fault) -> Self {
        let nodes = fault.resolved.touched();
        let hosts = nodes.iter().filter_map(|name| Some(&lab.node(name)?.placement.host)).collect();
        Self { nodes, hosts }
    }
}

impl<'a> View<'a> {
    fn host(&self, name: &HostName) -> Option<&'a HostSeen> {
        self.hosts.get(name)
    }

    /// The host where it is connected: what it last said is still so.
    fn up(&self, name: &HostName) -> Option<&'a HostSeen> {
        self.host(name).filter(|seen| seen.connected)
    }

    /// The hosts that must have a fault in force.
    fn touched_hosts(&self, fault: &FaultName) -> impl Iterator<Item = &'a HostName> + use<'a> {
        let touched = self.touched.get(fault);
        touched.into_iter().flat_map(|touched| touched.hosts.iter().copied())
    }
}

/// The status of the lab. `refused` are hand edits that were refused, as sentences.
#[must_use]
pub fn status(
    lab: &Lab,
    hosts: &BTreeMap<HostName, HostSeen>,
    refused: &[String],
    (now_unix_ms, detail): (u64, Detail),
) -> Status {
    let touched = lab.faults.iter().map(|(name, fault)| (name, Touched::of(lab, fault)));
    let touched = touched.collect();
    let view = View { lab, hosts, now_unix_ms, detail, touched: &touched };
    let is_whole = detail != Detail::OnlyFaults;
    let nodes = if is_whole { node::nodes(&view) } else { Vec::new() };
    let leftovers = leftover::all(&view);
    let faults = fault::faults(&view, &leftovers);
    let forgotten = leftover::of_forgotten(&view, &leftovers);
    let progress = match is_whole {
        true => progress::progress(&view, (&nodes, &faults), leftovers, refused),
        false => progress::Progress::default(),
    };
    let of_clusters: Vec<_> = lab.clusters.iter().filter(|_| is_whole).collect();
    let mut members: BTreeMap<&ClusterName, Vec<&NodeStatus>> = BTreeMap::new();
    for node in &nodes {
        members.entry(&node.cluster).or_default().push(node);
    }
    let clusters = of_clusters.into_iter().map(|(name, held)| {
        cluster(&view, name, held, members.get(name).map_or(&[], Vec::as_slice))
    });
    let clusters = clusters.collect();
    Status {
        api: API,
        lab: lab.name.clone(),
        generation: lab.generation,
        converged: is_whole && progress.pending.is_empty() && progress.stuck.is_empty(),
        pending: progress.pending,
        stuck: progress.stuck,
        hosts: lab.hosts.keys().map(|name| host(&view, name)).collect(),
        clusters,
        bypasses: bypasses(&view),
        lease: lab.settings.lease.as_ref().map(|held| lease::of_lab(&view, held)),
        nodes,
        leaving: leaving::leaving(&view),
        faults,
        forgotten,
    }
}

fn host(view: &View<'_>, name: &HostName) -> HostStatus {
    let accepted = view.lab.hosts.get(name);
    let seen = view.host(name);
    HostStatus {
        name: name.clone(),
        address: accepted.map(|host| host.address.to_string()).unwrap_or_default(),
        labels: accepted.map(|host| host.labels.clone()).unwrap_or_default(),
        state: if view.up(name).is_some() { HostState::Up } else { HostState::Down },
        drained: accepted.is_some_and(|host| host.drained),
        generation: seen.map_or(Generation::default(), |seen| seen.report.generation),
        version: seen.map(|seen| seen.report.version.clone()).unwrap_or_default(),
        seen_age_ms: seen.map(|seen| seen.age_ms),
        boot_id: seen.map(|seen| seen.report.boot_id.clone()).unwrap_or_default(),
        warnings: seen.and_then(|seen| seen.report.proxy.as_ref()).map_or(Vec::new(), warnings),
    }
}

/// What a host's proxy could not do, in words.
fn warnings(proxy: &ProxyReport) -> Vec<String> {
    let ProxyReport { refused, unknown_reset, outdated, .. } = proxy;
    let refused = (*refused > 0).then(|| {
        format!(
            "its proxy refused {refused} connections for want of descriptors; raise the limit \
             (ulimit -Hn) of what starts the agent"
        )
    });
    let unknown = (*unknown_reset > 0).then(|| {
        format!(
            "its proxy reset {unknown_reset} connections under a fault: nobody said who dialled"
        )
    });
    let outdated = outdated
        .as_ref()
        .map(|why| format!("its proxy still runs the program of before the upgrade: {why}"));
    [refused, unknown, outdated].into_iter().flatten().collect()
}

fn cluster(
    view: &View<'_>,
    name: &ClusterName,
    cluster: &Cluster,
    nodes: &[&NodeStatus],
) -> ClusterStatus {
    let mut running = nodes.iter().filter(|node| node.wanted == Wanted::Running).peekable();
    let state = if running.peek().is_none() {
        ClusterState::Stopped
    } else if running.all(|node| {
        // It is ready once that is written down, so that nobody who waits for it meets that change.
        node.observed == NodeState::Ready && cluster.been_ready.contains(&node.role)
    }) {
        ClusterState::Ready
    } else if cluster.has_been_ready() {
        ClusterState::Degraded
    } else {
        ClusterState::Starting
    };
    ClusterStatus {
        name: name.clone(),
        blueprint: cluster.blueprint.name.to_string(),
        owner: cluster.origin.owner.clone(),
        state,
        lease: cluster.lease.as_ref().map(|held| lease::of_cluster(view, name, held)),
    }
}

fn bypasses(view: &View<'_>) -> Vec<BypassStatus> {
    let up = view.hosts.values().filter(|seen| seen.connected);
    up.flat_map(|seen| &seen.report.bypasses)
        .map(|bypass| BypassStatus {
            from: bypass.from.clone(),
            to: bypass.to.clone(),
            address: bypass.address.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
