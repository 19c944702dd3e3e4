//! The laws of plans, over hosts in any state, and what people notice of single decisions.

mod effects;
mod leases;
mod programs;
mod reboots;
mod retries;

use std::collections::BTreeMap;

use faultbed_common::{
    generation::{FaultRevision, Incarnation},
    host_spec::{Bootstrap, NodeEffect, NodeFault, NodeSpec, StopBy, Wanted},
    name::{FaultName, NodeName},
    spec::OnCrash,
};
use proptest::{collection::btree_map, option, prelude::*, sample::select};

use super::*;
use crate::{
    ledger::merge,
    reconcile::{
        Asked, Ended, NodeOrders, NodeRecord, ObservedProxy, Readiness, Run, Running, Why,
        node_record::EffectMark,
        testing::{BOOT, host_spec, node, node_spec, orders, probe, pushed},
    },
};

const NOW: BootTime = BootTime::from_ms(1_000_000);

/// More rounds than any history needs: init, join, start, orders, bootstrap, effects, and ends.
const ROUNDS_MAX: usize = 40;

fn accepted(nodes: impl IntoIterator<Item = (NodeName, NodeSpec)>) -> Accepted {
    merge(None, orders(host_spec(nodes)), BOOT, NOW).unwrap()
}

fn running(incarnation: u64) -> Running {
    Running {
        incarnation: Incarnation(incarnation),
        pid: 100,
        shim: 99,
        started: NOW,
        paused: false,
        asked: None,
    }
}

fn ended(incarnation: u64, asked: Option<Why>) -> Ended {
    Ended { incarnation: Incarnation(incarnation), code: Some(1), signal: None, at: NOW, asked }
}

/// The host after every step of a plan was done as it was meant.
fn carry_out(observed: &mut Observed, wanted: &mut Accepted, steps: &[Step], now: BootTime) {
    for step in steps {
        match step {
            Step::Proxy(file) => {
                observed.proxy.running = true;
                observed.proxy.applied = Some((**file).clone());
                observed.proxy.applied_at = now;
            }
            Step::Node { node, act: NodeAct::Retire { .. } } => {
                observed.nodes.remove(node);
                wanted.retiring.remove(node);
                wanted.spec.wipe_removed.remove(node);
            }
            Step::Node { node, act: NodeAct::Fetch { .. } } => {
                let program = &wanted.spec.nodes[node].launch.program;
                observed.programs.insert(program.into());
            }
            Step::Node { node, act } => {
                let seen = observed.nodes.entry(node.clone()).or_default();
                carry_out_node(seen, act, now);
            }
        }
    }
}

fn carry_out_node(seen: &mut ObservedNode, act: &NodeAct, now: BootTime) {
    let ends = |seen: &mut ObservedNode, why: Why| {
        let incarnation = seen.run.incarnation();
        let end = Ended { incarnation, code: None, signal: Some(9), at: now, asked: Some(why) };
        seen.run = Run::Ended(end);
        seen.orders = None;
        seen.ready = Readiness::NotYet;
    };
    match act {
        NodeAct::Interrupt => seen.busy.clear(),
        NodeAct::EffectOff { fault, .. } => {
            seen.record.effects.remove(fault);
        }
        NodeAct::Leave => seen.record.left = true,
        NodeAct::Check { incarnation } => seen.checked = Some(*incarnation),
        // It hears the request, and takes its whole grace.
        NodeAct::Signal { why, signal, .. } => {
            let Run::Running(running) = &mut seen.run else { panic!("signal to what is down") };
            let asked = Asked { why: *why, signal: *signal, at: now };
            running.asked = Some(asked);
            if *signal == 9 {
                ends(seen, *why);
            }
        }
        NodeAct::KillTree { .. } => {
            let Run::Running(running) = &seen.run else { panic!("kill what is down") };
            let why = running.asked.as_ref().expect("asked before it is killed").why;
            ends(seen, why);
        }
        NodeAct::Wipe { wipes } => {
            assert!(!matches!(seen.run, Run::Running(_) | Run::Unknown { .. }));
            seen.record = seen.record.wiped(*wipes);
        }
        NodeAct::Retire { .. } | NodeAct::Fetch { .. } => unreachable!("done by the caller"),
        NodeAct::Orders { orders, .. } => {
            seen.orders = Some(orders.clone());
            let Run::Running(running) = &mut seen.run else { panic!("orders to what is down") };
            running.paused = orders.pause.is_some();
        }
        NodeAct::Init { index } => seen.record.init_done = index + 1,
        NodeAct::Join => seen.record.joined = true,
        NodeAct::Start { incarnation, orders, .. } => {
            assert!(!matches!(seen.run, Run::Running(_) | Run::Unknown { .. }));
            assert!(*incarnation > seen.run.incarnation());
            let paused = orders.pause.is_some();
            seen.run = Run::Running(Running { paused, ..running(incarnation.0) });
            seen.orders = Some(orders.clone());
            seen.ready = Readiness::Ready;
        }
        NodeAct::Bootstrap => seen.record.bootstrapped = true,
        NodeAct::EffectOn { fault, revision, incarnation, off, .. } => {
            let mark = EffectMark {
                revision: *revision,
                tried_in: Some(*incarnation),
                on_in: Some(*incarnation),
                off: off.as_deref().cloned(),
            };
            seen.record.effects.insert(fault.clone(), mark);
        }
    }
}

