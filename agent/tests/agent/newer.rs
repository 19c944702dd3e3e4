//! A coordinator of a later release: what it asks for and this agent does not know is told, never guessed.

use faultbed_common::{
    generation::FaultRevision,
    host_spec::{NodeEffect, NodeFault},
    report::NodeState,
};

use crate::lab::Lab;

#[test]
fn what_an_older_agent_does_not_know_is_told_and_its_fault_is_not_in_force() {
    let mut lab = Lab::new();
    lab.add("kv-1", "exec sleep 1000");
    lab.order();
    lab.wait_state("kv-1", NodeState::Ready);
    let lasts = Some("60s".parse().unwrap());
    let pause = NodeFault { revision: FaultRevision(2), lasts, effect: NodeEffect::Pause };
    let name = "nap".parse().unwrap();
    lab.edit("kv-1").faults.insert(name, pause);
    lab.order_changed(|json| {
        json["spec"]["nodes"]["kv-1"]["faults"]["nap"]["depth"] = 1.into();
        json["spec"]["weather"] = "fine".into();
    });
    let name = "nap".parse().unwrap();
    let told = lab.wait("told", |report| report.faults.contains_key(&name));
    let why = told.faults[&name].why.clone().unwrap();
    assert!(!told.faults[&name].active && why.contains("unknown field depth"), "{why}");
    assert!(told.stuck.iter().any(|why| why.contains("weather") && why.contains("upgrade it")));
    assert_eq!(lab.node("kv-1").unwrap().observed, NodeState::Ready, "nothing was done by halves");

    // What cannot be read at all changes nothing, and is told too.
    lab.order_changed(|json| json["spec"]["nodes"]["kv-1"]["wanted"] = "hibernating".into());
    lab.wait("told", |report| {
        report.stuck.iter().any(|why| why.contains("hibernating") && why.contains("upgrade it"))
    });
    lab.order();
    lab.wait_state("kv-1", NodeState::Paused);
}
