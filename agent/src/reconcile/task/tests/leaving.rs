//! Nodes that leave their cluster, and those that must not go before they have left.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_node_whose_leaving_keeps_data_stays_until_it_has_left() {
    for (required, tries) in [(true, 11), (false, 3)] {
        let mut lab = Harness::new();
        let mut spec = node_spec();
        spec.launch.leave = Some(vec!["fail-ten-times".to_owned()]);
        spec.launch.leave_required = required;
        lab.set("kv-1", spec);
        lab.order().await;
        lab.wait_state("kv-1", NodeState::Ready).await;
        lab.spec.nodes.clear();
        lab.spec.proxy.listeners.clear();
        lab.order().await;
        lab.wait("gone", |report| report.nodes.is_empty()).await;
        assert_eq!(lab.hands.commands().len(), tries, "required: {required}");
    }
}

#[tokio::test(start_paused = true)]
async fn data_that_a_node_left_long_ago_goes_when_that_is_wanted() {
    let mut lab = Harness::new();
    lab.set("kv-1", node_spec());
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
    lab.spec.nodes.clear();
    lab.spec.proxy.listeners.clear();
    lab.order().await;
    lab.wait("gone", |report| report.nodes.is_empty() && report.pending.is_empty()).await;
    assert_eq!(lab.hands.nodes().unwrap(), [node("kv-1")], "its data is kept");
    lab.spec.wipe_removed.insert(node("kv-1"));
    lab.order().await;
    let generation = lab.spec.generation;
    lab.wait("followed", |report| report.generation == generation && report.pending.is_empty())
        .await;
    assert_eq!(lab.hands.nodes().unwrap(), []);
}

/// A node whose leave goes on for ever, which its cluster needs.
async fn stays_for_ever(leave: &str) -> (Harness, NodeSpec) {
    let mut lab = Harness::new();
    let mut spec = node_spec();
    spec.launch.leave = Some(vec![leave.to_owned()]);
    spec.launch.leave_required = true;
    spec.launch.leave_timeout = Some(faultbed_common::duration::Span(PATIENCE * 10));
    lab.set("kv-1", spec.clone());
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
    lab.spec.nodes.clear();
    lab.order().await;
    lab.wait("it is leaving", |report| {
        report.nodes.get(&node("kv-1")).is_some_and(|seen| {
            seen.why.as_deref().is_some_and(|why| why.contains("leave the cluster"))
        })
    })
    .await;
    (lab, spec)
}

#[tokio::test(start_paused = true)]
async fn a_node_goes_by_force_while_its_leave_hangs_or_fails() {
    for leave in ["hang", "fail-always"] {
        let (mut lab, _) = stays_for_ever(leave).await;
        lab.spec.forced.insert(node("kv-1"));
        lab.order().await;
        lab.wait("gone", |report| report.nodes.is_empty()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_called_back_goes_on_as_it_ran() {
    for leave in ["hang", "fail-always"] {
        let (mut lab, mut spec) = stays_for_ever(leave).await;
        spec.recalled = 1;
        lab.set("kv-1", spec);
        lab.order().await;
        let (generation, tries) = (lab.spec.generation, lab.hands.commands().len());
        let report = lab
            .wait("it stays", |report| report.generation == generation && report.pending.is_empty())
            .await;
        let seen = &report.nodes[&node("kv-1")];
        assert_eq!((seen.observed, seen.incarnation), (NodeState::Ready, Incarnation(1)));
        assert_eq!((seen.why.as_deref(), lab.hands.commands().len()), (None, tries), "{leave}");
        // Leaving anew is another leave.
        lab.spec.nodes.clear();
        lab.order().await;
        lab.wait("it is leaving again", |report| report.nodes[&node("kv-1")].why.is_some()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_called_back_too_late_does_not_start_as_a_member() {
    let mut lab = Harness::new();
    let mut spec = node_spec();
    spec.launch.leave = Some(vec!["leave".to_owned()]);
    lab.set("kv-1", spec.clone());
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
    // It has left, and takes its time to stop.
    lab.hands.make_stubborn(&node("kv-1"));
    lab.spec.nodes.clear();
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Stopping).await;
    spec.recalled = 1;
    lab.set("kv-1", spec.clone());
    lab.order().await;
    let had_left = |report: &HostReport| {
        report.nodes[&node("kv-1")].why.as_deref().is_some_and(|why| why.contains("had left"))
    };
    lab.wait("it says what to do", had_left).await;
    // Without its data it is a new member.
    spec.wipes = 1;
    spec.incarnation = Incarnation(2);
    lab.set("kv-1", spec);
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
}
