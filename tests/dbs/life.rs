//! What every database is put through, whatever it is: start, a leader, its death, its isolation,
//! heal, one node more and one node less, and everything that was written still there.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output},
    time::Duration,
};

use faultbed_common::{
    name::NodeName,
    report::NodeState,
    status::{NodeStatus, Status},
};
use faultbed_tests::{
    lab::{Lab, find, leader, summary},
    wait::wait_for,
    wires::{self, Wires},
};

/// How long a database may take to elect, or to take a node up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// In which something would have come that no cut holds back, on a machine that is not busy. One that is
/// makes the test pass where it should not, and never the other way round.
const SILENCE: Duration = Duration::from_millis(500);

/// More of an answer is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

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
    /// Bytes that make a server answer at its port for clients, whatever state it is in.
    fn question(&self) -> &'static [u8];
    /// Whether it speaks before it is asked.
    fn greets(&self) -> bool {
        false
    }
    /// Makes another node than this one the leader, where the database does not elect by itself.
    fn elect(&self, _lab: &Lab, _old: &NodeName) {}
    /// Makes an old leader that came back a follower, where it does not become one by itself.
    fn take_back(&self, _lab: &Lab, _old: &NodeName) {}
}

/// Lives through all of it.
pub(crate) fn live(lab: &Lab, database: &dyn Database) {
    let first = lab.wait_ready();
    no_bypass(lab);
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

    let others = of_role(&lab.status(), database).into_iter().map(|node| node.name);
    let others: Vec<NodeName> = others.filter(|name| *name != third).collect();
    one_way(lab, database, [&others[0], &others[1]]);
    ready(lab);
    scale(lab, database);

    let leader = ready(lab);
    no_bypass(lab);
    for key in ["before", "killed", "isolated", "scaled"] {
        wait_for(key, PATIENCE, || {
            let at = address(&lab.status(), database, &leader);
            if database.has(&at, key) { Ok(()) } else { Err("it is not there".to_owned()) }
        });
    }
}

/// Bytes stop in one direction, go on in the other, and afterwards everybody is well again.
///
/// Between two that do not lead, where little else is said: what is asked against the cut arrives, and its
/// answer is held; what is asked along the cut does not arrive. Afterwards all of it does.
pub(crate) fn one_way(lab: &Lab, database: &dyn Database, [from, to]: [&NodeName; 2]) {
    // One that has just come back may be ready by its last probe and turn the first one away.
    let answered = |from, to| {
        wait_for("an answer before the cut", PATIENCE, || answer(lab, database, from, to))
    };
    answered(from, to);
    let length = answered(to, from);
    let way = ["partition", from.as_str(), to.as_str(), "--one-way", "--name", "way"];
    lab.ok(&[&way[..], &["--for", "5m"]].concat());
    let held = |lab: &Lab| {
        let status = lab.status();
        let fault = status.faults.iter().find(|fault| fault.name.as_str() == "way");
        fault.map_or(0, |fault| fault.evidence.total.held_bytes)
    };
    let before = held(lab);
    let mut against = ask(lab, database, to, from);
    wait_for("the answer is held", PATIENCE, || match held(lab) {
        now if now >= before + length => Ok(()),
        now => Err(format!("{before} bytes, then {now}; {length} were asked for")),
    });
    assert!(against.is_silent(), "an answer crossed the cut from {from} to {to}");
    let mut along = ask(lab, database, from, to);
    if database.greets() {
        along.wait("whoever greets does so against the cut, where bytes pass");
    } else {
        assert!(along.is_silent(), "a question crossed the cut from {from} to {to}");
    }
    lab.ok(&["heal", "way", "--require", "confirmed"]);
    assert!(against.read_answer() > 0 && along.read_answer() > 0, "what was held comes later");
}

/// A connection that one node would have made to another, with a question sent.
struct Asked(TcpStream);

fn ask(lab: &Lab, database: &dyn Database, from: &NodeName, to: &NodeName) -> Asked {
    try_ask(lab, database, from, to).expect("ask")
}

fn try_ask(
    lab: &Lab,
    database: &dyn Database,
    from: &NodeName,
    to: &NodeName,
) -> io::Result<Asked> {
    let status = lab.status();
    let own = find(&status, from.as_str()).private.values().next().expect("a private address");
    let to = wires::address(&find(&status, to.as_str()).endpoints[database.port()]);
    let mut stream = wires::dial(wires::address(own).ip(), to, SILENCE);
    stream.write_all(database.question())?;
    Ok(Asked(stream))
}

/// How long an answer is, where one comes.
fn answer(
    lab: &Lab,
    database: &dyn Database,
    from: &NodeName,
    to: &NodeName,
) -> Result<u64, String> {
    let mut asked = try_ask(lab, database, from, to).map_err(|error| error.to_string())?;
    match asked.0.peek(&mut [0]) {
        Ok(1..) => Ok(asked.read_answer()),
        Ok(_) => Err("the connection ended".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Asked {
    /// Whether nothing comes.
    fn is_silent(&mut self) -> bool {
        match self.0.peek(&mut [0]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                true
            }
            other => {
                assert!(other.is_ok_and(|bytes| bytes > 0), "the connection ended");
                false
            }
        }
    }

    /// Waits until something comes.
    fn wait(&mut self, what: &str) {
        wait_for(what, PATIENCE, || match self.is_silent() {
            true => Err("silence".to_owned()),
            false => Ok(()),
        });
    }

    /// Reads until nothing more comes; gives how much that was, and waits for the beginning.
    fn read_answer(&mut self) -> u64 {
        self.wait("an answer");
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let mut length = 0;
        while length < ANSWER_BYTES_MAX
            && let Ok(count @ 1..) = self.0.read(&mut answer[length..])
        {
            length += count;
        }
        length as u64
    }
}

/// No node reaches another around its proxy: neither the agents nor a look at all sockets find one that
/// does, and each has connections that could have been.
pub(crate) fn no_bypass(lab: &Lab) {
    wait_for("each node has a connection through a proxy", PATIENCE, || {
        let status = lab.status();
        let wires = Wires::look(&status);
        assert!(wires.around.is_empty(), "around the proxies: {:?}", wires.around);
        assert!(status.bypasses.is_empty(), "{:?}", status.bypasses);
        let alone: Vec<_> = status.nodes.iter().filter(|node| !wires.has(&node.name)).collect();
        match alone.first() {
            None => Ok(()),
            Some(node) => Err(format!("{} has none of {:?}", node.name, wires.proxied)),
        }
    });
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
    lab.ok(&["set", database.role(), &format!("count={count}")]);
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
    database.elect(lab, old);
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
