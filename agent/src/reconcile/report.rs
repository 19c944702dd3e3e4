//! Says what was found, done and not done. Pure.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use faultbed_common::{
    fault::Grade,
    host_spec::NodeEffect,
    name::{FaultName, HostName, NodeName},
    report::{
        BinaryReport, ExitReport, FaultReport, ForeignListener, HostReport, Identity, NO_LISTENER,
        NodeReport, NodeState, ProxyReport,
    },
};

use super::{
    Observed, ObservedNode, Readiness, Run, StepKind, Why,
    evidence::Kept,
    hands::{ProxySeen, Survey},
    plan::Plan,
};
use crate::{
    canary::Canaries,
    clock::BootTime,
    ledger::{Accepted, Retiring},
};

/// Ended faults on nodes that stay in the report.
pub const ENDED_FAULTS_MAX: usize = 100;

/// What is remembered of a node only to be told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    /// Its state when last told, and since when.
    pub state: Option<(NodeState, BootTime)>,
    /// Whether this incarnation has been ready.
    pub been_ready: bool,
    /// Why the ready probe failed last in this incarnation.
    pub probe: Option<String>,
    /// What its database says of its role.
    pub role: Role,
    /// How its connections are named.
    pub identity: Identity,
}

/// What a database says of one of its nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Role {
    /// The role's name.
    pub state: Option<String>,
    /// Whether it leads.
    pub leader: Option<bool>,
    /// The term of the election it speaks of.
    pub term: Option<u64>,
    /// How many parts of the data it leads.
    pub leads: Option<u64>,
    /// Why nothing is known of its role, where it was asked for.
    pub why: Option<String>,
}

/// Everything a report is made from.
#[derive(Debug)]
pub struct Findings<'a> {
    /// The host, which has a name also before it was told anything.
    pub host: &'a HostName,
    /// What was accepted, if anything was.
    pub accepted: Option<&'a Accepted>,
    /// What was observed.
    pub observed: &'a Observed,
    /// What is still to do.
    pub plan: &'a Plan,
    /// Why the newest orders were refused.
    pub refused: Option<&'a str>,
    /// Why what was accepted is not on disk.
    pub disk: Option<&'a str>,
    /// What is remembered of nodes.
    pub facts: &'a BTreeMap<NodeName, NodeFacts>,
    /// What the proxy said last.
    pub proxy: Option<&'a ProxySeen>,
    /// What came of asking nodes as their peers would.
    pub canaries: &'a Canaries,
    /// What the last survey found.
    pub survey: &'a Survey,
    /// What faults did, and those on nodes that ended here.
    pub kept: &'a Kept,
    /// Now.
    pub now: BootTime,
}

/// The state of a node as people see it.
#[must_use]
pub fn state(observed: &ObservedNode, has_probe: bool) -> NodeState {
    let prepares = observed.busy.iter().any(|kind| {
        matches!(
            kind,
            StepKind::Init | StepKind::Join | StepKind::Fetch | StepKind::Start | StepKind::Wipe
        )
    });
    match &observed.run {
        Run::Unknown { .. } => NodeState::Unknown,
        Run::Running(running) if running.asked.is_some() => NodeState::Stopping,
        Run::Running(running) if running.paused => NodeState::Paused,
        Run::Running(_) if !has_probe => NodeState::Ready,
        Run::Running(_) => match observed.ready {
            Readiness::NotYet => NodeState::Starting,
            Readiness::Ready => NodeState::Ready,
            Readiness::Unready => NodeState::Unready,
        },
        Run::None | Run::Ended(_) if prepares => NodeState::Preparing,
        Run::None => NodeState::Absent,
        Run::Ended(ended) => match ended.asked {
            None => NodeState::Crashed,
            Some(Why::Kill) => NodeState::Killed,
            Some(Why::Stop | Why::Restart | Why::Wipe | Why::Remove | Why::Reboot) => {
                NodeState::Stopped
            }
        },
    }
}

