//! Programs that nodes are to run next: looked at while the node still runs.

use super::*;

/// A node that runs, and what a failed look at its next program left.
fn refused(attempts: u32) -> ObservedNode {
    failed("refused: it is no program of etcd", attempts)
}

fn failed(why: &str, attempts: u32) -> ObservedNode {
    let why = format!("check its next program: {why}");
    let failures = [(StepKind::Check, Failure { why, attempts, at: NOW })].into();
    let run = Run::Running(running(1));
    let orders = Some(NodeOrders::default());
    ObservedNode { run, orders, failures, ..ObservedNode::default() }
}

fn next() -> NodeSpec {
    NodeSpec { incarnation: Incarnation(2), ..node_spec() }
}

#[test]
fn a_node_is_not_ended_before_its_next_program_is_known_to_be_right() {
    let seen = ObservedNode { run: Run::Running(running(1)), ..ObservedNode::default() };
    let looks = acts(&check(next(), seen.clone(), NOW));
    assert_eq!(looks, [NodeAct::Check { incarnation: Incarnation(2) }]);
    let right = ObservedNode { checked: Some(Incarnation(2)), ..seen.clone() };
    assert!(matches!(acts(&check(next(), right, NOW))[..], [NodeAct::Signal { .. }]));
    let older = ObservedNode { checked: Some(Incarnation(1)), ..seen.clone() };
    assert_eq!(acts(&check(next(), older, NOW)), looks, "each restart takes what is there then");
    let killed = NodeSpec { stop_by: StopBy::Signal(9), ..next() };
    assert!(matches!(acts(&check(killed, seen, NOW))[..], [NodeAct::Signal { signal: 9, .. }]));
}

#[test]
fn a_node_whose_next_program_is_wrong_runs_on_and_says_so() {
    let stuck = ["kv-1: runs on; its restart is refused: it is no program of etcd"];
    let waits = check(next(), refused(1), NOW);
    assert_eq!((acts(&waits), &waits.stuck[..]), (Vec::new(), &stuck.map(str::to_owned)[..]));
    let much_later = NOW + Duration::from_secs(3600);
    let looks = check(next(), refused(ATTEMPTS_MAX * 9), much_later);
    assert_eq!(acts(&looks), [NodeAct::Check { incarnation: Incarnation(2) }], "never given up");
    assert_eq!(looks.stuck, stuck);
}

#[test]
fn a_node_whose_next_program_answers_late_runs_on_and_is_looked_at_again() {
    let late = "`/opt/etcd --version` did not end within 5 s";
    let waits = check(next(), failed(late, 1), NOW);
    assert_eq!((acts(&waits), waits.stuck), (Vec::new(), Vec::new()));
    assert_eq!(waits.pending, [format!("kv-1: runs on; {late}")]);
    let looks = check(next(), failed(late, 1), NOW + Duration::from_secs(3600));
    assert_eq!(acts(&looks), [NodeAct::Check { incarnation: Incarnation(2) }]);
}

#[test]
fn faults_hold_a_node_whose_next_program_is_wrong() {
    let mut spec = next();
    let effect = NodeEffect::Pause;
    let pause = NodeFault { revision: FaultRevision(1), lasts: None, effect };
    spec.faults.insert("pause-1".parse().unwrap(), pause);
    let tells = acts(&check(spec.clone(), refused(1), NOW));
    assert!(matches!(&tells[..], [NodeAct::Orders { orders, .. }] if orders.pause.is_some()));
    let looking = ObservedNode { busy: [StepKind::Check].into(), ..refused(1) };
    assert_eq!(acts(&check(spec, looking.clone(), NOW)), tells);
    let stops = NodeSpec { wanted: Wanted::Stopped, ..next() };
    assert!(matches!(acts(&check(stops, looking, NOW))[..], [NodeAct::Signal { .. }]));
}
