//! What a host keeps to over restarts, reboots and reorders.

mod terms;
mod unknown;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use faultbed_common::{
    blueprint::DialSource,
    generation::{FaultRevision, Generation},
    host_spec::{NodeEffect, NodeFault, NodePort},
    name::FaultName,
    session::{LeaseAges, Orders},
};
use proptest::prelude::*;

use super::*;
use crate::reconcile::testing::{BOOT, host_spec, link_fault, node, node_spec, orders};

const NOW: BootTime = BootTime::from_ms(1_000_000);

fn fault() -> FaultName {
    "pause-1".parse().unwrap()
}

/// Orders with one fault that lasts 30 s.
fn faulty(generation: u64, revision: u64, age_ms: u64) -> Orders {
    let mut spec = node_spec();
    let lasts = Some("30s".parse().unwrap());
    let pause = NodeFault { revision: FaultRevision(revision), lasts, effect: NodeEffect::Pause };
    spec.faults.insert(fault(), pause);
    let mut spec = host_spec([(node("kv-1"), spec)]);
    spec.generation = Generation(generation);
    Orders {
        spec,
        keeps_around: false,
        fault_ages_ms: BTreeMap::from([(fault(), age_ms)]),
        lease_ages: LeaseAges::default(),
    }
}

fn open(dir: &tempfile::TempDir, boot: &str, now: BootTime) -> Result<Ledger, LedgerError> {
    Ledger::open(dir.path(), &"try".parse().unwrap(), &"h1".parse().unwrap(), boot, now)
}

fn end(ledger: &Ledger) -> BootTime {
    ledger.accepted().unwrap().ends(&fault()).unwrap()
}

#[test]
fn a_deadline_is_set_at_first_sight_and_only_a_newer_revision_extends_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    ledger.accept(faulty(1, 1, 10_000), NOW).unwrap();
    assert_eq!(end(&ledger), NOW + Duration::from_secs(20));
    // A coordinator with another idea of its age changes nothing.
    let later = NOW + Duration::from_secs(5);
    ledger.accept(faulty(2, 1, 0), later).unwrap();
    assert_eq!(end(&ledger), NOW + Duration::from_secs(20));
    ledger.accept(faulty(3, 2, 0), later).unwrap();
    assert_eq!(end(&ledger), later + Duration::from_secs(30));
    // One that is older than it lasts is over at once.
    ledger.accept(faulty(4, 3, 90_000), later).unwrap();
    assert!(ledger.accepted().unwrap().is_over(&fault(), later));
}

#[test]
fn a_new_agent_goes_on_with_the_deadlines_and_a_reboot_with_the_ages() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    ledger.accept(faulty(1, 1, 0), NOW).unwrap();
    // Nothing was settled: this is a SIGKILL right after the orders.
    let held = open(&dir, BOOT, NOW + Duration::from_secs(3)).unwrap();
    assert_eq!(end(&held), NOW + Duration::from_secs(30));
    ledger.note_ages(NOW + Duration::from_secs(10));
    let booted = BootTime::from_ms(5_000);
    let held = open(&dir, "another-boot", booted).unwrap();
    assert_eq!(end(&held), booted + Duration::from_secs(20));
}

#[test]
fn a_torn_write_leaves_what_was_settled() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    ledger.accept(faulty(1, 1, 0), NOW).unwrap();
    ledger.settle()().unwrap();
    ledger.accept(faulty(2, 1, 0), NOW).unwrap();
    assert_eq!(open(&dir, BOOT, NOW).unwrap().accepted().unwrap().spec.generation.0, 2);
    std::fs::write(dir.path().join(NEXT), "{\"version\":1,\"spec").unwrap();
    assert_eq!(open(&dir, BOOT, NOW).unwrap().accepted().unwrap().spec.generation.0, 1);
    // An older file beside it, as a lost rename leaves it, does not win either.
    ledger.accept(faulty(3, 1, 0), NOW).unwrap();
    let older = std::fs::read(dir.path().join(NEXT)).unwrap();
    ledger.accept(faulty(4, 1, 0), NOW).unwrap();
    ledger.settle()().unwrap();
    std::fs::write(dir.path().join(NEXT), older).unwrap();
    assert_eq!(open(&dir, BOOT, NOW).unwrap().accepted().unwrap().spec.generation.0, 4);
}

#[test]
fn orders_for_others_and_old_orders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    ledger.accept(faulty(5, 1, 0), NOW).unwrap();
    let refused = ledger.accept(faulty(4, 1, 0), NOW).unwrap_err().to_string();
    assert_eq!(refused, "refuse orders of generation 4: generation 5 was accepted before");
    let mut foreign = faulty(6, 1, 0);
    foreign.spec.host = "h2".parse().unwrap();
    let refused = ledger.accept(foreign, NOW).unwrap_err().to_string();
    assert_eq!(refused, "refuse orders for try/h2: this is try/h1");
    // Said again, they are no news and no error.
    ledger.accept(faulty(5, 1, 0), NOW).unwrap();
}