/// What must be so of every plan, whatever it is of.
fn check_laws(plan: &Plan, wanted: &Accepted, observed: &Observed) {
    let is_addition = |step: &Step| matches!(step, Step::Node { act, .. } if !act.kind().removes());
    let first_addition = plan.steps.iter().position(is_addition).unwrap_or(plan.steps.len());
    for (at, step) in plan.steps.iter().enumerate() {
        let Step::Node { node, act } = step else { continue };
        assert!(!act.kind().removes() || at < first_addition, "stops precede starts: {plan:?}");
        let is_named = wanted.spec.nodes.contains_key(node)
            || wanted.retiring.contains_key(node)
            || observed.nodes.contains_key(node);
        assert!(is_named, "{node} is neither wanted nor seen");
        if let NodeAct::Start { .. } = act {
            let seen = observed.nodes.get(node).cloned().unwrap_or_default();
            assert!(matches!(seen.run, Run::None | Run::Ended(_)), "a second copy: {seen:?}");
            assert!(observed.proxy.applied.as_ref() == Some(&wanted.proxy_file()));
            let launch = &wanted.spec.nodes[node].launch;
            let is_here = observed.programs.contains(std::path::Path::new(&launch.program));
            assert!(launch.pushed.is_none() || is_here, "started before its program is here");
            let mut own = wanted.spec.proxy.listeners.iter().filter(|l| l.node == *node);
            assert!(own.all(|listener| observed.proxy.is_open(listener)));
            assert!(wanted.spec.nodes[node].gate.is_none());
        }
    }
}

/// Carries out plans, letting time pass where only that helps, until nothing is left to do.
fn settle(wanted: &mut Accepted, observed: &mut Observed) -> Plan {
    let mut now = NOW;
    for _ in 0..ROUNDS_MAX {
        let next = plan(wanted, observed, now);
        check_laws(&next, wanted, observed);
        if next.steps.is_empty() {
            match next.wake_after {
                // What waits for time alone, and not for a retry that fails again.
                Some(after) if next.stuck.is_empty() => {
                    now = now + after + Duration::from_millis(1);
                    continue;
                }
                _ => return next,
            }
        }
        carry_out(observed, wanted, &next.steps, now);
    }
    panic!("no rest after {ROUNDS_MAX} rounds: {:#?}", plan(wanted, observed, now));
}

fn node_name() -> impl Strategy<Value = NodeName> {
    select(vec!["kv-1", "kv-2", "kv-3"]).prop_map(node)
}

fn effect() -> impl Strategy<Value = NodeEffect> {
    prop_oneof![
        Just(NodeEffect::Pause),
        stop_by().prop_map(NodeEffect::Down),
        Just(NodeEffect::Custom {
            name: "slow".to_owned(),
            on: Box::new(probe()),
            off: Some(Box::new(probe())),
        }),
    ]
}

fn stop_by() -> impl Strategy<Value = StopBy> {
    prop_oneof![Just(StopBy::Grace), Just(StopBy::Signal(9)), Just(StopBy::Signal(3))]
}

