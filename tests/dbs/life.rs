//! What every database is put through, whatever it is: start, a leader, its death, its isolation,
//! heal, one node more and one node less, and everything that was written still there.

use std::{
    process::{Command, Output},
    time::Duration,
};

use faultbed_common::{
    name::NodeName,
    report::NodeState,
    status::{FaultState, NodeStatus, Status},
};
use faultbed_tests::{
    lab::{Lab, find, leader, summary},
    wait::wait_for,
};

/// How long a database may take to elect, or to take a node up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// How one database is written and read, and what it does not do by itself.
pub(crate) trait Database {
    /// The cluster, or the cluster and role, that elects.
    fn role(&self) -> &'static str;
    /// Its port for clients.
    fn port(&self) -> &'static str;
    /// Writes a key through one node; says whether that was acknowledged.
    fn put(&self, at: &str, key: &str) -> bool;
    /// Whether one node has a key.
    fn has(&self, at: &str, key: &str) -> bool;
    /// Makes another node the leader, where the database does not elect by itself.
    fn elect(&self, _lab: &Lab, _new: &NodeName) {}
    /// Makes an old leader that came back a follower, where it does not become one by itself.
    fn take_back(&self, _lab: &Lab, _old: &NodeName) {}
}

/// Lives through all of it.
pub(crate) fn live(lab: &Lab, database: &dyn Database) {
    let first = lab.wait_ready();
    put(lab, database, &first, "before");

    lab.ok(&["kill", first.as_str()]);
    let second = another_leader(lab, database, &first);
    put(lab, database, &second, "killed");
    lab.ok(&["start", first.as_str()]);
    database.take_back(lab, &first);
    assert_eq!(ready(lab), second, "who came back does not lead");

    // Cut off, a leader must not go on: what it acknowledged would be lost.
    lab.ok(&["isolate", second.as_str(), "--name", "cut", "--for", "5m"]);
    let third = another_leader(lab, database, &second);
    put(lab, database, &third, "isolated");
    let alone = address(&lab.status(), database, &second);
    wait_for("the old leader takes no writes", PATIENCE, || {
        if database.put(&alone, "alone") { Err("it did".to_owned()) } else { Ok(()) }
    });
    lab.ok(&["heal", "cut", "--require", "confirmed"]);
    database.take_back(lab, &second);
    ready(lab);

    one_way(lab, &third);
    scale(lab, database);

    let status = lab.status();
    assert!(status.bypasses.is_empty(), "{:?}", status.bypasses);
    let leader = ready(lab);
    for key in ["before", "killed", "isolated", "scaled"] {
        wait_for(key, PATIENCE, || {
            let at = address(&lab.status(), database, &leader);
            if database.has(&at, key) { Ok(()) } else { Err("it is not there".to_owned()) }
        });
    }
}

/// Bytes stop in one direction, go on in the other, and afterwards everybody is well again.
pub(crate) fn one_way(lab: &Lab, leader: &NodeName) {
    let status = lab.status();
    let role = &find(&status, leader.as_str()).role;
    let follower = status.nodes.iter().find(|node| node.name != *leader && node.role == *role);
    let follower = follower.expect("a follower").name.clone();
    lab.ok(&[
        "partition",
        leader.as_str(),
        follower.as_str(),
        "--one-way",
        "--name",
        "way",
        "--for",
        "5m",
    ]);
    lab.wait("bytes were held one way", |status| {
        let fault = status.faults.iter().find(|fault| fault.name.as_str() == "way")?;
        (fault.state == FaultState::Active && fault.in_force && fault.evidence.total.held_bytes > 0)
            .then_some(())
    });
    lab.ok(&["heal", "way"]);
    ready(lab);
}

/// One node comes, holds what was written before, and another goes.
fn scale(lab: &Lab, database: &dyn Database) {
    let count = of_role(&lab.status(), database).len();
    lab.ok(&["set", database.role(), &format!("count={}", count + 1)]);
    let new = of_role(&lab.status(), database).pop().expect("the new node");
    let leader = ready(lab);
    put(lab, database, &leader, "scaled");
    wait_for("the new node has what was written", PATIENCE, || {
        let at = address(&lab.status(), database, &new.name);
        if database.has(&at, "scaled") { Ok(()) } else { Err("it has not".to_owned()) }
    });
    lab.ok(&["set", database.role(), &format!("count={count}"), "--wait=90s"]);
    ready(lab);
    assert_eq!(of_role(&lab.status(), database).len(), count);
}

fn of_role(status: &Status, database: &dyn Database) -> Vec<NodeStatus> {
    let role = database.role().split_once('/').map(|(_, role)| role);
    let is_of = |node: &&NodeStatus| role.is_none_or(|role| node.role.as_str() == role);
    status.nodes.iter().filter(is_of).cloned().collect()
}

/// Waits until every node is ready and one leads, which the database may take a while for.
pub(crate) fn ready(lab: &Lab) -> NodeName {
    wait_for("all nodes ready, one leader", PATIENCE, || {
        let status = lab.status();
        let all = status.nodes.iter().all(|node| node.observed == NodeState::Ready);
        let found = (all && status.converged).then(|| leader(&status)).flatten();
        found.ok_or_else(|| summary(&status))
    })
}

fn another_leader(lab: &Lab, database: &dyn Database, old: &NodeName) -> NodeName {
    let status = lab.status();
    let role = find(&status, old.as_str()).role.clone();
    let heir = status.nodes.iter().find(|node| node.name != *old && node.role == role);
    database.elect(lab, &heir.expect("another node").name);
    wait_for("another leader", PATIENCE, || {
        let status = lab.status();
        let found = leader(&status).filter(|name| name != old);
        found.ok_or_else(|| summary(&status))
    })
}

fn put(lab: &Lab, database: &dyn Database, at: &NodeName, key: &str) {
    wait_for(&format!("{at} takes {key}"), PATIENCE, || {
        let address = address(&lab.status(), database, at);
        if database.put(&address, key) { Ok(()) } else { Err("not acknowledged".to_owned()) }
    });
}

/// Where clients reach a node: its proxy, without a scheme.
fn address(status: &Status, database: &dyn Database, node: &NodeName) -> String {
    let endpoint = &find(status, node.as_str()).endpoints[database.port()];
    endpoint.rsplit("//").next().unwrap_or_default().to_owned()
}

/// Runs a client for some seconds at most; one in Java takes seconds to begin where all cores are busy.
pub(crate) fn client(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    let most = if program == "java" { "30" } else { "5" };
    command.args(["-s", "KILL", most, program]).args(args);
    command.output().expect("run timeout (coreutils)")
}

/// What a client printed, where it succeeded.
pub(crate) fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = client(program, args);
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// Splits `127.77.1.1:2379`.
pub(crate) fn host_port(at: &str) -> (&str, &str) {
    at.rsplit_once(':').expect("an address and a port")
}
