//! What blueprints render for systems that are too large to run here, checked by stand-ins that are as
//! strict about flags, files and addresses. None of this says anything of the real programs.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use faultbed_common::{file::SHIPPED, name::NodeName, report::NodeState, status::FaultState};
use faultbed_tests::{
    bins,
    lab::{Lab, find, leader},
    wait::wait_for,
};

use crate::life::{self, PATIENCE, said};

/// Gives the stand-in the names of the real programs.
pub(crate) fn programs(lab: &Lab, names: &[&str]) -> PathBuf {
    let dir = lab.home().join("bin");
    std::fs::create_dir_all(&dir).expect("make directory");
    for name in names {
        std::os::unix::fs::symlink(bins::path("stand-in"), dir.join(name)).expect("link");
    }
    dir
}

pub(crate) fn up(lab: &Lab, file: &str) {
    let path = lab.write("lab.toml", file);
    lab.ok(&["up", "-d", &path.display().to_string()]);
}

pub(crate) fn all_ready(lab: &Lab) {
    lab.wait("all are ready", |status| {
        let ready = status.nodes.iter().all(|node| node.observed == NodeState::Ready);
        (ready && status.converged).then_some(())
    });
}

/// A node is killed and comes back, and one that is cut off is not ready until the heal.
fn lives(lab: &Lab, node: &str) {
    all_ready(lab);
    lab.ok(&["kill", node]);
    lab.ok(&["start", node]);
    lab.ok(&["isolate", node, "--name", "cut", "--for", "5m"]);
    lab.wait("it is alone", |status| {
        (find(status, node).observed == NodeState::Unready).then_some(())
    });
    lab.ok(&["heal", "cut"]);
    all_ready(lab);
    assert!(lab.status().bypasses.is_empty(), "{:?}", lab.status().bypasses);
}

