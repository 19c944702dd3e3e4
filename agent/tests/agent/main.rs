//! Runs the real agent with real nodes: what it starts, keeps, adopts, and takes down.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, which end by panics")]

mod etcd;
mod lab;
mod newer;
mod reboot;
mod reload;
mod upgrade;

use faultbed_common::{
    generation::{FaultRevision, Incarnation},
    host_spec::{NodeEffect, NodeFault, StopBy, Wanted},
    logs::{LogRequest, LogWanted},
    probe::{Ask, Probe},
    report::NodeState,
    spec::OnCrash,
};
use lab::{Lab, is_alive};

/// Ends politely, and says that it is up.
const POLITE: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done";

#[test]
fn a_node_is_started_stopped_and_started_again() {
    let mut lab = Lab::new();
    lab.add("kv-1", POLITE);
    lab.order();
    let first = lab.wait_state("kv-1", NodeState::Ready);
    assert!(is_alive(first.pid.unwrap()));
    assert_eq!(lab.hello().unwrap().dir, lab.host_dir());

    lab.edit("kv-1").wanted = Wanted::Stopped;
    lab.order();
    let stopped = lab.wait_state("kv-1", NodeState::Stopped);
    assert!(!is_alive(first.pid.unwrap()));
    let exit = stopped.exit.unwrap();
    assert_eq!((exit.code, exit.asked), (Some(0), true));

    let node = lab.edit("kv-1");
    node.wanted = Wanted::Running;
    node.incarnation = Incarnation(2);
    lab.order();
    let second = lab.wait_state("kv-1", NodeState::Ready);
    assert_eq!(second.incarnation, Incarnation(2));
    assert_ne!(second.pid, first.pid);
}

#[test]
fn a_killed_agent_finds_its_nodes_again_and_starts_no_second_copy() {
    let mut lab = Lab::new();
    lab.add("kv-1", POLITE);
    lab.add("kv-2", POLITE);
    lab.order();
    let pids = ["kv-1", "kv-2"].map(|name| lab.wait_state(name, NodeState::Ready).pid);
    for _ in 0..3 {
        lab.kill_agent();
        lab.start_agent();
        let again = ["kv-1", "kv-2"].map(|name| lab.wait_state(name, NodeState::Ready).pid);
        assert_eq!(again, pids);
    }
}

#[test]
fn a_node_that_served_before_its_agent_died_is_unready_and_not_new() {
    let mut lab = Lab::new();
    let node = lab.add("kv-1", "touch data/ok; exec sleep 1000");
    node.ready = Some(Probe {
        ask: Ask::Command { argv: ["test", "-e", "data/ok"].map(str::to_owned).to_vec() },
        expect: None,
        timeout: "1s".parse().unwrap(),
    });
    lab.order();
    lab.wait_state("kv-1", NodeState::Ready);
    std::fs::remove_file(lab.host_dir().join("nodes/kv-1/data/ok")).unwrap();
    let unready = lab.wait_state("kv-1", NodeState::Unready);
    assert_eq!(unready.why.as_deref(), Some("`test -e data/ok` exited with 1"));
    lab.kill_agent();
    lab.start_agent();
    let again = lab.wait_state("kv-1", NodeState::Unready);
    assert!(again.been_ready);
}

#[test]
fn a_crash_stays_visible_with_its_exit_and_last_lines() {
    let mut lab = Lab::new();
    lab.add("kv-1", "echo one; echo two >&2; exit 3");
    lab.order();
    let crashed = lab.wait_state("kv-1", NodeState::Crashed);
    let exit = crashed.exit.unwrap();
    assert_eq!((exit.code, exit.asked), (Some(3), false));
    assert_eq!(exit.last_lines, ["one", "two"]);
    assert!(crashed.why.unwrap().contains("exited with status 3"));
    lab.kill_agent();
    lab.start_agent();
    let again = lab.wait_state("kv-1", NodeState::Crashed);
    assert_eq!(again.exit.unwrap().last_lines, ["one", "two"]);
    assert_eq!(again.incarnation, Incarnation(1));
}

#[test]
fn a_crash_restart_counts_and_a_kill_stays_down() {
    let mut lab = Lab::new();
    lab.add("kv-1", "test -e data/second && exec sleep 1000; touch data/second; exit 1").on_crash =
        OnCrash::Restart;
    lab.order();
    let up = lab.wait("restarted", |report| {
        report.nodes.values().any(|n| n.observed == NodeState::Ready && n.restarts == 1)
    });
    assert_eq!(up.nodes.values().next().unwrap().incarnation, Incarnation(2));
    let node = lab.edit("kv-1");
    node.wanted = Wanted::Stopped;
    node.stop_by = StopBy::Signal(9);
    lab.order();
    let killed = lab.wait_state("kv-1", NodeState::Killed);
    assert_eq!(killed.exit.unwrap().signal, Some(9));
}

