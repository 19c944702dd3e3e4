//! A blueprint of the user's own: roles that wait for each other, and an effect.

use std::collections::BTreeMap;

use faultbed_common::{
    blueprint::Blueprint,
    compile::compile,
    edit::{Edit, EditRequest},
    file::parse_blueprint,
    host_spec::NodeEffect,
};

use super::why;
use crate::decide::{
    edit::{Decision, Refusal, decide},
    fixtures::{World, empty, file, key},
};

const PATH: &str = "./mykv.toml";
const FILE: &str = "[cluster.db]\nblueprint = \"./mykv.toml\"\n";
const MYKV: &str = r#"
name = "mykv"
summary = "two roles, one after the other"
[role.meta]
program = "meta"
count = 1
port.client = { default = 7000, url = "http" }
[role.data]
program = "data"
count = 2
after = ["meta"]
port.client = { default = 8000 }
[effect.slow]
roles = ["data"]
on = { http = "PUT {{ port.client.bind }}/slow" }
off = { http = "DELETE {{ port.client.bind }}/slow" }
"#;

fn apply(world: &mut World, text: &str, blueprint: &Blueprint) -> Result<Decision, Refusal> {
    let request = EditRequest {
        edit: Edit::Apply(file(text)),
        plan: false,
        if_generation: None,
        blueprints: BTreeMap::from([(PATH.to_owned(), blueprint.clone())]),
        everyone: false,
        force: false,
        files: faultbed_common::program::Files::default(),
    };
    let decision = decide(&world.lab, &world.reports, &request, &world.asked())?;
    world.lab = decision.lab.clone();
    Ok(decision)
}

fn db() -> (World, Blueprint) {
    let mut world = empty();
    let blueprint = parse_blueprint(MYKV).unwrap();
    apply(&mut world, FILE, &blueprint).unwrap();
    (world, blueprint)
}

#[test]
fn gates_open_role_by_role() {
    let (mut world, _) = db();
    let gates = |world: &World| {
        let specs = compile(&world.lab).unwrap();
        specs.values().flat_map(|spec| spec.nodes.values()).filter(|n| n.gate.is_some()).count()
    };
    assert_eq!(gates(&world), 2);
    world.obey();
    for name in ["db-data-1", "db-data-2"] {
        world.report(name, |seen| seen.been_ready = false);
    }
    assert_eq!(world.chores().as_deref(), Some("meta of db has been ready"));
    assert_eq!(gates(&world), 0);
    assert!(!world.lab.clusters[&key("db")].has_been_ready());
    world.obey();
    assert_eq!(world.chores().as_deref(), Some("data of db has been ready"));
}

#[test]
fn a_changed_blueprint_restarts_the_nodes_of_the_changed_role_alone() {
    let (mut world, blueprint) = db();
    world.obey();
    let same = apply(&mut world, FILE, &blueprint).unwrap();
    assert!(!same.reply.changed);
    let changed = parse_blueprint(&MYKV.replace("program = \"data\"", "program = \"data2\""));
    let decision = apply(&mut world, FILE, &changed.unwrap()).unwrap();
    let restarted: Vec<&str> = decision.reply.nodes.keys().map(|name| name.as_str()).collect();
    assert_eq!(restarted, ["db-data-1", "db-data-2"]);
    // Other edits need no file: they keep the blueprint that was accepted.
    let set = Edit::Set {
        targets: vec!["db/meta".to_owned()],
        field: "env.A".to_owned(),
        value: "1".to_owned(),
    };
    assert_eq!(world.edit(set).unwrap().reply.nodes.len(), 1);
    let bare = Edit::Set {
        targets: vec!["db".to_owned()],
        field: "path".to_owned(),
        value: "x".to_owned(),
    };
    assert!(why(world.edit(bare)).contains("say db/data or db/meta"));
}

#[test]
fn an_effect_of_its_own_is_rendered_for_the_roles_that_have_it() {
    let (mut world, _) = db();
    world.inject("on = \"db\"\neffect = \"slow\"").unwrap();
    let specs = compile(&world.lab).unwrap();
    let met: Vec<&str> = specs
        .values()
        .flat_map(|spec| &spec.nodes)
        .filter(|(_, node)| {
            node.faults.values().any(|fault| matches!(fault.effect, NodeEffect::Custom { .. }))
        })
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(met, ["db-data-1", "db-data-2"]);
    let error = why(world.inject("on = \"db\"\neffect = \"slw\""));
    assert!(error.contains("has no effect \"slw\"; it has slow"), "{error}");
    let error = why(world.inject("on = \"db/meta\"\neffect = \"slow\""));
    assert!(error.contains("no node named has a role"), "{error}");
}

#[test]
fn nodes_that_have_no_safe_way_to_leave_are_taken_away_only_by_force() {
    let three = MYKV.replace("count = 1", "count = 3").replace("count = 2", "count = 3");
    let text = three + "[role.data.leave]\nrefuse = \"its parts must move first\"\n";
    let blueprint = parse_blueprint(&text).unwrap();
    let mut world = empty();
    apply(&mut world, FILE, &blueprint).unwrap();
    world.obey();
    let fewer = |world: &mut World, role: &str| {
        let targets = vec![format!("db/{role}")];
        world.edit(Edit::Set { targets, field: "count".into(), value: "2".into() })
    };
    let remove =
        |world: &mut World| world.edit(Edit::Remove { targets: vec!["db-data-3".to_owned()] });
    for refused in [
        why(fewer(&mut world, "data")),
        why(remove(&mut world)),
        why(apply(&mut world, &format!("{FILE}data.count = 2\n"), &blueprint)),
    ] {
        assert!(refused.contains("db-data-3 away could lose data: its parts must"), "{refused}");
        assert!(refused.contains("`faultbed remove db-data-3 --force`"), "{refused}");
    }
    // Those that can are not kept, nor is a cluster that goes as a whole.
    fewer(&mut world, "meta").unwrap();
    world.force = true;
    remove(&mut world).unwrap();
    world.force = false;
    world.edit(Edit::DeleteCluster { name: key("db"), wipe: false }).unwrap();
}

#[test]
fn a_cluster_without_a_role_that_it_can_do_without_is_changed_like_any_other() {
    let mut world = empty();
    let file =
        |tikv| format!("[cluster.db]\nblueprint = \"tidb\"\ntidb.count = 0\ntikv.count = {tikv}\n");
    world.apply(&file(3)).unwrap();
    world.apply(&file(4)).unwrap();
    assert!(why(world.apply(&file(0))).contains("count of tikv is 0"));
    world.apply("[cluster.db]\nblueprint = \"tidb\"\ntikv.count = 4\n").unwrap();
    assert_eq!(world.lab.clusters[&key("db")].nodes.len(), 3 + 4 + 2);
}