pub(crate) fn what_cockroach_is_told_satisfies_its_stand_in() {
    let lab = Lab::new("cockroach");
    programs(&lab, &["cockroach"]);
    let file = "[lab]\nhosts = 3\n[cluster.c]\nblueprint = \"cockroach\"\ncockroach.path = \"bin/cockroach\"\n";
    up(&lab, file);
    lives(&lab, "c-2");
    // Set up once: a cluster that starts again as a whole says that it has been.
    lab.ok(&["stop", "c"]);
    lab.ok(&["start", "c"]);
    all_ready(&lab);
    lab.ok(&["scale", "c", "4"]);
    lab.ok(&["scale", "c", "3"]);
    // Nothing undrains a node but another process, which comes when the fault ends.
    lab.ok(&["inject", "drain", "--on", "c-3", "--name", "drain", "--for", "5m"]);
    lab.wait("it is drained", |status| {
        (find(status, "c-3").observed == NodeState::Unready).then_some(())
    });
    let before = find(&lab.status(), "c-3").incarnation;
    lab.ok(&["heal", "drain"]);
    all_ready(&lab);
    assert_eq!(find(&lab.status(), "c-3").incarnation.0, before.0 + 1, "one restart");
    let refused = lab.run(&["set", "c-1", "args=--no-such-flag"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("unknown flag: --no-such-flag"), "{}", refused.stderr);
}

/// What a URL answers whose port is closed.
const NOTHING: &str = "";

/// Waits until a URL answers like this.
fn answers(url: &str, wanted: &str) {
    wait_for(&format!("{url} says {wanted:?}"), PATIENCE, || {
        let asked = ["-s", "-w", " %{http_code}", url];
        let told = said("curl", &asked).unwrap_or_default();
        if told == wanted.trim() { Ok(()) } else { Err(told) }
    });
}

/// The real etcd behind failpoints that are not: what is told to them is right, and is taken back.
pub(crate) fn what_etcd_is_told_of_failpoints_satisfies_its_stand_in() {
    let lab = Lab::new("gofail");
    programs(&lab, &["etcd"]);
    let file = "[lab]\nhosts = 1\n[cluster.kv]\nblueprint = \"etcd\"\netcd.count = 1\netcd.path = \"bin/etcd\"\n";
    up(&lab, file);
    lab.wait_ready();
    let node = || find(&lab.status(), "kv-1").clone();
    let points = format!("http://{}/", node().private["failpoint"]);
    answers(&points, "raftBeforeSave=\n 200");
    let on = ["--on", "kv-1", "--name", "point", "--for", "5m"];
    let inject = |words: &[&str]| lab.run(&[&["inject", "failpoint"], words, &on].concat());
    let refused = inject(&["terms=panic"]);
    assert!(refused.stderr.contains("say which point"), "{}", refused.stderr);
    let refused = inject(&["point=noSuchPoint", "terms=panic", "--wait=5s"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("failpoint does not exist"), "{}", refused.stderr);
    lab.ok(&["heal", "point"]);
    lab.ok(&["delete", "fault", "point"]);
    assert_eq!(inject(&["point=raftBeforeSave", "terms=sleep(9)"]).code, 0);
    answers(&points, "raftBeforeSave=sleep(9)\n 200");
    // A new process is told again, and is told of the end.
    lab.ok(&["restart", "kv-1"]);
    answers(&points, "raftBeforeSave=sleep(9)\n 200");
    lab.ok(&["heal", "point"]);
    answers(&points, "raftBeforeSave=\n 200");
    let short = ["inject", "failpoint", "point=raftBeforeSave", "terms=return"];
    lab.ok(&[&short[..], &["--on", "kv-1", "--name", "short", "--for", "3s"]].concat());
    answers(&points, "raftBeforeSave=return\n 200");
    answers(&points, "raftBeforeSave=\n 200");
}

/// Effects of a store reach its status port, and are undone: on request, and at their deadline.
fn tells_a_store(lab: &Lab) {
    let store = find(&lab.status(), "db-tikv-1").clone();
    let points = format!("{}/fail", store.private["status"]);
    let requests = format!("http://{}/", store.private["grpc"]);
    answers(&points, " 200");
    let on = ["--on", "db-tikv-1", "--name", "point", "--for", "5m"];
    lab.ok(&[&["inject", "failpoint", "point=a_b::c", "terms=sleep(9)"][..], &on].concat());
    answers(&points, "a_b::c=sleep(9) 200");
    lab.ok(&["heal", "point"]);
    answers(&points, " 200");
    lab.ok(&["inject", "pause-grpc", "--on", "db-tikv-1", "--for", "3s"]);
    answers(&requests, NOTHING);
    answers(&requests, " 200");
}

pub(crate) fn what_tidb_is_told_satisfies_its_stand_ins() {
    let lab = Lab::new("tidb");
    let programs = programs(&lab, &["pd-server", "tikv-server", "tidb-server"]);
    let path = |name: &str| programs.join(name).display().to_string();
    up(
        &lab,
        &format!(
            "[lab]\nhosts = 3\n[cluster.db]\nblueprint = \"tidb\"\npd.path = {:?}\ntikv.path = {:?}\ntidb.path = {:?}\n",
            path("pd-server"),
            path("tikv-server"),
            path("tidb-server"),
        ),
    );
    all_ready(&lab);
    lab.wait("the first driver leads", |status| {
        (find(status, "db-pd-1").leader == Some(true)).then_some(())
    });
    lives(&lab, "db-pd-1");
    tells_a_store(&lab);
    // A driver joins by the others, and leaves them.
    lab.ok(&["scale", "db/pd", "4"]);
    all_ready(&lab);
    lab.ok(&["scale", "db/pd", "3"]);
    all_ready(&lab);
    // Two at a time, and then the third.
    let runs = || {
        let nodes = lab.status().nodes.into_iter();
        let stores = nodes.filter(|node| node.role.as_str() == "tikv");
        stores.map(|node| node.incarnation.0).collect::<Vec<_>>()
    };
    let before = runs();
    let ran = lab.run(&["restart", "db/tikv", "--parallel", "2"]);
    assert!(ran.code == 0 && ran.stderr.contains("2 at a time"), "{}", ran.stderr);
    all_ready(&lab);
    assert_eq!(runs(), before.iter().map(|run| run + 1).collect::<Vec<_>>());
    // A store goes when its regions have; PD refuses where too few would be left for the replicas.
    lab.ok(&["scale", "db/tikv", "4"]);
    all_ready(&lab);
    lab.ok(&["scale", "db/tikv", "3"]);
    all_ready(&lab);
    let refused = lab.run(&["remove", "db-tikv-3", "--wait=3s"]);
    assert_ne!(refused.code, 0);
    lab.wait("PD refuses", |status| {
        let node = status.leaving.iter().find(|node| node.name.as_str() == "db-tikv-3")?;
        node.why.as_ref()?.contains("would be 2 while need 3").then_some(())
    });
    lab.ok(&["start", "db-tikv-3"]);
    all_ready(&lab);
    // PD knows another store by the address of one whose data is gone, and is told that it is.
    lab.ok(&["wipe", "db-tikv-2"]);
    all_ready(&lab);
    lab.ok(&["scale", "db/tikv", "2", "--force"]);
}

/// Bytes stop in one direction, and go on once all is well again.
fn held_one_way(lab: &Lab, leader: &NodeName) {
    let status = lab.status();
    let role = &find(&status, leader.as_str()).role;
    let follower = status.nodes.iter().find(|node| node.name != *leader && node.role == *role);
    let follower = follower.expect("a follower").name.clone();
    let way = ["partition", leader.as_str(), follower.as_str(), "--one-way", "--name", "way"];
    lab.ok(&[&way[..], &["--for", "5m"]].concat());
    lab.wait("bytes were held one way", |status| {
        let fault = status.faults.iter().find(|fault| fault.name.as_str() == "way")?;
        (fault.state == FaultState::Active && fault.in_force && fault.evidence.total.held_bytes > 0)
            .then_some(())
    });
    lab.ok(&["heal", "way"]);
    life::ready(lab);
}

/// A leader dies and comes back, links are cut, and the group gains and loses a node.
fn elects(lab: &Lab, cluster: &str) {
    let first = life::ready(lab);
    lab.ok(&["kill", first.as_str()]);
    let second =
        lab.wait("another one leads", |status| leader(status).filter(|name| *name != first));
    lab.ok(&["start", first.as_str()]);
    life::ready(lab);
    let follower = lab.status().nodes.into_iter().find(|node| node.name != second);
    lives(lab, follower.expect("a follower").name.as_str());
    held_one_way(lab, &life::ready(lab));
    lab.ok(&["scale", cluster, "4"]);
    life::ready(lab);
    lab.ok(&["scale", cluster, "3"]);
    life::ready(lab);
    assert!(lab.status().bypasses.is_empty(), "{:?}", lab.status().bypasses);
}

pub(crate) fn what_a_driver_of_dcf_is_told_satisfies_its_stand_in() {
    let lab = Lab::new("dcf");
    programs(&lab, &["dcf-node"]);
    let file = "[lab]\nhosts = 3\n[cluster.g]\nblueprint = \"dcf\"\ndcf.path = \"bin/dcf-node\"\n";
    up(&lab, file);
    elects(&lab, "g");
    let refused = lab.run(&["set", "g-1", "args=--no-such-flag"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("unknown flag: --no-such-flag"), "{}", refused.stderr);
}

pub(crate) fn what_opengauss_is_told_satisfies_its_stand_ins() {
    let lab = Lab::new("opengauss");
    // Run by root, the servers run as a user who must get in, and whose programs must be his to run.
    fs::set_permissions(lab.home(), fs::Permissions::from_mode(0o711)).expect("open the directory");
    let dir = lab.home().join("bin");
    fs::create_dir_all(&dir).expect("make directory");
    fs::copy(bins::path("stand-in"), dir.join("gaussdb")).expect("copy");
    for name in ["gs_initdb", "gs_ctl"] {
        std::os::unix::fs::symlink("gaussdb", dir.join(name)).expect("link");
    }
    let (_, shipped) = SHIPPED.iter().find(|(name, _)| *name == "opengauss").expect("it ships");
    lab.write(
        "opengauss.toml",
        &shipped
            .replace("/usr/local/opengauss/bin", &dir.display().to_string())
            .replace("user = \"omm\"", "user = \"postgres\""),
    );
    up(&lab, "[lab]\nhosts = 3\n[cluster.og]\nblueprint = \"./opengauss.toml\"\n");
    elects(&lab, "og");
}