#[test]
fn a_node_that_ignores_its_signal_is_killed_with_its_whole_tree() {
    let mut lab = Lab::new();
    let script = "trap '' TERM; sleep 1000 & echo $! > data/child; while :; do sleep 0.02; done";
    let stop = &mut lab.add("kv-1", script).stop;
    stop.grace = faultbed_common::duration::Span(std::time::Duration::from_millis(100));
    lab.order();
    lab.wait_state("kv-1", NodeState::Ready);
    let child = lab.host_dir().join("nodes/kv-1/data/child");
    let mut pid = String::new();
    while !pid.ends_with('\n') {
        pid = std::fs::read_to_string(&child).unwrap_or_default();
    }
    lab.edit("kv-1").wanted = Wanted::Stopped;
    lab.order();
    lab.wait_state("kv-1", NodeState::Stopped);
    assert!(!is_alive(pid.trim().parse().unwrap()));
}

#[test]
fn a_pause_holds_a_node_until_its_end() {
    let mut lab = Lab::new();
    lab.add("kv-1", POLITE);
    lab.order();
    let pid = lab.wait_state("kv-1", NodeState::Ready).pid;
    let fault = NodeFault {
        revision: FaultRevision(1),
        lasts: Some("300ms".parse().unwrap()),
        effect: NodeEffect::Pause,
    };
    lab.edit("kv-1").faults.insert("pause-1".parse().unwrap(), fault);
    lab.order();
    lab.wait_state("kv-1", NodeState::Paused);
    let report = lab.wait("in force", |report| report.faults.values().any(|fault| fault.active));
    assert!(report.faults.values().all(|fault| fault.remaining_ms.unwrap() <= 300));
    let again = lab.wait_state("kv-1", NodeState::Ready);
    assert_eq!(again.pid, pid);
    lab.wait("expired", |report| report.faults.values().any(|fault| fault.expired));
}

#[test]
fn a_fault_keeps_a_node_down_and_gives_it_back() {
    let mut lab = Lab::new();
    lab.add("kv-1", POLITE);
    lab.order();
    lab.wait_state("kv-1", NodeState::Ready);
    let effect = NodeEffect::Down(StopBy::Signal(9));
    let lasts = Some("200ms".parse().unwrap());
    let fault = NodeFault { revision: FaultRevision(1), lasts, effect };
    lab.edit("kv-1").faults.insert("kill-1".parse().unwrap(), fault);
    lab.order();
    let killed = lab.wait_state("kv-1", NodeState::Killed);
    assert_eq!(killed.why.as_deref(), Some("kill-1 keeps it down"));
    let again = lab.wait_state("kv-1", NodeState::Ready);
    assert_eq!(again.incarnation, Incarnation(2));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let mut lab = Lab::new();
    lab.add("kv-1", POLITE).launch.program = "no-such-database".to_owned();
    lab.order();
    let report = lab.wait("stuck", |report| !report.stuck.is_empty());
    assert!(
        report.stuck[0].contains("kv-1: start: refused: find `no-such-database`"),
        "{report:#?}"
    );
    lab.edit("kv-1").launch.program = "sh".to_owned();
    lab.order();
    lab.wait_state("kv-1", NodeState::Ready);
}

#[test]
fn init_runs_once_and_again_after_a_wipe() {
    let mut lab = Lab::new();
    let node = lab.add("kv-1", "cat data/init; exec sleep 1000");
    node.launch.init = vec![["sh", "-c", "echo x >> data/init"].map(str::to_owned).to_vec()];
    lab.order();
    lab.wait_state("kv-1", NodeState::Ready);
    lab.edit("kv-1").incarnation = Incarnation(2);
    lab.order();
    lab.wait("restart", |report| {
        report.nodes.values().any(|n| n.observed == NodeState::Ready && n.incarnation.0 == 2)
    });
    let init = lab.host_dir().join("nodes/kv-1/data/init");
    assert_eq!(std::fs::read_to_string(&init).unwrap(), "x\n");
    std::fs::write(lab.host_dir().join("nodes/kv-1/data/old"), "").unwrap();
    let node = lab.edit("kv-1");
    (node.wipes, node.incarnation) = (1, Incarnation(3));
    lab.order();
    let wiped = lab.wait("wiped", |report| {
        report.nodes.values().any(|n| n.observed == NodeState::Ready && n.wipes == 1)
    });
    assert_eq!(wiped.nodes.values().next().unwrap().incarnation, Incarnation(3));
    assert_eq!(std::fs::read_to_string(&init).unwrap(), "x\n");
    assert!(!lab.host_dir().join("nodes/kv-1/data/old").exists());
}