/// The whole report.
#[must_use]
pub fn report(findings: &Findings<'_>, version: &str, boot_id: &str) -> HostReport {
    let Findings { accepted, observed, plan, proxy, survey, now, .. } = *findings;
    let mut stuck = plan.stuck.clone();
    stuck.extend(findings.refused.iter().chain(&findings.disk).map(|why| (*why).to_owned()));
    let mut faults = proxy.map(|seen| seen.faults.clone()).unwrap_or_default();
    faults.extend(findings.kept.ended.clone());
    faults.extend(node_faults(findings));
    findings.kept.fill(&mut faults);
    if let (Some(why), Some(accepted)) = (&survey.slow, accepted) {
        let eager = accepted.spec.proxy.faults.iter().filter(|(_, fault)| fault.fast_heal);
        for (name, _) in eager {
            if let Some(told) = faults.get_mut(name).filter(|told| told.active) {
                told.why.get_or_insert_with(|| why.clone());
            }
        }
    }
    findings.canaries.fill(&mut faults);
    let mut report = HostReport {
        host: Some(findings.host.clone()),
        version: version.to_owned(),
        boot_id: boot_id.to_owned(),
        now_ms: now.ms(),
        generation: accepted.map(|accepted| accepted.spec.generation).unwrap_or_default(),
        pending: plan.pending.clone(),
        stuck,
        nodes: nodes(findings),
        faults,
        bypasses: survey.bypasses.clone(),
        foreign: survey.foreign.clone(),
        proxy: proxy.filter(|_| observed.proxy.running).map(|seen| ProxyReport {
            outdated: observed.proxy.outdated.clone(),
            ..seen.report.clone()
        }),
        ..HostReport::default()
    };
    if let Some(accepted) = accepted {
        report.foreign.extend(leaving(accepted));
        accepted.terms.fill(&mut report, now);
        accepted.unknown.fill(&accepted.spec, &mut report);
    }
    report
}

/// Where nodes that are leaving may still listen: no new node may be placed there.
fn leaving(accepted: &Accepted) -> Vec<ForeignListener> {
    let mut listeners = Vec::new();
    for (name, Retiring { spec, .. }) in &accepted.retiring {
        for port in spec.ports.values() {
            listeners.extend([spec.address, spec.private].map(|ip| ForeignListener {
                address: SocketAddr::new(ip, port.port),
                holder: format!("{name}, which is leaving"),
            }));
        }
    }
    listeners
}

fn nodes(findings: &Findings<'_>) -> BTreeMap<NodeName, NodeReport> {
    let Some(accepted) = findings.accepted else { return BTreeMap::new() };
    let nothing = ObservedNode::default();
    let seen_but_unwanted = findings
        .observed
        .nodes
        .iter()
        .filter(|(_, node)| matches!(node.run, Run::Running(_) | Run::Unknown { .. }))
        .map(|(name, _)| name);
    let names = accepted.spec.nodes.keys().chain(accepted.retiring.keys()).chain(seen_but_unwanted);
    names
        .map(|name| {
            let observed = findings.observed.nodes.get(name).unwrap_or(&nothing);
            (name.clone(), node(findings, name, observed))
        })
        .collect()
}

fn node(findings: &Findings<'_>, name: &NodeName, observed: &ObservedNode) -> NodeReport {
    let facts = findings.facts.get(name).cloned().unwrap_or_default();
    let (state, since) = facts.state.unwrap_or((NodeState::Absent, findings.now));
    let why = findings.plan.why.iter().find(|(node, _)| node == name).map(|(_, why)| why.clone());
    let waits = matches!(state, NodeState::Starting | NodeState::Unready);
    let why = why.or_else(|| facts.probe.clone().filter(|_| waits));
    let is_running = matches!(observed.run, Run::Running(_));
    let role = if is_running { facts.role } else { Role::default() };
    let why = why.or_else(|| role.why.clone().filter(|_| state == NodeState::Ready));
    NodeReport {
        observed: state,
        since_ms: since.ms(),
        incarnation: observed.run.incarnation(),
        pid: match &observed.run {
            Run::Running(running) => Some(running.pid),
            Run::None | Run::Ended(_) | Run::Unknown { .. } => None,
        },
        been_ready: facts.been_ready,
        role_state: role.state,
        leader: role.leader,
        term: role.term,
        leads: role.leads,
        exit: observed.record.exit.clone(),
        binary: observed.record.binary.as_ref().map(|binary| BinaryReport {
            path: binary.shown().display().to_string(),
            sha256: binary.sha256.clone().unwrap_or_default(),
            version: binary.version.clone(),
        }),
        identity: facts.identity,
        restarts: observed.record.restarts,
        why,
        wipes: observed.record.wipes,
    }
}

/// How an incarnation ended, with what only this moment knows.
#[must_use]
pub fn exit(
    ended: &super::Ended,
    accepted: Option<&Accepted>,
    probe: Option<String>,
    last_lines: Vec<String>,
) -> ExitReport {
    let in_force = accepted.iter().flat_map(|accepted| {
        let spec = &accepted.spec;
        let of_nodes = spec.nodes.values().flat_map(|node| node.faults.keys());
        spec.proxy
            .faults
            .keys()
            .chain(of_nodes)
            .filter(|name| !accepted.is_over(name, ended.at))
            .cloned()
    });
    let mut faults: Vec<FaultName> = in_force.collect();
    faults.sort();
    faults.dedup();
    ExitReport {
        incarnation: ended.incarnation,
        code: ended.code,
        signal: ended.signal,
        at_ms: ended.at.ms(),
        asked: ended.asked.is_some(),
        rebooted: ended.asked == Some(Why::Reboot),
        last_lines,
        faults,
        probe: probe.filter(|_| ended.asked.is_none()),
    }
}

