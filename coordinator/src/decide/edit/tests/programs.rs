//! Programs of the asker's machine: asked for where hosts are machines, chosen once, kept until told.

use std::collections::BTreeMap;

use faultbed_common::{
    edit::{Edit, EditRequest, NodeVerb},
    program::{Content, Files},
    report::BinaryReport,
};

use super::super::{Decision, decide};
use crate::decide::fixtures::{World, empty, file, key, node};

const KV: &str =
    "[cluster.kv]\nblueprint = \"etcd\"\n[cluster.kv.etcd]\npath = \"/home/ada/etcd\"\n";

/// Three hosts that are machines of their own.
fn far() -> World {
    let mut world = empty();
    for (n, host) in world.lab.hosts.values_mut().enumerate() {
        host.address = [10, 0, 0, n as u8 + 1].into();
    }
    world.files.can_look = true;
    world
}

fn content(digit: char) -> Content {
    Content { sha256: digit.to_string().repeat(64).parse().unwrap(), bytes: 7 }
}

fn finds(world: &mut World, path: &str, found: Option<Content>) {
    world.files.found = BTreeMap::from([(path.to_owned(), found)]);
}

fn runs(world: &World, name: &str) -> Option<char> {
    let pushed = world.placement(name).pushed.as_ref()?;
    pushed.content.sha256.as_str().chars().next()
}

/// A lab that runs content `a` everywhere.
fn running() -> World {
    let mut world = far();
    finds(&mut world, "/home/ada/etcd", Some(content('a')));
    world.apply(KV).unwrap();
    world.obey();
    world
}

fn planned(world: &World, text: &str) -> Decision {
    let request = EditRequest {
        edit: Edit::Apply(file(text)),
        plan: true,
        if_generation: None,
        blueprints: BTreeMap::new(),
        everyone: false,
        force: false,
        files: world.files.clone(),
    };
    decide(&world.lab, &world.reports, &request, &world.asked()).unwrap()
}

#[test]
fn a_simulated_lab_asks_for_nothing_and_its_hosts_read_the_file() {
    let mut world = empty();
    world.files.can_look = true;
    let decision = world.apply(KV).unwrap();
    assert!(decision.reply.needs.is_empty() && decision.takes.is_empty());
    let specs = faultbed_common::compile::compile(&world.lab).unwrap();
    let launch = &specs[&key("h1")].nodes[&node("kv-1")].launch;
    assert_eq!((launch.program.as_str(), &launch.pushed), ("/home/ada/etcd", &None));
}

#[test]
fn a_lab_of_machines_asks_for_the_content_and_its_hosts_run_their_own_copy() {
    let mut world = far();
    let asked = world.apply(KV).unwrap();
    assert_eq!(asked.reply.needs.look.iter().collect::<Vec<_>>(), ["/home/ada/etcd"]);
    assert!(world.lab.clusters.is_empty(), "nothing is accepted before that is known");
    finds(&mut world, "/home/ada/etcd", Some(content('a')));
    let decision = world.apply(KV).unwrap();
    assert_eq!(decision.takes, BTreeMap::from([("/home/ada/etcd".to_owned(), content('a'))]));
    let specs = faultbed_common::compile::compile(&world.lab).unwrap();
    let launch = &specs[&key("h1")].nodes[&node("kv-1")].launch;
    assert_eq!(launch.program, format!("/lab/h1/bins/{}/etcd", "a".repeat(64)));
    assert_eq!(launch.pushed.as_ref().unwrap().path, "/home/ada/etcd");
}

#[test]
fn names_and_files_of_the_host_are_the_hosts_own() {
    for path in ["etcd", "host:/usr/bin/etcd"] {
        let mut world = far();
        let text = KV.replace("/home/ada/etcd", path);
        assert!(world.apply(&text).unwrap().reply.needs.is_empty(), "{path}");
        assert!(world.placement("kv-1").pushed.is_none());
    }
}

#[test]
fn an_address_with_its_hash_is_for_hosts_to_fetch_whoever_asks() {
    let digits = "ab".repeat(32);
    let url = format!("https://example.org/etcd#sha256={digits}");
    for mut world in [far(), empty()] {
        let reply = world.apply(&KV.replace("/home/ada/etcd", &url)).unwrap().reply;
        assert!(reply.needs.is_empty(), "{reply:?}");
        let pushed = world.placement("kv-1").pushed.clone().unwrap();
        assert_eq!((pushed.path.as_str(), pushed.bytes()), (url.as_str(), None));
        assert_eq!(pushed.content.sha256.as_str(), digits);
    }
    for (path, why) in [
        ("https://example.org/etcd", "does not say what the file holds"),
        ("https://example.org/etcd#sha256=00", "is no SHA-256"),
        ("http://example.org/etcd", "but by https"),
    ] {
        let refused = far().apply(&KV.replace("/home/ada/etcd", path)).unwrap_err().to_string();
        assert!(refused.contains(path) && refused.contains(why), "{refused}");
    }
}

