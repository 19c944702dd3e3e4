//! Hosts that are labelled, drained, removed, and admitted again.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    edit::{Edit, EditRequest},
    lab::Host,
    name::HostName,
};

use super::why;
use crate::decide::{
    edit::{Decision, Refusal, decide, host_joins, host_readmitted, removed},
    fixtures::{World, empty, key, ready},
};

const KV: &str = "[cluster.kv]\nblueprint = \"etcd\"\n";

fn h(number: u8) -> HostName {
    key(&format!("h{number}"))
}

fn drain(world: &mut World, number: u8, drained: bool) -> Result<Decision, Refusal> {
    world.edit(Edit::DrainHost { name: h(number), drained })
}

fn remove(world: &mut World, number: u8, force: bool) -> Result<Decision, Refusal> {
    world.edit(Edit::RemoveHost { name: h(number), force })
}

fn label(world: &mut World, words: &str) -> Result<Decision, Refusal> {
    let mut set = BTreeMap::new();
    let mut unset = BTreeSet::new();
    for word in words.split(' ') {
        match word.split_once('=') {
            Some((key, value)) => drop(set.insert(key.to_owned(), value.to_owned())),
            None => drop(unset.insert(word.trim_end_matches('-').to_owned())),
        }
    }
    world.edit(Edit::LabelHost { name: h(1), set, unset })
}

fn labels(world: &World) -> String {
    let labels = &world.lab.hosts[&h(1)].labels;
    let words: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    words.join(" ")
}

fn scale(world: &mut World, count: u32) -> Result<Decision, Refusal> {
    world.edit(Edit::Set {
        targets: vec!["kv".to_owned()],
        field: "count".to_owned(),
        value: count.to_string(),
    })
}

#[test]
fn no_new_node_comes_to_a_drained_host_and_those_there_go_on() {
    let mut world = ready();
    let before = world.lab.clusters[&key("kv")].nodes.clone();
    let decision = drain(&mut world, 1, true).unwrap();
    assert_eq!(decision.what, "host drain h1");
    assert_eq!(decision.reply.notes, ["h1 keeps what it has, and that goes on: kv-1"]);
    assert!(decision.reply.nodes.is_empty());
    assert_eq!(world.lab.clusters[&key("kv")].nodes, before);
    assert!(!drain(&mut world, 1, true).unwrap().reply.changed);
    scale(&mut world, 7).unwrap();
    let hosts: Vec<&str> =
        (4..=7).map(|n| world.placement(&format!("kv-{n}")).host.as_str()).collect();
    assert!(!hosts.contains(&"h1"), "{hosts:?}");
    drain(&mut world, 1, false).unwrap();
    scale(&mut world, 8).unwrap();
    assert_eq!(world.placement("kv-8").host, h(1));
}

#[test]
fn a_drained_host_that_is_asked_for_is_refused_with_what_opens_it() {
    let mut world = ready();
    drain(&mut world, 2, true).unwrap();
    // What is placed already may be named, and an unchanged file still applies.
    world.apply(&format!("{KV}[cluster.kv.etcd]\nnode.2.host = \"h2\"\n")).unwrap();
    let only = format!("{KV}[cluster.b]\nblueprint = \"etcd\"\netcd.hosts = [\"h2\"]\n");
    let error = why(world.apply(&only));
    assert!(error.contains("no new node may go to h2: drained"), "{error}");
    assert!(error.contains("`faultbed host undrain h2`"), "{error}");
    let one = format!("{KV}[cluster.b]\nblueprint = \"etcd\"\netcd.node.1.host = \"h2\"\n");
    let error = why(world.apply(&one));
    assert!(error.contains("etcd.node.1.host: no new node may go to h2"), "{error}");
    drain(&mut world, 1, true).unwrap();
    let last = drain(&mut world, 3, true).unwrap();
    assert!(last.reply.notes.iter().any(|note| note.contains("every host is drained")));
}

#[test]
fn a_host_with_nodes_is_only_removed_by_force_which_takes_them_out_of_their_cluster() {
    let mut world = ready();
    let error = why(remove(&mut world, 3, false));
    assert!(error.contains("h3 still has kv-3;"), "{error}");
    assert!(error.contains("`faultbed host remove h3 --force`"), "{error}");
    let decision = remove(&mut world, 3, true).unwrap();
    let fates: Vec<String> =
        decision.reply.nodes.iter().map(|(name, fate)| format!("{name} {fate:?}")).collect();
    assert_eq!(fates, ["kv-3 Remove"]);
    let notes = &decision.reply.notes;
    assert!(notes.contains(&"cluster kv has 2 of etcd now, not 3".to_owned()), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("data is kept there, below /lab/h3")));
    // The cluster stays as it is, and grows on the hosts that are left; no number comes twice.
    scale(&mut world, 3).unwrap();
    assert!(world.lab.node(&key("kv-3")).is_none());
    assert_ne!(world.placement("kv-4").host, h(3));
}

#[test]
fn no_role_loses_its_last_node_to_a_removed_host() {
    let mut world = empty();
    world.apply(&format!("{KV}[cluster.kv.etcd]\ncount = 1\nhosts = [\"h2\"]\n")).unwrap();
    let error = why(remove(&mut world, 2, true));
    assert!(error.contains("`faultbed delete cluster kv`"), "{error}");
}