/// Faults on this host's nodes, as they are now.
#[must_use]
pub fn node_faults(findings: &Findings<'_>) -> BTreeMap<FaultName, FaultReport> {
    let Some(accepted) = findings.accepted else { return BTreeMap::new() };
    let mut found: BTreeMap<FaultName, FaultReport> = BTreeMap::new();
    for (node, spec) in &accepted.spec.nodes {
        let observed = findings.observed.nodes.get(node);
        for (name, fault) in &spec.faults {
            let is_over = accepted.is_over(name, findings.now);
            let missing = match observed {
                Some(observed) => {
                    let identity = findings.facts.get(node).map(|facts| &facts.identity);
                    not_in_force(observed, name, &fault.effect, identity)
                }
                None => Some("it does not run".to_owned()),
            };
            let entry = found.entry(name.clone()).or_insert_with(|| FaultReport {
                revision: fault.revision,
                active: !is_over,
                expired: is_over,
                grade: None::<Grade>,
                remaining_ms: accepted
                    .ends(name)
                    .map(|end| faultbed_common::duration::millis(findings.now.until(end))),
                ..FaultReport::default()
            });
            if let (false, Some(why)) = (is_over, missing) {
                entry.active = false;
                entry.why.get_or_insert_with(|| format!("{node}: {why}"));
            }
        }
    }
    found
}

/// Why a fault does not hold a node, although it should.
fn not_in_force(
    observed: &ObservedNode,
    name: &FaultName,
    effect: &NodeEffect,
    identity: Option<&Identity>,
) -> Option<String> {
    match (effect, &observed.run) {
        (_, Run::Unknown { why }) => Some(why.clone()),
        (NodeEffect::Pause, Run::Running(running)) if running.paused => None,
        (NodeEffect::Pause, Run::Running(_)) => Some("it is not held yet".to_owned()),
        (NodeEffect::DiskStall, Run::Running(_)) => match identity {
            Some(Identity::Lookup(why)) if why.starts_with(NO_LISTENER) => {
                Some(format!("its calls that wait for a disk cannot be held here: {why}"))
            }
            _ => {
                let is_told = observed.orders.as_ref().is_some_and(|o| o.stall.is_some());
                (!is_told).then(|| "its shim was not told yet".to_owned())
            }
        },
        (NodeEffect::Down(_), Run::Running(_)) => Some("it still runs".to_owned()),
        (NodeEffect::Down(_), Run::None | Run::Ended(_)) => None,
        (NodeEffect::Custom { .. }, Run::Running(running)) => {
            let mark = observed.record.effects.get(name);
            let is_on = mark.is_some_and(|mark| mark.on_in == Some(running.incarnation));
            let failure = observed.failures.get(&StepKind::EffectOn(name.clone()));
            (!is_on).then(|| match failure {
                Some(failure) => format!("it is not switched on yet: {}", failure.why),
                None => "it is not switched on yet".to_owned(),
            })
        }
        (
            NodeEffect::Pause | NodeEffect::DiskStall | NodeEffect::Custom { .. },
            Run::None | Run::Ended(_),
        ) => Some("it does not run".to_owned()),
    }
}

/// How soon a report must be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing changed but ages.
    None,
    /// Counters changed.
    Soon,
    /// Something became another thing.
    Now,
}

/// How soon `next` must be told to somebody who knows `told`.
#[must_use]
pub fn urgency(told: &HostReport, next: &HostReport) -> Urgency {
    let (told, next) = (told.without_ages(), next.without_ages());
    if told == next {
        return Urgency::None;
    }
    if transitions(told) == transitions(next) { Urgency::Soon } else { Urgency::Now }
}

/// A report without what only counts.
fn transitions(mut report: HostReport) -> HostReport {
    for fault in report.faults.values_mut() {
        // The last counts of a fault that is over are waited for: by them it is judged.
        if fault.active {
            fault.links.clear();
        }
        for canary in fault.canary.values_mut() {
            (canary.tries, canary.answers, canary.fastest_us) = (0, 0, None);
        }
    }
    if let Some(proxy) = &mut report.proxy {
        proxy.connections = 0;
    }
    report.foreign.clear();
    report
}

/// A report that many can hold.
pub type Shared = Arc<HostReport>;
