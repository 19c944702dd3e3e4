//! `inject`, `heal` and `delete fault`.

use faultbed_common::{
    compile::compile,
    edit::Edit,
    fault::Grade,
    lab::{ENDED_FAULTS_MAX, Means, Phase},
    name::FaultName,
    report::{Identity, NO_LISTENER, ProxyReport},
};

use super::why;
use crate::decide::{
    edit::fault::FAULTS_MAX,
    fixtures::{World, fault, key, ready},
};

fn named(name: &str) -> FaultName {
    name.parse().unwrap()
}

fn inject_as(world: &mut World, name: &str, text: &str) -> Result<(), String> {
    let edit = Edit::Inject { name: Some(named(name)), spec: fault(text), replace: false };
    world.edit(edit).map(|_| ()).map_err(|error| error.to_string())
}

fn heal(world: &mut World, names: &[&str]) -> Result<Vec<String>, crate::decide::edit::Refusal> {
    let faults = names.iter().map(|name| named(name)).collect();
    Ok(world.edit(Edit::Heal { faults })?.reply.notes)
}

#[test]
fn an_injected_fault_begins_at_once_with_a_name_and_a_time() {
    let mut world = ready();
    let generation = world.lab.generation.next();
    let decision = world
        .edit(Edit::Inject {
            name: None,
            spec: fault("partition = [\"kv-1\", \"kv-2\"]"),
            replace: false,
        })
        .unwrap();
    let name = format!("partition-{generation}");
    assert_eq!(decision.what, format!("inject {name}: cut kv-1 | kv-2"));
    let notes = decision.reply.notes.join("\n");
    assert!(notes.contains("lasts 10m unless healed"), "{notes}");
    assert!(notes.contains("kv-3 is in no group"), "{notes}");
    let fault = &world.lab.faults[&key(name.as_str())];
    assert_eq!(fault.phase, Phase::Active { since_unix_ms: world.now });
    assert_eq!(decision.reply.resolved[&key(name.as_str())], fault.resolved);
}

#[test]
fn a_fault_that_is_refused_has_no_name() {
    let mut world = ready();
    let why = world.inject("isolate = \"kv-9\"").unwrap_err().to_string();
    assert!(why.contains("kv-9") && !why.contains("isolate-"), "{why}");
    let why = inject_as(&mut world, "mine", "isolate = \"kv-9\"").unwrap_err();
    assert!(why.contains("fault mine: "), "{why}");
}

#[test]
fn a_bridge_is_told_as_what_it_is() {
    let mut world = ready();
    let decision = world
        .edit(Edit::Inject { name: None, spec: fault("bridge = \"kv\""), replace: false })
        .unwrap();
    let notes = decision.reply.notes.join("\n");
    assert!(notes.contains(" sees both sides of "), "{notes}");
    assert!(decision.what.contains(" | "), "{}", decision.what);
}

#[test]
fn names_say_what_a_fault_does_and_are_never_used_again() {
    let mut world = ready();
    let mut names = Vec::new();
    for text in [
        "isolate = \"kv-1\"",
        "from = \"kv-1\"\nto = \"kv-2\"\nlatency = \"5ms\"",
        "from = \"kv-1\"\nto = \"kv-2\"\ncut = true",
        "on = \"kv-1\"\nkill = true",
    ] {
        names.push(world.inject(text).unwrap().to_string());
        heal(&mut world, &[]).unwrap();
    }
    let kinds: Vec<&str> = names.iter().map(|name| name.rsplit_once('-').unwrap().0).collect();
    assert_eq!(kinds, ["isolate", "latency", "cut", "kill"]);
    let next = world.lab.generation.0 + 2;
    inject_as(&mut world, &format!("pause-{next}"), "on = \"kv-1\"\npause = true").unwrap();
    let chosen = world.inject("on = \"kv-1\"\npause = true").unwrap();
    assert_eq!(chosen.as_str(), format!("pause-{}", next + 1));
}

#[test]
fn a_name_in_force_is_refused_and_one_that_is_over_begins_anew() {
    let mut world = ready();
    inject_as(&mut world, "x", "isolate = \"kv-1\"").unwrap();
    let error = inject_as(&mut world, "x", "isolate = \"kv-2\"").unwrap_err();
    assert!(error.contains("faultbed heal x"), "{error}");
    heal(&mut world, &["x"]).unwrap();
    inject_as(&mut world, "x", "isolate = \"kv-2\"").unwrap();
    assert!(world.lab.faults[&key("x")].is_active());
}

