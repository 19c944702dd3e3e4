//! Programs that are not here yet, or are not the right ones: what runs goes on.

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

#[tokio::test(start_paused = true)]
async fn a_restart_to_a_wrong_program_leaves_the_node_running_until_the_right_one_is_named() {
    let mut lab = Harness::new();
    lab.set("kv-1", node_spec());
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
    let pid = lab.hands.living(&node("kv-1"));
    let with = |incarnation, program: &str| {
        let mut spec = NodeSpec { incarnation: Incarnation(incarnation), ..node_spec() };
        spec.launch.program = program.to_owned();
        spec
    };
    lab.set("kv-1", with(2, "/bin/wrong"));
    lab.order().await;
    let is_refused = |report: &HostReport| report.stuck.iter().any(|s| s.contains("no program"));
    let report = lab.wait("it is refused", is_refused).await;
    assert_eq!(report.nodes[&node("kv-1")].observed, NodeState::Ready);
    assert_eq!(lab.hands.living(&node("kv-1")), pid, "it runs on");
    lab.set("kv-1", with(3, "/bin/right"));
    lab.order().await;
    let report = lab.wait_done().await;
    assert_eq!(report.nodes[&node("kv-1")].incarnation, Incarnation(3));
    assert_eq!(report.stuck, Vec::<String>::new());
}