fn fault() -> impl Strategy<Value = NodeFault> {
    (1..3_u64, option::of(select(vec!["10ms", "30s"])), effect()).prop_map(
        |(revision, lasts, effect)| NodeFault {
            revision: FaultRevision(revision),
            lasts: lasts.map(|lasts| lasts.parse().unwrap()),
            effect,
        },
    )
}

fn fault_name() -> impl Strategy<Value = FaultName> {
    select(vec!["pause-1", "kill-2"]).prop_map(|name| name.parse().unwrap())
}

prop_compose! {
    fn any_spec()(
        wanted in prop_oneof![Just(Wanted::Running), Just(Wanted::Stopped)],
        incarnation in 1..4_u64,
        stop_by in stop_by(),
        wipes in 0..2_u64,
        gate in option::weighted(0.2, Just("waiting for pd of db".to_owned())),
        init in 0..3_usize,
        hooks in any::<[bool; 3]>(),
        restarts in any::<bool>(),
        is_pushed in any::<bool>(),
        faults in btree_map(fault_name(), fault(), 0..3),
    ) -> NodeSpec {
        let mut spec = node_spec();
        if is_pushed {
            spec.launch.pushed = Some(pushed('a'));
            spec.launch.program = "/lab/bins/a/kv".to_owned();
        }
        let command = vec!["true".to_owned()];
        spec.wanted = wanted;
        spec.incarnation = Incarnation(incarnation);
        spec.stop_by = stop_by;
        spec.wipes = wipes;
        spec.gate = gate;
        spec.launch.init = vec![command.clone(); init];
        spec.launch.join = hooks[0].then(|| command.clone());
        spec.launch.leave = hooks[1].then(|| command.clone());
        spec.launch.bootstrap = hooks[2].then_some(Bootstrap { command, done: None });
        spec.on_crash = if restarts { OnCrash::Restart } else { OnCrash::Stay };
        spec.faults = faults;
        spec
    }
}

fn why() -> impl Strategy<Value = Why> {
    select(vec![Why::Stop, Why::Kill, Why::Restart, Why::Wipe, Why::Remove, Why::Reboot])
}

fn run() -> impl Strategy<Value = Run> {
    let living = (1..4_u64, any::<bool>(), option::of(why())).prop_map(|(n, paused, why)| {
        let asked = why.map(|why| Asked { why, signal: 15, at: NOW });
        Run::Running(Running { paused, asked, ..running(n) })
    });
    let over = (1..4_u64, option::of(why())).prop_map(|(n, asked)| Run::Ended(ended(n, asked)));
    let unknown = Just(Run::Unknown { why: "its records contradict each other".to_owned() });
    prop_oneof![2 => Just(Run::None), 4 => living, 4 => over, 1 => unknown]
}

prop_compose! {
    fn any_observed()(
        run in run(),
        wipes in 0..2_u64,
        init_done in 0..3_usize,
        marks in any::<[bool; 3]>(),
        told in any::<bool>(),
        effects in btree_map(fault_name(), 1..3_u64, 0..2),
    ) -> ObservedNode {
        let mark = |revision| EffectMark {
            revision: FaultRevision(revision),
            tried_in: Some(Incarnation(1)),
            on_in: Some(Incarnation(1)),
            off: (revision == 1).then(probe),
        };
        ObservedNode {
            run,
            orders: told.then(NodeOrders::default),
            ready: Readiness::Ready,
            record: NodeRecord {
                wipes,
                init_done,
                joined: marks[0],
                left: marks[1],
                bootstrapped: marks[2],
                effects: effects.into_iter().map(|(name, rev)| (name, mark(rev))).collect(),
                ..NodeRecord::default()
            },
            ..ObservedNode::default()
        }
    }
}

prop_compose! {
    fn any_wanted()(
        before in btree_map(node_name(), any_spec(), 0..3),
        after in btree_map(node_name(), any_spec(), 0..3),
        wiped in proptest::collection::btree_set(node_name(), 0..2),
    ) -> Accepted {
        let before = accepted(before);
        let mut spec = host_spec(after);
        spec.wipe_removed = wiped.into_iter().filter(|n| !spec.nodes.contains_key(n)).collect();
        merge(Some(&before), orders(spec), BOOT, NOW).unwrap()
    }
}