#[test]
fn a_spec_that_names_the_host_keeps_it_or_forgets_it_by_force() {
    let mut world = empty();
    world.apply(&format!("{KV}[cluster.kv.etcd]\ncount = 1\nhosts = [\"h1\", \"h2\"]\n")).unwrap();
    let error = why(remove(&mut world, 2, false));
    assert!(error.contains("cluster kv names h2 in etcd.hosts"), "{error}");
    remove(&mut world, 2, true).unwrap();
    scale(&mut world, 2).unwrap();
    assert_eq!(world.placement("kv-2").host, h(1));
}

#[test]
fn a_removed_host_stays_out_until_it_is_admitted_again() {
    let mut world = empty();
    let host = world.lab.hosts[&h(3)].clone();
    label(&mut world, "dc=east").unwrap();
    remove(&mut world, 3, false).unwrap();
    assert!(removed(&world.lab, &h(1)).is_none());
    let said = removed(&world.lab, &h(3)).unwrap();
    assert_eq!(said, "host h3 was removed from lab dev by ada, generation 2");
    let error = why(host_joins(&world.lab, (&h(3), host.clone()), &world.asked()));
    assert!(error.contains("`faultbed host token --name h3`"), "{error}");
    let error = why(remove(&mut world, 3, false));
    assert!(error.contains("was removed from lab dev by ada"), "{error}");
    world.lab = host_readmitted(&world.lab, &h(3), &world.asked()).unwrap().lab;
    assert!(removed(&world.lab, &h(3)).is_none());
    assert!(host_joins(&world.lab, (&h(3), host), &world.asked()).is_ok());
}

#[test]
fn each_means_keeps_its_own_labels_and_the_verb_goes_first() {
    let mut world = empty();
    let mut host = world.lab.hosts[&h(1)].clone();
    host.labels = BTreeMap::from([("dc".to_owned(), "west".to_owned())]);
    world.lab = host_joins(&world.lab, (&h(1), host.clone()), &world.asked()).unwrap().lab;
    world.apply("[host.h1]\nlabels = { dc = \"east\", rack = \"1\" }\n").unwrap();
    assert_eq!(labels(&world), "dc=east rack=1");
    let decision = label(&mut world, "rack=2 disk=nvme").unwrap();
    assert_eq!(decision.what, "host label h1 disk=nvme rack=2");
    assert!(decision.reply.notes[0].contains("`faultbed host label h1 rack-`"));
    assert_eq!(labels(&world), "dc=east disk=nvme rack=2");
    // A file without them takes back its own only, and a host that comes again nothing.
    world.apply("").unwrap();
    assert_eq!(labels(&world), "dc=west disk=nvme rack=2");
    host.labels.clear();
    let again = host_joins(&world.lab, (&h(1), host), &world.asked()).unwrap();
    assert!(!again.reply.changed);
    label(&mut world, "rack- disk-").unwrap();
    assert_eq!(labels(&world), "dc=west");
    let error = why(label(&mut world, "dc-"));
    assert!(error.contains("the host joined with it"), "{error}");
    let error = why(label(&mut world, "dc=a,b"));
    assert!(error.contains("cannot hold"), "{error}");
}

#[test]
fn a_slip_in_a_hosts_name_is_told() {
    let mut world = empty();
    let error = why(drain(&mut world, 33, true));
    assert!(error.contains("there is no host h33; there are h1, h2, h3"), "{error}");
}

#[test]
fn ports_of_control_are_kept_clear_of_and_never_a_nodes() {
    let mut world = empty();
    let host = world.lab.hosts.get_mut(&h(1)).unwrap();
    (host.address, host.identity_port) = ("10.77.0.1".parse().unwrap(), Some(2380));
    world.apply(&format!("{KV}[cluster.kv.etcd]\ncount = 1\nhosts = [\"h1\"]\n")).unwrap();
    let ports: Vec<u16> = world.placement("kv-1").ports.values().copied().collect();
    assert_eq!(ports, [2389, 22391, 2390], "they move as for any listener");
    // Neither may the host come again and say that a node's port, or one it dials from, is control's.
    let block = world.placement("kv-1").block.unwrap();
    for port in [2390, block.first, block.last()] {
        let host = Host { identity_port: Some(port), ..world.lab.hosts[&h(1)].clone() };
        let error = why(host_joins(&world.lab, (&h(1), host), &world.asked()));
        let expected = format!("port {port} of node kv-1 is that of the identity listener");
        assert!(error.contains(&expected), "{error}");
    }
    // A coordinator's port is avoided too, and one that clashes already stops no other change.
    let mut asked = world.asked();
    asked.control.insert("10.77.0.1:2389".parse().unwrap());
    let edit = Edit::Set {
        targets: vec!["kv".to_owned()],
        field: "count".to_owned(),
        value: "2".to_owned(),
    };
    let scale = EditRequest {
        edit,
        plan: false,
        if_generation: None,
        blueprints: BTreeMap::new(),
        everyone: false,
        force: false,
        files: Default::default(),
    };
    let decision = decide(&world.lab, &world.reports, &scale, &asked).unwrap();
    let kv = decision.lab.clusters.values().next().unwrap();
    let second = kv.nodes.values().last().unwrap();
    assert_eq!(second.ports.values().copied().collect::<Vec<_>>(), [2399, 22401, 2400]);
}
