//! What the end of a machine does to its nodes.

use super::*;
use crate::reconcile::step::Cause;

#[test]
fn a_node_that_went_down_with_its_machine_starts_again_whatever_a_crash_would_mean() {
    for on_crash in [OnCrash::Stay, OnCrash::Restart] {
        let mut wanted = accepted([(node("kv-1"), NodeSpec { on_crash, ..node_spec() })]);
        let mut observed = Observed::default();
        let run = Run::Ended(ended(1, Some(Why::Reboot)));
        observed.nodes.insert(node("kv-1"), ObservedNode { run, ..ObservedNode::default() });
        let mut causes = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let steps = plan(&wanted, &observed, NOW).steps;
            causes.extend(steps.iter().filter_map(|step| match step {
                Step::Node { act: NodeAct::Start { cause, .. }, .. } => Some(*cause),
                _ => None,
            }));
            carry_out(&mut observed, &mut wanted, &steps, NOW);
        }
        // It runs what it ran before, and its crashes are not counted up.
        assert_eq!(causes, [Cause::FaultOver], "{on_crash:?}");
        assert_eq!(observed.nodes[&node("kv-1")].run.incarnation(), Incarnation(2));
    }
}