fn any_nodes() -> impl Strategy<Value = BTreeMap<NodeName, ObservedNode>> {
    btree_map(node_name(), any_observed(), 0..4)
}

proptest! {
    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(
        wanted in any_wanted(),
        nodes in any_nodes(),
    ) {
        let mut wanted = wanted;
        let mut observed = Observed { nodes, ..Observed::default() };
        let rest = settle(&mut wanted, &mut observed);
        prop_assert!(rest.steps.is_empty());
        for (name, spec) in &wanted.spec.nodes {
            let seen = observed.nodes.get(name).cloned().unwrap_or_default();
            let is_told = rest.why.iter().any(|(node, _)| node == name);
            let must_run = spec.wanted == Wanted::Running;
            let runs = matches!(&seen.run, Run::Running(running) if running.asked.is_none());
            prop_assert!(runs == must_run || is_told, "{name}: {seen:?}\n{rest:?}");
            if let Run::Running(running) = &seen.run {
                prop_assert!(running.incarnation >= spec.incarnation || is_told);
                prop_assert!(seen.record.wipes >= spec.wipes || is_told);
            }
        }
    }

    #[test]
    fn what_is_done_for_a_node_does_not_depend_on_others(
        wanted in any_wanted(),
        nodes in any_nodes(),
    ) {
        let proxy = ObservedProxy {
            running: true,
            applied: Some(wanted.proxy_file()),
            ..ObservedProxy::default()
        };
        let observed = Observed { nodes, proxy, ..Observed::default() };
        let all = plan(&wanted, &observed, NOW);
        check_laws(&all, &wanted, &observed);
        for name in observed.nodes.keys() {
            let mut alone = observed.clone();
            alone.nodes.retain(|other, _| other == name);
            let own = |plan: &Plan| -> Vec<Step> {
                let is_own = |s: &&Step| matches!(s, Step::Node { node, .. } if node == name);
                plan.steps.iter().filter(is_own).cloned().collect()
            };
            prop_assert_eq!(own(&all), own(&plan(&wanted, &alone, NOW)));
        }
    }

    #[test]
    fn a_busy_node_is_left_alone_but_for_an_interruption(
        wanted in any_wanted(),
        nodes in any_nodes(),
        kind in select(vec![StepKind::Start, StepKind::Init, StepKind::Signal, StepKind::Wipe]),
    ) {
        let mut nodes = nodes;
        for seen in nodes.values_mut() {
            seen.busy.insert(kind.clone());
            seen.orders = None;
        }
        let observed = Observed { nodes, ..Observed::default() };
        for step in plan(&wanted, &observed, NOW).steps {
            let Step::Node { node, act } = step else { continue };
            let is_harmless = matches!(act, NodeAct::Interrupt | NodeAct::Orders { .. });
            prop_assert!(is_harmless || !observed.nodes.contains_key(&node), "{act:?}");
        }
    }
}

/// The plan for one node, with a proxy that obeys.
fn check(spec: NodeSpec, seen: ObservedNode, now: BootTime) -> Plan {
    let wanted = accepted([(node("kv-1"), spec)]);
    let proxy = ObservedProxy {
        running: true,
        applied: Some(wanted.proxy_file()),
        ..ObservedProxy::default()
    };
    let nodes = BTreeMap::from([(node("kv-1"), seen)]);
    plan(&wanted, &Observed { nodes, proxy, ..Observed::default() }, now)
}

fn acts(plan: &Plan) -> Vec<NodeAct> {
    let act = |step: &Step| match step {
        Step::Node { act, .. } => Some(act.clone()),
        Step::Proxy(_) => None,
    };
    plan.steps.iter().filter_map(act).collect()
}

#[test]
fn a_crash_stays_down_until_somebody_starts_it() {
    let seen = ObservedNode { run: Run::Ended(ended(1, None)), ..ObservedNode::default() };
    let plan = check(node_spec(), seen.clone(), NOW);
    assert_eq!(plan.stuck, ["kv-1: crashed: exited with status 1"]);
    assert!(plan.steps.is_empty());
    let started = NodeSpec { incarnation: Incarnation(2), ..node_spec() };
    let plan = check(started, seen, NOW);
    assert!(matches!(acts(&plan)[..], [NodeAct::Start { incarnation: Incarnation(2), .. }]));
}

