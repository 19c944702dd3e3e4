//! What every row looks at: who runs, how often, what the client complained of, how long all took to be well.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use faultbed_common::{
    report::NodeState,
    status::{FaultState, HostState, Status},
};

use crate::{
    field::{
        Field, PATIENCE,
        client::{Client, Seen},
        look,
    },
    wait::wait_for,
};

/// The required time from recovery to convergence, and how much longer a noisy machine may take.
pub(super) const CONVERGED_WITHIN: Duration = Duration::from_secs(5);
const NOISE: u32 = 3;

/// A deadline may be missed by no more; a noisy machine may need so much more until that is seen.
pub(super) const DEADLINE_SLACK: Duration = Duration::from_millis(100);
const DEADLINE_NOISE: Duration = Duration::from_millis(400);

/// A node is looked at until so long before it may answer, and how often.
const SILENT_UNTIL_MS: u64 = 300;
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// All nodes.
pub(super) const ALL: [&str; 3] = ["m-1", "m-2", "m-3"];
/// The seconds that outages last which an issue wants to last a minute; in the suite fewer do.
const OUTAGE: &str = "FAULTBED_OUTAGE";
const OUTAGE_SECONDS: u64 = 8;

/// How long the coordinators, or the store, are away.
pub(super) fn outage() -> Duration {
    let seconds = std::env::var(OUTAGE).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(OUTAGE_SECONDS))
}

/// Figures of a row, for its reader.
#[derive(Debug, Default)]
pub(super) struct Notes(Vec<String>);

impl Notes {
    pub(super) fn say(&mut self, line: impl Into<String>) {
        self.0.push(line.into());
    }

    pub(super) fn lines(&self) -> &[String] {
        &self.0
    }
}

/// The main process of each node, by its host's list of processes. That there is exactly one is
/// asserted.
pub(super) fn pids(field: &Field) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for (host, node) in field.hosts.iter().zip(field.nodes.keys()) {
        let copies = look::copies(&host.place, node);
        assert_eq!(copies.len(), 1, "copies of {node}: {copies:?}\n{}", field.logs());
        found.insert(node.clone(), copies[0]);
    }
    found
}

/// Counts the copies of every node as long as it lives: more than one is a failure, whenever it is.
pub(super) fn never_two(field: &Field) {
    for (host, node) in field.hosts.iter().zip(field.nodes.keys()) {
        let copies = look::copies(&host.place, node);
        assert!(copies.len() <= 1, "copies of {node}: {copies:?}");
    }
}

/// Waits until the client has had answers and accepted dials from these nodes, from now on.
pub(super) fn client_is_served(client: &Client, nodes: &[&str]) {
    let before = client.seen();
    wait_for("the client is served", PATIENCE, || {
        let now = client.seen();
        let served = |node: &&str| {
            let (before, now) = (&before[*node], &now[*node]);
            now.answers > before.answers && now.dials > before.dials
        };
        match nodes.iter().find(|node| !served(node)) {
            Some(node) => Err(format!("{node}: {:?}", now[*node])),
            None => Ok(()),
        }
    });
}

/// No connection that was open has ended, no dial was refused or left without an answer.
pub(super) fn nobody_noticed(client: &Client, nodes: &[&str], notes: &mut Notes) {
    let seen = client.seen();
    for node in nodes {
        let Seen { resets, failed, .. } = &seen[*node];
        assert!(resets.is_empty(), "connections to {node} ended: {resets:?}");
        assert!(failed.is_empty(), "dials of {node} failed: {failed:?}");
    }
    let answers: u64 = nodes.iter().map(|node| seen[*node].answers).sum();
    let dials: u64 = nodes.iter().map(|node| seen[*node].dials).sum();
    let gap = nodes.iter().map(|node| seen[*node].longest_gap).max().unwrap_or_default();
    notes.say(format!(
        "{answers} answers and {dials} dials of {}, no reset, no failed dial, longest gap {gap:.0?}",
        nodes.join(", ")
    ));
}

/// Waits until all coordinators say that all is well; how long that took.
pub(super) fn recovered(field: &Field, since: Instant, notes: &mut Notes) {
    for at in 0..field.coordinators.len() {
        field.wait_at(at, PATIENCE, "all is well", |status| all_well(status).then_some(()));
    }
    let took = since.elapsed();
    notes.say(format!("converged {:.1} s after recovery", took.as_secs_f64()));
    assert!(took < CONVERGED_WITHIN * NOISE, "converged only after {took:?}");
}

