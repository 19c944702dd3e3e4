//! Leases of clusters and of the lab: set, extended, over, begun again.

use faultbed_common::{
    compile::compile,
    edit::{Edit, NodeVerb},
    host_spec::Wanted,
    report::{LeaseReport, NodeState},
};

use super::why;
use crate::decide::{
    chores::next_at_unix_ms,
    fixtures::{World, empty, key},
};

const HOUR_MS: u64 = 3_600_000;

/// The cluster `kv` with a lease of two hours, ready.
fn leased() -> World {
    let mut world = empty();
    world.apply("[cluster.kv]\nblueprint = \"etcd\"\nlease = \"2h\"\n").unwrap();
    world.obey();
    world.chores();
    world
}

fn set(world: &mut World, targets: &str, value: &str) -> Result<Vec<String>, String> {
    let edit = Edit::Set {
        targets: vec![targets.to_owned()],
        field: "lease".to_owned(),
        value: value.to_owned(),
    };
    world.edit(edit).map(|decision| decision.reply.notes).map_err(|error| error.to_string())
}

fn wanted(world: &World) -> Vec<Wanted> {
    world.lab.nodes().map(|node| node.placement.wanted).collect()
}

/// What every host says of the lease of `kv`.
fn hosts_say(world: &mut World, remaining_ms: u64) {
    let revision = world.lab.clusters[&key("kv")].lease.as_ref().unwrap().revision;
    for report in world.reports.values_mut().map(std::sync::Arc::make_mut) {
        report.leases.insert(key("kv"), LeaseReport { revision, remaining_ms });
    }
}

#[test]
fn a_lease_travels_as_a_duration_and_stops_the_cluster_at_its_end() {
    let mut world = leased();
    let specs = compile(&world.lab).unwrap();
    for spec in specs.values() {
        assert_eq!(spec.terms.clusters[&key("kv")].lasts, "2h".parse().unwrap());
    }
    assert_eq!(next_at_unix_ms(&world.lab), Some(world.now + 2 * HOUR_MS));
    world.now += 2 * HOUR_MS - 1;
    assert_eq!(world.chores(), None);
    world.now += 1;
    assert_eq!(world.chores().as_deref(), Some("lease of kv ended: it is stopped"));
    assert_eq!(wanted(&world), [Wanted::Stopped; 3]);
    assert_eq!(world.chores(), None, "it ends once");
    assert!(compile(&world.lab).unwrap().values().all(|spec| spec.terms.clusters.is_empty()));
    world.obey();
    let status = world.status();
    assert!(status.clusters[0].lease.as_ref().unwrap().ended);
    assert_eq!(status.nodes[0].observed, NodeState::Stopped);
    assert_eq!(status.nodes[0].why.as_deref(), Some("lease ended"));
    assert!(status.converged, "{:?}", status.pending);
}

#[test]
fn hosts_know_better_than_our_clock_how_long_a_lease_goes_on() {
    let mut world = leased();
    // Our clock was set forward; the hosts' cannot be.
    world.now += 5 * HOUR_MS;
    hosts_say(&mut world, 2 * HOUR_MS);
    assert_eq!(world.chores(), None);
    let left = world.status().clusters[0].lease.clone().unwrap().remaining_ms;
    assert_eq!(left, 2 * HOUR_MS - 500, "counted down since the report");
    world.now -= 5 * HOUR_MS;
    hosts_say(&mut world, 0);
    assert_eq!(world.chores().as_deref(), Some("lease of kv ended: it is stopped"));
}

#[test]
fn a_lease_is_extended_by_setting_it_again_or_starting_the_cluster_again() {
    let mut world = leased();
    let first = world.lab.clusters[&key("kv")].lease.clone().unwrap();
    world.now += HOUR_MS;
    let notes = set(&mut world, "kv", "24h").unwrap();
    assert_eq!(notes, ["cluster kv may run for 1day from now on"]);
    let second = world.lab.clusters[&key("kv")].lease.clone().unwrap();
    assert!(second.revision > first.revision);
    assert_eq!(second.since_unix_ms, world.now);
    // The same time again is an extension too, and no node restarts for it.
    world.now += HOUR_MS;
    let spec = world.lab.clusters[&key("kv")].spec.clone();
    let again = world.edit(Edit::StartCluster { name: key("kv"), spec }).unwrap();
    assert!(again.reply.changed && again.reply.nodes.is_empty());
    assert_eq!(world.lab.clusters[&key("kv")].lease.as_ref().unwrap().since_unix_ms, world.now);
    // An unchanged file is no extension.
    let file = "[cluster.kv]\nblueprint = \"etcd\"\nlease = \"24h\"\n";
    assert!(!world.apply(file).unwrap().reply.changed);
    set(&mut world, "kv", "none").unwrap();
    assert_eq!(world.lab.clusters[&key("kv")].lease, None);
    assert_eq!(next_at_unix_ms(&world.lab), None);
}

#[test]
fn whoever_starts_a_cluster_after_its_lease_gives_it_as_much_time_again() {
    let mut world = leased();
    world.now += 2 * HOUR_MS;
    world.chores();
    let notes = set(&mut world, "kv", "1h").unwrap();
    assert!(notes[1].contains("`faultbed start kv` starts"), "{notes:?}");
    world.now += HOUR_MS;
    assert!(world.chores().is_some());
    let decision = world.verb("kv", NodeVerb::Start).unwrap();
    assert!(decision.reply.notes.contains(&"the lease of kv was over and begins again: 1h".into()));
    assert_eq!(wanted(&world), [Wanted::Running; 3]);
    assert_eq!(next_at_unix_ms(&world.lab), Some(world.now + HOUR_MS));
}

#[test]
fn the_lease_of_the_lab_stops_every_cluster() {
    let mut world = leased();
    world.edit(Edit::LabLease { lasts: "1h".parse().ok() }).unwrap();
    assert!(compile(&world.lab).unwrap().values().all(|spec| spec.terms.lab.is_some()));
    world.now += HOUR_MS;
    let what = world.chores().unwrap();
    assert_eq!(what, "the lease of the lab ended, kv is stopped");
    assert_eq!(wanted(&world), [Wanted::Stopped; 3]);
    assert_eq!(world.chores(), None);
}

#[test]
fn a_lease_is_refused_where_it_means_nothing() {
    let mut world = leased();
    for (targets, value, reason) in [
        ("kv-1", "1h", "a lease is set for a whole cluster"),
        ("kv", "soon", "\"none\" for no lease"),
        ("kw", "1h", "did you mean \"kv\""),
    ] {
        let error = set(&mut world, targets, value).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    world.by = "bob".to_owned();
    let error = why(world.edit(Edit::Set {
        targets: vec!["kv".to_owned()],
        field: "lease".to_owned(),
        value: "1h".to_owned(),
    }));
    assert!(error.contains("belongs to ada"), "{error}");
}