#[test]
fn a_crash_restart_waits_longer_each_time() {
    let spec = NodeSpec { on_crash: OnCrash::Restart, ..node_spec() };
    let waits: Vec<Duration> = [0, 1, 4, 20]
        .map(|restarts| {
            let run = Run::Ended(ended(1, None));
            let record = NodeRecord { restarts, ..NodeRecord::default() };
            let seen = ObservedNode { run, record, ..ObservedNode::default() };
            check(spec.clone(), seen, NOW).wake_after.unwrap()
        })
        .to_vec();
    assert_eq!(waits, [500, 1000, 8000, 30_000].map(Duration::from_millis));
    let run = Run::Ended(ended(1, None));
    let seen = ObservedNode { run, ..ObservedNode::default() };
    let plan = check(spec, seen, NOW + Duration::from_millis(500));
    let cause = crate::reconcile::step::Cause::Crash;
    assert!(matches!(&acts(&plan)[..], [NodeAct::Start { cause: c, .. }] if *c == cause));
}

#[test]
fn a_kill_overtakes_a_stop_that_takes_long() {
    let asked = Asked { why: Why::Stop, signal: 15, at: NOW };
    let run = Run::Running(Running { asked: Some(asked), ..running(1) });
    let seen = ObservedNode { run, ..ObservedNode::default() };
    let stop = NodeSpec { wanted: Wanted::Stopped, ..node_spec() };
    let plan = check(stop.clone(), seen.clone(), NOW + Duration::from_secs(1));
    assert_eq!((acts(&plan).len(), plan.wake_after), (0, Some(Duration::from_secs(4))));
    let kill = NodeSpec { stop_by: StopBy::Signal(9), ..stop };
    let plan = check(kill, seen, NOW + Duration::from_secs(1));
    assert!(matches!(acts(&plan)[..], [NodeAct::Signal { signal: 9, why: Why::Kill, .. }]));
}

#[test]
fn a_node_that_cannot_be_told_is_never_started() {
    let run = Run::Unknown { why: "its shim is gone, but pid 7 still lives".to_owned() };
    let seen = ObservedNode { run, ..ObservedNode::default() };
    let spec = NodeSpec { incarnation: Incarnation(9), ..node_spec() };
    let plan = check(spec, seen, NOW);
    assert!(plan.steps.is_empty());
    assert!(plan.stuck[0].contains("pid 7 still lives"), "{plan:?}");
}

#[test]
fn an_address_that_others_hold_makes_its_node_stuck_with_the_holder() {
    let wanted = accepted([(node("kv-1"), node_spec())]);
    let address = wanted.spec.proxy.listeners[0].listen;
    let why = "port in use by pid 12 (etcd)".to_owned();
    let proxy = ObservedProxy {
        running: true,
        applied: Some(wanted.proxy_file()),
        applied_at: NOW,
        failed: BTreeMap::from([(address, why)]),
        ..ObservedProxy::default()
    };
    let observed = Observed { proxy, ..Observed::default() };
    let held = plan(&wanted, &observed, NOW);
    assert!(held.steps.is_empty());
    assert_eq!(held.stuck, ["kv-1: cannot own 127.77.1.1:2379: port in use by pid 12 (etcd)"]);
    assert!(matches!(plan(&wanted, &observed, NOW + LISTENER_RETRY).steps[..], [Step::Proxy(_)]));
}

#[test]
fn new_rules_come_before_everything_else() {
    let wanted = accepted([(node("kv-1"), node_spec())]);
    let run = Run::Running(running(1));
    let nodes = [("kv-2", run.clone()), ("kv-1", Run::Ended(ended(0, Some(Why::Stop))))]
        .map(|(name, run)| (node(name), ObservedNode { run, ..ObservedNode::default() }));
    let observed = Observed { nodes: BTreeMap::from(nodes), ..Observed::default() };
    let plan = plan(&wanted, &observed, NOW);
    assert!(matches!(plan.steps[..], [Step::Proxy(_), Step::Node { .. }]), "{plan:?}");
    assert!(plan.pending.contains(&"kv-1: waiting for the proxy".to_owned()));
}