#[test]
fn a_fault_is_replaced_by_its_name_while_it_is_in_force() {
    let mut world = ready();
    let replace = |world: &mut World, name: Option<&str>, text: &str| {
        let name = name.map(named);
        world.edit(Edit::Inject { name, spec: fault(text), replace: true })
    };
    for (name, why) in [(Some("slow"), "no fault slow"), (None, "--name")] {
        let error = replace(&mut world, name, "isolate = \"kv-1\"").unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    inject_as(&mut world, "slow", "isolate = \"kv-1\"\nlatency = \"50ms\"").unwrap();
    let before = world.lab.faults[&key("slow")].clone();
    let what = "replace slow: latency 80ms kv-2 | kv-1,kv-3";
    let slower = "isolate = \"kv-2\"\nlatency = \"80ms\"\nfor = \"5s\"";
    assert_eq!(replace(&mut world, Some("slow"), slower).unwrap().what, what);
    let after = &world.lab.faults[&key("slow")];
    assert!(after.is_active() && after.revision > before.revision);
    assert_eq!(world.lab.faults.len(), 1);
    replace(&mut world, Some("slow"), "isolate = \"kv-2\"\nlatency = \"90ms\"").unwrap();
    let lasts = world.lab.faults[&key("slow")].spec.lasts;
    assert_eq!(lasts, Some("5s".parse().unwrap()), "as long as it did");
    let error = replace(&mut world, Some("slow"), "on = \"kv-1\"\npause = true").unwrap_err();
    assert!(error.to_string().contains("links only"), "{error}");
    heal(&mut world, &["slow"]).unwrap();
    let error = replace(&mut world, Some("slow"), slower).unwrap_err().to_string();
    assert!(error.contains("is over"), "{error}");
}

#[test]
fn a_replaced_fault_of_a_file_stays_the_files() {
    let mut world = ready();
    let file = "[cluster.kv]\nblueprint = \"etcd\"\n[fault.slow]\nisolate = \"kv-1\"\nlatency = \"50ms\"\nfor = \"10m\"";
    world.apply(file).unwrap();
    let spec = fault("isolate = \"kv-1\"\nlatency = \"80ms\"");
    let edit = Edit::Inject { name: Some(named("slow")), spec, replace: true };
    let notes = world.edit(edit).unwrap().reply.notes.join("\n");
    assert!(notes.contains("of a file"), "{notes}");
    assert_eq!(world.lab.faults[&key("slow")].origin.by, Means::Apply);
}

#[test]
fn a_replaced_fault_that_waits_for_its_cluster_waits_on() {
    let mut world = ready();
    let second = "[cluster.kv]\nblueprint = \"etcd\"\n[cluster.new]\nblueprint = \"etcd\"\n";
    let slow =
        "[fault.slow]\nisolate = \"new-1\"\nlatency = \"50ms\"\nfor = \"10m\"\nat = \"ready\"";
    world.apply(&format!("{second}{slow}")).unwrap();
    assert!(matches!(world.lab.faults[&key("slow")].phase, Phase::Pending { .. }));
    let spec = fault("isolate = \"new-1\"\nlatency = \"80ms\"");
    world.edit(Edit::Inject { name: Some(named("slow")), spec, replace: true }).unwrap();
    let slow = &world.lab.faults[&key("slow")];
    assert!(matches!(slow.phase, Phase::Pending { .. }), "{:?}", slow.phase);
}

#[test]
fn what_cannot_be_injected_is_refused_with_the_reason() {
    let mut world = ready();
    for (text, reason) in [
        ("isolate = \"kv-9\"", "there are kv, kv-1, kv-2, kv-3"),
        ("partition = [\"kv\"]", "two groups or more"),
        ("isolate = \"host:h7\"", "there are h1, h2, h3"),
        ("on = \"kv-1\"\neffect = \"slow\"", "move-leader"),
        ("isolate = \"kv-1\"\ngrade = \"packet\"", "host h2 cannot drop packets"),
    ] {
        let h2 = world.said("h2");
        let proxy = ProxyReport { best_grade: Some(Grade::Stream), ..ProxyReport::default() };
        h2.proxy = Some(proxy);
        let error = why(world.inject(text));
        assert!(error.contains(reason), "{text}: {error}");
    }
    world.reports.clear();
    assert!(why(world.inject("isolate = \"leader:kv\"")).contains("known to lead now"));
}

#[test]
fn heal_names_the_nearest_and_says_what_was_over() {
    let mut world = ready();
    inject_as(&mut world, "split", "isolate = \"kv-1\"").unwrap();
    assert!(why(heal(&mut world, &["splt"])).contains("did you mean \"split\"?"));
    assert!(heal(&mut world, &["split"]).unwrap().is_empty());
    assert_eq!(heal(&mut world, &["split"]).unwrap(), ["split was over already"]);
    assert_eq!(heal(&mut world, &[]).unwrap(), ["there is no fault to heal"]);
    // Its evidence stays to be seen until it is forgotten.
    assert!(world.lab.faults.contains_key(&key("split")));
    world.edit(Edit::DeleteFault { name: named("split") }).unwrap();
    assert!(world.lab.faults.is_empty());
    assert!(why(world.edit(Edit::DeleteFault { name: named("split") })).contains("no fault split"));
}

#[test]
fn inject_then_heal_leaves_every_host_what_it_had() {
    let mut world = ready();
    let stripped = |world: &World| {
        let mut lab = world.lab.clone();
        lab.generation = faultbed_common::generation::Generation(0);
        compile(&lab).unwrap()
    };
    let before = stripped(&world);
    for text in [
        "partition = [\"kv-1\", \"kv-2,kv-3\"]",
        "isolate = \"leader:kv\"\nclients = true",
        "on = \"kv\"\npause = true",
        "between = [\"kv-1\", \"kv-2\"]\nrtt = \"80ms\"",
    ] {
        let name = world.inject(text).unwrap();
        assert_ne!(stripped(&world), before);
        heal(&mut world, &[name.as_str()]).unwrap();
        assert_eq!(stripped(&world), before);
    }
}

#[test]
fn ended_faults_are_bounded_and_the_oldest_go_first() {
    let mut world = ready();
    for _ in 0..ENDED_FAULTS_MAX + 5 {
        world.now += 1;
        world.inject("isolate = \"kv-1\"").unwrap();
        heal(&mut world, &[]).unwrap();
    }
    assert_eq!(world.lab.faults.len(), ENDED_FAULTS_MAX);
    let newest = world.lab.faults.values().map(|fault| fault.revision.0).max().unwrap();
    assert_eq!(newest + 1, world.lab.generation.0);
}

#[test]
fn a_script_that_injects_in_a_loop_meets_a_bound() {
    let mut world = ready();
    world.inject("isolate = \"kv-1\"").unwrap();
    let one = world.lab.faults.values().next().unwrap().clone();
    for n in 0..FAULTS_MAX {
        world.lab.faults.insert(named(&format!("more-{n}")), one.clone());
    }
    let error = why(world.inject("isolate = \"kv-1\""));
    assert!(error.contains("faultbed heal --all"), "{error}");
}

/// Clusters of ada, bob and eve, a node of each on every host.
fn shared() -> World {
    let mut world = ready();
    for (owner, name) in [("bob", "db"), ("eve", "kw")] {
        world.by = owner.to_owned();
        let spec = world.lab.clusters[&key("kv")].spec.clone();
        world.edit(Edit::StartCluster { name: key(name), spec }).unwrap();
    }
    world.by = "ada".to_owned();
    world.obey();
    world.chores();
    world
}

#[test]
fn a_fault_that_meets_others_names_whose_clusters_they_are() {
    let mut world = shared();
    let error = inject_as(&mut world, "x", "partition = [\"host:h1\", \"host:h2\"]").unwrap_err();
    assert_eq!(
        error,
        "fault x: cluster db belongs to bob, cluster kw belongs to eve; --everyone touches them too"
    );
    // Taking theirs out leaves one's own.
    let own = "partition = [\"host:h1,not:db,not:kw\", \"host:h2,not:db,not:kw\"]";
    inject_as(&mut world, "x", own).unwrap();
    assert_eq!(world.lab.faults[&key("x")].resolved.groups, [["kv-1"], ["kv-2"]]);
    world.everyone = true;
    let edit = Edit::Inject { name: None, spec: fault("isolate = \"db-1\""), replace: false };
    let notes = world.edit(edit).unwrap().reply.notes.join("\n");
    assert!(notes.contains("meets what is not yours: cluster db belongs to bob"), "{notes}");
}

#[test]
fn a_fault_that_waits_does_not_meet_what_others_put_in_its_way() {
    let mut world = crate::decide::fixtures::empty();
    let file = "[cluster.kv]\nblueprint = \"etcd\"\n[fault.x]\non = \"host:h1\"\npause = true\nfor = \"5s\"\n";
    world.apply(file).unwrap();
    world.by = "bob".to_owned();
    let spec = world.lab.clusters[&key("kv")].spec.clone();
    world.edit(Edit::StartCluster { name: key("db"), spec }).unwrap();
    world.obey();
    world.by = "ada".to_owned();
    world.chores();
    world.chores();
    let Phase::Pending { why } = &world.lab.faults[&key("x")].phase else { unreachable!() };
    assert!(why.contains("cluster db belongs to bob"), "{why}");
    // Where everyone may be met, it begins.
    world.lab.faults.get_mut(&key("x")).unwrap().everyone = true;
    assert_eq!(world.chores().as_deref(), Some("begin x"));
}

#[test]
fn healing_all_and_deleting_touch_ones_own() {
    let mut world = shared();
    let mine = world.inject("isolate = \"kv-1\"").unwrap();
    world.by = "bob".to_owned();
    let theirs = world.inject("isolate = \"db-1\"").unwrap();
    let notes = heal(&mut world, &[]).unwrap();
    assert_eq!(notes, [format!("{mine} belongs to ada and stays; --everyone heals it")]);
    assert!(world.lab.faults[&mine].is_active() && world.lab.faults[&theirs].is_ended());
    let stop = faultbed_common::edit::NodeVerb::Stop;
    for refused in [
        why(world.edit(Edit::DeleteFault { name: mine.clone() })),
        why(world.edit(Edit::DeleteCluster { name: key("kv"), wipe: true })),
        why(world.verb("kv-1", stop)),
        why(heal(&mut world, &[mine.as_str()])),
    ] {
        assert!(refused.contains("belongs to ada; --everyone"), "{refused}");
    }
    world.everyone = true;
    heal(&mut world, &[]).unwrap();
    assert!(world.lab.faults[&mine].is_ended());
    world.verb("kv-1", stop).unwrap();
}

#[test]
fn a_disk_stands_still_only_where_the_kernel_asks_before_a_node_syncs() {
    let mut world = ready();
    let stall = "on = \"kv-1\"\ndisk_stall = true";
    let why_not = format!("{NO_LISTENER}: Operation not permitted");
    world.report("kv-1", |seen| seen.identity = Identity::Lookup(why_not));
    let before = world.lab.clone();
    let refused = why(world.inject(stall));
    for part in ["disk of kv-1 cannot", "Operation not permitted", "faultbed doctor"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(world.lab, before);
    world.report("kv-1", |seen| seen.identity = Identity::Address);
    let edit = Edit::Inject { name: None, spec: fault(stall), replace: false };
    let notes = world.edit(edit).unwrap().reply.notes.join("\n");
    assert!(notes.contains("O_DIRECT"), "{notes}");
}

#[test]
fn a_node_is_cut_from_clients_alone() {
    let mut world = ready();
    for text in
        ["partition = [\"kv-1\", \"clients\"]", "between = [\"kv-1\", \"clients\"]\ncut = true"]
    {
        let name = world.inject(text).unwrap();
        let resolved = &world.lab.faults[&name].resolved;
        let links: Vec<String> = resolved.links.iter().map(ToString::to_string).collect();
        assert_eq!(links, ["kv-1>clients", "clients>kv-1"], "{text}");
    }
    // All of several clusters, from clients and not from each other.
    let name = world.inject("partition = [\"host:h1,host:h2\", \"clients\"]").unwrap();
    assert_eq!(world.lab.faults[&name].resolved.links.len(), 4);
}
