//! Golden tables from fixed documents.

use expect_test::{Expect, expect};
use faultbed_common::{
    host_spec::Wanted,
    report::{ExitReport, Identity},
    status::{BypassStatus, HostState},
};

use super::*;
use crate::cli::testing;

fn check(status: &Status, expected: Expect) {
    expected.assert_eq(&anstream::adapter::strip_str(&overview(status)).to_string());
}

#[test]
fn a_healthy_lab_is_one_table_with_its_leader_marked() {
    check(
        &testing::three_nodes(),
        expect![[r#"
        lab lab · generation 4 · 3/3 hosts up · converged · kv ready

        NODE  ROLE  HOST  STATE  LEADER  ADDRESS                 RUN  PID   BINARY           AGE
        kv-1  etcd  h1    ready  *       http://127.77.1.1:2379  1    4001  9f86d081 3.4.23  12s
        kv-2  etcd  h2    ready          http://127.77.1.2:2379  1    4002  9f86d081 3.4.23  12s
        kv-3  etcd  h3    ready          http://127.77.1.3:2379  1    4003  9f86d081 3.4.23  12s"#]],
    );
}

#[test]
fn an_empty_lab_says_what_to_do() {
    let mut status = testing::three_nodes();
    status.nodes.clear();
    status.clusters.clear();
    check(
        &status,
        expect![[r#"
        lab lab · generation 4 · 3/3 hosts up · converged

        no clusters yet; try: faultbed start cluster --etcd.count 3"#]],
    );
}

#[test]
fn stopped_killed_and_crashed_are_three_things_on_the_screen() {
    let mut status = testing::three_nodes();
    testing::crash_second(&mut status);
    status.nodes[0].observed = NodeState::Stopped;
    status.nodes[0].wanted = Wanted::Stopped;
    status.nodes[2].observed = NodeState::Killed;
    status.nodes[2].wanted = Wanted::Stopped;
    status.nodes[2].exit = Some(ExitReport { signal: Some(9), ..ExitReport::default() });
    for node in [0, 2] {
        status.nodes[node].leader = None;
        status.nodes[node].pid = None;
    }
    check(
        &status,
        expect![[r#"
            lab lab · generation 4 · 3/3 hosts up · converged · kv degraded (kv-2 crashed: exit 2)

            NODE  ROLE  HOST  STATE             LEADER  ADDRESS                 RUN  PID  BINARY           AGE
            kv-1  etcd  h1    stopped                   http://127.77.1.1:2379  1    -    9f86d081 3.4.23  12s
            kv-2  etcd  h2    crashed (exit 2)          http://127.77.1.2:2379  1    -    9f86d081 3.4.23  12s
            kv-3  etcd  h3    killed (SIGKILL)          http://127.77.1.3:2379  1    -    9f86d081 3.4.23  12s

            kv-2 crashed in run 1: exit 2
              faults in force then: split
              last failed probe: http 127.128.128.2:2379/health: connection refused
              | panic: index out of range
              | goroutine 1 [running]:"#]],
    );
}

#[test]
fn faults_show_what_they_did_and_problems_stand_below() {
    let mut status = testing::three_nodes();
    status.faults.push(testing::split());
    for node in &mut status.nodes {
        node.faults.push("split".parse().unwrap());
    }
    status.converged = false;
    status.hosts[2].state = HostState::Down;
    status.hosts[2].seen_age_ms = Some(42_000);
    status.pending.push("h3 has not applied generation 4".into());
    status.stuck.push("port 2379 of kv-2 is held by pid 12 (etcd); move it with: …".into());
    status.bypasses.push(BypassStatus {
        from: "pid 99 (curl)".into(),
        to: "kv-1".parse().unwrap(),
        address: "127.128.128.1:2379".into(),
    });
    status.hosts[0].warnings.push("its proxy refused 7 connections".into());
    status.nodes[1].identity = Identity::Lookup("seccomp is not available".into());
    check(
        &status,
        expect![[r#"
            lab lab · generation 4 · 2/3 hosts up · stuck · kv ready

            NODE  ROLE  HOST  STATE  LEADER  ADDRESS                 RUN  PID   BINARY           AGE  FAULTS
            kv-1  etcd  h1    ready  *       http://127.77.1.1:2379  1    4001  9f86d081 3.4.23  12s  split
            kv-2  etcd  h2    ready          http://127.77.1.2:2379  1    4002  9f86d081 3.4.23  12s  split
            kv-3  etcd  h3    ready          http://127.77.1.3:2379  1    4003  9f86d081 3.4.23  12s  split

            FAULT  STATE   EFFECT  ON                GRADE   LEFT   EVIDENCE
            split  active  cut     kv-1 | kv-2,kv-3  packet  9m58s  confirmed: 12 dropped, 3 dials stopped

            pending  h3 has not applied generation 4
            stuck  port 2379 of kv-2 is held by pid 12 (etcd); move it with: …
            down  host h3 is down, last seen 42s ago
            bypass  pid 99 (curl) reaches kv-1 at 127.128.128.1:2379 around its proxy
            warning  host h1: its proxy refused 7 connections
            lookup  kv-2's connections are named by asking the kernel: seccomp is not available"#]],
    );
}

#[test]
fn unknown_names_bring_the_nearest() {
    let status = testing::three_nodes();
    let failure = known_node("kv-11", &status).unwrap_err();
    expect![[r#"
        error: there is no node "kv-11"; there are: kv-1, kv-2, kv-3
          next: faultbed status"#]]
    .assert_eq(&failure.to_string());
    let failure = known_node("zzz", &status).unwrap_err();
    expect![[r#"
        error: there is no node "zzz"; there are: kv-1, kv-2, kv-3
          next: faultbed status"#]]
    .assert_eq(&failure.to_string());
    let many: Vec<String> = (1..=15).map(|number| format!("kv-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let said = unknown("node", "zzz", &many).to_string();
    assert!(said.contains("kv-11, kv-12 and 3 more\n"), "{said}");
}

#[test]
fn a_node_with_many_faults_keeps_its_row_short() {
    let mut status = testing::three_nodes();
    for name in ["split", "wan", "ocean", "rude", "bridge"] {
        status.nodes[0].faults.push(name.parse().unwrap());
    }
    let text = anstream::adapter::strip_str(&overview(&status)).to_string();
    let row = text.lines().find(|line| line.starts_with("kv-1")).unwrap();
    assert!(row.ends_with("  split wan ocean +2"), "{row}");
}

#[test]
fn of_what_programs_say_about_themselves_only_the_number_is_shown() {
    for (says, shown) in [
        ("etcd Version: 3.4.23", "9f86d081 3.4.23  "),
        ("nats-server: v2.9.10", "9f86d081 v2.9.10  "),
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", "9f86d081 7.0.15  "),
        ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", "9f86d081 15.14  "),
        ("Gitaly, version 18.9.0-rc4", "9f86d081 18.9.0-rc4  "),
    ] {
        let mut status = testing::three_nodes();
        for node in &mut status.nodes {
            node.binary.as_mut().expect("a binary").version = Some(says.into());
        }
        let table = anstream::adapter::strip_str(&overview(&status)).to_string();
        assert!(table.contains(shown), "{table}");
    }
}

#[test]
fn a_large_lab_is_told_in_numbers_and_by_what_is_not_well() {
    let mut status = testing::three_nodes();
    let node = status.nodes[0].clone();
    let name = |n: usize| format!("c{}-{n}", n % 20).parse().unwrap();
    status.nodes = (1..=300).map(|n| NodeStatus { name: name(n), ..node.clone() }).collect();
    status.nodes[6].observed = NodeState::Unready;
    let cluster = status.clusters[0].clone();
    let named = |n: usize| faultbed_common::status::ClusterStatus {
        name: format!("c{n}").parse().unwrap(),
        ..cluster.clone()
    };
    status.clusters = (0..20).map(named).collect();
    status.converged = false;
    status.pending = (1..=200).map(|n| format!("h{n} has not applied generation 4")).collect();
    let text = overview(&status);
    let text = anstream::adapter::strip_str(&text).to_string();
    assert!(text.contains("· 20 clusters, 20 ready\n"), "{text}");
    assert!(text.contains("\nc7-7 ") && !text.contains("\nc8-8 "), "{text}");
    assert!(text.contains("299 of 300 nodes are ready; all: faultbed status -o json"), "{text}");
    assert!(text.contains("pending  and 180 more: faultbed status -o json"), "{text}");
    assert!(text.lines().count() < 40, "{text}");
}

#[test]
fn rows_are_cut_to_the_terminal_and_sentences_are_not() {
    let mut status = testing::three_nodes();
    let why = "GET /health answered 503: {\"health\":\"false\"}; it was ready for an hour, and then the others went";
    status.nodes[0].why = Some(why.to_owned());
    status.pending.push(format!("kv-1 is not ready: {why}"));
    let text = anstream::adapter::strip_str(&overview_in(&status, Some(100))).to_string();
    let row = text.lines().find(|line| line.starts_with("kv-1")).unwrap();
    assert!(row.chars().count() <= 100 && row.ends_with('…'), "{text}");
    assert!(text.ends_with(why), "{text}");
}

#[test]
fn a_node_that_is_taken_out_keeps_its_row_until_it_is_gone() {
    let mut status = testing::three_nodes();
    let mut going = status.nodes.remove(1);
    going.why = Some("leave the cluster: unhealthy cluster".into());
    going.endpoints.clear();
    status.leaving.push(going);
    check(
        &status,
        expect![[r#"
            lab lab · generation 4 · 3/3 hosts up · converged · kv ready

            NODE  ROLE  HOST  STATE    LEADER  ADDRESS                 RUN  PID   BINARY           AGE  WHY
            kv-1  etcd  h1    ready    *       http://127.77.1.1:2379  1    4001  9f86d081 3.4.23  12s
            kv-2  etcd  h2    leaving          -                       1    4002  9f86d081 3.4.23  12s  leave the cluster: unhealthy cluster
            kv-3  etcd  h3    ready            http://127.77.1.3:2379  1    4003  9f86d081 3.4.23  12s

            leaving  kv-2 has not left yet; `faultbed remove kv-2 --force` takes it away without its leave, `faultbed start kv-2` calls it back"#]],
    );
}

#[test]
fn the_headline_tells_of_a_node_that_crashes_and_starts_again() {
    let mut status = testing::three_nodes();
    status.clusters[0].state = faultbed_common::status::ClusterState::Starting;
    let node = &mut status.nodes[1];
    (node.observed, node.restarts) = (NodeState::Starting, 3);
    node.exit = Some(ExitReport { code: Some(2), ..ExitReport::default() });
    let head = anstream::adapter::strip_str(&headline(&status)).to_string();
    assert!(head.ends_with("kv starting (kv-2 crashed 3 times, last: exit 2)"), "{head}");
}

#[test]
fn a_narrow_terminal_has_room_for_reasons() {
    let mut status = testing::three_nodes();
    let wide = |status: &Status, width| {
        anstream::adapter::strip_str(&overview_in(status, Some(width))).to_string()
    };
    assert!(wide(&status, 80).contains("PID"), "nothing is left out where nothing is to be said");
    status.nodes[1].why = Some("GET /health answered 503".to_owned());
    for (width, shown, left_out) in
        [(140, "PID", "-"), (110, "ADDRESS", "PID"), (80, "AGE", "ADDRESS")]
    {
        let text = wide(&status, width);
        assert!(text.contains("GET /health answered 503"), "{width}: {text}");
        let head = text.lines().find(|line| line.starts_with("NODE")).unwrap();
        assert!(head.contains(shown) && !head.contains(left_out), "{width}: {head}");
    }
}
