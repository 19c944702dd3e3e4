//! `apply`, `start cluster`, `delete cluster` and `set`.

use faultbed_common::{
    edit::{Edit, EditRequest, NodeFate, NodeVerb},
    generation::{Generation, Incarnation},
    host_spec::Wanted,
    lab::{Ended, Phase},
    spec::COUNT_MAX,
};

use super::why;
use crate::decide::{
    edit::{Decision, Refusal, decide},
    fixtures::{World, empty, file, key, node, ready},
};

const KV: &str = "[cluster.kv]\nblueprint = \"etcd\"\n";

fn split(lasts: &str) -> String {
    format!("{KV}[fault.split]\npartition = [\"kv-1\", \"kv-2,kv-3\"]\nfor = \"{lasts}\"\n")
}

fn fates(decision: &Decision) -> String {
    let words: Vec<String> =
        decision.reply.nodes.iter().map(|(name, fate)| format!("{name} {fate:?}")).collect();
    words.join(", ")
}

fn set(world: &mut World, target: &str, field: &str, value: &str) -> Result<Decision, Refusal> {
    world.edit(Edit::Set {
        targets: vec![target.to_owned()],
        field: field.to_owned(),
        value: value.to_owned(),
    })
}

#[test]
fn the_first_apply_starts_everything_and_the_same_again_changes_nothing() {
    let mut world = empty();
    let first = world.apply(KV).unwrap();
    assert_eq!(fates(&first), "kv-1 Start, kv-2 Start, kv-3 Start");
    assert_eq!(first.reply.objects.len(), 1);
    assert_eq!(first.reply.objects[0].before, None);
    let again = world.apply(KV).unwrap();
    assert!(!again.reply.changed && again.reply.nodes.is_empty());
    assert_eq!(again.lab.generation, Generation(1));
}

#[test]
fn only_nodes_whose_own_fields_changed_restart() {
    let mut world = ready();
    let changed = format!("{KV}[cluster.kv.etcd]\nnode.2.path = \"/opt/etcd-next\"\n");
    assert_eq!(fates(&world.apply(&changed).unwrap()), "kv-2 Restart");
    let more = format!("{changed}count = 4\n");
    assert_eq!(fates(&world.apply(&more).unwrap()), "kv-4 Start");
    let all = format!("{KV}[cluster.kv.etcd]\nargs = [\"--heartbeat-interval=50\"]\n");
    let decision = world.apply(&all).unwrap();
    assert_eq!(fates(&decision), "kv-1 Restart, kv-2 Restart, kv-3 Restart, kv-4 Remove");
    assert!(decision.reply.notes.contains(&"the data of kv-4 is kept".to_owned()));
    // A change of its meaning only restarts nobody.
    let crash = format!(
        "{KV}on_crash = \"restart\"\n[cluster.kv.etcd]\n\
                         args = [\"--heartbeat-interval=50\"]\n"
    );
    assert_eq!(fates(&world.apply(&crash).unwrap()), "");
}

#[test]
fn unchanged_clusters_keep_their_placements_and_what_verbs_asked() {
    let mut world = ready();
    world.verb("kv-3", NodeVerb::Stop).unwrap();
    let before = world.lab.clusters[&key("kv")].nodes.clone();
    let more = format!("{KV}[cluster.second]\nblueprint = \"etcd\"\netcd.count = 1\n");
    world.apply(&more).unwrap();
    assert_eq!(world.lab.clusters[&key("kv")].nodes, before);
    assert_eq!(world.placement("kv-3").wanted, Wanted::Stopped);
    // A changed path does not start what is down on purpose.
    let changed = format!("{more}[cluster.kv.etcd]\npath = \"/opt/etcd\"\n");
    assert_eq!(fates(&world.apply(&changed).unwrap()), "kv-1 Restart, kv-2 Restart");
}

#[test]
fn apply_removes_what_left_the_file_and_keeps_what_verbs_made() {
    let mut world = ready();
    let spec = world.lab.clusters[&key("kv")].spec.clone();
    world.edit(Edit::StartCluster { name: "mine".parse().unwrap(), spec }).unwrap();
    world.inject("on = \"mine-1\"\npause = true").unwrap();
    let decision = world.apply("[cluster.other]\nblueprint = \"etcd\"\n").unwrap();
    assert_eq!(
        world.lab.clusters.keys().map(|c| c.as_str()).collect::<Vec<_>>(),
        ["mine", "other"]
    );
    let notes = decision.reply.notes.join("\n");
    assert!(
        notes.contains("cluster mine is not in the file and is kept: a verb made it"),
        "{notes}"
    );
    assert!(notes.contains("fault pause-"), "{notes}");
    assert!(notes.contains("the data of cluster kv is kept"), "{notes}");
    // The file that names it takes it over, and the next file without it removes it.
    world.apply("[cluster.mine]\nblueprint = \"etcd\"\n").unwrap();
    world.apply("").unwrap();
    assert!(world.lab.clusters.is_empty());
}

