//! What verbs do to nodes, and that down on purpose, killed and crashed are three different things.

use faultbed_common::{host_spec::Wanted, report::NodeState};
use faultbed_tests::lab::{ETCD, Lab, find, is_alive, signal};
use rustix::process::Signal;

#[test]
fn stop_start_restart_kill_and_pause_each_say_and_do_what_they_mean() {
    let lab = Lab::up("verbs", ETCD);
    let before = lab.node("kv-2");

    lab.ok(&["stop", "kv-2"]);
    let stopped = lab.node("kv-2");
    assert_eq!((stopped.observed, stopped.wanted), (NodeState::Stopped, Wanted::Stopped));
    assert!(!is_alive(before.pid.expect("it ran")));

    lab.ok(&["start", "kv-2"]);
    let started = lab.node("kv-2");
    assert_eq!(started.observed, NodeState::Ready);
    assert!(started.incarnation > before.incarnation);
    assert_eq!(started.endpoints, before.endpoints);

    let reply = lab.ok(&["restart", "kv-2"]);
    assert!(reply.contains("sha256") || reply.contains("binary"), "{reply}");
    let restarted = lab.node("kv-2");
    assert!(restarted.incarnation > started.incarnation && restarted.pid != started.pid);

    lab.ok(&["kill", "kv-2"]);
    let killed = lab.node("kv-2");
    assert_eq!((killed.observed, killed.wanted), (NodeState::Killed, Wanted::Stopped));
    assert_eq!(killed.exit.and_then(|exit| exit.signal), Some(9));

    lab.ok(&["kill", "kv-3", "--respawn"]);
    lab.wait("kv-3 is back", |s| (find(s, "kv-3").observed == NodeState::Ready).then_some(()));

    lab.ok(&["start", "kv-2"]);
    lab.ok(&["pause", "kv-2", "--for", "1h"]);
    assert_eq!(lab.node("kv-2").observed, NodeState::Paused);
    lab.ok(&["resume", "kv-2"]);
    lab.wait_ready();
}

#[test]
fn a_crash_stays_visible_with_its_exit_its_last_lines_and_the_faults_of_the_moment() {
    let lab = Lab::up("crash", ETCD);
    lab.ok(&["inject", "latency", "1ms", "--from", "kv-1", "--to", "kv-3", "--name", "slow"]);
    let pid = lab.node("kv-3").pid.expect("it runs");
    signal(i32::try_from(pid).expect("pid"), Signal::KILL);
    let crashed = lab.wait("kv-3 crashed", |status| {
        let node = find(status, "kv-3");
        (node.observed == NodeState::Crashed).then(|| node.clone())
    });
    assert_eq!(crashed.wanted, Wanted::Running, "a crash is a finding, not a wish");
    let exit = crashed.exit.expect("its exit");
    assert_eq!((exit.signal, exit.asked), (Some(9), false));
    assert!(!exit.last_lines.is_empty());
    assert_eq!(exit.faults.iter().map(ToString::to_string).collect::<Vec<_>>(), ["slow"]);
    let shown = lab.ok(&["show", "kv-3"]);
    assert!(shown.contains("crashed") && shown.contains("slow"), "{shown}");
    lab.ok(&["start", "kv-3"]);
    assert_eq!(lab.node("kv-3").observed, NodeState::Ready);
}

#[test]
fn on_crash_restart_brings_a_node_back() {
    let lab = Lab::up("respawn", &format!("{ETCD}on_crash = \"restart\"\n"));
    let before = lab.node("kv-1");
    signal(i32::try_from(before.pid.expect("it runs")).expect("pid"), Signal::KILL);
    lab.wait("kv-1 is back by itself", |status| {
        let node = find(status, "kv-1");
        (node.observed == NodeState::Ready && node.incarnation > before.incarnation).then_some(())
    });
    assert!(lab.node("kv-1").restarts >= 1);
}

#[test]
fn wipe_gives_a_node_empty_data_and_logs_show_every_node() {
    let lab = Lab::up("wipelogs", ETCD);
    let logs = lab.ok(&["logs", "kv", "--tail", "5"]);
    for node in ["kv-1", "kv-2", "kv-3"] {
        assert!(logs.contains(node), "{logs}");
    }
    lab.ok(&["stop", "kv-3"]);
    let data = lab.dir().join("hosts");
    let dirs: Vec<_> = std::fs::read_dir(data)
        .expect("hosts")
        .flatten()
        .map(|host| host.path().join("nodes/kv-3/data"))
        .filter(|dir| dir.exists())
        .collect();
    assert_eq!(dirs.len(), 1);
    assert!(dirs[0].read_dir().expect("data").next().is_some(), "a stop keeps data");
    lab.ok(&["wipe", "kv-3"]);
    lab.wait("data is gone", |_| {
        dirs[0].read_dir().map_or(true, |mut d| d.next().is_none()).then_some(())
    });
}

#[test]
fn new_and_wiped_nodes_join_their_cluster() {
    let lab = Lab::up("rejoin", ETCD);
    lab.ok(&["set", "kv", "count=4"]);
    for node in ["kv-2", "kv-4", "kv-1"] {
        let before = lab.node(node);
        lab.ok(&["wipe", node]);
        let after = lab.node(node);
        assert_eq!(after.observed, NodeState::Ready, "{node}");
        assert!(after.incarnation > before.incarnation, "{node}");
    }
}

#[test]
fn killing_the_agent_changes_nothing_and_the_next_one_adopts_what_runs() {
    let lab = Lab::up("adopt", ETCD);
    let before: Vec<_> = lab.status().nodes.iter().map(|n| (n.pid, n.incarnation)).collect();
    for host in ["h1", "h2", "h3"] {
        signal(lab.daemon_pid(&format!("hosts/{host}/agent.pid")), Signal::KILL);
    }
    lab.wait("hosts are down and nodes unknown", |status| {
        status.nodes.iter().all(|n| n.observed == NodeState::Unknown).then_some(())
    });
    assert!(before.iter().all(|(pid, _)| is_alive(pid.expect("it ran"))));
    lab.ok(&["up", "-d"]);
    lab.wait_ready();
    let after: Vec<_> = lab.status().nodes.iter().map(|n| (n.pid, n.incarnation)).collect();
    assert_eq!(before, after, "the same processes, no second copy");
}
