//! Faults on a real etcd: what a partition does, that it ends in time, and that it leaves evidence.

use std::time::Instant;

use faultbed_common::{
    report::NodeState,
    status::{FaultState, FaultStatus, Status, Verdict},
};
use faultbed_tests::lab::{ETCD, Lab, PATIENCE, find, leader};

fn fault<'a>(status: &'a Status, name: &str) -> &'a FaultStatus {
    status.faults.iter().find(|f| f.name.as_str() == name).expect("fault is in the status")
}

#[test]
fn with_the_leader_isolated_the_others_go_on_and_after_the_heal_nothing_written_is_lost() {
    let lab = Lab::up("isolate", ETCD);
    let old = lab.wait_ready();
    let others: Vec<String> = ["kv-1", "kv-2", "kv-3"]
        .iter()
        .filter(|n| **n != old.as_str())
        .map(|n| (*n).to_owned())
        .collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    assert_eq!(lab.etcdctl(&[old.as_str()], &["put", "before", "1"]).stdout, "OK\n");

    let reply = lab.ok(&["isolate", "leader:kv", "--name", "cut", "--for", "10m"]);
    assert!(reply.contains(old.as_str()), "the reply says what the target was: {reply}");
    lab.wait("the others elect a new leader", |status| {
        let new = others.iter().find(|n| find(status, n).leader == Some(true))?;
        Some((*new).to_owned())
    });
    let minority = lab.etcdctl(&[old.as_str()], &["put", "lost", "1"]);
    assert_ne!(minority.code, 0, "a write through the isolated member fails");
    assert_eq!(lab.etcdctl(&others, &["put", "during", "2"]).stdout, "OK\n");
    let confirmed = lab.wait("the cut is confirmed", |status| {
        let cut = fault(status, "cut");
        (cut.evidence.verdict == Verdict::Confirmed).then(|| cut.clone())
    });
    assert_eq!(confirmed.evidence.total.leaked_bytes, 0);
    assert_eq!(confirmed.links, 4, "both ways with both others");

    lab.ok(&["heal", "cut", "--require", "confirmed"]);
    lab.wait_ready();
    faultbed_tests::wait::wait_for("all three agree", PATIENCE, || {
        let all: Vec<_> = ["kv-1", "kv-2", "kv-3"]
            .iter()
            .map(|n| lab.etcdctl(&[n], &["get", "--prefix", "", "--consistency=s"]).stdout)
            .collect();
        let same = all.iter().all(|one| *one == "before\n1\nduring\n2\n");
        if same { Ok(()) } else { Err(format!("{all:?}")) }
    });
    let healed = lab.status();
    assert_eq!(fault(&healed, "cut").state, FaultState::Healed);
    assert_eq!(fault(&healed, "cut").evidence.verdict, Verdict::Confirmed, "evidence stays");
}

#[test]
fn a_deadline_ends_a_fault_with_agents_and_coordinator_dead() {
    use faultbed_tests::lab::signal;
    use rustix::process::Signal;
    let lab = Lab::up("deadline", ETCD);
    let endpoint = lab.node("kv-2").endpoints["client"].clone();
    lab.ok(&["partition", "clients", "kv-2", "--across", "--name", "gone", "--for", "8s"]);
    signal(lab.daemon_pid("coordinator/coordinator.pid"), Signal::KILL);
    for host in ["h1", "h2", "h3"] {
        signal(lab.daemon_pid(&format!("hosts/{host}/agent.pid")), Signal::KILL);
    }
    let address: std::net::SocketAddr =
        endpoint.trim_start_matches("http://").parse().expect("an address");
    let dial = || {
        std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300))
            .map_err(|e| e.to_string())
    };
    assert!(dial().is_err(), "clients are cut off");
    let start = Instant::now();
    faultbed_tests::wait::wait_for("the proxy heals alone", PATIENCE, dial);
    assert!(start.elapsed().as_secs() < 30);
    lab.ok(&["up", "-d"]);
    lab.wait("it is shown as expired", |status| {
        (fault(status, "gone").state == FaultState::Expired).then_some(())
    });
}

#[test]
fn latency_shows_in_the_time_of_a_put_and_a_one_way_cut_stops_one_way_only() {
    let lab = Lab::up("latency", ETCD);
    let first = lab.wait_ready();
    let put = |value: &str| {
        let start = Instant::now();
        let ran = lab.etcdctl(&[first.as_str()], &["put", "k", value]);
        assert_eq!(ran.stdout, "OK\n", "{}", ran.stderr);
        start.elapsed()
    };
    let fast = (0..5).map(|n| put(&n.to_string())).min().expect("five puts");
    lab.ok(&[
        "inject",
        "latency",
        "100ms",
        "--from",
        "clients",
        "--to",
        first.as_str(),
        "--name",
        "slow",
    ]);
    let slow = (0..3).map(|n| put(&n.to_string())).min().expect("three puts");
    assert!(slow >= fast.saturating_add(std::time::Duration::from_millis(90)), "{fast:?} {slow:?}");
    lab.ok(&["heal", "slow"]);

    let two: Vec<&str> =
        ["kv-1", "kv-2", "kv-3"].into_iter().filter(|n| *n != first.as_str()).collect();
    lab.ok(&["partition", two[0], two[1], "--one-way", "--name", "oneway"]);
    let status = lab.status();
    assert_eq!(fault(&status, "oneway").links, 1);
    assert!(fault(&status, "oneway").in_force);
    assert!(status.nodes.iter().all(|n| n.observed == NodeState::Ready), "followers only");
}

#[test]
fn a_connection_around_the_proxy_is_found_and_named() {
    let lab = Lab::up("bypass", ETCD);
    let private = lab.node("kv-1").private["client"].clone();
    let address = private.trim_start_matches("http://").to_owned();
    let _held = std::net::TcpStream::connect(&address).expect("reach the private address");
    let bypass = lab.wait("the bypass is listed", |status| status.bypasses.first().cloned());
    assert_eq!(bypass.to.as_str(), "kv-1");
    assert!(bypass.from.contains(&std::process::id().to_string()), "{}", bypass.from);
    assert!(leader(&lab.status()).is_some());
}
