//! Judges, from one status after another, whether what was asked for has come true. Pure; `follow` drives it.

pub mod condition;
mod faults;
pub mod follow;
pub mod met;

use std::time::Duration;

use faultbed_common::{
    generation::{Generation, Incarnation},
    host_spec::Wanted,
    name::{ClusterName, FaultName, HostName, NodeName},
    report::{NodeState, REFUSED},
    status::{ClusterState, FaultState, FaultStatus, HostState, NodeStatus, Status},
};

use crate::cli::status::words;

/// A node that a cut touches may still become ready; after this long, running is enough.
pub const FAULTED_GRACE: Duration = Duration::from_secs(5);

/// The hash of a program is waited for so long.
const HASH_MAX: Duration = Duration::from_secs(20);

/// A program that is refused may be on its way to its place, and is looked for again meanwhile. After this
/// long, only somebody can help.
pub const REFUSED_GRACE: Duration = Duration::from_secs(3);

/// A node that is started again after each crash has this many tries to become ready.
pub const CRASHES_MAX: u32 = 5;

/// Something to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// The node is ready, in an incarnation above this one.
    Ready(NodeName, Incarnation),
    /// The node's program is known by its hash, in an incarnation above this one.
    Hashed(NodeName, Incarnation),
    /// No pause holds the node, and it is as it was told to be.
    Goes(NodeName),
    /// The node is down, however it came to be.
    Down(NodeName),
    /// The node is no more; its host has this generation.
    Removed(NodeName, Option<HostName>, Generation),
    /// The fault acts on every host that must have it.
    InForce(FaultName),
    /// The fault is over on every host.
    Ended(FaultName),
    /// Traffic met the fault and it acted.
    Confirmed(FaultName),
    /// The fault is over, and what it did is known for good.
    Judged(FaultName),
    /// Every node of the cluster that should run is ready.
    ClusterReady(ClusterName),
    /// The cluster has a leader, another one than this.
    Leader(ClusterName, Option<NodeName>),
    /// The node is in this state.
    Is(NodeName, NodeState),
    /// This many hosts are up.
    Hosts(usize),
    /// Every host applied everything.
    Converged,
}

impl Goal {
    /// Whether a status says whether it is met that says nothing of nodes.
    fn is_of_a_fault(&self) -> bool {
        match self {
            Self::InForce(_) | Self::Ended(_) | Self::Confirmed(_) | Self::Judged(_) => true,
            Self::Ready(..)
            | Self::Hashed(..)
            | Self::Goes(_)
            | Self::Down(_)
            | Self::Removed(..)
            | Self::ClusterReady(_)
            | Self::Leader(..)
            | Self::Is(..)
            | Self::Hosts(_)
            | Self::Converged => false,
        }
    }
}

/// What one status says of one goal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It is so; sometimes with a word on how.
    Met(Option<String>),
    /// It is not so yet, because of this.
    NotYet(String),
    /// It will not be so without help, because of this.
    Never(String),
}

impl Judgement {
    fn met_if(yes: bool, otherwise: impl FnOnce() -> String) -> Self {
        if yes { Self::Met(None) } else { Self::NotYet(otherwise()) }
    }
}