/// Converged, every host up and fresh, every node ready.
pub(super) fn all_well(status: &Status) -> bool {
    let fresh = |age: Option<u64>| age.is_some_and(|ms| ms < 5_000);
    status.converged
        && status.hosts.iter().all(|h| h.state == HostState::Up && fresh(h.seen_age_ms))
        && status.nodes.iter().all(|n| n.observed == NodeState::Ready)
}

/// The names of the faults that a status says to be in force.
pub(super) fn in_force(status: &Status) -> Vec<String> {
    let active = status.faults.iter().filter(|f| f.state == FaultState::Active && f.in_force);
    active.map(|fault| fault.name.to_string()).collect()
}

/// Cuts clients from a node for a time; the host's own word for its end.
pub(super) fn cut_clients(field: &Field, node: &str, name: &str, lasts: Duration) -> u64 {
    let lasts = format!("{}ms", lasts.as_millis());
    field.ok(&["partition", "clients", node, "--across", "--name", name, "--for", &lasts]);
    deadline(field, node, name)
}

/// When a node's host itself says that a fault ends.
pub(super) fn deadline(field: &Field, node: &str, name: &str) -> u64 {
    let dir = &host_of(field, node).dir;
    wait_for("the host knows the deadline", PATIENCE, || {
        look::deadlines(dir).get(name).copied().ok_or_else(|| "none".to_owned())
    })
}

/// Until shortly before something ends that keeps a node silent, by CLOCK_BOOTTIME: it answered nothing since the
/// client last forgot. A look that comes too late, on a machine that stood still meanwhile, says nothing.
pub(super) fn silent_until(client: &Client, node: &str, deadline_ns: u64) {
    let mut looks = 0;
    loop {
        let answers = client.seen()[node].answers;
        let left_ms = deadline_ns.saturating_sub(look::boottime_ns()) / 1_000_000;
        if left_ms < SILENT_UNTIL_MS {
            break;
        }
        assert_eq!(answers, 0, "{node} answered, {left_ms} ms before it might");
        looks += 1;
        thread::sleep(LOOK_EVERY);
    }
    assert!(looks > 0, "nobody looked at {node} before its time: this machine is too slow");
}

/// Waits for the end of a cut; by how much its deadline was missed.
pub(super) fn ends_in_time(field: &Field, node: &str, deadline_ns: u64, notes: &mut Notes) {
    ended_in_time(dials(field, node), node, deadline_ns, notes);
}

/// Dials a node from now on until it is answered, whatever else its row does meanwhile.
pub(super) fn dials(field: &Field, node: &str) -> JoinHandle<u64> {
    let (outside, address) = (field.outside.again(), address(field, node));
    thread::spawn(move || look::opens_at(&outside, address, PATIENCE + outage()))
}

/// The same for dials that were begun before.
pub(super) fn ended_in_time(
    dials: JoinHandle<u64>,
    node: &str,
    deadline_ns: u64,
    notes: &mut Notes,
) {
    let opened = dials.join().expect("the cut ends");
    in_time(&format!("the cut of {node}"), opened, deadline_ns, notes);
}

/// Asserts that something ended at its deadline, by CLOCK_BOOTTIME.
pub(super) fn in_time(what: &str, ended_ns: u64, deadline_ns: u64, notes: &mut Notes) {
    let late_ms = (i128::from(ended_ns) - i128::from(deadline_ns)) as f64 / 1e6;
    notes.say(format!("{what} ended {late_ms:+.0} ms from its deadline"));
    let most = (DEADLINE_SLACK + DEADLINE_NOISE).as_secs_f64() * 1e3;
    // One dial that is on its way at the deadline is not answered.
    assert!((-40.0..most).contains(&late_ms), "{what} missed its deadline: {late_ms} ms");
}

pub(super) fn address(field: &Field, node: &str) -> SocketAddr {
    field.nodes[node]
}

pub(super) fn host_of<'a>(field: &'a Field, node: &str) -> &'a crate::field::daemons::Daemon {
    let at = field.nodes.keys().position(|name| name == node).expect("a node of the field");
    &field.hosts[at]
}

/// Takes every fault away, ended ones too, so that the next row begins with none.
pub(super) fn no_faults(field: &Field) {
    let _none_is_fine = field.run(0, &["heal", "--all"]);
    for fault in field.status().faults {
        field.ok(&["delete", "fault", fault.name.as_str()]);
    }
}
