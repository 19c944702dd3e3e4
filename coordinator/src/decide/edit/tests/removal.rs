//! Nodes that are taken out one by one, whatever their number.

use faultbed_common::{
    edit::{Edit, NodeFate, NodeVerb},
    name::NodeName,
};

use super::why;
use crate::decide::{
    edit::Refusal,
    fixtures::{World, empty, node, ready},
};

fn remove(world: &mut World, target: &str) -> Result<Vec<(NodeName, NodeFate)>, Refusal> {
    let decided = world.edit(Edit::Remove { targets: vec![target.to_owned()] })?;
    Ok(decided.reply.nodes.into_iter().collect())
}

#[test]
fn exactly_the_named_node_goes_and_its_number_is_not_given_again() {
    let mut world = ready();
    let gone = remove(&mut world, "kv-2").unwrap();
    assert_eq!(gone, [("kv-2".parse().unwrap(), NodeFate::Remove)]);
    let names = |world: &World| {
        world.lab.nodes().map(|node| node.name.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&world), "kv-1 kv-3");
    world
        .edit(Edit::Set { targets: vec!["kv".into()], field: "count".into(), value: "3".into() })
        .unwrap();
    assert_eq!(names(&world), "kv-1 kv-3 kv-4");
    remove(&mut world, "kv-1,kv-3").unwrap();
    assert_eq!(names(&world), "kv-4");
    let last = why(remove(&mut world, "kv-4"));
    assert!(last.contains("kv-4 is the last etcd") && last.contains("delete cluster kv"), "{last}");
    assert!(why(remove(&mut world, "kv-9")).contains("kv-9"));
}

#[test]
fn who_lists_a_node_that_is_removed_restarts_as_when_fewer_are_asked_for() {
    let mut world = empty();
    world.apply("[cluster.g]\nblueprint = \"gitaly\"\n").unwrap();
    for _ in 0..3 {
        world.obey();
        world.chores();
    }
    let gone = remove(&mut world, "g-gitaly-2").unwrap();
    assert_eq!(gone, [("g-gitaly-2".parse().unwrap(), NodeFate::Remove)], "and nobody yet");
    assert_eq!(world.chores(), None, "it is not gone yet");
    for praefect in ["g-praefect-1", "g-praefect-2"] {
        world.obey();
        let restarts = format!("restart {praefect}, which lists g-gitaly-2");
        assert_eq!(world.chores(), Some(restarts));
    }
    world.obey();
    assert_eq!(world.chores(), None);
}

#[test]
fn data_that_was_kept_is_met_by_the_same_cluster_only() {
    let mut world = ready();
    let delete = |world: &mut World, wipe| {
        world.edit(Edit::DeleteCluster { name: "kv".parse().unwrap(), wipe })
    };
    delete(&mut world, false).unwrap();
    for (file, reason) in [
        (
            "[cluster.kv]\nblueprint = \"redis-cluster\"\n",
            "it is of etcd and this is redis-cluster",
        ),
        ("[cluster.kv]\nblueprint = \"etcd\"\netcd.count = 1\n", "its members were other nodes"),
    ] {
        let refused = why(world.apply(file));
        assert!(refused.contains("kv-1 on h1") && refused.contains(reason), "{refused}");
        assert!(refused.contains("`faultbed delete cluster kv --wipe`"), "{refused}");
    }
    world.apply("[cluster.kv]\nblueprint = \"etcd\"\n").unwrap();
    assert!(world.lab.kept.is_empty(), "it is this cluster's own again");
    // What left a cluster is found by none that comes later.
    remove(&mut world, "kv-3").unwrap();
    delete(&mut world, false).unwrap();
    let refused = why(world.apply("[cluster.kv]\nblueprint = \"etcd\"\n"));
    assert!(refused.contains("kv-3 on h3") && refused.contains("had left"), "{refused}");
    delete(&mut world, true).unwrap();
    world.apply("[cluster.kv]\nblueprint = \"etcd\"\n").unwrap();
    delete(&mut world, true).unwrap();
    assert!(world.lab.kept.is_empty() && why(delete(&mut world, true)).contains("no cluster kv"));
}

#[test]
fn a_node_that_does_not_come_to_leave_goes_by_force_or_is_called_back() {
    let mut world = ready();
    let was = world.lab.node(&node("kv-3")).unwrap().placement.clone();
    remove(&mut world, "kv-3").unwrap();
    let refused = why(remove(&mut world, "kv-3"));
    assert!(refused.contains("remove kv-3 --force") && refused.contains("start kv-3"), "{refused}");

    // Its host speaks of it still: it is the same node again, where it was and as it runs.
    let back = world.verb("kv-3", NodeVerb::Start).unwrap();
    assert!(back.reply.notes.iter().any(|note| note.contains("kv-3 stays in kv")));
    let is = world.lab.node(&node("kv-3")).unwrap().placement.clone();
    assert_eq!(is, faultbed_common::lab::Placement { recalled: 1, ..was });
    assert!(world.lab.kept.is_empty(), "{:?}", world.lab.kept);

    remove(&mut world, "kv-3").unwrap();
    world.force = true;
    let gone = remove(&mut world, "kv-3").unwrap();
    assert_eq!(gone, [(node("kv-3"), NodeFate::Remove)]);
    let forced = |world: &World| {
        let specs = faultbed_common::compile::compile(&world.lab).unwrap();
        specs[&"h3".parse().unwrap()].forced.clone()
    };
    assert_eq!(forced(&world), [node("kv-3")].into());
    let late = world.verb("kv-3", NodeVerb::Start);
    assert!(matches!(late, Err(Refusal::Invalid(why)) if why.contains("goes by force")));

    // Its host has let it go: there is nobody to call back or to force.
    world.obey();
    assert!(why(remove(&mut world, "kv-3")).contains("kv-3"));
    assert!(world.verb("kv-3", NodeVerb::Start).is_err());
    world.force = false;
    remove(&mut world, "kv-2").unwrap();
    assert_eq!(forced(&world), [].into(), "it is forgotten");
}
