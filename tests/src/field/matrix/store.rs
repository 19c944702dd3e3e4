//! Rows in which nobody of a host dies: coordinators and members of their store do.

use std::time::{Duration, Instant};

use faultbed_common::status::{HostState, Status};

use super::{
    Row,
    row::{
        ALL, Notes, all_well, client_is_served, cut_clients, dials, ended_in_time, ends_in_time,
        in_force, no_faults, nobody_noticed, outage, pids, recovered,
    },
};
use crate::{
    field::{Field, PATIENCE},
    wait::wait_for,
};

/// A cut that is not over before its row is.
const LONG: Duration = Duration::from_secs(600);

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row { name: "coordinator SIGKILL", run: coordinator_dies },
        Row { name: "all coordinators stopped", run: coordinators_die },
        Row { name: "etcd member SIGKILL", run: member_dies },
        Row { name: "etcd without quorum", run: quorum_dies },
    ]
}

/// One of two coordinators dies: the other one says what it said, takes over its agents, and is obeyed.
fn coordinator_dies(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    let deadline = cut_clients(field, "m-3", "due", outage());
    let dials = dials(field, "m-3");
    client.forget();
    same_from_both(field);
    for (dies, stays) in [(0, 1), (1, 0)] {
        field.coordinators[dies].kill();
        let died = Instant::now();
        // Whoever asks now sees hosts that are up and fresh, or down; never old rows as if new.
        field.wait_at(stays, PATIENCE, "the agents are with the other one", |status| {
            let lies = status.hosts.iter().any(|host| {
                let old = host.seen_age_ms.is_none_or(|ms| ms > 12_000);
                host.state == HostState::Up && old
            });
            assert!(!lies, "{status:?}");
            all_well(status).then_some(())
        });
        let took = died.elapsed();
        let began = Instant::now();
        let ran = field.run(
            stays,
            &["inject", "latency", "1ms", "--from", "leader:m", "--to", "m-2", "--name", "slow"],
        );
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        notes.say(format!(
            "coordinator {} dead: the other had all hosts {:.1} s after, and a fault in force in {:.0} ms",
            dies + 1,
            took.as_secs_f64(),
            began.elapsed().as_secs_f64() * 1e3
        ));
        assert!(took < Duration::from_secs(15), "{took:?}");
        for args in [["heal", "slow"].as_slice(), &["delete", "fault", "slow"]] {
            let ran = field.run(stays, args);
            assert_eq!(ran.code, 0, "{}", ran.stderr);
        }
        field.coordinators[dies].start();
        recovered(field, Instant::now(), notes);
        same_from_both(field);
    }
    ended_in_time(dials, "m-3", deadline, notes);
    assert_eq!(pids(field), before);
    client_is_served(&client, &ALL);
    nobody_noticed(&client, &["m-1", "m-2"], notes);
    no_faults(field);
}

/// Both coordinators show the same lab, and mean the same node by `leader:`.
fn same_from_both(field: &Field) {
    // Where nodes have just begun, each may lead alone for a moment, which is refused.
    let plan = |at: usize| {
        let ran = field.run(at, &["isolate", "leader:m", "--plan", "-o", "json"]);
        if ran.stderr.contains("lead in the same term") {
            return Err(ran.stderr);
        }
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let reply: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
        Ok(reply["resolved"].clone())
    };
    let shown = |at: usize| {
        let status = field.try_status(at).expect("a status");
        let nodes: Vec<_> = status
            .nodes
            .iter()
            .map(|node| {
                (node.name.clone(), node.observed, node.pid, node.leader, node.faults.clone())
            })
            .collect();
        let hosts: Vec<_> =
            status.hosts.iter().map(|host| (host.name.clone(), host.state)).collect();
        (status.generation, status.converged, nodes, hosts, in_force(&status))
    };
    wait_for("both coordinators say the same", PATIENCE, || {
        let (one, other) = (shown(0), shown(1));
        if one != other {
            return Err(format!("{one:?} and {other:?}"));
        }
        let (one, other) = (plan(0)?, plan(1)?);
        (one == other).then_some(()).ok_or_else(|| format!("{one} and {other}"))
    });
}

