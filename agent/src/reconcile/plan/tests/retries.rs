//! Steps that fail: when they are tried again, and what is said meanwhile.

use super::*;

#[test]
fn a_step_that_fails_is_tried_again_and_given_up_at_last() {
    let failed = |attempts| {
        let failure = Failure { why: "start: no".to_owned(), attempts, at: NOW };
        ObservedNode { failures: [(StepKind::Start, failure)].into(), ..ObservedNode::default() }
    };
    let plan = check(node_spec(), failed(2), NOW);
    assert_eq!(plan.wake_after, Some(RETRY_FIRST * 2));
    assert_eq!(plan.stuck, ["kv-1: start: no"]);
    let later = NOW + Duration::from_secs(3600);
    assert_eq!(acts(&check(node_spec(), failed(2), later)).len(), 1);
    let plan = check(node_spec(), failed(ATTEMPTS_MAX), later);
    assert_eq!((acts(&plan).len(), plan.wake_after), (0, None));
}

/// A node of which this step failed.
fn failing(kind: StepKind, attempts: u32, run: Run) -> ObservedNode {
    let why = format!("{}: no", kind.verb());
    let failures = [(kind, Failure { why, attempts, at: NOW })].into();
    ObservedNode { run, failures, orders: Some(NodeOrders::default()), ..ObservedNode::default() }
}

#[test]
fn a_retry_of_what_failed_is_no_news() {
    let mut joins = node_spec();
    joins.launch.join = Some(vec!["join".to_owned()]);
    let mut sets_up = node_spec();
    sets_up.launch.bootstrap = Some(Bootstrap { command: vec!["init".to_owned()], done: None });
    let up = Run::Running(running(1));
    let rows = [
        (node_spec(), failing(StepKind::Start, 2, Run::None)),
        (joins, failing(StepKind::Join, 2, Run::None)),
        (sets_up, failing(StepKind::Bootstrap, 2, up)),
    ];
    for (spec, waits) in rows {
        let kind = waits.failures.keys().next().unwrap().clone();
        let why = format!("kv-1: {}: no", kind.verb());
        let stuck = |plan: &Plan| (plan.stuck.clone(), plan.pending.clone());
        let steadily = (vec![why], Vec::new());
        assert_eq!(stuck(&check(spec.clone(), waits.clone(), NOW)), steadily, "it waits");
        let due = check(spec.clone(), waits.clone(), NOW + RETRY_MAX);
        assert_eq!((acts(&due).len(), stuck(&due)), (1, steadily.clone()), "it is tried again");
        let tries = ObservedNode { busy: [kind.clone()].into(), ..waits.clone() };
        assert_eq!(stuck(&check(spec.clone(), tries, NOW)), steadily, "it is being tried");
        let other = ObservedNode { busy: [StepKind::Wipe].into(), ..waits.clone() };
        assert_eq!(check(spec, other, NOW).stuck, Vec::<String>::new(), "{kind:?} is not tried");
    }
}

#[test]
fn what_takes_a_moment_to_die_is_not_stuck_while_it_is_asked_again() {
    let asked = Asked { why: Why::Stop, signal: 15, at: NOW };
    let run = Run::Running(Running { asked: Some(asked), ..running(1) });
    let stop = NodeSpec { wanted: Wanted::Stopped, ..node_spec() };
    let later = NOW + Duration::from_secs(60);
    for (attempts, stuck) in [(1, 0), (4, 0), (5, 1)] {
        let due = failing(StepKind::KillTree, attempts, run.clone());
        let busy = ObservedNode { busy: [StepKind::KillTree].into(), ..due.clone() };
        for seen in [due, busy] {
            let plan = check(stop.clone(), seen, later);
            assert_eq!(plan.stuck.len(), stuck, "after {attempts}: {plan:?}");
        }
    }
}

#[test]
fn rules_that_failed_stay_stuck_while_they_are_told_again() {
    let wanted = accepted([]);
    let failure =
        Some(Failure { why: "the proxy does not answer".to_owned(), attempts: 2, at: NOW });
    for (busy, steps) in [(false, 1), (true, 0)] {
        let proxy = ObservedProxy { busy, failure: failure.clone(), ..ObservedProxy::default() };
        let plan = plan(&wanted, &Observed { proxy, ..Observed::default() }, NOW + RETRY_MAX);
        assert_eq!((plan.steps.len(), plan.stuck.len(), plan.pending.len()), (steps, 1, 0));
    }
}
