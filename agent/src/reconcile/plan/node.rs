//! What to do next about one node. Pure.

mod effects;
mod programs;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use faultbed_common::{
    host_spec::{NodeEffect, NodeSpec, Stop, StopBy, Wanted},
    name::{ClusterName, FaultName, NodeName},
    port_block::FarDials,
    spec::OnCrash,
};

use super::{LEAVE_ATTEMPTS_MAX, Part, Standing, step_or_wait};
use crate::{
    clock::BootTime,
    ledger::{Accepted, Retiring},
    reconcile::{
        Asked, Ended, Failure, Fetching, NodeAct, NodeOrders, ObservedNode, ObservedProxy,
        PauseUntil, Run, Running, StepKind, Why, step::Cause,
    },
};

/// How a node is stopped whose orders are lost.
const STOP_SIGNAL_DEFAULT: i32 = 15;

/// How long such a node has.
const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(10);

/// Said of a node that was called back after its cluster had let it go.
const HAS_LEFT: &str =
    "it had left its cluster already; wipe it, so that it joins anew, or remove it";

/// SIGKILL.
const SIGKILL: i32 = 9;

/// A node that was signalled, or a tree that was killed, this often and lives is worth a word.
const KILL_ATTEMPTS_QUIET: u32 = 5;

/// How often it is looked at again whether an unknown node can be told.
const UNKNOWN_RECHECK: Duration = Duration::from_secs(1);

/// How often it is looked at whether a shim has done what it was told.
const HOLDING_RECHECK: Duration = Duration::from_millis(20);

/// A shim that takes longer does not obey.
const HOLDING_MAX: Duration = Duration::from_secs(2);

/// The first start after a crash comes after this; each further one after twice as long.
const CRASH_DELAY_FIRST: Duration = Duration::from_millis(500);

/// No start after a crash waits longer.
const CRASH_DELAY_MAX: Duration = Duration::from_secs(30);

/// A node that crashed this often since it was started on purpose stays down.
const CRASH_RESTARTS_MAX: u32 = 100;

/// One node as a plan looks at it.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) name: &'a NodeName,
    pub(super) wanted: &'a Accepted,
    pub(super) observed: &'a ObservedNode,
    pub(super) proxy: &'a ObservedProxy,
    pub(super) programs: &'a BTreeSet<PathBuf>,
    pub(super) fetching: Option<&'a Fetching>,
    pub(super) is_proxy_current: bool,
    pub(super) now: BootTime,
}