/// Judges one goal. `waited` is how long it is being waited for.
#[must_use]
pub fn judge(status: &Status, goal: &Goal, waited: Duration) -> Judgement {
    match goal {
        Goal::Ready(name, over) => match node(status, name) {
            Some(node) => judge_ready(status, node, *over, waited),
            None => Judgement::NotYet(format!("{name} is not known yet")),
        },
        Goal::Hashed(name, over) => match node(status, name) {
            Some(node) => judge_hashed(node, *over, waited),
            None => Judgement::Met(None),
        },
        Goal::Goes(name) => match node(status, name) {
            Some(node) => Judgement::met_if(!is_held(node), || describe(node)),
            None => Judgement::Met(None),
        },
        Goal::Down(name) => match node(status, name) {
            Some(node) => Judgement::met_if(is_down(node.observed), || describe(node)),
            None => Judgement::Met(None),
        },
        Goal::Removed(name, host, generation) => {
            judge_removed(status, name, host.as_ref(), *generation)
        }
        Goal::InForce(name) => faults::with(status, name, faults::in_force),
        Goal::Ended(name) => faults::ended(status, name),
        Goal::Confirmed(name) => faults::with(status, name, faults::confirmed),
        Goal::Judged(name) => match fault(status, name) {
            None => Judgement::Met(None),
            Some(fault) => faults::judged(fault, waited),
        },
        Goal::ClusterReady(name) => judge_cluster(status, name, waited),
        Goal::Leader(name, not) => judge_leader(status, name, not.as_ref()),
        Goal::Is(name, state) => match node(status, name) {
            Some(node) => Judgement::met_if(node.observed == *state, || describe(node)),
            None => Judgement::NotYet(format!("there is no node {name}")),
        },
        Goal::Hosts(wanted) => {
            let up = status.hosts.iter().filter(|host| host.state == HostState::Up).count();
            Judgement::met_if(up >= *wanted, || format!("{up} of {wanted} hosts are up"))
        }
        Goal::Converged => judge_converged(status),
    }
}

fn judge_ready(
    status: &Status,
    node: &NodeStatus,
    over: Incarnation,
    waited: Duration,
) -> Judgement {
    if let Some(why) = refusal(node)
        && waited >= REFUSED_GRACE
        && has_heard(status, node)
    {
        return Judgement::Never(format!("{} {why}", node.name));
    }
    if node.incarnation <= over {
        return Judgement::NotYet(not_started(node, over));
    }
    match node.observed {
        NodeState::Ready => Judgement::Met(None),
        NodeState::Paused => {
            Judgement::Met(Some(format!("{} runs, held by {}", node.name, list(&node.faults))))
        }
        NodeState::Crashed if !is_retried(node) => {
            Judgement::Never(format!("{} {}", node.name, words::exit(node)))
        }
        NodeState::Crashed if node.restarts >= CRASHES_MAX && has_heard(status, node) => {
            Judgement::Never(format!(
                "{} {}; starting it again does not help",
                node.name,
                words::crashed(node, node.restarts.saturating_add(1))
            ))
        }
        NodeState::Starting if waited >= FAULTED_GRACE && is_cut(status, node) => {
            Judgement::Met(Some(format!(
                "{} runs; it cannot become ready while {} in force",
                node.name,
                list_are(&node.faults)
            )))
        }
        // It was ready in this run, so there is nothing left to wait for.
        NodeState::Unready if is_cut(status, node) => Judgement::Met(Some(format!(
            "{} runs and was ready; it is not while {} in force",
            node.name,
            list_are(&node.faults)
        ))),
        NodeState::Absent | NodeState::Stopped | NodeState::Killed if !node.faults.is_empty() => {
            Judgement::Met(Some(format!("{} is kept down by {}", node.name, list(&node.faults))))
        }
        NodeState::Absent
        | NodeState::Preparing
        | NodeState::Starting
        | NodeState::Unready
        | NodeState::Stopping
        | NodeState::Stopped
        | NodeState::Killed
        | NodeState::Crashed
        | NodeState::Unknown => Judgement::NotYet(describe(node)),
    }
}

/// The hash of a program that was replaced comes after its start. It is news, not a condition: one
/// that cannot be had, or takes long, holds nobody up.
fn judge_hashed(node: &NodeStatus, over: Incarnation, waited: Duration) -> Judgement {
    let is_known = node.binary.as_ref().is_none_or(|binary| !binary.sha256.is_empty());
    let is_new = node.incarnation > over;
    Judgement::met_if(waited >= HASH_MAX || is_down(node.observed) || is_new && is_known, || {
        if is_new {
            format!("{}'s program is being hashed", node.name)
        } else {
            not_started(node, over)
        }
    })
}

/// What is said of a node whose new run is awaited.
fn not_started(node: &NodeStatus, over: Incarnation) -> String {
    let since = if over == Incarnation::default() { "yet" } else { "again" };
    format!("{} has not started {since}{}", node.name, why(node))
}

