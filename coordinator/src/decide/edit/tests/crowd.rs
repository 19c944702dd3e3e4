//! Labs of many hosts: what is told grows with what there is to tell, and no faster.

use std::collections::BTreeSet;

use faultbed_common::{
    compile::{Specs, compile},
    edit::Edit,
    lab::{Host, Lab},
    name::HostName,
};
use serde::Serialize;
use serde_json::Value;

use crate::decide::{
    edit::Decision,
    fixtures::{World, empty, fault, key},
};

/// Nodes of a cluster, and clusters for each host.
const CLUSTER: usize = 5;
const CLUSTERS_EACH: usize = 2;

/// Hosts that are machines of their own, with ten nodes each, which all have been ready.
fn crowd(hosts: u8) -> World {
    let mut world = empty();
    world.lab = Lab::new("crowd".parse().unwrap(), 5);
    for n in 1..=hosts {
        let mut host = Host::new([10, 90, 0, n].into(), format!("/lab/h{n}").into());
        let side = if n % 2 == 0 { "even" } else { "odd" };
        host.relabel(|said| said.join = [("side".to_owned(), side.to_owned())].into());
        world.lab.hosts.insert(format!("h{n}").parse().unwrap(), host);
    }
    let mut text = String::new();
    for n in 1..=usize::from(hosts) * CLUSTERS_EACH {
        text.push_str(&format!("[cluster.c{n}]\nblueprint = \"etcd\"\netcd.count = {CLUSTER}\n"));
    }
    world.apply(&text).unwrap();
    world.obey();
    world.chores();
    world
}

fn cut(world: &mut World) -> Decision {
    let text = "partition = [[\"label:side=odd\"], [\"label:side=even\"]]\nfor = \"none\"\n";
    let spec = fault(text);
    world.edit(Edit::Inject { name: Some(key("f")), spec, replace: false }).unwrap()
}

/// Texts and numbers in a document.
fn entries(document: &impl Serialize) -> usize {
    fn count(value: &Value) -> usize {
        match value {
            Value::Array(all) => all.iter().map(count).sum(),
            Value::Object(all) => all.values().map(|value| 1 + count(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
        }
    }
    count(&serde_json::to_value(document).unwrap())
}

/// What a fault sends to each host that was told of the rest of the lab before.
fn told(specs: &Specs) -> usize {
    let short = specs.values().map(|spec| {
        let mut spec = spec.clone();
        spec.take_around();
        entries(&spec)
    });
    short.sum()
}

/// How many entries all documents have that one fault makes, with so many hosts.
fn documents(hosts: u8) -> [(&'static str, usize); 4] {
    let mut world = crowd(hosts);
    let decision = cut(&mut world);
    world.obey();
    let specs = compile(&world.lab).unwrap();
    let met: BTreeSet<&HostName> =
        specs.iter().filter(|(_, spec)| !spec.proxy.faults.is_empty()).map(|(h, _)| h).collect();
    assert_eq!(met.len(), usize::from(hosts), "it touches all");
    [
        ("orders", told(&specs)),
        ("reply", entries(&decision.reply)),
        ("accepted", entries(&world.lab.faults)),
        ("status", entries(&world.status())),
    ]
}

#[test]
fn the_documents_of_a_fault_grow_no_faster_than_the_hosts_it_touches() {
    for ((what, few), (_, many)) in documents(4).into_iter().zip(documents(12)) {
        // Three times as many hosts.
        assert!(many <= few * 3 + few / 4, "{what}: {few} entries for 4 hosts, {many} for 12");
    }
}

#[test]
fn hosts_are_told_the_same_of_the_rest_of_the_lab_before_and_during_a_fault() {
    let mut world = crowd(4);
    let around = |world: &World| {
        let specs = compile(&world.lab).unwrap().into_values();
        specs.map(|mut spec| spec.take_around()).collect::<Vec<_>>()
    };
    let before = around(&world);
    cut(&mut world);
    assert_eq!(around(&world), before, "so that only the fault need be told");
}

#[test]
fn of_many_nodes_a_person_is_told_some_and_how_many_there_are() {
    let mut world = crowd(12);
    let decision = cut(&mut world);
    assert!(decision.what.contains("(60 in all)"), "{}", decision.what);
    assert!(decision.what.len() < 200, "{}", decision.what);
}