#[test]
fn a_restart_takes_the_file_as_it_is_now_and_only_for_the_nodes_it_names() {
    let mut world = running();
    world.files.found.clear();
    let asked = world.verb("kv-2", NodeVerb::Restart).unwrap();
    assert_eq!(asked.reply.needs.look.len(), 1);
    finds(&mut world, "/home/ada/etcd", Some(content('b')));
    world.verb("kv-2", NodeVerb::Restart).unwrap();
    let all = ["kv-1", "kv-2", "kv-3"].map(|name| runs(&world, name).unwrap());
    assert_eq!(all, ['a', 'b', 'a']);
    world.obey();
    let kill = NodeVerb::Kill { signal: 9, respawn: true };
    let killed = world.verb("kv-1", kill).unwrap();
    assert!(killed.takes.is_empty(), "a failure brings up no other program");
    assert_eq!(runs(&world, "kv-1"), Some('a'));
}

#[test]
fn an_apply_tells_of_a_changed_file_and_restarts_nobody() {
    let mut world = running();
    finds(&mut world, "/home/ada/etcd", Some(content('b')));
    for decision in [planned(&world, KV), world.apply(KV).unwrap()] {
        assert!(!decision.reply.changed);
        let note = decision.reply.notes.join("\n");
        for text in ["/home/ada/etcd has changed", "aaaaaaaaaaaa -> bbbbbbbbbbbb", "kv-1,kv-2,kv-3"]
        {
            assert!(note.contains(text), "{note}");
        }
    }
    finds(&mut world, "/home/ada/etcd", Some(content('a')));
    assert!(world.apply(KV).unwrap().reply.notes.is_empty());
}

#[test]
fn a_plan_of_a_simulated_lab_tells_of_a_changed_file_too() {
    let mut world = empty();
    world.files.can_look = true;
    world.apply(KV).unwrap();
    world.obey();
    for n in 1..=3 {
        world.report(&format!("kv-{n}"), |report| {
            report.binary = Some(BinaryReport {
                path: "/home/ada/etcd".to_owned(),
                sha256: "a".repeat(64),
                version: None,
            });
        });
    }
    assert_eq!(planned(&world, KV).reply.needs.look.len(), 1);
    finds(&mut world, "/home/ada/etcd", Some(content('b')));
    let note = planned(&world, KV).reply.notes.join("\n");
    assert!(note.contains("has changed since kv-1, kv-2, kv-3 took it"), "{note}");
}

#[test]
fn one_node_can_have_a_program_of_its_own_and_a_new_node_takes_the_newest() {
    let mut world = running();
    finds(&mut world, "/home/ada/next", Some(content('c')));
    let set = |target: &str, field: &str, value: &str| Edit::Set {
        targets: vec![target.to_owned()],
        field: field.to_owned(),
        value: value.to_owned(),
    };
    world.edit(set("kv-2", "path", "/home/ada/next")).unwrap();
    assert_eq!((runs(&world, "kv-1"), runs(&world, "kv-2")), (Some('a'), Some('c')));
    finds(&mut world, "/home/ada/etcd", Some(content('d')));
    world.edit(set("kv", "count", "4")).unwrap();
    assert_eq!((runs(&world, "kv-1"), runs(&world, "kv-4")), (Some('a'), Some('d')));
    world.edit(set("kv-2", "path", "host:/usr/bin/etcd")).unwrap();
    assert_eq!(runs(&world, "kv-2"), None);
}

#[test]
fn whoever_lacks_the_file_can_restart_what_was_pushed_and_begin_nothing() {
    let mut world = running();
    finds(&mut world, "/home/ada/etcd", None);
    let decision = world.verb("kv-1", NodeVerb::Restart).unwrap();
    assert!(decision.reply.notes.join(" ").contains("pushed before"), "{decision:?}");
    assert_eq!(runs(&world, "kv-1"), Some('a'));
    let mut world = far();
    world.files = Files::default();
    let refused = world.apply(KV).unwrap_err().to_string();
    assert!(refused.contains("host:/home/ada/etcd"), "{refused}");
}
