//! Hosts that are listed, labelled, drained and removed in a running lab.

use faultbed_common::report::NodeState;
use faultbed_tests::lab::{ETCD, Lab, find, is_alive};

#[test]
fn a_drained_host_keeps_what_it_has_and_gets_nothing_new() {
    let lab = Lab::up(
        "drain",
        "[lab]\nhosts = 2\n\n[cluster.kv]\nblueprint = \"etcd\"\netcd.count = 1\n",
    );
    let before = lab.node("kv-1");
    let said = lab.ok(&["host", "drain", before.host.as_str()]);
    assert!(said.contains("h1 keeps what it has, and that goes on: kv-1"), "{said}");
    lab.ok(&["start", "cluster", "--name", "b", "--etcd.count", "1"]);
    assert_ne!(lab.node("b-1").host, before.host);
    assert_eq!(lab.node("kv-1").pid, before.pid);
    lab.ok(&["host", "label", "h2", "dc=east"]);
    let list = lab.ok(&["host", "list"]);
    let row = |name: &str| list.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(row("h1").contains("drained") && row("h1").contains("kv-1"), "{list}");
    assert!(row("h2").contains("up") && row("h2").contains("dc=east"), "{list}");
    lab.ok(&["host", "undrain", "h1"]);
    assert!(!lab.ok(&["host", "list"]).contains("drained"));
}

#[test]
fn the_agent_of_a_removed_host_stops_everything_and_does_not_come_back() {
    let lab = Lab::up("remove", ETCD);
    let third = lab.node("kv-3");
    let host = third.host.to_string();
    let refused = lab.run(&["host", "remove", &host]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("next: faultbed host remove h3 --force"), "{}", refused.stderr);
    let said = lab.ok(&["host", "remove", &host, "--force"]);
    assert!(said.contains("removed  host h3"), "{said}");
    lab.wait("its node and its agent end", |status| {
        let ended = !is_alive(third.pid.expect("it ran"));
        (ended && status.hosts.len() == 2 && status.converged).then_some(())
    });
    lab.wait("it says why", |_| {
        let log = std::fs::read_to_string(lab.dir().join("hosts/h3/agent.log")).unwrap_or_default();
        log.contains("host h3 was removed from lab remove by").then_some(())
    });
    assert!(lab.dir().join("hosts/h3/nodes/kv-3/data").exists(), "its data is kept");
    // Neither another `up` nor its agent, which that starts, brings it back.
    lab.ok(&["up", "-d"]);
    let list = lab.ok(&["host", "list"]);
    assert!(!list.contains("h3"), "{list}");
    let status = lab.status();
    for name in ["kv-1", "kv-2"] {
        assert_eq!(find(&status, name).observed, NodeState::Ready);
    }
}
