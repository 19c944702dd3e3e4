//! Nodes whose programs are pushed: nothing runs before its program is here, and what runs goes on.

use super::*;

fn pushed_spec(digit: char) -> NodeSpec {
    let mut spec = node_spec();
    spec.launch.pushed = Some(pushed(digit));
    spec.launch.program = format!("/lab/bins/{digit}/kv");
    spec
}

#[tokio::test(start_paused = true)]
async fn a_node_waits_for_its_program_and_says_so() {
    let mut lab = Harness::new();
    lab.hands.hold_fetches(true);
    lab.set("kv-1", pushed_spec('a'));
    lab.order().await;
    let report = lab.wait_state("kv-1", NodeState::Preparing).await;
    let why = report.nodes[&node("kv-1")].why.clone().unwrap();
    assert_eq!(why, "fetching /home/ada/kv: 0% of 10 MB");
    assert!(lab.hands.living(&node("kv-1")).is_none());
    lab.hands.hold_fetches(false);
    lab.wait_state("kv-1", NodeState::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_told_to_stop_does_not_wait_for_its_program() {
    let mut lab = Harness::new();
    lab.hands.hold_fetches(true);
    lab.set("kv-1", pushed_spec('a'));
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Preparing).await;
    lab.edit("kv-1").wanted = Wanted::Stopped;
    lab.order().await;
    lab.wait_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_the_old_program_running_until_the_new_one_is_here() {
    let mut lab = Harness::new();
    lab.set("kv-1", pushed_spec('a'));
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
    let pid = lab.hands.living(&node("kv-1"));
    lab.hands.hold_fetches(true);
    lab.set("kv-1", NodeSpec { incarnation: Incarnation(2), ..pushed_spec('b') });
    lab.order().await;
    let is_fetching = |report: &HostReport| {
        let why = report.nodes.get(&node("kv-1")).and_then(|node| node.why.clone());
        why.is_some_and(|why| why.starts_with("fetching"))
    };
    lab.wait("it fetches", is_fetching).await;
    assert_eq!(lab.hands.living(&node("kv-1")), pid, "it runs on");
    lab.hands.hold_fetches(false);
    let report = lab.wait_done().await;
    assert_eq!(report.nodes[&node("kv-1")].incarnation, Incarnation(2));
}

#[tokio::test(start_paused = true)]
async fn a_kill_does_not_wait_for_a_program() {
    let mut lab = Harness::new();
    lab.set("kv-1", pushed_spec('a'));
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
    lab.hands.hold_fetches(true);
    let stop_by = faultbed_common::host_spec::StopBy::Signal(9);
    lab.set("kv-1", NodeSpec { incarnation: Incarnation(2), stop_by, ..pushed_spec('b') });
    lab.order().await;
    lab.wait("it died", |report| report.nodes[&node("kv-1")].pid.is_none()).await;
    lab.hands.hold_fetches(false);
    lab.wait_state("kv-1", NodeState::Ready).await;
}