#[test]
fn the_ledger_of_another_lab_is_not_taken_for_ours() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir, BOOT, NOW).unwrap().accept(faulty(1, 1, 0), NOW).unwrap();
    let error =
        Ledger::open(dir.path(), &"other".parse().unwrap(), &"h1".parse().unwrap(), BOOT, NOW)
            .unwrap_err()
            .to_string();
    assert!(error.contains("it is of try/h1, not of other/h1"), "{error}");
}

#[test]
fn a_node_that_left_is_kept_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    ledger.accept(faulty(1, 1, 0), NOW).unwrap();
    let mut empty = host_spec([]);
    empty.generation = Generation(2);
    ledger.accept(orders(empty.clone()), NOW).unwrap();
    empty.generation = Generation(3);
    empty.wipe_removed.insert(node("kv-1"));
    ledger.accept(orders(empty), NOW).unwrap();
    let mut held = open(&dir, BOOT, NOW).unwrap();
    assert!(held.accepted().unwrap().retiring[&node("kv-1")].wipe);
    assert!(held.accepted().unwrap().deadlines.is_empty());
    held.retired(&node("kv-1"));
    assert!(open(&dir, BOOT, NOW).unwrap().accepted().unwrap().retiring.is_empty());
}

proptest! {
    #[test]
    fn generations_and_revisions_never_fall(
        offered in proptest::collection::vec((0..6_u64, 0..4_u64), 1..12),
    ) {
        let mut held: Option<Accepted> = None;
        for (generation, revision) in offered {
            let before = held.clone();
            if let Ok(next) = merge(held.as_ref(), faulty(generation, revision, 0), BOOT, NOW) {
                if let Some(before) = before {
                    prop_assert!(next.spec.generation >= before.spec.generation);
                    let revision_of = |a: &Accepted| a.deadlines[&fault()].revision;
                    prop_assert!(revision_of(&next) >= revision_of(&before));
                }
                held = Some(next);
            } else {
                prop_assert!(before.unwrap().spec.generation.0 > generation);
            }
        }
    }
}

#[test]
fn orders_that_the_disk_does_not_take_are_followed_named_and_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    ledger.accept(faulty(1, 1, 0), NOW).unwrap();
    assert_eq!(ledger.trouble(), None);
    // Nothing can be written where a directory is in the way, also for root.
    let in_the_way = dir.path().join("ledger.next.tmp");
    fs::create_dir(&in_the_way).unwrap();
    ledger.accept(faulty(2, 1, 0), NOW).unwrap();
    assert_eq!(ledger.accepted().unwrap().spec.generation, Generation(2));
    assert!(ledger.trouble().unwrap().contains("ledger.next.json"), "{:?}", ledger.trouble());
    assert!(!ledger.retry());
    fs::remove_dir(in_the_way).unwrap();
    assert!(ledger.retry());
    assert_eq!(ledger.trouble(), None);
    let next = open(&dir, BOOT, NOW).unwrap();
    assert_eq!(next.accepted().unwrap().spec.generation, Generation(2));
}

#[test]
fn the_proxy_goes_on_for_a_node_that_leaves_a_cluster_that_stays() {
    let dir = tempfile::tempdir().unwrap();
    let listens = |clusters: &[&str], has_leave: bool| {
        let mut ledger = open(&dir, BOOT, NOW).unwrap();
        let mut leaver = node_spec();
        let port = NodePort { port: 2379, proxied: true, url: None, source: DialSource::Proxy };
        leaver.ports.insert("client".parse().unwrap(), port);
        leaver.launch.leave = has_leave.then(|| vec!["leave".to_owned()]);
        ledger.accept(orders(host_spec([(node("kv-1"), leaver.clone())])), NOW).unwrap();
        let mut without = host_spec([]);
        let clusters = clusters.iter().map(|name| name.parse().unwrap());
        without.clusters = Arc::new(clusters.collect());
        without.generation = Generation(2);
        without.proxy.listeners.clear();
        ledger.accept(orders(without), NOW).unwrap();
        let spec = ledger.accepted().unwrap().proxy_file().spec;
        assert_eq!(spec.diallers.contains_key(&leaver.private), !spec.listeners.is_empty());
        let wanted: Vec<SocketAddr> = leaver
            .ports
            .values()
            .filter(|port| port.proxied)
            .map(|port| SocketAddr::new(leaver.address, port.port))
            .collect();
        let found: Vec<SocketAddr> = spec.listeners.iter().map(|l| l.listen).collect();
        std::fs::remove_dir_all(dir.path()).unwrap();
        std::fs::create_dir(dir.path()).unwrap();
        (!wanted.is_empty() && wanted == found, found.is_empty())
    };
    assert_eq!(listens(&["kv"], true), (true, false), "its data moves away over them");
    assert_eq!(listens(&[], true), (false, true), "the whole cluster goes");
    assert_eq!(listens(&["kv"], false), (false, true), "it need not leave");
}
