//! How a blueprint's own effects are undone.

use super::*;

/// A node on which `drain-1` was switched on, and which only a restart brings back.
fn drained() -> (NodeSpec, ObservedNode) {
    let name: FaultName = "drain-1".parse().unwrap();
    let effect = NodeEffect::Custom { name: "drain".to_owned(), on: Box::new(probe()), off: None };
    let fault =
        NodeFault { revision: FaultRevision(1), lasts: Some("30s".parse().unwrap()), effect };
    let mut spec = node_spec();
    spec.faults.insert(name.clone(), fault);
    let mark = EffectMark {
        revision: FaultRevision(1),
        tried_in: Some(Incarnation(1)),
        on_in: Some(Incarnation(1)),
        off: None,
    };
    let record = NodeRecord { effects: [(name, mark)].into(), ..NodeRecord::default() };
    let run = Run::Running(running(1));
    let orders = Some(NodeOrders::default());
    (spec, ObservedNode { run, orders, record, ready: Readiness::Ready, ..ObservedNode::default() })
}

#[test]
fn what_only_a_restart_undoes_ends_with_one_restart_at_its_deadline() {
    let (spec, seen) = drained();
    assert_eq!(acts(&check(spec.clone(), seen.clone(), NOW)), []);
    let end = NOW + Duration::from_secs(30);
    let asks = acts(&check(spec.clone(), seen.clone(), end));
    assert!(
        matches!(asks[..], [NodeAct::Signal { why: Why::Restart, signal: 15, .. }]),
        "it is asked to end as for any restart: {asks:?}"
    );
    let down = ObservedNode { run: Run::Ended(ended(1, Some(Why::Restart))), ..seen.clone() };
    let starts = acts(&check(spec.clone(), down, end));
    assert!(matches!(starts[..], [NodeAct::Start { incarnation: Incarnation(2), .. }]));
    let again = ObservedNode { run: Run::Running(running(2)), ..seen.clone() };
    let forgets = acts(&check(spec.clone(), again, end));
    assert!(matches!(forgets[..], [NodeAct::EffectOff { probe: None, .. }]), "{forgets:?}");
    let healed = NodeSpec { faults: BTreeMap::new(), ..spec };
    assert!(matches!(acts(&check(healed, seen, NOW))[..], [NodeAct::Signal { .. }]));
}

#[test]
fn a_later_process_is_told_of_an_end_once_it_can_hear_it() {
    let (mut spec, mut seen) = drained();
    spec.faults.clear();
    spec.ready = Some(probe());
    let mark = seen.record.effects.values_mut().next().unwrap();
    mark.off = Some(probe());
    seen.run = Run::Running(running(2));
    seen.ready = Readiness::NotYet;
    assert_eq!(acts(&check(spec.clone(), seen.clone(), NOW)), []);
    seen.ready = Readiness::Ready;
    let tells = acts(&check(spec, seen, NOW));
    assert!(matches!(tells[..], [NodeAct::EffectOff { probe: Some(_), .. }]), "{tells:?}");
}
