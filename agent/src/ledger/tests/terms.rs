//! Leases and the dead man's handle: what a host ends by itself.

use faultbed_common::{host_spec::LeaseTerm, report::HostReport};

use super::*;

/// Orders with a lease of the cluster and one of the lab.
fn leased(generation: u64, revision: u64, age_ms: u64) -> Orders {
    let mut orders = faulty(generation, 1, 0);
    let term =
        |span: &str| LeaseTerm { revision: FaultRevision(revision), lasts: span.parse().unwrap() };
    orders.spec.terms.clusters.insert("kv".parse().unwrap(), term("1h"));
    orders.spec.terms.lab = Some(term("2h"));
    orders.lease_ages.clusters_ms.insert("kv".parse().unwrap(), age_ms);
    orders
}

#[test]
fn a_lease_ends_by_the_hosts_own_clock_over_restarts_and_boots() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let lease_end =
        |ledger: &Ledger| ledger.accepted().unwrap().terms.lease_end(&"kv".parse().unwrap());
    ledger.accept(leased(1, 1, 600_000), NOW).unwrap();
    assert_eq!(lease_end(&ledger), Some(NOW + minutes(50)));
    // What a coordinator thinks of its age later changes nothing; a newer beginning does.
    ledger.accept(leased(2, 1, 0), NOW + minutes(5)).unwrap();
    assert_eq!(lease_end(&ledger), Some(NOW + minutes(50)));
    ledger.accept(leased(3, 2, 0), NOW + minutes(5)).unwrap();
    assert_eq!(lease_end(&ledger), Some(NOW + minutes(65)));
    ledger.note_ages(NOW + minutes(25));
    let booted = BootTime::from_ms(5_000);
    let held = open(&dir, "another-boot", booted).unwrap();
    assert_eq!(lease_end(&held), Some(booted + minutes(40)));
    let kv = "kv".parse().unwrap();
    assert!(!held.accepted().unwrap().lease_is_over(&kv, booted + minutes(39)));
    assert!(held.accepted().unwrap().lease_is_over(&kv, booted + minutes(40)));
    // The lab's own ends earlier.
    let mut ledger = held;
    let mut orders = leased(4, 2, 0);
    orders.spec.terms.lab =
        Some(LeaseTerm { revision: FaultRevision(4), lasts: "1m".parse().unwrap() });
    ledger.accept(orders, booted).unwrap();
    assert_eq!(lease_end(&ledger), Some(booted + minutes(1)));
}

/// Orders with one fault, and five minutes without a coordinator.
fn handled(generation: u64, revision: u64) -> Orders {
    let mut orders = faulty(generation, revision, 0);
    let pause = orders.spec.nodes.get_mut(&node("kv-1")).unwrap().faults.get_mut(&fault()).unwrap();
    pause.lasts = None;
    orders.spec.proxy.faults.insert("cut".parse().unwrap(), link_fault());
    orders.spec.terms.dead_man = "5m".parse().ok();
    orders
}

#[test]
fn a_host_that_hears_nobody_for_too_long_heals_its_faults_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    let at = |seconds: u64| NOW + Duration::from_secs(seconds);
    ledger.accept(handled(1, 1), NOW).unwrap();
    ledger.note_heard(at(100));
    assert_eq!(ledger.dead_man_at(at(200)), Some(at(400)));
    assert_eq!(ledger.dead_man(at(399)), []);
    assert!(
        ledger
            .accepted()
            .unwrap()
            .proxy_file()
            .spec
            .faults
            .contains_key(&"cut".parse::<FaultName>().unwrap())
    );
    // The agent dies and another one takes over: the time goes on.
    let mut ledger = open(&dir, BOOT, at(300)).unwrap();
    assert_eq!(ledger.dead_man(at(400)), ["cut".parse().unwrap(), fault()]);
    let accepted = ledger.accepted().unwrap();
    assert!(accepted.is_over(&fault(), at(400)));
    assert_eq!(accepted.proxy_file().spec.faults.len(), 0, "the proxy is told");
    assert_eq!(ledger.dead_man_at(at(400)), None, "once");
    let mut report = HostReport::default();
    accepted.terms.fill(&mut report, at(401));
    let said = &report.faults[&fault()];
    assert_eq!(said.healed.as_deref(), Some("heard no coordinator for 5m"));
    assert!(!said.active && !said.expired);
    // The coordinator is back and does not know yet: what is healed stays so, also after a boot.
    ledger.accept(handled(1, 1), at(500)).unwrap();
    assert!(ledger.accepted().unwrap().is_over(&fault(), at(500)));
    let booted = open(&dir, "another-boot", BootTime::from_ms(10)).unwrap();
    assert!(booted.accepted().unwrap().is_over(&fault(), BootTime::from_ms(10)));
    // Another revision is another fault.
    ledger.accept(handled(2, 2), at(600)).unwrap();
    assert!(!ledger.accepted().unwrap().is_over(&fault(), at(600)));
}

#[test]
fn a_boot_does_not_make_a_silence_shorter() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    ledger.accept(handled(1, 1), NOW).unwrap();
    ledger.note_ages(NOW);
    ledger.note_heard(NOW);
    let mut accepted = ledger.accepted().unwrap().clone();
    accepted.written_ns = (NOW + Duration::from_secs(240)).ns();
    std::fs::write(dir.path().join(NEXT), serde_json::to_vec(&accepted).unwrap()).unwrap();
    let booted = BootTime::from_ms(1_000);
    let held = open(&dir, "another-boot", booted).unwrap();
    assert_eq!(held.dead_man_at(booted), Some(BootTime::from_ms(61_000)));
}

#[test]
fn without_the_setting_nothing_is_healed() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    let mut orders = handled(1, 1);
    orders.spec.terms.dead_man = None;
    ledger.accept(orders, NOW).unwrap();
    let year = NOW + Duration::from_secs(365 * 24 * 3600);
    assert_eq!(ledger.dead_man_at(year), None);
    assert_eq!(ledger.dead_man(year), []);
}
