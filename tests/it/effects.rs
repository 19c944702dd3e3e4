//! Every effect on links that the command line knows, injected into a real lab and healed.

use faultbed_common::status::{FaultState, FaultStatus, Status};
use faultbed_tests::lab::{ETCD, Lab};

/// Each as it is typed, with what it acts on. The names of the faults are their numbers.
const LINES: [&str; 22] = [
    "latency 20ms --jitter 5ms --distribution normal --between kv-1 kv-2",
    "rtt 10ms --between kv-1 kv-2,kv-3",
    "bandwidth 50Mbit --between kv-1 kv-2",
    "loss 1% --from kv-1 --to kv-2",
    "loss p=1% r=20% --from kv-2 --to kv-1",
    "loss burst=5ms every=2s --between kv-2 kv-3",
    "corrupt 0.01% --from clients --to kv-3",
    "slice 512B variation=16B delay=1ms --between kv-1 kv-3",
    "stall --from clients --to kv-3",
    "jam --from clients --to kv-3",
    "reset --between kv-1 kv-2",
    "reset after 5s --between kv-1 clients",
    "close after=5s --between kv-2 clients",
    "limit 10MiB --between kv-1 kv-2",
    "slow-close 100ms --isolate kv-3",
    "refuse --from clients --to kv-3",
    "time-out --from kv-3 --to clients",
    "accept-delay 50ms --from clients --to kv-1",
    "latency 5ms loss 0.1% bandwidth 100Mbit --halves kv --seed 7",
    "datacenter --ring kv",
    "same-region loss 0.01% --from kv-1 --to kv-2 --probability 10%",
    "latency 1ms --isolate kv-1 --one-way",
];

fn fault<'a>(status: &'a Status, name: &str) -> &'a FaultStatus {
    status.faults.iter().find(|f| f.name.as_str() == name).expect("fault is in the status")
}

#[test]
fn a_lab_takes_every_effect_and_is_as_it_was_when_all_are_healed() {
    let lab = Lab::up("effects", ETCD);
    lab.wait_ready();
    let names: Vec<String> = (0..LINES.len()).map(|n| format!("f{n}")).collect();
    for (name, line) in names.iter().zip(LINES) {
        let mut words = vec!["inject", "--name", name];
        words.extend(line.split(' '));
        lab.ok(&words);
        let status = lab.status();
        let there = fault(&status, name);
        assert_eq!(there.state, FaultState::Active, "{line}");
        assert!(there.in_force && there.links > 0, "{line}: {there:?}");
    }
    lab.ok(&["heal", "--all"]);
    lab.wait_ready();
    let status = lab.status();
    for name in &names {
        assert_eq!(fault(&status, name).state, FaultState::Healed, "{name}");
    }
    assert_eq!(lab.etcdctl(&["kv-1", "kv-2", "kv-3"], &["put", "after", "1"]).stdout, "OK\n");
}

#[test]
fn sides_by_chance_are_the_same_for_the_same_seed_and_stay_as_they_were_drawn() {
    let lab = Lab::up("chance", ETCD);
    lab.wait_ready();
    for (shape, links) in [("--halves", 4), ("--minority", 4), ("--ring", 2), ("--bridge", 2)] {
        let plan = || lab.ok(&["partition", shape, "kv", "--seed", "11", "--plan", "--name", "p"]);
        assert_eq!(plan(), plan(), "{shape}");
        lab.ok(&["partition", shape, "kv", "--seed", "11", "--name", "p", "--no-wait"]);
        let drawn = fault(&lab.status(), "p").clone();
        assert_eq!(drawn.links, links, "{shape}: {drawn:?}");
        lab.wait("it is in force as it was drawn", |status| {
            let now = fault(status, "p");
            assert_eq!(now.resolved, drawn.resolved, "{shape}");
            now.in_force.then_some(())
        });
        lab.ok(&["heal", "p"]);
    }
}
