//! A lab comes up with one command, does what it says, and leaves nothing behind.

use std::process::Command;

use faultbed_common::{report::NodeState, status::ClusterState};
use faultbed_tests::{
    lab::{ETCD, Lab, PATIENCE, is_alive, leader},
    wait::wait_for,
};

#[test]
fn three_real_etcd_nodes_run_behind_proxies() {
    let lab = Lab::up("threenodes", ETCD);
    let status = lab.status();
    assert_eq!(status.nodes.len(), 3);
    assert!(status.nodes.iter().all(|n| n.observed == NodeState::Ready && n.pid.is_some()));
    assert!(leader(&status).is_some());
    assert_eq!(status.clusters[0].state, ClusterState::Ready);
    // Each node binds a private address and is reached at its host's, at the same port.
    for node in &status.nodes {
        let private = node.private["client"].trim_start_matches("http://127.");
        let second: u8 = private.split('.').next().and_then(|n| n.parse().ok()).expect("address");
        assert!(second >= 128, "{:?}", node.private);
        assert!(node.endpoints["client"].contains("127.77."), "{:?}", node.endpoints);
    }
    let put = lab.etcdctl(&["kv-1", "kv-2", "kv-3"], &["put", "greeting", "hello"]);
    assert_eq!(put.stdout, "OK\n", "{}", put.stderr);
    for node in ["kv-1", "kv-2", "kv-3"] {
        assert_eq!(lab.etcdctl(&[node], &["get", "greeting"]).stdout, "greeting\nhello\n");
    }
    assert!(status.bypasses.is_empty(), "{:?}", status.bypasses);
}

#[test]
fn down_leaves_no_process_and_keeps_the_data_for_the_next_up() {
    let lab = Lab::up("keepdata", ETCD);
    let pids: Vec<u32> = lab.status().nodes.iter().filter_map(|n| n.pid).collect();
    assert_eq!(lab.etcdctl(&["kv-1"], &["put", "kept", "yes"]).stdout, "OK\n");
    let ports = lab.ok(&["endpoints", "kv"]);
    let down = lab.ok(&["down"]);
    assert!(down.contains("kept"), "{down}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert!(!lab.runtime().join("api.sock").exists());

    lab.ok(&["up", "-d"]);
    lab.wait_ready();
    assert_eq!(lab.ok(&["endpoints", "kv"]), ports, "addresses are chosen once");
    assert_eq!(lab.etcdctl(&["kv-1"], &["get", "kept"]).stdout, "kept\nyes\n");
}

#[test]
fn a_command_gets_its_environment_and_its_exit_code_passes_through() {
    let lab = Lab::new("withcmd");
    let file = lab.write("lab.toml", ETCD).display().to_string();
    let script = "echo \"$FAULTBED_LAB $FAULTBED_ENDPOINTS_KV\"; exit 7";
    let ran = lab.run(&["up", &file, "--ephemeral", "--", "sh", "-c", script]);
    assert_eq!(ran.code, 7, "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("withcmd http://127.77."), "{}", ran.stdout);
    assert!(ran.stderr.contains("bundle"), "a failure is bundled: {}", ran.stderr);
    assert!(!lab.dir().exists(), "an ephemeral lab leaves nothing");
}

#[test]
fn the_lab_of_a_command_goes_away_when_its_parent_is_killed() {
    use rustix::process::Signal;
    let lab = Lab::new("orphan");
    let file = lab.write("lab.toml", ETCD).display().to_string();
    let mut up = lab
        .command(&[
            "up",
            &file,
            "--ephemeral",
            "--",
            "sh",
            "-c",
            "echo $$ >ready; exec tail -f /dev/null",
        ])
        .spawn()
        .expect("run faultbed");
    let marker = lab.home().join("ready");
    faultbed_tests::wait::wait_for("the command runs", faultbed_tests::lab::PATIENCE, || {
        let text = std::fs::read_to_string(&marker).unwrap_or_default();
        text.ends_with('\n').then_some(()).ok_or(text)
    });
    let pids: Vec<u32> = lab.status().nodes.iter().filter_map(|n| n.pid).collect();
    assert_eq!(pids.len(), 3);
    faultbed_tests::lab::signal(i32::try_from(up.id()).expect("pid"), Signal::KILL);
    up.wait().expect("reap");
    faultbed_tests::wait::wait_for("the lab is gone", faultbed_tests::lab::PATIENCE, || {
        let living: Vec<_> = pids.iter().filter(|pid| is_alive(**pid)).collect();
        if living.is_empty() && !lab.dir().exists() { Ok(()) } else { Err(format!("{living:?}")) }
    });
}

#[test]
fn a_lab_that_cannot_be_reached_is_exit_4() {
    let lab = Lab::new("nolab");
    for args in [&["status"][..], &["stop", "kv-1"], &["heal", "--all"]] {
        let ran = lab.run(args);
        assert_eq!(ran.code, 4, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("nolab") && ran.stderr.contains("up -d"), "{}", ran.stderr);
    }
}

/// The processes that take a lab down when its time is up.
fn guards(lab: &Lab) -> Vec<i32> {
    let pattern = format!("__guard --dir {}", lab.dir().display());
    let found = Command::new("pgrep").args(["-f", "--", &pattern]).output().expect("run pgrep");
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

#[test]
fn a_second_time_for_a_lab_moves_its_end() {
    let lab = Lab::new("moved");
    lab.ok(&["up", "-d", "--hosts", "1", "--for", "15s"]);
    let first = guards(&lab);
    assert_eq!(first.len(), 1);
    lab.ok(&["up", "-d", "--for", "10m"]);
    wait_for("the first guard goes at its time", PATIENCE, || {
        let now = guards(&lab);
        (!now.contains(&first[0]) && now.len() == 1).then_some(()).ok_or(format!("{now:?}"))
    });
    assert_eq!(lab.status().hosts.len(), 1, "and the lab stays");
    // Sooner counts as much as later. The lab may go before this has told how it is.
    lab.run(&["up", "-d", "--for", "1s"]);
    wait_for("the newest time ends it", PATIENCE, || {
        let code = lab.run(&["status"]).code;
        (code == 4).then_some(()).ok_or(code.to_string())
    });
}