/// Whether a pause holds the node, or its agent is about to say so or undo it.
fn is_held(node: &NodeStatus) -> bool {
    let is_busy = node.why.as_deref().is_some_and(|why| why.contains("busy"));
    node.observed == NodeState::Paused || is_busy
}

/// Why what it is to run cannot be run where it is: `cannot start, refused: …`, or that it runs on as it was.
fn refusal(node: &NodeStatus) -> Option<String> {
    if matches!(node.observed, NodeState::Starting | NodeState::Paused) {
        return None;
    }
    let why = node.why.as_deref()?;
    let (_, reason) = why.split_once(REFUSED)?;
    Some(if is_down(node.observed) {
        format!("cannot start, {REFUSED}{reason}")
    } else {
        why.to_owned()
    })
}

/// Whether its host knows the newest generation: what it said before may be over with that.
fn has_heard(status: &Status, node: &NodeStatus) -> bool {
    let host = status.hosts.iter().find(|host| host.name == node.host);
    host.is_some_and(|host| host.generation >= status.generation)
}

/// The agent starts it again by itself, and says so.
fn is_retried(node: &NodeStatus) -> bool {
    node.why.as_deref().is_some_and(|why| why.contains("starts again"))
}

fn judge_removed(
    status: &Status,
    name: &NodeName,
    host: Option<&HostName>,
    generation: Generation,
) -> Judgement {
    if let Some(node) = node(status, name) {
        return Judgement::met_if(is_down(node.observed), || describe(node));
    }
    let late = status
        .hosts
        .iter()
        .filter(|h| host.is_none_or(|host| h.name == *host))
        .find(|h| h.state == HostState::Up && h.generation < generation);
    if let Some(host) = late {
        return Judgement::NotYet(format!("{} has not been told yet", host.name));
    }
    if let Some(leaving) = status.leaving.iter().find(|node| node.name == *name) {
        let why = because(leaving.why.as_deref());
        return Judgement::NotYet(format!("{name} is leaving {}{why}", leaving.cluster));
    }
    // Hosts tell what they still do about nodes of clusters that are no longer of the lab.
    let about = format!(": {name}:");
    match status.pending.iter().chain(&status.stuck).find(|reason| reason.contains(&about)) {
        Some(reason) => Judgement::NotYet(reason.clone()),
        None => Judgement::Met(None),
    }
}

fn judge_cluster(status: &Status, name: &ClusterName, waited: Duration) -> Judgement {
    let Some(cluster) = status.clusters.iter().find(|cluster| cluster.name == *name) else {
        return Judgement::NotYet(format!("there is no cluster {name}"));
    };
    let nodes = || status.nodes.iter().filter(|node| node.cluster == *name);
    match cluster.state {
        ClusterState::Ready => Judgement::Met(None),
        ClusterState::Stopped => Judgement::Never(format!("cluster {name} is stopped")),
        ClusterState::Starting | ClusterState::Degraded => {
            let judged = nodes()
                .filter(|node| node.wanted == Wanted::Running)
                .map(|node| judge_ready(status, node, Incarnation::default(), waited));
            let lost = judged.into_iter().find(|judged| matches!(judged, Judgement::Never(_)));
            if let Some(lost) = lost {
                return lost;
            }
            let mut late: Vec<String> =
                nodes().filter(|n| n.observed != NodeState::Ready).map(describe).collect();
            if late.is_empty() {
                late.push(format!("that {name} has been ready is being written down"));
            }
            Judgement::NotYet(late.join(", "))
        }
    }
}

fn judge_leader(status: &Status, name: &ClusterName, not: Option<&NodeName>) -> Judgement {
    let leaders: Vec<&NodeStatus> = leaders(status, name).collect();
    // A cut-off leader may go on believing that it leads; only the newest term counts.
    let Some(newest) = leaders.iter().max_by_key(|node| node.term) else {
        let nodes = status.nodes.iter().filter(|node| node.cluster == *name);
        let seen: Vec<String> = nodes.map(says).collect();
        return Judgement::NotYet(format!("no node of {name} leads: {}", seen.join(", ")));
    };
    match not {
        Some(not) if newest.name == *not => {
            let term = newest.term.map_or_else(String::new, |term| format!(" in term {term}"));
            Judgement::NotYet(format!("{not} still leads {name}{term}; another leader is awaited"))
        }
        Some(_) | None => Judgement::Met(Some(format!("{} leads cluster {name}", newest.name))),
    }
}

