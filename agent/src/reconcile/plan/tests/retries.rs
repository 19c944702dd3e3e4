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