#[test]
fn what_others_made_is_not_touched_without_everyone() {
    let mut world = ready();
    world.inject("on = \"kv-2\"\npause = true").unwrap();
    world.by = "bob".to_owned();
    let kept = world.apply("").unwrap();
    assert!(!kept.reply.changed);
    assert!(kept.reply.notes.iter().any(|note| note.contains("belongs to ada")), "{kept:?}");
    let changed = "[cluster.kv]\nblueprint = \"etcd\"\netcd.count = 1\n";
    for error in [
        why(world.apply(changed)),
        why(world.verb("kv-1", NodeVerb::Stop)),
        why(set(&mut world, "kv-1", "path", "x")),
        why(world.inject("isolate = \"kv-1\"")),
        why(world.edit(Edit::DeleteCluster { name: "kv".parse().unwrap(), wipe: true })),
    ] {
        assert!(error.contains("belongs to ada; --everyone"), "{error}");
    }
    let healed = world.edit(Edit::Heal { faults: vec![] }).unwrap();
    assert!(!healed.reply.changed);
    world.everyone = true;
    assert!(world.edit(Edit::Heal { faults: vec![] }).unwrap().reply.changed);
    assert!(world.apply("").unwrap().reply.changed);
}

#[test]
fn a_fault_of_a_file_waits_until_its_cluster_has_been_ready() {
    let mut world = empty();
    let decision = world.apply(&split("30s")).unwrap();
    let waits = Phase::Pending { why: "kv not ready".to_owned() };
    assert_eq!(world.lab.faults[&key("split")].phase, waits);
    assert!(!decision.reply.resolved[&key("split")].links.is_empty());
    world.obey();
    assert_eq!(world.chores().as_deref(), Some("etcd of kv has been ready, begin split"));
    assert!(world.lab.faults[&key("split")].is_active());
}

#[test]
fn a_fault_at_start_begins_at_once_and_must_know_its_targets() {
    let mut world = empty();
    world.apply(&format!("{}at = \"start\"\n", split("30s"))).unwrap();
    assert!(world.lab.faults[&key("split")].is_active());
    let leader = format!("{KV}[fault.x]\nisolate = \"leader:kv\"\nat = \"start\"\nfor = \"1s\"\n");
    assert!(why(world.apply(&leader)).contains("known to lead"));
    // Without it, it waits for a leader.
    let later = leader.replace("at = \"start\"\n", "");
    world.apply(&later).unwrap();
    assert!(matches!(world.lab.faults[&key("x")].phase, Phase::Pending { .. }));
}

#[test]
fn an_unchanged_file_does_not_inject_an_ended_fault_again() {
    let mut world = ready();
    world.apply(&split("30s")).unwrap();
    let first = world.lab.faults[&key("split")].revision;
    world.now += 30_000;
    assert_eq!(world.chores().as_deref(), Some("split expired"));
    let again = world.apply(&split("30s")).unwrap();
    assert!(!again.reply.changed);
    assert!(again.reply.notes[0].contains("does not begin again"), "{:?}", again.reply.notes);
    // A changed one does, as a newer revision.
    world.apply(&split("31s")).unwrap();
    assert!(world.lab.faults[&key("split")].is_active());
    assert!(world.lab.faults[&key("split")].revision > first);
}

#[test]
fn a_changed_fault_in_force_gets_a_new_revision_and_begins_anew() {
    let mut world = ready();
    world.apply(&split("30s")).unwrap();
    let old = world.lab.faults[&key("split")].clone();
    world.now += 5_000;
    world.apply(&split("60s")).unwrap();
    let new = &world.lab.faults[&key("split")];
    assert!(new.revision > old.revision);
    assert_eq!(new.phase, Phase::Active { since_unix_ms: world.now });
    // Deleted and back again, hosts must not take it for what they remember.
    world.apply(KV).unwrap();
    let gone = world.lab.faults.get(&key("split")).cloned();
    world.apply(&split("60s")).unwrap();
    assert_eq!(gone, None);
    assert!(world.lab.faults[&key("split")].revision.0 > 2);
}

