//! What is not yet true, and what will not become true without help, as sentences that stay the
//! same while nothing changes: no ages, no counters.

use faultbed_common::{
    host_spec::{NodeEffect, Wanted},
    lab::Phase,
    name::{HostName, NodeName},
    report::{ExitReport, NodeState},
    shape,
    spec::OnCrash,
    status::{FaultState, FaultStatus, NodeStatus},
};

use super::{
    View,
    fault::{Standing, standing},
    leftover::Leftover,
};

/// See `Status`.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub pending: Vec<String>,
    pub stuck: Vec<String>,
}

impl Progress {
    fn pending(&mut self, sentence: String) {
        if !self.pending.contains(&sentence) {
            self.pending.push(sentence);
        }
    }

    fn stuck(&mut self, sentence: String) {
        if !self.stuck.contains(&sentence) {
            self.stuck.push(sentence);
        }
    }
}

pub(super) fn progress(
    view: &View<'_>,
    (nodes, faults): (&[NodeStatus], &[FaultStatus]),
    leftovers: Vec<Leftover<'_>>,
    refused: &[String],
) -> Progress {
    let mut progress = Progress::default();
    for host in view.lab.hosts.keys() {
        of_host(view, host, &mut progress);
    }
    for node in nodes {
        // A host that is down has said so above, once for all its nodes.
        if view.up(&node.host).is_some() {
            of_node(view, node, &mut progress);
        }
    }
    for fault in faults {
        of_fault(view, fault, &mut progress);
    }
    for leftover in leftovers {
        progress.pending(leftover.sentence);
    }
    for cluster in view.lab.clusters.values().filter(|cluster| !cluster.relist.is_empty()) {
        let restart: Vec<&str> = cluster.relist.restart.iter().map(AsRef::as_ref).collect();
        let moved: Vec<&str> = cluster.relist.moved.iter().map(AsRef::as_ref).collect();
        let (restart, moved) = (restart.join(", "), moved.join(", "));
        progress.pending(format!("{restart} is to restart, when {moved} is ready or gone"));
    }
    for sentence in refused {
        progress.stuck(sentence.clone());
    }
    progress
}

fn of_host(view: &View<'_>, name: &HostName, progress: &mut Progress) {
    let Some(seen) = view.host(name) else {
        progress.pending(format!("{name} has not reported yet"));
        return;
    };
    if !seen.connected {
        progress.stuck(format!("{name} is down: its agent is not connected"));
        return;
    }
    if seen.report.generation < view.lab.generation {
        progress.pending(format!("{name} has not applied generation {}", view.lab.generation));
    }
    for sentence in &seen.report.pending {
        progress.pending(format!("{name}: {sentence}"));
    }
    for sentence in &seen.report.stuck {
        progress.stuck(format!("{name}: {sentence}"));
    }
}

fn of_node(view: &View<'_>, node: &NodeStatus, progress: &mut Progress) {
    let name = &node.name;
    // What its host says is stuck is not pending as well; a crash is said in better words.
    let of_host = format!("{}: {name}: ", node.host);
    let is_said = progress.stuck.iter().any(|sentence| sentence.starts_with(&of_host));
    if is_said && node.observed != NodeState::Crashed {
        return;
    }
    let state = node.observed.word();
    let why = node.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    match node.wanted {
        Wanted::Stopped if node.observed.is_down() => {}
        Wanted::Stopped => progress.pending(format!("{name} is {state} and is to be down{why}")),
        Wanted::Running if is_as_faults_want(view, node) => {}
        Wanted::Running if node.incarnation < incarnation(view, name) => {
            let wanted = incarnation(view, name);
            progress.pending(format!("{name} has not started run {wanted}{why}"));
        }
        Wanted::Running => match node.observed {
            NodeState::Ready => {}
            NodeState::Crashed => crashed(view, node, progress),
            // A fault that touches it forbids that it is ready; that is what the fault is for.
            NodeState::Starting | NodeState::Unready if !node.faults.is_empty() => {}
            NodeState::Unready => progress.pending(format!("{name} is not ready{why}")),
            NodeState::Absent
            | NodeState::Preparing
            | NodeState::Starting
            | NodeState::Paused
            | NodeState::Stopping
            | NodeState::Stopped
            | NodeState::Killed
            | NodeState::Unknown => progress.pending(format!("{name} is {state}{why}")),
        },
    }
}

/// The incarnation that a node must have at least.
fn incarnation(view: &View<'_>, name: &NodeName) -> faultbed_common::generation::Incarnation {
    view.lab.node(name).map(|node| node.placement.incarnation).unwrap_or_default()
}

/// Whether a node that should run is down or stands still because a fault in force says so.
fn is_as_faults_want(view: &View<'_>, node: &NodeStatus) -> bool {
    let faults = view.lab.faults.values().filter(|fault| fault.is_active());
    let on_it = faults.filter(|fault| fault.resolved.nodes.contains(&node.name));
    let mut effects = on_it.filter_map(|fault| shape::node_effect(&fault.spec, &node.name));
    effects.any(|effect| match effect {
        NodeEffect::Pause => node.observed == NodeState::Paused,
        NodeEffect::Down(_) => {
            matches!(node.observed, NodeState::Absent | NodeState::Stopped | NodeState::Killed)
        }
        NodeEffect::DiskStall | NodeEffect::Custom { .. } => false,
    })
}

fn crashed(view: &View<'_>, node: &NodeStatus, progress: &mut Progress) {
    let Some(found) = view.lab.node(&node.name) else { return };
    let exit = node.exit.as_ref().map(exit_words).unwrap_or_default();
    let sentence = format!("{}: crashed{exit}", node.name);
    // Its host has said so too: once is enough, in the better words.
    let of_host = format!("{}: {}: crashed", node.host, node.name);
    let is_of_host = |sentence: &String| sentence.starts_with(&of_host);
    match found.cluster.spec.on_crash.unwrap_or(found.cluster.blueprint.on_crash) {
        OnCrash::Stay => {
            progress.stuck.retain(|sentence| !is_of_host(sentence));
            progress.stuck(sentence);
        }
        // It knows when it is started again, and when no more.
        OnCrash::Restart if progress.stuck.iter().chain(&progress.pending).any(is_of_host) => {}
        OnCrash::Restart => progress.pending(format!("{sentence}; it is started again")),
    }
}

/// `, exit 2` or `, signal 9`.
pub(in crate::decide) fn exit_words(exit: &ExitReport) -> String {
    match (exit.code, exit.signal) {
        (_, Some(signal)) => format!(", signal {signal}"),
        (Some(code), None) => format!(", exit {code}"),
        (None, None) => ", nobody saw how".to_owned(),
    }
}

fn of_fault(view: &View<'_>, status: &FaultStatus, progress: &mut Progress) {
    let name = &status.name;
    let Some(fault) = view.lab.faults.get(name) else { return };
    match &fault.phase {
        Phase::Pending { why } => progress.pending(format!("fault {name} waits: {why}")),
        Phase::Active { .. } if status.state == FaultState::Active => {
            for host in view.touched_hosts(name) {
                match standing(view, host, name, fault) {
                    Standing::InForce
                    | Standing::Expired
                    | Standing::Healed(_)
                    | Standing::Down => {}
                    Standing::Not(Some(why)) => {
                        progress.stuck(format!("fault {name} is not in force on {host}: {why}"));
                    }
                    Standing::Not(None) => {
                        progress.pending(format!("fault {name} is not in force on {host} yet"));
                    }
                }
            }
        }
        Phase::Active { .. } | Phase::Ended { .. } => {}
    }
}
