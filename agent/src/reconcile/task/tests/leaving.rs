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