/// What a node says of its role: `kv-2 says follower`, or how it is where it cannot say anything.
fn says(node: &NodeStatus) -> String {
    match &node.role_state {
        Some(role) => format!("{} says {role}", node.name),
        None if node.observed == NodeState::Ready => format!("{} says nothing of it", node.name),
        None => format!("{} is {}", node.name, words::state(node.observed)),
    }
}

/// The nodes of a cluster that say they lead it.
pub fn leaders<'a>(
    status: &'a Status,
    name: &'a ClusterName,
) -> impl Iterator<Item = &'a NodeStatus> {
    status.nodes.iter().filter(move |node| node.cluster == *name && node.leader == Some(true))
}

fn judge_converged(status: &Status) -> Judgement {
    if let Some(stuck) = status.stuck.first() {
        return Judgement::Never(stuck.clone());
    }
    Judgement::met_if(status.converged, || match status.pending.as_slice() {
        [] => "not every host has applied everything yet".to_owned(),
        reasons => reasons.join(", "),
    })
}

/// A node by name.
#[must_use]
pub fn node<'a>(status: &'a Status, name: &NodeName) -> Option<&'a NodeStatus> {
    status.nodes.iter().find(|node| node.name == *name)
}

/// A fault by name.
#[must_use]
pub fn fault<'a>(status: &'a Status, name: &FaultName) -> Option<&'a FaultStatus> {
    status.faults.iter().find(|fault| fault.name == *name)
}

/// A heal is observed and not assumed: no host still has the fault.
#[must_use]
pub fn is_over(fault: &FaultStatus) -> bool {
    matches!(fault.state, FaultState::Expired | FaultState::Healed) && fault.lingers_on.is_empty()
}

/// Whether nothing of the node runs.
#[must_use]
pub fn is_down(state: NodeState) -> bool {
    matches!(state, NodeState::Absent | NodeState::Stopped | NodeState::Killed | NodeState::Crashed)
}

/// A fault in force may keep this node from being ready: anything but a delay does.
fn is_cut(status: &Status, node: &NodeStatus) -> bool {
    node.faults
        .iter()
        .filter_map(|name| fault(status, name))
        .any(|fault| fault.state == FaultState::Active && !fault.summary.starts_with("latency"))
}

fn describe(node: &NodeStatus) -> String {
    let state = words::state(node.observed);
    let comes_back = matches!(node.observed, NodeState::Preparing | NodeState::Starting);
    if comes_back && node.restarts > 0 {
        // That it starts is only half of the truth where it does so again and again.
        let crashed = words::crashed(node, node.restarts);
        return format!("{} {crashed}, and is {state} again", node.name);
    }
    format!("{} is {state}{}", node.name, why(node))
}

fn why(node: &NodeStatus) -> String {
    because(node.why.as_deref())
}

fn because(why: Option<&str>) -> String {
    why.map_or_else(String::new, |why| format!(": {why}"))
}

/// `a, b and c`, for sentences.
#[must_use]
pub fn list<T: std::fmt::Display>(items: &[T]) -> String {
    match items {
        [] => "nothing".to_owned(),
        [one] => one.to_string(),
        [head @ .., last] => {
            let head: Vec<String> = head.iter().map(ToString::to_string).collect();
            format!("{} and {last}", head.join(", "))
        }
    }
}

/// As [`list`], with its verb: "a is", "a and b are".
#[must_use]
pub fn list_are<T: std::fmt::Display>(items: &[T]) -> String {
    let verb = if items.len() > 1 { "are" } else { "is" };
    format!("{} {verb}", list(items))
}

#[cfg(test)]
mod tests;
