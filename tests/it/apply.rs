//! Files: `plan` says what `apply` does, apply replaces what the last one made, and history keeps it.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

use faultbed_common::{report::NodeState, status::FaultState};
use faultbed_tests::lab::{ETCD, Lab, find};

const WITH_FAULT: &str = "
[fault.split]
partition = [[\"kv-1\"], [\"kv-2\", \"kv-3\"]]
for = \"10m\"
";

#[test]
fn plan_shows_cluster_and_fault_alike_and_apply_does_exactly_that() {
    let lab = Lab::up("applies", ETCD);
    let file = lab.write(
        "next.toml",
        &format!(
            "{ETCD}[cluster.kv.etcd]\nnode.2.args = [\"--snapshot-count=5000\"]\n{WITH_FAULT}"
        ),
    );
    let file = file.display().to_string();
    let history = lab.ok(&["history"]);
    assert!(
        history.contains("has been ready"),
        "`up` waits for the last thing of a start: {history}"
    );
    let before = lab.status();
    // The file may be named with or without `-f`.
    assert_eq!(lab.ok(&["plan", &file]), lab.ok(&["plan", "-f", &file]));
    assert_eq!(lab.run(&["plan", &file, "-f", &file]).code, 2, "one file");
    let plan = lab.run(&["plan", "-f", &file, "--exit-code"]);
    assert_eq!(plan.code, 1, "there are changes: {}", plan.stderr);
    for text in ["cluster kv", "fault split", "--snapshot-count=5000", "kv-2", "restart"] {
        assert!(plan.stdout.contains(text), "{text}: {}", plan.stdout);
    }
    assert_eq!(lab.status().generation, before.generation, "a plan changes nothing");

    lab.ok(&["apply", "-f", &file]);
    let status = lab.wait("the fault began once kv was ready", |status| {
        let split = status.faults.iter().find(|f| f.name.as_str() == "split")?;
        (split.state == FaultState::Active && split.in_force).then(|| status.clone())
    });
    let pid = |status: &faultbed_common::status::Status, name| find(status, name).pid;
    assert_ne!(pid(&status, "kv-2"), pid(&before, "kv-2"), "its arguments changed");
    assert_eq!(pid(&status, "kv-1"), pid(&before, "kv-1"), "nobody else restarts");

    let plan = lab.run(&["plan", "-f", &file, "--exit-code"]);
    assert_eq!(plan.code, 0, "nothing left to do: {}", plan.stdout);
    let get = lab.ok(&["get", "fault", "split"]);
    assert!(get.contains("partition"), "{get}");
    let history = lab.ok(&["history"]);
    assert!(history.contains("apply"), "{history}");
}

#[test]
fn apply_removes_what_left_the_file_and_keeps_what_verbs_made() {
    let lab = Lab::up("replace", &format!("{ETCD}{WITH_FAULT}"));
    lab.ok(&["inject", "latency", "5ms", "--from", "kv-1", "--to", "kv-2", "--name", "mine"]);
    let file = lab.write("less.toml", ETCD).display().to_string();
    let plan = lab.ok(&["plan", "-f", &file]);
    assert!(plan.contains("split") && plan.contains("mine"), "kept objects are listed: {plan}");
    lab.ok(&["apply", &file]);
    let status = lab.status();
    let active: Vec<_> = status
        .faults
        .iter()
        .filter(|f| f.state == FaultState::Active)
        .map(|f| f.name.to_string())
        .collect();
    assert_eq!(active, ["mine"]);
    lab.ok(&["delete", "cluster", "kv"]);
    assert!(lab.status().nodes.is_empty(), "delete waits until its nodes are gone");
    let kept = || {
        let dirs = (1..=3).map(|n| lab.dir().join(format!("hosts/h{n}/nodes/kv-{n}")));
        dirs.filter(|dir| dir.exists()).count()
    };
    assert_eq!(kept(), 3, "its data is kept");
    let said = lab.ok(&["delete", "cluster", "kv", "--wipe"]);
    assert!(said.contains("kv-1, kv-2, kv-3") && said.contains("what was kept of"), "{said}");
    assert_eq!(kept(), 0, "what is said to be deleted is gone");
}

#[test]
fn a_down_on_purpose_survives_an_apply() {
    let lab = Lab::up("onpurpose", ETCD);
    lab.ok(&["stop", "kv-3"]);
    let file = lab.write("same.toml", ETCD).display().to_string();
    lab.ok(&["apply", "-f", &file, "--no-wait"]);
    assert_eq!(lab.node("kv-3").observed, NodeState::Stopped);
}

#[test]
fn set_and_upgrade_change_one_node_and_show_both_binaries() {
    let lab = Lab::up("setup", ETCD);
    let other = lab.home().join("etcd-next");
    std::fs::copy("/usr/bin/etcd", &other).expect("copy etcd");
    let mut bytes = std::fs::read(&other).expect("read");
    bytes.extend_from_slice(b"another build");
    std::fs::write(&other, bytes).expect("write");
    let tool = lab.home().join("own-tool");
    std::fs::write(&tool, "#!/bin/sh\necho of this release\n").expect("write");
    std::fs::set_permissions(&tool, Permissions::from_mode(0o755)).expect("let it run");
    let before = lab.node("kv-2").binary.expect("binary");
    lab.ok(&["upgrade", "kv-2", "--path", "./etcd-next"]);
    lab.wait_ready();
    let after = lab.node("kv-2").binary.expect("binary");
    assert_ne!(before.sha256, after.sha256);
    assert_eq!(lab.node("kv-1").binary.expect("binary").sha256, before.sha256);
    // What lies beside a node's program is found for it, and for no other.
    assert_eq!(lab.ok(&["exec", "kv-2", "--", "own-tool"]), "of this release\n");
    assert_eq!(lab.run(&["exec", "kv-1", "--", "own-tool"]).code, 1);
    lab.ok(&["set", "kv-1", "args=--snapshot-count=7000"]);
    lab.wait_ready();
    let shown = lab.ok(&["get", "cluster", "kv"]);
    assert!(shown.contains("7000"), "{shown}");
}

#[test]
fn a_users_own_blueprint_works_like_a_shipped_one() {
    let lab = Lab::new("own");
    lab.write("mini.toml", MINI);
    let file =
        lab.write("lab.toml", "[lab]\nhosts = 2\n\n[cluster.web]\nblueprint = \"./mini.toml\"\n");
    lab.ok(&["blueprint", "check", "./mini.toml"]);
    lab.ok(&["up", "-d", &file.display().to_string()]);
    lab.wait("both serve", |status| {
        let ready = status.nodes.iter().filter(|n| n.observed == NodeState::Ready).count();
        (ready == 2).then_some(())
    });
    let logs = lab.ok(&["logs", "web-1", "--tail", "20"]);
    assert!(logs.contains("GET /"), "the probe shows in its log: {logs}");
}

/// A server that every machine with Python has, as a user would describe it.
const MINI: &str = r#"
name = "mini"
summary = "a web server from Python's library"
[role.mini]
program = "python3"
count = 2
port.http = { default = 7000, url = "http" }
args = ["-m", "http.server", "--bind", "{{ node.private }}", "--directory", "{{ node.data }}", "{{ node.port.http.port }}"]
ready = { http = "{{ node.port.http.bind }}/", expect = "status == 200" }
"#;