#[test]
fn every_mistake_of_a_file_is_one_clear_refusal_and_changes_nothing() {
    let too_many = format!("[cluster.a]\nblueprint = \"etcd\"\netcd.count = {}\n", COUNT_MAX + 1);
    for (text, reason) in [
        ("[cluster.a]\nblueprint = \"etdc\"\n", "did you mean \"etcd\"?"),
        ("[cluster.a]\nblueprint = \"./mine.toml\"\n", "its text is not at hand"),
        ("[cluster.a]\nblueprint = \"etcd\"\netcdd.count = 1\n", "no role etcdd"),
        ("[cluster.a]\nblueprint = \"etcd\"\netcd.count = 0\n", "count of etcd is 0"),
        ("[cluster.a]\nblueprint = \"nats\"\nnats.count = 1\n", "nats has 2 at least"),
        ("[cluster.a]\nblueprint = \"redis-cluster\"\nredis.count = 2\n", "has 3 at least"),
        (&too_many, "it goes from 1 to 1000"),
        ("[cluster.a]\nblueprint = \"etcd\"\netcd.count = 10000000\n", "it goes from 1 to 1000"),
        ("[cluster.a]\nblueprint = \"etcd\"\netcd.hosts = [\"h9\"]\n", "there is no host \"h9\""),
        ("[cluster.a]\nblueprint = \"etcd\"\netcd.node.7.path = \"x\"\n", "names no node"),
        ("[cluster.a]\nblueprint = \"etcd\"\netcd.path = \"a\\u0000b\"\n", "NUL byte"),
        ("[cluster.kv-1]\nblueprint = \"etcd\"\n[cluster.kv]\nblueprint = \"etcd\"\n", "kv-1"),
        ("[host.h9]\nlabels = { dc = \"east\" }\n", "there is no host h9; there are h1, h2, h3"),
        ("[fault.x]\nisolate = \"kv-1\"\nfor = \"1s\"\n", "no such node or cluster"),
        (&format!("{KV}[fault.x]\nisolate = \"kv-1\"\n"), "say how long it lasts"),
        (&split("1ns"), "at least 1ms"),
        (&format!("{KV}[fault.x]\npartition = [\"kv\"]\nfor = \"1s\"\n"), "two groups or more"),
    ] {
        let mut world = empty();
        let error = why(world.apply(text));
        assert!(error.contains(reason), "{text}\n{error}");
    }
}

#[test]
fn two_users_applying_at_once_are_told_apart_by_the_generation_they_saw() {
    let world = ready();
    let request = EditRequest {
        edit: Edit::Apply(file("")),
        plan: false,
        if_generation: Some(Generation(1)),
        blueprints: std::collections::BTreeMap::new(),
        everyone: false,
        force: false,
        files: faultbed_common::program::Files::default(),
    };
    let error = decide(&world.lab, &world.reports, &request, &world.asked()).unwrap_err();
    assert_eq!(error, Refusal::Moved(world.lab.generation.0));
}

#[test]
fn labels_are_what_the_file_says() {
    let mut world = ready();
    let text = format!("{KV}[host.h1]\nlabels = {{ dc = \"east\" }}\n");
    let decision = world.apply(&text).unwrap();
    let labels = &decision.reply.objects[0];
    assert_eq!((labels.kind.as_str(), labels.name.as_str()), ("host", "h1"));
    assert_eq!(labels.after.as_deref(), Some("[host.h1]\nlabels = { dc = \"east\" }\n"));
    world.inject("isolate = \"label:dc=east\"").unwrap();
    world.apply(KV).unwrap();
    assert!(why(world.inject("isolate = \"label:dc=east\"")).contains("no host has a label"));
}

#[test]
fn start_cluster_is_new_or_exactly_the_one_there_is() {
    let mut world = ready();
    let spec = world.lab.clusters[&key("kv")].spec.clone();
    let start = |spec| Edit::StartCluster { name: "kv".parse().unwrap(), spec };
    assert!(!world.edit(start(spec.clone())).unwrap().reply.changed);
    let mut other = spec;
    other.roles.entry("etcd".parse().unwrap()).or_default().count = Some(5);
    let error = why(world.edit(start(other)));
    assert!(error.contains("faultbed set kv[/ROLE] FIELD=VALUE"), "{error}");
}

