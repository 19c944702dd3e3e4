//! What the end of a lease does to a node.

use faultbed_common::host_spec::LeaseTerm;

use super::*;

#[test]
fn a_node_whose_lease_ended_is_stopped_and_says_why() {
    let mut spec = host_spec([(node("kv-1"), node_spec())]);
    let lasts = "30s".parse().unwrap();
    let term = LeaseTerm { revision: FaultRevision(1), lasts };
    spec.terms.clusters.insert("kv".parse().unwrap(), term);
    let mut wanted = merge(None, orders(spec), BOOT, NOW).unwrap();
    let mut observed = Observed::default();
    observed.nodes.insert(node("kv-1"), ObservedNode::default());
    for _ in 0..ROUNDS_MAX {
        let steps = plan(&wanted, &observed, NOW).steps;
        carry_out(&mut observed, &mut wanted, &steps, NOW);
    }
    assert!(matches!(observed.nodes[&node("kv-1")].run, Run::Running(_)));
    let idle = plan(&wanted, &observed, NOW);
    assert_eq!(idle.wake_after, Some(Duration::from_secs(30)), "it wakes for the end");
    let end = NOW + Duration::from_secs(30);
    let stop = plan(&wanted, &observed, end);
    let acts: Vec<&Step> = stop.steps.iter().collect();
    let [Step::Node { act: NodeAct::Signal { why: Why::Stop, signal: 15, .. }, .. }] = &acts[..]
    else {
        panic!("{acts:?}")
    };
    observed.nodes.get_mut(&node("kv-1")).unwrap().run = Run::Ended(ended(1, Some(Why::Stop)));
    let after = plan(&wanted, &observed, end);
    assert_eq!(after.steps, []);
    assert_eq!(after.why, [(node("kv-1"), "the lease of kv ended".to_owned())]);
}