#[test]
fn a_removed_node_leaves_and_is_gone_with_its_data_kept() {
    let mut lab = Lab::new();
    let node = lab.add("kv-1", POLITE);
    node.launch.leave = Some(["sh", "-c", "echo left > ../../left"].map(str::to_owned).to_vec());
    lab.order();
    let pid = lab.wait_state("kv-1", NodeState::Ready).pid.unwrap();
    lab.spec.nodes.clear();
    // The cluster stays, on other hosts: only then is there something to leave.
    std::sync::Arc::make_mut(&mut lab.spec.clusters).insert("kv".parse().unwrap());
    lab.order();
    let generation = lab.spec.generation;
    lab.wait("gone", |report| report.nodes.is_empty() && report.generation == generation);
    assert!(!is_alive(pid));
    assert!(lab.host_dir().join("left").exists(), "{}", lab.log());
    assert!(lab.host_dir().join("nodes/kv-1/data").exists());
    // A node of the same name is a new one: its incarnations begin anew.
    lab.add("kv-1", POLITE);
    lab.order();
    assert_eq!(lab.wait_state("kv-1", NodeState::Ready).incarnation, Incarnation(1));
}

#[test]
fn lines_are_sent_to_whoever_asks_until_the_request_ends() {
    let mut lab = Lab::new();
    lab.add("kv-1", "echo one; echo two; while :; do sleep 0.02; test -e data/go && echo go; done");
    lab.order();
    lab.wait_state("kv-1", NodeState::Ready);
    let wanted = LogWanted {
        nodes: vec!["kv-1".parse().unwrap()],
        follow: true,
        tail: Some(1),
        incarnation: None,
    };
    lab.ask_logs(&LogRequest { id: 4, wanted: Some(wanted) });
    lab.wait_lines(4, |lines| lines == ["two"]);
    std::fs::write(lab.host_dir().join("nodes/kv-1/data/go"), "").unwrap();
    lab.wait_lines(4, |lines| lines.iter().any(|line| line == "go"));
    lab.ask_logs(&LogRequest { id: 4, wanted: None });
    let wanted = LogWanted {
        nodes: vec!["kv-1".parse().unwrap()],
        follow: false,
        tail: Some(3),
        incarnation: Some(Incarnation(1)),
    };
    lab.ask_logs(&LogRequest { id: 5, wanted: Some(wanted) });
    lab.wait_lines(5, |lines| lines.len() == 3);
}

#[test]
fn without_a_coordinator_nodes_stay_and_a_late_one_is_told_everything() {
    let mut lab = Lab::new();
    lab.add("kv-1", POLITE);
    lab.order();
    let pid = lab.wait_state("kv-1", NodeState::Ready).pid;
    lab.stop_coordinator();
    lab.kill_agent();
    lab.start_agent();
    assert!(is_alive(pid.unwrap()));
    lab.start_coordinator();
    assert_eq!(lab.wait_state("kv-1", NodeState::Ready).pid, pid);
}

#[test]
fn older_orders_are_refused_with_the_reason() {
    let mut lab = Lab::new();
    lab.add("kv-1", POLITE);
    lab.order();
    lab.order();
    lab.wait_state("kv-1", NodeState::Ready);
    lab.wait("second", |report| report.generation.0 == 2);
    let mut old = lab.spec.clone();
    old.generation.0 = 1;
    old.nodes.clear();
    lab.send(faultbed_common::session::Orders {
        spec: old,
        keeps_around: false,
        fault_ages_ms: Default::default(),
        lease_ages: Default::default(),
    });
    let report = lab.wait("refused", |report| !report.stuck.is_empty());
    assert!(report.stuck[0].contains("generation 2 was accepted before"), "{report:#?}");
    assert_eq!(lab.node("kv-1").unwrap().observed, NodeState::Ready);
}

#[test]
fn a_second_agent_for_the_same_directory_is_refused_with_the_first_ones_pid() {
    let mut lab = Lab::new();
    lab.add("kv-1", POLITE);
    lab.order();
    lab.wait_state("kv-1", NodeState::Ready);
    let output = lab.agent_command().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let pid = lab.agent.as_ref().unwrap().id();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("pid {pid}")), "{said}");
}

#[test]
fn down_takes_everything_down_and_says_so() {
    let mut lab = Lab::new();
    lab.add("kv-1", POLITE);
    lab.add("kv-2", "exec sleep 1000");
    lab.order();
    let pids = ["kv-1", "kv-2"].map(|name| lab.wait_state(name, NodeState::Ready).pid.unwrap());
    let (code, outcome) = lab.down(&[]);
    assert_eq!(code, 0, "{outcome}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    let gone = outcome["gone"]["processes"].to_string();
    for (name, pid) in ["kv-1", "kv-2"].iter().zip(pids) {
        assert!(gone.contains(&format!("{name} pid {pid}")), "{gone}");
    }
    assert!(outcome["kept"].to_string().contains("nodes"));
    assert!(lab.agent.take().unwrap().wait().unwrap().success());
    // What was wanted is still known: the next agent brings it back.
    lab.start_agent();
    lab.wait("back", |report| {
        report.nodes.values().filter(|n| n.observed == NodeState::Ready).count() == 2
    });
    let (code, outcome) = lab.down(&["--wipe"]);
    assert_eq!(code, 0, "{outcome}");
    assert!(!lab.host_dir().exists());
}