#[test]
fn deleting_a_cluster_ends_its_faults_and_wipes_only_on_request() {
    for wipe in [false, true] {
        let mut world = ready();
        let name = world.inject("isolate = \"kv-1\"").unwrap();
        let decision =
            world.edit(Edit::DeleteCluster { name: "kv".parse().unwrap(), wipe }).unwrap();
        let fate = if wipe { NodeFate::Wipe } else { NodeFate::Remove };
        assert!(decision.reply.nodes.values().all(|found| *found == fate));
        let ended = Phase::Ended { how: Ended::Healed, at_unix_ms: world.now };
        assert_eq!(world.lab.faults[&name].phase, ended);
        let specs = faultbed_common::compile::compile(&world.lab).unwrap();
        let wiped = specs.values().map(|spec| spec.wipe_removed.len()).sum::<usize>();
        assert_eq!(wiped, if wipe { 3 } else { 0 });
        // A later node of the same name is a new run, and never sees the data to be wiped.
        world.apply(KV).unwrap();
        assert!(world.lab.removed_wiped.is_empty());
        assert_eq!(world.placement("kv-1").incarnation, Incarnation(2));
        assert_eq!(world.placement("kv-1").wipes, u64::from(wipe));
    }
    let error = why(ready().edit(Edit::DeleteCluster { name: "kw".parse().unwrap(), wipe: false }));
    assert!(error.contains("there is no cluster kw; did you mean \"kv\"?"), "{error}");
}

#[test]
fn set_changes_a_field_of_a_cluster_a_role_or_single_nodes() {
    let mut world = ready();
    let decision = set(&mut world, "kv-2", "path", "/opt/next").unwrap();
    assert_eq!(fates(&decision), "kv-2 Restart");
    assert_eq!(fates(&set(&mut world, "leader:kv", "args", "--a --b").unwrap()), "kv-1 Restart");
    assert_eq!(fates(&set(&mut world, "kv/etcd", "count", "4").unwrap()), "kv-4 Start");
    let all = "kv-1 Restart, kv-2 Restart, kv-3 Restart, kv-4 Restart";
    assert_eq!(fates(&set(&mut world, "kv", "env.GOGC", "50").unwrap()), all);
    assert_eq!(fates(&set(&mut world, "kv", "on_crash", "restart").unwrap()), "");
    let spec = &world.lab.clusters[&key("kv")].spec.roles[&key("etcd")];
    assert_eq!(
        spec.node[&1].args.as_deref(),
        Some(["--a".to_owned(), "--b".to_owned()].as_slice())
    );
    let again = set(&mut world, "kv-2", "path", "/opt/next").unwrap();
    assert!(!again.reply.changed && again.reply.notes[0].contains("faultbed restart"));
    set(&mut world, "kv", "path", "/opt/all").unwrap();
    let spec = &world.lab.clusters[&key("kv")].spec.roles[&key("etcd")];
    assert!(spec.node.values().all(|own| own.path.is_none()), "no node stays behind");
    for (target, field, value, reason) in [
        ("kv", "pth", "x", "did you mean \"path\"?"),
        ("kv", "count", "many", "\"many\" is no count"),
        ("kv", "count", "0", "count of etcd is 0"),
        ("kv-1", "count", "3", "CLUSTER/ROLE"),
        ("kv-1", "on_crash", "stay", "whole cluster"),
        ("kv", "on_crash", "panic", "\"stay\" or \"restart\""),
        ("kv", "env.", "x", "no name of an environment variable"),
        ("kv/etdc", "count", "1", "did you mean \"etcd\"?"),
        ("kw-1", "path", "x", "did you mean \"kv-1\"?"),
    ] {
        let error = why(set(&mut world, target, field, value));
        assert!(error.contains(reason), "{target} {field}: {error}");
    }
}

#[test]
fn scaling_in_takes_the_nodes_out_of_faults() {
    let mut world = ready();
    let both = world.inject("partition = [\"kv-1\", \"kv-2,kv-3\"]").unwrap();
    let last = world.inject("on = \"kv-3\"\npause = true").unwrap();
    set(&mut world, "kv", "count", "2").unwrap();
    let fault = &world.lab.faults[&both];
    assert!(fault.is_active());
    assert!(fault.resolved.touched().iter().all(|name| **name != node("kv-3")));
    assert_eq!(fault.resolved.groups, [vec!["kv-1"], vec!["kv-2"]]);
    assert!(world.lab.faults[&last].is_ended());
}
