//! Rows that kill something of a host: its agent, a shim, its proxy.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{
    Row,
    row::{
        Notes, address, client_is_served, cut_clients, ends_in_time, host_of, in_force, never_two,
        no_faults, nobody_noticed, pids, recovered,
    },
};
use crate::{
    field::{Field, PATIENCE, client::dial_once, look},
    lab::{is_alive, signal},
    wait::wait_for,
};

/// All nodes.
const ALL: [&str; 3] = ["m-1", "m-2", "m-3"];
/// How long a cut lasts that must end by itself.
const CUT: Duration = Duration::from_secs(4);

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row { name: "agent SIGKILL", run: agent_dies },
        Row { name: "shim SIGKILL", run: shim_dies },
        Row { name: "proxy SIGKILL during a cut", run: proxy_dies },
    ]
}

/// The agent is dead when its host's fault is due: nodes, streams and the deadline go on.
fn agent_dies(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    let deadline = cut_clients(field, "m-3", "due", CUT);
    let cut = Instant::now();
    client.forget();
    for host in [0, 2] {
        field.hosts[host].kill();
    }
    ends_in_time(field, "m-3", deadline, notes);
    client_is_served(&client, &ALL);
    field.wait("their hosts are down", |status| {
        let down = |n: usize| status.hosts[n].state == faultbed_common::status::HostState::Down;
        (down(0) && !down(1) && down(2) && !status.converged).then_some(())
    });
    let status = field.status();
    for (n, node) in status.nodes.iter().enumerate() {
        let unknown = node.observed == faultbed_common::report::NodeState::Unknown;
        assert_eq!(unknown, n != 1, "{node:?}");
    }
    assert!(status.hosts[0].seen_age_ms > status.hosts[1].seen_age_ms, "{:?}", status.hosts);
    assert_eq!(pids(field), before);
    let since = Instant::now();
    for host in [0, 2] {
        field.hosts[host].start();
    }
    recovered(field, since, notes);
    assert_eq!(pids(field), before, "the same processes");
    client_is_served(&client, &ALL);
    // The dials of a node that is cut fail; its open connection only waits.
    nobody_noticed(&client, &["m-1", "m-2"], notes);
    let resets = client.seen()["m-3"].resets.clone();
    let from: Vec<_> =
        resets.iter().map(|(at, why)| (at.saturating_duration_since(cut), why)).collect();
    assert!(from.is_empty(), "{from:?} {:?}", field.logs());
    no_faults(field);
}

/// A node whose shim dies goes with it, and is started once more, by its policy.
fn shim_dies(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    client.forget();
    let shim = look::parent(before["m-2"]).expect("a node has a shim");
    signal(i32::try_from(shim).expect("a pid"), Signal::KILL);
    let since = Instant::now();
    wait_for("the node is started again", PATIENCE, || {
        never_two(field);
        let copies = look::copies(&host_of(field, "m-2").place, "m-2");
        let other = copies.iter().any(|pid| *pid != before["m-2"]);
        other.then_some(()).ok_or_else(|| format!("{copies:?}"))
    });
    recovered(field, since, notes);
    let after = pids(field);
    for node in ["m-1", "m-3"] {
        assert_eq!(after[node], before[node], "only one node was meant");
    }
    assert!(!is_alive(before["m-2"]));
    let status = field.status();
    let node = crate::lab::find(&status, "m-2");
    assert_eq!((node.restarts, node.pid), (1, Some(after["m-2"])), "{node:?}");
    client_is_served(&client, &ALL);
    nobody_noticed(&client, &["m-1", "m-3"], notes);
    let seen = client.seen()["m-2"].clone();
    notes.say(format!(
        "m-2 is another process: {} connections ended and {} dials failed until it served",
        seen.resets.len(),
        seen.failed.len()
    ));
    assert!(!seen.resets.is_empty());
}

/// A proxy that dies during a cut takes its connections along, but no byte crosses and the cut ends
/// when it must.
fn proxy_dies(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    let deadline = cut_clients(field, "m-3", "due", CUT);
    client.forget();
    let dir = host_of(field, "m-3").dir.clone();
    let proxy = look::proxy_pid(&dir).expect("a proxy");
    signal(i32::try_from(proxy).expect("a pid"), Signal::KILL);
    let mut dials = 0;
    // Refused while nobody listens, unanswered once the new proxy does; never open.
    while look::boottime_ns() + 100_000_000 < deadline {
        let dialled =
            field.outside.inside(|| dial_once(address(field, "m-3"), Duration::from_millis(50)));
        assert!(dialled.is_err() || look::boottime_ns() >= deadline, "a byte crossed the cut");
        dials += 1;
    }
    let status = field.status();
    ends_in_time(field, "m-3", deadline, notes);
    let since = Instant::now();
    notes.say(format!("{dials} dials met the cut while the proxy was dead or new"));
    assert!(dials > 20, "{dials}");
    assert_eq!(in_force(&status), ["due"], "{status:?}");
    recovered(field, since, notes);
    client_is_served(&client, &ALL);
    assert_ne!(look::proxy_pid(&dir), Some(proxy));
    assert_eq!(pids(field), before);
    nobody_noticed(&client, &["m-1", "m-2"], notes);
    notes.say(format!(
        "{} connection of m-3 ended with its proxy",
        client.seen()["m-3"].resets.len()
    ));
    no_faults(field);
}