/// What shall become of a node.
#[derive(Debug, Clone, Copy)]
enum Goal<'a> {
    /// It runs.
    Up(&'a NodeSpec),
    /// It is down, as it was ordered to or by a fault.
    Down { spec: &'a NodeSpec, by: StopBy, held: Option<Held<'a>> },
    /// It left the lab.
    Gone { spec: Option<&'a NodeSpec>, wipe: bool, forced: bool },
}

/// What keeps a node down that should run.
#[derive(Debug, Clone, Copy)]
enum Held<'a> {
    /// A fault, until it ends.
    Fault(&'a FaultName),
    /// The lease of its cluster is over.
    Lease(&'a ClusterName),
}

impl View<'_> {
    pub(super) fn plan(&self) -> Part<NodeAct> {
        let goal = self.goal();
        if let Some(part) = self.interrupt(&goal) {
            return part;
        }
        match &self.observed.run {
            Run::Unknown { why } => Part::standing(Standing::Stuck(format!("unknown: {why}")))
                .wake_at(Some(self.now + UNKNOWN_RECHECK)),
            Run::Running(running) => match self.end(&goal, running) {
                Some((why, signal)) => match self.programs_first(&goal, running) {
                    Some(part) => part,
                    None => self.end_running(&goal, running, why, signal),
                },
                None => self.keep_running(&goal, running),
            },
            Run::Ended(_) | Run::None if !self.observed.busy.is_empty() => self.wait_for_busy(),
            Run::Ended(ended) => self.down(&goal, Some(ended)),
            Run::None => self.down(&goal, None),
        }
    }

    /// A node that left and came back under the same name is first the old one, until it is gone.
    fn goal(&self) -> Goal<'_> {
        if let Some(leaving) = self.wanted.retiring.get(self.name) {
            let Retiring { spec, wipe, forced } = leaving;
            return Goal::Gone { spec: Some(spec), wipe: *wipe, forced: *forced };
        }
        let Some(spec) = self.wanted.spec.nodes.get(self.name) else {
            let wipe = self.wanted.spec.wipe_removed.contains(self.name);
            return Goal::Gone { spec: None, wipe, forced: false };
        };
        if spec.wanted == Wanted::Stopped {
            return Goal::Down { spec, by: spec.stop_by, held: None };
        }
        if self.wanted.lease_is_over(&spec.cluster, self.now) {
            return Goal::Down { spec, by: StopBy::Grace, held: Some(Held::Lease(&spec.cluster)) };
        }
        let held_down = spec.faults.iter().find_map(|(name, fault)| match fault.effect {
            NodeEffect::Down(by) if !self.wanted.is_over(name, self.now) => Some((name, by)),
            _ => None,
        });
        match held_down {
            Some((fault, by)) => Goal::Down { spec, by, held: Some(Held::Fault(fault)) },
            None => Goal::Up(spec),
        }
    }

    /// Ends a command that was begun for a goal that no longer holds.
    fn interrupt(&self, goal: &Goal<'_>) -> Option<Part<NodeAct>> {
        let is_for_up = |kind: &StepKind| kind.is_interruptible() && *kind != StepKind::Leave;
        let busy = &self.observed.busy;
        let is_stale = match goal {
            Goal::Up(_) => busy.contains(&StepKind::Leave),
            Goal::Down { .. } | Goal::Gone { forced: true, .. } => {
                busy.iter().any(StepKind::is_interruptible)
            }
            Goal::Gone { forced: false, .. } => busy.iter().any(is_for_up),
        };
        is_stale.then(|| {
            Part::step(NodeAct::Interrupt, Standing::Pending("interrupting its command".into()))
        })
    }

    fn wait_for_busy(&self) -> Part<NodeAct> {
        // What failed and is tried again is no news, but for bytes that come.
        let failed = self.observed.busy.iter().find_map(|kind| {
            let failure = self.observed.failures.get(kind)?;
            let comes = *kind == StepKind::Fetch && self.fetched() > 0;
            (!comes && !is_quiet(kind, failure)).then_some(failure)
        });
        if let Some(failure) = failed {
            return Part::standing(Standing::Stuck(failure.why.clone()));
        }
        if self.observed.busy.contains(&StepKind::Fetch) {
            return Part::standing(Standing::Pending(self.fetching()));
        }
        let verbs: Vec<String> = self.observed.busy.iter().map(StepKind::verb).collect();
        Part::standing(Standing::Pending(format!("busy: {}", verbs.join(", "))))
    }

    fn stop(goal: &Goal<'_>) -> Stop {
        let spec = match goal {
            Goal::Up(spec) | Goal::Down { spec, .. } => Some(*spec),
            Goal::Gone { spec, .. } => *spec,
        };
        spec.map_or_else(
            || Stop {
                signal: STOP_SIGNAL_DEFAULT,
                grace: faultbed_common::duration::Span(STOP_GRACE_DEFAULT),
            },
            |spec| spec.stop.clone(),
        )
    }

    /// Whether and how this incarnation must end.
    fn end(&self, goal: &Goal<'_>, running: &Running) -> Option<(Why, i32)> {
        let stop = Self::stop(goal);
        let by = |by: &StopBy, why: Why| match by {
            StopBy::Grace => (why, stop.signal),
            StopBy::Signal(signal) => (if why == Why::Stop { Why::Kill } else { why }, *signal),
        };
        match goal {
            Goal::Gone { .. } => Some((Why::Remove, stop.signal)),
            Goal::Down { by: how, .. } => Some(by(how, Why::Stop)),
            Goal::Up(spec) if spec.wipes > self.observed.record.wipes => {
                Some(by(&spec.stop_by, Why::Wipe))
            }
            Goal::Up(spec) if spec.incarnation > running.incarnation => {
                Some(by(&spec.stop_by, Why::Restart))
            }
            Goal::Up(spec) if self.needs_restart(spec, running) => {
                Some((Why::Restart, stop.signal))
            }
            // It was asked for a reason that is gone; it ends all the same, and comes back.
            Goal::Up(_) => running.asked.as_ref().map(|asked| (asked.why, asked.signal)),
        }
    }

    fn end_running(
        &self,
        goal: &Goal<'_>,
        running: &Running,
        why: Why,
        signal: i32,
    ) -> Part<NodeAct> {
        let incarnation = running.incarnation;
        let observed = self.observed;
        let may_go_on =
            |kind: &StepKind| matches!(kind, StepKind::Orders | StepKind::Fetch | StepKind::Check);
        if !observed.busy.iter().all(may_go_on) {
            return self.wait_for_busy();
        }
        if let Some(leave) = self.leave(goal) {
            return leave;
        }
        // A node that stands still cannot hear a request: it must go on first.
        let orders = NodeOrders { pause: None, ..self.orders(goal) };
        if running.paused && signal != SIGKILL && observed.orders.as_ref() != Some(&orders) {
            return self.tell(running, orders);
        }
        let must_ask = match &running.asked {
            None => true,
            Some(asked) => signal == SIGKILL && asked.signal != SIGKILL,
        };
        if must_ask {
            let act = NodeAct::Signal { incarnation, why, signal };
            let part = step_or_wait(observed, act, "stopping", self.now);
            return self.quietly(part, &StepKind::Signal, "stopping");
        }
        let asked_at = running.asked.as_ref().map_or(self.now, |asked: &Asked| asked.at);
        let kill_at = asked_at + Self::stop(goal).grace.0;
        if self.now < kill_at {
            let standing = Standing::Pending("stopping".to_owned());
            return Part::standing(standing).wake_at(Some(kill_at));
        }
        let part = step_or_wait(observed, NodeAct::KillTree { incarnation }, "killing", self.now);
        self.quietly(part, &StepKind::KillTree, "killing")
    }

    /// Dying takes a moment; that is no news until it has taken long.
    fn quietly(&self, part: Part<NodeAct>, kind: &StepKind, pending: &str) -> Part<NodeAct> {
        let is_quiet = self.observed.failures.get(kind).is_none_or(|f| is_quiet(kind, f));
        match part.standing {
            Standing::Stuck(_) if is_quiet => {
                Part { standing: Standing::Pending(pending.to_owned()), ..part }
            }
            _ => part,
        }
    }

    /// The command that makes a node leave its cluster, if it must run now.
    fn leave(&self, goal: &Goal<'_>) -> Option<Part<NodeAct>> {
        let Goal::Gone { spec: Some(spec), forced: false, .. } = goal else { return None };
        let record = &self.observed.record;
        // A cluster that goes as a whole keeps its members: its data may be wanted again.
        let cluster_stays = self.wanted.spec.clusters.contains(&spec.cluster);
        if spec.launch.leave.is_none() || record.left || !cluster_stays {
            return None;
        }
        let attempts = self.observed.failures.get(&StepKind::Leave).map_or(0, |f| f.attempts);
        (spec.launch.leave_required || attempts < LEAVE_ATTEMPTS_MAX)
            .then(|| step_or_wait(self.observed, NodeAct::Leave, "leaving its cluster", self.now))
    }

    fn tell(&self, running: &Running, orders: NodeOrders) -> Part<NodeAct> {
        if self.observed.busy.contains(&StepKind::Orders) {
            return self.wait_for_busy();
        }
        let act = NodeAct::Orders { incarnation: running.incarnation, orders };
        step_or_wait(self.observed, act, "telling its shim", self.now)
    }

    /// What the shim must know.
    fn orders(&self, goal: &Goal<'_>) -> NodeOrders {
        let (Goal::Up(spec) | Goal::Down { spec, .. }) = goal else {
            return self.observed.orders.clone().unwrap_or_default();
        };
        // Of several pauses the one that ends last holds; one without an end outlasts all.
        let until = |effect: NodeEffect| {
            let faults = spec.faults.iter().filter(|(name, fault)| {
                fault.effect == effect && !self.wanted.is_over(name, self.now)
            });
            let ends =
                faults.map(|(name, _)| self.wanted.ends(name).map_or(u64::MAX, BootTime::ns));
            ends.max().map(|ns| match ns {
                u64::MAX => PauseUntil::Healed,
                ns => PauseUntil::BoottimeNs(ns),
            })
        };
        let proxied = spec.ports.values().filter(|port| port.proxied);
        let own = proxied.map(|port| SocketAddr::new(spec.address, port.port)).collect();
        let dials = &self.wanted.spec.dials;
        let far = (!dials.all.is_empty()).then(|| FarDials {
            address: spec.address,
            block: spec.block,
            dials: Arc::clone(&dials.all),
        });
        NodeOrders {
            dials: Arc::clone(&dials.near),
            far,
            own,
            pause: until(NodeEffect::Pause),
            stall: until(NodeEffect::DiskStall),
        }
    }

    /// When the next fault of this node ends, or its lease.
    fn next_end(&self, spec: &NodeSpec) -> Option<BootTime> {
        let ends = spec.faults.keys().filter_map(|name| self.wanted.ends(name));
        let ends = ends.chain(self.wanted.terms.lease_end(&spec.cluster));
        ends.filter(|end| *end > self.now).min()
    }

    fn keep_running(&self, goal: &Goal<'_>, running: &Running) -> Part<NodeAct> {
        let Goal::Up(spec) = goal else { return Part::standing(Standing::True) };
        let wake_at = self.next_end(spec);
        let orders = self.orders(goal);
        if self.observed.orders.as_ref() != Some(&orders) {
            return self.tell(running, orders).wake_at(wake_at);
        }
        if !self.observed.busy.is_empty() {
            return self.wait_for_busy().wake_at(wake_at);
        }
        if let Some(part) = self.effect_off(spec, running) {
            return part.wake_at(wake_at);
        }
        if spec.launch.bootstrap.is_some() && !self.observed.record.bootstrapped {
            let act = NodeAct::Bootstrap;
            return step_or_wait(self.observed, act, "setting up its cluster", self.now)
                .wake_at(wake_at);
        }
        if let Some(part) = self.effect_on(spec, running) {
            return part.wake_at(wake_at);
        }
        self.holding(&orders, running).wake_at(wake_at)
    }

    /// Whether the shim does what it was told: holding a tree of processes takes it a moment.
    fn holding(&self, orders: &NodeOrders, running: &Running) -> Part<NodeAct> {
        let verb = match (orders.pause.is_some(), running.paused) {
            (true, false) => "pausing",
            (false, true) => "resuming",
            (true, true) | (false, false) => return Part::standing(Standing::True),
        };
        if self.now < self.observed.told_at + HOLDING_MAX {
            return Part::standing(Standing::Pending(verb.to_owned()))
                .wake_at(Some(self.now + HOLDING_RECHECK));
        }
        Part::standing(Standing::Stuck(format!("{verb}: its shim does not obey")))
            .wake_at(Some(self.now + UNKNOWN_RECHECK))
    }

    /// What to do about a node of which nothing runs.
    fn down(&self, goal: &Goal<'_>, ended: Option<&Ended>) -> Part<NodeAct> {
        match goal {
            Goal::Gone { wipe, .. } => {
                let is_here = self.wanted.retiring.contains_key(self.name) || *wipe;
                if !is_here {
                    return Part::standing(Standing::True);
                }
                let act = NodeAct::Retire { wipe: *wipe };
                step_or_wait(self.observed, act, "going away", self.now)
            }
            Goal::Up(spec) | Goal::Down { spec, .. } if spec.wipes > self.observed.record.wipes => {
                let act = NodeAct::Wipe { wipes: spec.wipes };
                step_or_wait(self.observed, act, "wiping its data", self.now)
            }
            Goal::Down { held: Some(Held::Lease(cluster)), .. } => {
                Part::standing(Standing::TrueBecause(format!("the lease of {cluster} ended")))
            }
            Goal::Down { held: Some(Held::Fault(fault)), spec, .. } => {
                Part::standing(Standing::TrueBecause(format!("{fault} keeps it down")))
                    .wake_at(self.next_end(spec))
            }
            Goal::Down { .. } => Part::standing(Standing::True),
            Goal::Up(spec) => self.start(goal, spec, ended).wake_at(self.next_end(spec)),
        }
    }

    fn start(&self, goal: &Goal<'_>, spec: &NodeSpec, ended: Option<&Ended>) -> Part<NodeAct> {
        let cause = match self.cause(spec, ended) {
            Ok(cause) => cause,
            Err(part) => return part,
        };
        if self.observed.record.left {
            // It was called back too late: its cluster takes it for a member no more.
            return Part::standing(Standing::Stuck(HAS_LEFT.to_owned()));
        }
        if let Some(part) = self.fetch(spec) {
            return part;
        }
        if let Some(gate) = &spec.gate {
            return Part::standing(Standing::Pending(gate.clone()));
        }
        if let Some(part) = self.wait_for_proxy() {
            return part;
        }
        let record = &self.observed.record;
        if record.init_done < spec.launch.init.len() {
            let act = NodeAct::Init { index: record.init_done };
            return step_or_wait(self.observed, act, "initialising its data", self.now);
        }
        if spec.launch.join.is_some() && !record.joined {
            let act = NodeAct::Join;
            return step_or_wait(self.observed, act, "joining its cluster", self.now);
        }
        let newest = self.observed.run.incarnation();
        let incarnation = newest.next().max(spec.incarnation);
        let act = NodeAct::Start { incarnation, cause, orders: self.orders(goal) };
        step_or_wait(self.observed, act, "starting", self.now)
    }

    /// Why it is started, or why it is not.
    fn cause(&self, spec: &NodeSpec, ended: Option<&Ended>) -> Result<Cause, Part<NodeAct>> {
        let Some(ended) = ended else { return Ok(Cause::Command) };
        if spec.incarnation > ended.incarnation {
            return Ok(Cause::Command);
        }
        if ended.asked.is_some() {
            return Ok(Cause::FaultOver);
        }
        let crashed = format!("crashed: {}", ended.describe());
        let restarts = self.observed.record.restarts;
        match spec.on_crash {
            OnCrash::Stay => Err(Part::standing(Standing::Stuck(crashed))),
            OnCrash::Restart if restarts >= CRASH_RESTARTS_MAX => {
                let why = format!("{crashed}; restarted {restarts} times");
                Err(Part::standing(Standing::Stuck(why)))
            }
            OnCrash::Restart => {
                let at = ended.at + crash_delay(restarts);
                if self.now < at {
                    let why = format!("{crashed}; starts again soon");
                    return Err(Part::standing(Standing::Pending(why)).wake_at(Some(at)));
                }
                Ok(Cause::Crash)
            }
        }
    }

    /// A node dials its own advertised address while it starts, and must never run without the
    /// rules that are in force on it: the proxy comes first.
    fn wait_for_proxy(&self) -> Option<Part<NodeAct>> {
        let listeners = self.wanted.spec.proxy.listeners.iter();
        let closed = listeners
            .filter(|listener| listener.node == *self.name)
            .find(|listener| !self.proxy.is_open(listener));
        if let Some(listener) = closed {
            let standing = match self.proxy.failed.get(&listener.listen) {
                Some(why) => Standing::Stuck(format!("cannot own {}: {why}", listener.listen)),
                None => Standing::Pending("waiting for the proxy".to_owned()),
            };
            return Some(Part::standing(standing));
        }
        (!self.is_proxy_current)
            .then(|| Part::standing(Standing::Pending("waiting for the proxy".to_owned())))
    }
}

/// Whether it is told to nobody yet: what was asked to end takes a moment.
fn is_quiet(kind: &StepKind, failure: &Failure) -> bool {
    matches!(kind, StepKind::Signal | StepKind::KillTree) && failure.attempts < KILL_ATTEMPTS_QUIET
}

/// How long after its end a node that crashed is started again.
fn crash_delay(restarts: u32) -> Duration {
    CRASH_DELAY_FIRST.saturating_mul(1 << restarts.min(16)).min(CRASH_DELAY_MAX)
}
