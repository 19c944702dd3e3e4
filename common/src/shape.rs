//! From what a fault says to the links and nodes it acts on, and to its effect on each.

use crate::{
    duration::Span,
    effect::Distribution,
    fault::{FaultSpec, OneWay},
    host_spec::{NodeEffect, StopBy},
    lab::{Lab, Resolved},
    link::Link,
    name::NodeName,
    preset,
    proxy_spec::{Cut, Delay, Dials, Endings, Hold, LinkEffect},
    target::{Reports, TargetError},
};

mod chance;
mod check;
mod resolve;
mod words;

pub use words::{kind, summary};

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
    let by_chance = [&spec.halves, &spec.minority, &spec.ring, &spec.bridge];
    let single = [&spec.isolate, &spec.from, &spec.to, &spec.on].into_iter().chain(by_chance);
    let single = single.flatten();
    sides.chain(single).flat_map(|targets| targets.0.iter().cloned()).collect()
}

/// Resolves the targets of a fault to links or nodes. What is left to chance (`halves` and its kind)
/// is drawn from the seed: the same nodes and seed give the same answer.
///
/// # Errors
/// A target does not resolve, or nothing is left to act on.
pub fn resolve(
    lab: &Lab,
    reports: &Reports,
    spec: &FaultSpec,
    seed: u64,
) -> Result<Resolved, ShapeError> {
    let resolved = resolve::resolve(lab, reports, spec, &check::check(spec)?, seed)?;
    let asks = |link: &Link| link.from.node().is_some() && link.to.node().is_some();
    if spec.canary && !resolved.links.is_empty() && !resolved.links.iter().any(asks) {
        return Err(ShapeError::Empty(
            "`canary` asks a node from another node's host, and all these links are of clients: \
             leave it out"
                .to_owned(),
        ));
    }
    Ok(resolved)
}

/// What the fault does to one of its links; `None` for faults on nodes and links it does not act on.
#[must_use]
pub fn link_effect(spec: &FaultSpec, resolved: &Resolved, link: &Link) -> Option<LinkEffect> {
    resolved.links.contains(link).then(|| effect(spec))
}

/// What a fault on links does to each of them: the same to all.
#[must_use]
pub fn effect(spec: &FaultSpec) -> LinkEffect {
    let spec = preset::applied(spec);
    let us = |span: Option<Span>| span.map(|span| micros(span.0));
    let hold = if spec.stall { Some(Hold::Stall) } else { spec.jam.then_some(Hold::Jam) };
    let dials =
        if spec.refuse { Some(Dials::Refuse) } else { spec.time_out.then_some(Dials::TimeOut) };
    LinkEffect {
        cut: words::cuts(&spec).then(|| cut(&spec)),
        hold,
        delay: delay(&spec),
        bandwidth: spec.bandwidth,
        loss: spec.loss.into_iter().collect(),
        corrupt: spec.corrupt,
        slice: spec.slice,
        dials,
        accept_delay_us: us(spec.accept_delay).unwrap_or_default(),
        endings: Endings {
            reset: spec.reset,
            reset_after_us: us(spec.reset_after),
            close_after_us: us(spec.close_after),
            limit_bytes: spec.limit.map(|size| size.bytes),
            slow_close_us: us(spec.slow_close).unwrap_or_default(),
        },
    }
}

fn delay(spec: &FaultSpec) -> Option<Delay> {
    // A round trip is a whole number of pairs of microseconds (see `check`), so its halves add up.
    let base = spec.latency.map(|span| span.0).or(spec.rtt.map(|span| span.0 / 2))?;
    let jitter = spec.jitter.map_or(0, |span| micros(span.0));
    let mut delay = Delay { base_us: micros(base), ..Delay::default() };
    match spec.distribution.unwrap_or_default() {
        Distribution::Uniform => delay.jitter_us = jitter,
        Distribution::Normal => delay.normal_us = jitter,
        Distribution::Pareto => delay.pareto_us = jitter,
    }
    Some(delay)
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
    } else if spec.disk_stall {
        Some(NodeEffect::DiskStall)
    } else if spec.kill {
        Some(NodeEffect::Down(StopBy::Signal(SIGKILL)))
    } else {
        spec.stop.then_some(NodeEffect::Down(StopBy::Grace))
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
