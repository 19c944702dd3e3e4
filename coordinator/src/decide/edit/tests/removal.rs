//! Nodes that are taken out one by one, whatever their number.

use faultbed_common::{
    edit::{Edit, NodeFate},
    name::NodeName,
};

use super::why;
use crate::decide::{
    edit::Refusal,
    fixtures::{World, ready},
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
