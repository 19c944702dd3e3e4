//! The story that two statuses tell.

use expect_test::{Expect, expect};
use faultbed_common::{
    edit::{Edit, NodeVerb},
    report::{ExitReport, LinkEvidence, NodeState},
};

use super::events;
use crate::decide::fixtures::{World, key, ready};

/// The events of one act.
fn tells(world: &mut World, act: impl FnOnce(&mut World), expected: &Expect) {
    let before = world.status();
    act(world);
    let found = events(&before, &world.status());
    let lines: Vec<String> =
        found.iter().map(|(kind, subject, text)| format!("{kind:?} {subject}: {text}\n")).collect();
    expected.assert_eq(&lines.concat());
}

fn obeying() -> World {
    let mut world = ready();
    world.obey();
    world
}

#[test]
fn nothing_happened_tells_nothing() {
    tells(&mut obeying(), |_| {}, &expect![[""]]);
}

#[test]
fn a_stop_and_a_start_are_told() {
    let mut world = obeying();
    tells(
        &mut world,
        |world| {
            world.verb("kv-2", NodeVerb::Stop).unwrap();
            world.obey();
        },
        &expect![[r#"
            Change dev: generation 3 is accepted
            Node kv-2: kv-2 is stopped
        "#]],
    );
    tells(
        &mut world,
        |world| {
            world.verb("kv-2", NodeVerb::Start).unwrap();
            world.obey();
        },
        &expect![[r#"
            Change dev: generation 4 is accepted
            Node kv-2: kv-2 is ready, incarnation 2
        "#]],
    );
}

#[test]
fn a_crash_names_its_exit_and_the_faults_in_force() {
    let mut world = obeying();
    let crash = |world: &mut World| {
        world.report("kv-2", |seen| {
            seen.observed = NodeState::Crashed;
            seen.exit = Some(ExitReport {
                signal: Some(6),
                faults: vec!["split".parse().unwrap()],
                ..ExitReport::default()
            });
        });
    };
    tells(
        &mut world,
        crash,
        &expect![[r#"
            Node kv-2: kv-2 crashed, signal 6, with split in force
            Stuck dev: stuck: kv-2: crashed, signal 6
        "#]],
    );
    tells(
        &mut world,
        World::obey,
        &expect![[r#"
            Node kv-2: kv-2 is ready
            Stuck dev: no longer stuck: kv-2: crashed, signal 6
        "#]],
    );
}

#[test]
fn an_election_is_told() {
    let elect = |world: &mut World| {
        world.report("kv-2", |seen| {
            (seen.leader, seen.term) = (Some(true), Some(3));
        });
    };
    tells(
        &mut obeying(),
        elect,
        &expect![[r#"
            Role kv-1: kv-1 leads no longer
            Role kv-2: kv-2 leads in term 3
        "#]],
    );
}

#[test]
fn a_fault_is_told_from_its_beginning_to_its_end() {
    let mut world = obeying();
    tells(
        &mut world,
        |world| {
            world.inject("isolate = \"kv-1\"").unwrap();
        },
        &expect![[r#"
            Change dev: generation 3 is accepted
            Fault isolate-3: isolate-3 begins: cut, kv-1 | kv-2,kv-3
        "#]],
    );
    tells(
        &mut world,
        World::obey,
        &expect![[r#"
            Fault isolate-3: isolate-3 is in force, grade packet
        "#]],
    );
    let hit = |world: &mut World| {
        let counted = LinkEvidence { dropped_segments: 2, ..LinkEvidence::default() };
        let faults = &mut world.reports.get_mut(&key("h1")).unwrap().faults;
        let links = &mut faults.get_mut(&key("isolate-3")).unwrap().links;
        links.insert("kv-1>kv-2".parse().unwrap(), counted);
    };
    tells(
        &mut world,
        hit,
        &expect![[r#"
            Fault isolate-3: isolate-3: it acted (confirmed)
        "#]],
    );
    tells(
        &mut world,
        |world| {
            world.edit(Edit::Heal { faults: vec![] }).unwrap();
        },
        &expect![[r#"
            Change dev: generation 4 is accepted
            Fault isolate-3: isolate-3 is healed; it acted (confirmed)
        "#]],
    );
}

#[test]
fn a_host_that_goes_takes_its_nodes_out_of_sight() {
    let mut world = obeying();
    tells(
        &mut world,
        |world| {
            world.reports.remove(&key("h3"));
        },
        &expect![[r#"
            Host h3: h3 is down
            Node kv-3: kv-3 is unknown: h3 has not reported yet
        "#]],
    );
}
