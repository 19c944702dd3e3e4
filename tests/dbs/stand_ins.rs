//! What blueprints render for systems that are too large to run here, checked by stand-ins that are as
//! strict about flags, files and addresses. None of this says anything of the real programs.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use faultbed_common::{file::SHIPPED, name::NodeName, report::NodeState, status::FaultState};
use faultbed_tests::{
    bins,
    lab::{Lab, find, leader},
};

use crate::life;

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
    let refused = lab.run(&["set", "c-1", "args=--no-such-flag"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("unknown flag: --no-such-flag"), "{}", refused.stderr);
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
    // A store has regions: it goes only by force, as long as they are not moved for it.
    for refused in [lab.run(&["scale", "db/tikv", "2"]), lab.run(&["remove", "db-tikv-3"])] {
        assert_ne!(refused.code, 0);
        assert!(refused.stderr.contains("db-tikv-3 away could lose data"), "{}", refused.stderr);
    }
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
    lab.ok(&["scale", cluster, "4", "--wait=60s"]);
    life::ready(lab);
    lab.ok(&["scale", cluster, "3", "--wait=60s"]);
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
