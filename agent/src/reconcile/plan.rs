//! Decides what to do next. Never does it: no clock, no disk, no dice.
//!
//! Laws, which its tests hold: a plan that was carried out leaves an empty one; what is taken away
//! comes before what is added; nothing is started whose predecessor is not known to be gone, or
//! before the proxy obeys the newest rules and owns the node's addresses; every step names a node
//! that is wanted or seen.

mod node;

use std::{collections::BTreeSet, time::Duration};

use faultbed_common::name::NodeName;

use super::{Failure, NodeAct, Observed, ObservedNode, Step, StepKind};
use crate::{clock::BootTime, ledger::Accepted};

/// The first retry of a step comes after this; each further one after twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(200);

/// No retry of a step waits longer.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A step that failed this often is not tried again until its node's orders change.
const ATTEMPTS_MAX: u32 = 12;

/// Commands that wait for other nodes are tried this often, twice a second.
const BOOTSTRAP_ATTEMPTS_MAX: u32 = 240;

/// The pause between two tries of a bootstrap.
const BOOTSTRAP_RETRY: Duration = Duration::from_millis(500);

/// A `leave` that failed this often is given up: the node must be able to go.
pub const LEAVE_ATTEMPTS_MAX: u32 = 3;

/// How often addresses that others hold are tried again.
const LISTENER_RETRY: Duration = Duration::from_secs(2);

/// How often a proxy of another release is asked again to hand over.
const UPGRADE_RETRY: Duration = Duration::from_secs(30);

/// What a pass is to do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Steps that can be begun now, in this order.
    pub steps: Vec<Step>,
    /// What is not yet true.
    pub pending: Vec<String>,
    /// What will not become true without help.
    pub stuck: Vec<String>,
    /// Nodes that are not as wanted, and why.
    pub why: Vec<(NodeName, String)>,
    /// Another pass is due after this, even if nothing is heard.
    pub wake_after: Option<Duration>,
}

/// How a part of the host stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// As wanted.
    True,
    /// As wanted, for a reason people should see.
    TrueBecause(String),
    /// Not yet.
    Pending(String),
    /// Not without help.
    Stuck(String),
}

/// What is to be done about one part.
#[derive(Debug, Clone, PartialEq)]
struct Part<S> {
    steps: Vec<S>,
    standing: Standing,
    wake_at: Option<BootTime>,
}

impl<S> Part<S> {
    fn standing(standing: Standing) -> Self {
        Self { steps: Vec::new(), standing, wake_at: None }
    }

    fn step(step: S, standing: Standing) -> Self {
        Self { steps: vec![step], standing, wake_at: None }
    }

    fn wake_at(mut self, at: Option<BootTime>) -> Self {
        self.wake_at = [self.wake_at, at].into_iter().flatten().min();
        self
    }
}

/// Whether a step may be tried now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Try {
    /// It may.
    Now,
    /// It failed for this reason and may be tried again at this time, if ever.
    Later { why: String, at: Option<BootTime> },
}

/// What to do next.
#[must_use]
pub fn plan(wanted: &Accepted, observed: &Observed, now: BootTime) -> Plan {
    let mut plan = Plan::default();
    let proxy = proxy(wanted, observed, now);
    let is_proxy_current = is_proxy_current(wanted, observed);
    plan.take(None, proxy, now);
    let names: BTreeSet<&NodeName> = wanted
        .spec
        .nodes
        .keys()
        .chain(wanted.retiring.keys())
        .chain(observed.nodes.keys())
        .collect();
    let nothing = ObservedNode::default();
    for name in names {
        let view = node::View {
            name,
            wanted,
            observed: observed.nodes.get(name).unwrap_or(&nothing),
            proxy: &observed.proxy,
            programs: &observed.programs,
            fetching: observed.fetching.as_ref(),
            is_proxy_current,
            now,
        };
        let Part { steps, standing, wake_at } = view.plan();
        let steps = steps.into_iter().map(|act| Step::Node { node: name.clone(), act }).collect();
        plan.take(Some(name), Part { steps, standing, wake_at }, now);
    }
    // Removal before addition: a new node may need what an old one holds. The sort is stable.
    plan.steps.sort_by_key(|step| match step {
        Step::Proxy(_) => 0,
        Step::Node { act, .. } if act.kind().removes() => 1,
        Step::Node { .. } => 2,
    });
    plan
}

