//! `inject`, `heal` and `delete fault`.

use faultbed_common::{
    compile::compile,
    edit::Edit,
    fault::Grade,
    lab::{ENDED_FAULTS_MAX, Phase},
    name::FaultName,
    report::ProxyReport,
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
    let edit = Edit::Inject { name: Some(named(name)), spec: fault(text) };
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
        .edit(Edit::Inject { name: None, spec: fault("partition = [\"kv-1\", \"kv-2\"]") })
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
    let decision = world.edit(Edit::Inject { name: None, spec: fault("bridge = \"kv\"") }).unwrap();
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
fn what_cannot_be_injected_is_refused_with_the_reason() {
    let mut world = ready();
    for (text, reason) in [
        ("isolate = \"kv-9\"", "there are kv, kv-1, kv-2, kv-3"),
        ("partition = [\"kv\"]", "two groups or more"),
        ("isolate = \"host:h7\"", "there are h1, h2, h3"),
        ("on = \"kv-1\"\neffect = \"slow\"", "defines no effects"),
        ("isolate = \"kv-1\"\ngrade = \"packet\"", "host h2 cannot drop packets"),
    ] {
        let h2 = world.reports.get_mut(&key("h2")).unwrap();
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