/// Nobody is left to ask: a fault that is due ends, another one stays, nodes and streams go on.
fn coordinators_die(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    let deadline = cut_clients(field, "m-3", "due", outage() * 2 / 3);
    cut_clients(field, "m-2", "stays", LONG);
    client.forget();
    let began = Instant::now();
    field.coordinators.iter_mut().for_each(crate::field::daemons::Daemon::kill);
    ends_in_time(field, "m-3", deadline, notes);
    while began.elapsed() < outage() {
        assert_eq!(pids(field), before);
        std::thread::sleep(Duration::from_millis(100));
    }
    let ran = field.run(0, &["status"]);
    assert_eq!(ran.code, 4, "the lab cannot be reached: {}", ran.stderr);
    let since = Instant::now();
    field.coordinators.iter_mut().for_each(crate::field::daemons::Daemon::start);
    for at in 0..field.coordinators.len() {
        field.wait_at(at, PATIENCE, "only the other cut is in force", |status| {
            (in_force(status) == ["stays"] && all_well(status)).then_some(())
        });
    }
    recovered(field, since, notes);
    notes.say(format!("without coordinators for {:.0} s", began.elapsed().as_secs_f64()));
    assert_eq!(pids(field), before);
    client_is_served(&client, &["m-1", "m-3"]);
    nobody_noticed(&client, &["m-1"], notes);
    no_faults(field);
    client_is_served(&client, &ALL);
    for node in ["m-2", "m-3"] {
        assert_eq!(client.seen()[node].resets, [], "the open connection of {node} only waited");
    }
}

/// One member of three is no loss: changes are accepted and acted on meanwhile.
fn member_dies(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    client.forget();
    for member in 0..3 {
        field.etcd.kill_member(member);
        let began = Instant::now();
        // Refused or late is allowed while members elect; lost or doubled is not.
        wait_for("a change is accepted", PATIENCE, || {
            let ran = field
                .run(0, &["inject", "latency", "1ms", "--between", "m-1", "m-2", "--name", "slow"]);
            (ran.code == 0).then_some(()).ok_or(ran.stderr)
        });
        notes.say(format!(
            "member {} dead: a fault was in force {:.1} s after",
            member + 1,
            began.elapsed().as_secs_f64()
        ));
        field.wait("it is there once", |status| (in_force(status) == ["slow"]).then_some(()));
        field.etcd.start_member(member);
        field.etcd.wait_ready();
        no_faults(field);
    }
    recovered(field, Instant::now(), notes);
    assert_eq!(pids(field), before);
    nobody_noticed(&client, &ALL, notes);
}

/// Without a majority nothing is accepted, and it is said; what was accepted goes on and ends in time.
fn quorum_dies(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    let deadline = cut_clients(field, "m-3", "due", outage() * 2 / 3);
    let dials = dials(field, "m-3");
    client.forget();
    let began = Instant::now();
    field.etcd.kill_member(0);
    field.etcd.kill_member(1);
    let trouble = |status: &Status| {
        let said = status.pending.iter().chain(&status.stuck).find(|line| line.contains("store"));
        said.filter(|_| !status.converged).cloned()
    };
    for at in 0..field.coordinators.len() {
        let said = field.wait_at(at, PATIENCE, "it says that the store is away", trouble);
        if at == 0 {
            notes.say(format!("said {:.1} s after: {said}", began.elapsed().as_secs_f64()));
        }
    }
    ended_in_time(dials, "m-3", deadline, notes);
    let began_change = Instant::now();
    let ran = field.run(0, &["partition", "m-1", "m-2", "--name", "never", "--no-wait"]);
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    notes.say(format!(
        "a change was refused after {:.1} s (exit {}): {}",
        began_change.elapsed().as_secs_f64(),
        ran.code,
        ran.stderr.lines().next().unwrap_or_default()
    ));
    while began.elapsed() < outage() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = field.status();
    assert!(trouble(&status).is_some(), "{status:?}");
    let age = status.hosts.iter().filter_map(|host| host.seen_age_ms).min().unwrap_or_default();
    notes.say(format!(
        "without quorum for {:.0} s, rows of status {age} ms old",
        began.elapsed().as_secs_f64()
    ));
    assert!(u128::from(age) + 4_000 > began.elapsed().as_millis().min(4_000), "{status:?}");
    assert_eq!(pids(field), before);
    field.etcd.start_member(0);
    field.etcd.start_member(1);
    field.etcd.wait_ready();
    recovered(field, Instant::now(), notes);
    for at in 0..field.coordinators.len() {
        let status = field.try_status(at).expect("a status");
        assert_eq!(in_force(&status), Vec::<String>::new(), "{status:?}");
    }
    assert_eq!(pids(field), before);
    client_is_served(&client, &ALL);
    nobody_noticed(&client, &["m-1", "m-2"], notes);
    no_faults(field);
}