impl Plan {
    fn take(&mut self, node: Option<&NodeName>, part: Part<Step>, now: BootTime) {
        let Part { steps, standing, wake_at } = part;
        self.steps.extend(steps);
        let name = node.map_or("proxy", NodeName::as_str);
        let why = match standing {
            Standing::True => None,
            Standing::TrueBecause(why) => Some(why),
            Standing::Pending(why) => {
                self.pending.push(format!("{name}: {why}"));
                Some(why)
            }
            Standing::Stuck(why) => {
                self.stuck.push(format!("{name}: {why}"));
                Some(why)
            }
        };
        if let (Some(node), Some(why)) = (node, why) {
            self.why.push((node.clone(), why));
        }
        let after = wake_at.map(|at| now.until(at));
        self.wake_after = [self.wake_after, after].into_iter().flatten().min();
    }
}

/// Whether the proxy has confirmed the newest rules. Nodes start only then, so that none of them
/// ever runs without the faults that are in force on it.
fn is_proxy_current(wanted: &Accepted, observed: &Observed) -> bool {
    observed.proxy.running && observed.proxy.applied.as_ref() == Some(&wanted.proxy_file())
}

/// The proxy runs as soon as there are orders, so that the first cluster need not wait for it.
fn proxy(wanted: &Accepted, observed: &Observed, now: BootTime) -> Part<Step> {
    let seen = &observed.proxy;
    let generation = wanted.spec.generation;
    let standing = seen.failure.as_ref().map_or_else(
        || Standing::Pending(format!("applying the rules of generation {generation}")),
        |failure| Standing::Stuck(failure.why.clone()),
    );
    if seen.busy {
        return Part::standing(standing);
    }
    let file = wanted.proxy_file();
    let is_current = seen.running && seen.applied.as_ref() == Some(&file);
    let listeners = (!seen.failed.is_empty()).then_some(LISTENER_RETRY);
    let upgrade = seen.outdated.as_ref().map(|_| UPGRADE_RETRY);
    let retry = listeners.into_iter().chain(upgrade).min();
    let wake_at = retry.map(|after| seen.applied_at + after);
    if is_current && wake_at.is_none_or(|at| now < at) {
        // Listeners that failed make their nodes stuck, with the address and its holder.
        return Part::standing(Standing::True).wake_at(wake_at);
    }
    match may_try(seen.failure.as_ref(), |attempts| Some(retry_delay(attempts)), now) {
        Try::Now => Part::step(Step::Proxy(Box::new(file)), standing),
        Try::Later { why, at } => Part::standing(Standing::Stuck(why)).wake_at(at),
    }
}

/// Whether a step of this kind may be tried for a node.
fn may_step(observed: &ObservedNode, kind: &StepKind, now: BootTime) -> Try {
    let delay = |attempts| match kind {
        StepKind::Bootstrap => (attempts < BOOTSTRAP_ATTEMPTS_MAX).then_some(BOOTSTRAP_RETRY),
        // What must end is never given up.
        // Nor is what keeps data from being lost; where that is no matter, the plan counts tries.
        // Nor what comes once a coordinator is there again.
        StepKind::Signal
        | StepKind::KillTree
        | StepKind::Interrupt
        | StepKind::Orders
        | StepKind::Leave
        | StepKind::Fetch
        // It runs on, and the right program may be put there at any time.
        | StepKind::Check => Some(retry_delay(attempts)),
        StepKind::EffectOff(_)
        | StepKind::Wipe
        | StepKind::Retire
        | StepKind::Init
        | StepKind::Join
        | StepKind::Start
        | StepKind::EffectOn(_) => (attempts < ATTEMPTS_MAX).then(|| retry_delay(attempts)),
    };
    may_try(observed.failures.get(kind), delay, now)
}

fn may_try(
    failure: Option<&Failure>,
    delay: impl Fn(u32) -> Option<Duration>,
    now: BootTime,
) -> Try {
    let Some(failure) = failure else { return Try::Now };
    match delay(failure.attempts).map(|delay| failure.at + delay) {
        Some(at) if at <= now => Try::Now,
        at => Try::Later { why: failure.why.clone(), at },
    }
}

/// How long after the `attempts`th failure a step is tried again.
fn retry_delay(attempts: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(RETRY_MAX)
}

/// The step, if it may be tried now; else why not. One that failed stays stuck with its reason while
/// it is tried again: that each try begins is no news.
fn step_or_wait(
    observed: &ObservedNode,
    act: NodeAct,
    pending: impl Into<String>,
    now: BootTime,
) -> Part<NodeAct> {
    let kind = act.kind();
    match may_step(observed, &kind, now) {
        Try::Now => Part::step(act, still(observed, &kind, pending)),
        Try::Later { why, at } => Part::standing(Standing::Stuck(why)).wake_at(at),
    }
}

/// Why a step of this kind failed last, or else what it is about to do.
fn still(observed: &ObservedNode, kind: &StepKind, pending: impl Into<String>) -> Standing {
    match observed.failures.get(kind) {
        Some(failure) => Standing::Stuck(failure.why.clone()),
        None => Standing::Pending(pending.into()),
    }
}

#[cfg(test)]
mod tests;
