//! The story that two statuses tell.

use expect_test::{Expect, expect};
use faultbed_common::{
    edit::{Edit, HistoryEntry, NodeVerb, ObjectChange},
    generation::Generation,
    report::{ExitReport, LinkEvidence, NodeState},
};

use super::{CaSeen, authority, change, events};
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
            Node kv-2: kv-2 is ready, run 2
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
        let faults = &mut world.said("h1").faults;
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

#[test]
fn a_reboot_is_told_once_and_no_node_is_said_to_have_crashed() {
    let mut world = obeying();
    world.said("h2").boot_id = "first".to_owned();
    let reboot = |world: &mut World| {
        world.said("h2").boot_id = "second".to_owned();
        world.report("kv-2", |seen| {
            seen.observed = NodeState::Stopped;
            seen.exit = Some(ExitReport { rebooted: true, ..ExitReport::default() });
        });
    };
    tells(
        &mut world,
        reboot,
        &expect![[r#"
            Host h2: h2 rebooted; its nodes start again, which is no crash
            Node kv-2: kv-2 went down with its host
        "#]],
    );
    tells(
        &mut world,
        World::obey,
        &expect![[r#"
            Node kv-2: kv-2 is ready
        "#]],
    );
}

#[test]
fn what_becomes_of_the_ca_is_told_with_who_did_it() {
    let seen = |signs: &str, ends: Option<&str>, by: Option<&str>| CaSeen {
        signs: signs.to_owned(),
        ends: ends.map(str::to_owned),
        by: by.map(str::to_owned),
    };
    let first = seen("one", None, None);
    let second = seen("two", Some("one"), Some("ann"));
    let alone = seen("two", None, Some("ada"));
    let told = |before: &CaSeen, after: &CaSeen| {
        authority(Some(before), Some(after)).map(|(_, _, text)| text).unwrap_or_default()
    };
    assert_eq!(told(&first, &second), "ann lets another CA take over");
    assert_eq!(told(&second, &alone), "ada ends the CA that was replaced");
    let overdue = told(&second, &seen("two", None, None));
    assert_eq!(overdue, "the CA that was replaced has ended: its time was over");
    assert_eq!(told(&alone, &alone), "");
    assert_eq!(authority(None, Some(&first)), None, "its beginning is no news");
}

#[test]
fn a_change_says_who_asked_for_what_and_what_it_changed() {
    let object = |kind: &str, name: &str| ObjectChange {
        kind: kind.to_owned(),
        name: name.to_owned(),
        before: None,
        after: None,
    };
    let entry = |what: &str, objects: Vec<ObjectChange>| HistoryEntry {
        generation: Generation(6),
        at_unix_ms: 1,
        by: "ann".to_owned(),
        what: what.to_owned(),
        objects,
    };
    let told = |entry| change(&"dev".parse().unwrap(), &entry).2;
    let applied = told(entry("apply", vec![object("cluster", "kv"), object("fault", "split")]));
    assert_eq!(applied, "generation 6 by ann: apply (cluster kv, fault split)");
    let healed = told(entry("heal split", vec![object("fault", "split")]));
    assert_eq!(healed, "generation 6 by ann: heal split");
    let many = (0..7).map(|n| object("fault", &format!("f{n}"))).collect();
    assert!(told(entry("apply", many)).ends_with("fault f4 and 2 more)"));
}
