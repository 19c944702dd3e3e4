//! From what a fault says to the links and nodes it acts on, and to its effect on each.

use crate::{
    fault::{FaultSpec, OneWay},
    host_spec::{NodeEffect, StopBy},
    lab::{Lab, Resolved},
    link::Link,
    name::NodeName,
    proxy_spec::{Cut, Delay, LinkEffect},
    target::{Reports, TargetError},
};

mod check;
mod resolve;

/// SIGKILL, by number: what a `kill` fault ends nodes with.
const SIGKILL: i32 = 9;

/// Why a fault makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Its fields contradict each other or one is missing; true whatever the lab is.
    #[error("{0}")]
    Malformed(String),
    /// A target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Its targets are fine each, and yet it would act on nothing, or on one node in two ways.
    #[error("{0}")]
    Empty(String),
}

impl ShapeError {
    /// Whether it may resolve later: a role is not known yet.
    #[must_use]
    pub fn is_later(&self) -> bool {
        matches!(self, Self::Target(error) if error.later)
    }
}

/// Checks everything about a fault that needs no lab.
///
/// # Errors
/// Says which fields contradict each other or are missing.
pub fn check(spec: &FaultSpec) -> Result<(), ShapeError> {
    check::check(spec).map(|_| ())
}

/// Every target that the fault names, of all its sides.
#[must_use]
pub fn targets(spec: &FaultSpec) -> Vec<String> {
    let sides = spec.partition.iter().flatten().chain(spec.between.iter().flatten());
    let single = [&spec.isolate, &spec.from, &spec.to, &spec.on].into_iter().flatten();
    sides.chain(single).flat_map(|targets| targets.0.iter().cloned()).collect()
}

/// Resolves the targets of a fault to links or nodes.
///
/// # Errors
/// A target does not resolve, or nothing is left to act on.
pub fn resolve(lab: &Lab, reports: &Reports, spec: &FaultSpec) -> Result<Resolved, ShapeError> {
    resolve::resolve(lab, reports, spec, &check::check(spec)?)
}

/// What the fault does to the bytes of one of its links; `None` for faults on nodes. It is the
/// same for all links of one fault.
#[must_use]
pub fn link_effect(spec: &FaultSpec, resolved: &Resolved, link: &Link) -> Option<LinkEffect> {
    if !resolved.links.contains(link) {
        return None;
    }
    // A round trip is a whole number of pairs of microseconds (see `check`), so its halves add up.
    let base = spec.latency.map(|span| span.0).or(spec.rtt.map(|span| span.0 / 2));
    if let Some(base) = base {
        let jitter = spec.jitter.map_or(0, |span| micros(span.0));
        let delay = Delay { base_us: micros(base), jitter_us: jitter, ..Delay::default() };
        return Some(LinkEffect { delay: Some(delay), ..LinkEffect::default() });
    }
    Some(LinkEffect { cut: Some(cut(spec)), ..LinkEffect::default() })
}

/// What the fault does to one of its nodes; `None` for faults on links. Custom effects are rendered
/// by `render::custom_effect`.
#[must_use]
pub fn node_effect(spec: &FaultSpec, node: &NodeName) -> Option<NodeEffect> {
    // Every node of a fault gets the same; the node is asked for as links are.
    let _ = node;
    if spec.on.is_none() {
        None
    } else if spec.pause {
        Some(NodeEffect::Pause)
    } else if spec.kill {
        Some(NodeEffect::Down(StopBy::Signal(SIGKILL)))
    } else {
        spec.stop.then_some(NodeEffect::Down(StopBy::Grace))
    }
}

/// The fault in a few words, for tables: `cut`, `one-way cut`, `latency 50ms ±5ms`, `pause`.
#[must_use]
pub fn summary(spec: &FaultSpec) -> String {
    let jitter = spec.jitter.map(|span| format!(" ±{span}")).unwrap_or_default();
    let way = if spec.one_way.is_some() { "one-way " } else { "" };
    if spec.on.is_some() {
        return node_word(spec).to_owned();
    }
    match (spec.latency, spec.rtt) {
        (Some(latency), _) => format!("{way}latency {latency}{jitter}"),
        (None, Some(rtt)) => format!("rtt {rtt}{jitter}"),
        (None, None) => match (cut(spec), is_one_way(spec)) {
            (Cut::Packets, false) => "cut".to_owned(),
            (Cut::Bytes, _) => "one-way cut".to_owned(),
            (Cut::Packets, true) => "one-way cut of packets".to_owned(),
        },
    }
}

/// The word that names of faults begin with where none is chosen: `partition`, `latency`, `pause`.
#[must_use]
pub fn kind(spec: &FaultSpec) -> &str {
    if spec.latency.is_some() || spec.rtt.is_some() {
        "latency"
    } else if spec.partition.is_some() {
        "partition"
    } else if spec.isolate.is_some() {
        "isolate"
    } else if spec.on.is_some() {
        node_word(spec)
    } else {
        "cut"
    }
}

fn node_word(spec: &FaultSpec) -> &str {
    match &spec.effect {
        _ if spec.pause => "pause",
        _ if spec.kill => "kill",
        _ if spec.stop => "stop",
        Some(effect) => effect,
        None => "effect",
    }
}

/// Whether only one of the two links of a pair is met.
fn is_one_way(spec: &FaultSpec) -> bool {
    spec.one_way.is_some() || spec.from.is_some()
}

/// What its cut stops, where it cuts.
fn cut(spec: &FaultSpec) -> Cut {
    match spec.one_way {
        Some(OneWay::Packets) => Cut::Packets,
        Some(OneWay::Bytes) => Cut::Bytes,
        // From one side to the other is one way; both ways at once are whole packets.
        None if spec.from.is_some() => Cut::Bytes,
        None => Cut::Packets,
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
