//! The verbs of nodes.

use faultbed_common::{
    edit::{NodeFate, NodeVerb},
    generation::Incarnation,
    host_spec::{StopBy, Wanted},
    report::NodeState,
};

use super::why;
use crate::decide::{
    edit::Decision,
    fixtures::{World, node, ready},
};

fn fate(decision: &Decision, name: &str) -> Option<NodeFate> {
    decision.reply.nodes.get(&node(name)).copied()
}

fn kill(signal: i32, respawn: bool) -> NodeVerb {
    NodeVerb::Kill { signal, respawn }
}

/// The node ended in this way, in the incarnation it had.
fn ends(world: &mut World, name: &str, state: NodeState) {
    world.report(name, |seen| {
        seen.observed = state;
        seen.pid = None;
    });
}

#[test]
fn stop_start_and_restart() {
    let mut world = ready();
    let stopped = world.verb("kv-2", NodeVerb::Stop).unwrap();
    assert_eq!(stopped.what, "stop kv-2");
    assert_eq!(fate(&stopped, "kv-2"), Some(NodeFate::Stop));
    assert_eq!(world.placement("kv-2").wanted, Wanted::Stopped);
    let again = world.verb("kv-2", NodeVerb::Stop).unwrap();
    assert!(!again.reply.changed && again.reply.notes[0].contains("down on purpose already"));
    world.obey();
    let started = world.verb("kv-2", NodeVerb::Start).unwrap();
    assert_eq!(fate(&started, "kv-2"), Some(NodeFate::Start));
    assert_eq!(world.placement("kv-2").incarnation, Incarnation(2));
    // The same again, before the host has done it, is no second start.
    let again = world.verb("kv-2", NodeVerb::Start).unwrap();
    assert!(!again.reply.changed, "{:?}", again.reply.notes);
    world.obey();
    assert!(!world.verb("kv-2", NodeVerb::Start).unwrap().reply.changed);
    let restarted = world.verb("kv", NodeVerb::Restart).unwrap();
    assert_eq!(restarted.reply.nodes.len(), 3);
    assert_eq!(world.placement("kv-2").incarnation, Incarnation(3));
}

#[test]
fn a_start_counts_on_from_what_the_host_has_seen() {
    let mut world = ready();
    world.report("kv-1", |seen| {
        seen.observed = NodeState::Crashed;
        seen.incarnation = Incarnation(5);
    });
    let started = world.verb("kv-1", NodeVerb::Start).unwrap();
    assert_eq!(fate(&started, "kv-1"), Some(NodeFate::Start));
    assert_eq!(world.placement("kv-1").incarnation, Incarnation(6));
    // A start that the host cannot do says why, and asking again tries again.
    world.report("kv-1", |seen| seen.why = Some("no such file".to_owned()));
    assert!(world.verb("kv-1", NodeVerb::Start).unwrap().reply.changed);
}

#[test]
fn a_killed_node_stays_down_until_it_is_started() {
    let mut world = ready();
    let killed = world.verb("kv-1", kill(9, false)).unwrap();
    assert_eq!(killed.what, "kill kv-1 --signal 9");
    assert_eq!(fate(&killed, "kv-1"), Some(NodeFate::Kill));
    assert_eq!(world.placement("kv-1").stop_by, StopBy::Signal(9));
    ends(&mut world, "kv-1", NodeState::Killed);
    let again = world.verb("kv-1", kill(9, false)).unwrap();
    assert!(!again.reply.changed);
    assert_eq!(again.reply.notes, ["kv-1 is down already: killed"]);
    world.verb("kv-1", NodeVerb::Start).unwrap();
    assert_eq!(world.placement("kv-1").stop_by, StopBy::Grace);
    let respawned = world.verb("kv-2", kill(15, true)).unwrap();
    assert_eq!(fate(&respawned, "kv-2"), Some(NodeFate::Kill));
    assert_eq!(world.placement("kv-2").wanted, Wanted::Running);
    assert_eq!(world.placement("kv-2").incarnation, Incarnation(2));
}

#[test]
fn a_kill_ends_what_a_stop_waits_for() {
    let mut world = ready();
    world.verb("kv-1", NodeVerb::Stop).unwrap();
    ends(&mut world, "kv-1", NodeState::Stopping);
    let killed = world.verb("kv-1", kill(9, false)).unwrap();
    assert_eq!(fate(&killed, "kv-1"), Some(NodeFate::Kill));
}

#[test]
fn signals_that_end_nothing_are_refused() {
    let mut world = ready();
    for (signal, reason) in
        [(0, "no signal 0"), (65, "no signal 65"), (-9, "no signal -9"), (19, "faultbed pause")]
    {
        let error = why(world.verb("kv-1", kill(signal, false)));
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_wipe_keeps_down_what_is_down() {
    let mut world = ready();
    world.verb("kv-1", NodeVerb::Stop).unwrap();
    world.obey();
    let wiped = world.verb("kv-1,kv-2", NodeVerb::Wipe).unwrap();
    assert_eq!(fate(&wiped, "kv-1"), Some(NodeFate::Wipe));
    assert_eq!(world.placement("kv-1").wanted, Wanted::Stopped);
    assert_eq!(world.placement("kv-1").wipes, 1);
    assert_eq!(world.placement("kv-2").incarnation, Incarnation(2));
}

#[test]
fn a_start_says_which_fault_holds_the_node_down() {
    let mut world = ready();
    let name = world.inject("on = \"kv-1\"\nkill = true").unwrap();
    let decision = world.verb("kv-1", NodeVerb::Restart).unwrap();
    let held = format!("kv-1 is held down by fault {name}; it starts when that ends");
    assert!(decision.reply.notes.contains(&held), "{:?}", decision.reply.notes);
}

#[test]
fn a_target_that_matches_nothing_is_refused() {
    let mut world = ready();
    let error = why(world.verb("zz*", NodeVerb::Stop));
    assert!(error.contains("matches no node"), "{error}");
    assert!(why(world.verb("clients", NodeVerb::Stop)).contains("only nodes"));
}
