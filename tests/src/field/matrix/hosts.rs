//! Rows that kill something of a host: its agent, a shim, its proxy.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use faultbed_common::{report::NodeState, status::HostState};
use rustix::process::Signal;

use super::{
    Row,
    row::{
        ALL, Notes, address, client_is_served, cut_clients, ends_in_time, host_of, in_force,
        never_two, no_faults, nobody_noticed, pids, recovered,
    },
};
use crate::{
    field::{Field, PATIENCE, client::dial_once, look},
    lab::{is_alive, signal},
    wait::wait_for,
};

/// How long a cut lasts that must end by itself.
const CUT: Duration = Duration::from_secs(4);
/// As long as an upgrade takes on any machine, and longer.
const UPGRADE_CUT: Duration = Duration::from_secs(16);

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row { name: "agent SIGKILL", run: agent_dies },
        Row { name: "shim SIGKILL", run: shim_dies },
        Row { name: "proxy SIGKILL during a cut", run: proxy_dies },
        Row { name: "agent upgrade", run: agent_upgrade },
        Row { name: "proxy upgrade during a cut", run: proxy_upgrade },
        Row { name: "host rebooted", run: host_reboots },
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
        let down = |n: usize| status.hosts[n].state == HostState::Down;
        (down(0) && !down(1) && down(2) && !status.converged).then_some(())
    });
    let status = field.status();
    for (n, node) in status.nodes.iter().enumerate() {
        let unknown = node.observed == NodeState::Unknown;
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
    assert!(from.is_empty(), "{from:?}");
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
    let mut dial_until = |ns: u64| {
        while look::boottime_ns() < ns {
            let dialled = field
                .outside
                .inside(|| dial_once(address(field, "m-3"), Duration::from_millis(50)));
            assert!(dialled.is_err() || look::boottime_ns() >= deadline, "a byte crossed the cut");
            dials += 1;
        }
    };
    // On a busy machine a status takes its time, and it must not be at the deadline.
    dial_until(deadline - 1_500_000_000);
    let status = field.status();
    dial_until(deadline - 100_000_000);
    ends_in_time(field, "m-3", deadline, notes);
    let since = Instant::now();
    notes.say(format!("{dials} dials met the cut while the proxy was dead or new"));
    assert!(dials > 20, "{dials}");
    assert_eq!(in_force(&status), ["due"], "{status:?}");
    recovered(field, since, notes);
    // Its open connection died behind the cut: the client may not know of it for long, as it would
    // not of a machine that died there.
    client_is_served(&client, &["m-1", "m-2"]);
    let dials = client.seen()["m-3"].dials;
    wait_for("new connections are served", PATIENCE, || {
        let now = client.seen()["m-3"].dials;
        (now > dials).then_some(()).ok_or_else(|| now.to_string())
    });
    assert_ne!(look::proxy_pid(&dir), Some(proxy));
    assert_eq!(pids(field), before);
    nobody_noticed(&client, &["m-1", "m-2"], notes);
    notes.say(format!(
        "{} connection of m-3 ended with its proxy",
        client.seen()["m-3"].resets.len()
    ));
    no_faults(field);
}

/// Has a host's agent become the release that was put at its path.
fn reload(field: &mut Field, host: usize) -> PathBuf {
    let daemon = &mut field.hosts[host];
    let agent = daemon.pid().expect("an agent");
    signal(i32::try_from(agent).expect("a pid"), Signal::HUP);
    let program = daemon.program.clone();
    wait_for("the agent is the new release", PATIENCE, || {
        let exe = fs::read_link(format!("/proc/{agent}/exe")).map_err(|e| e.to_string())?;
        let log = fs::read_to_string(field.hosts[host].log()).unwrap_or_default();
        let begun = log.rsplit("agent reloads").next().is_some_and(|l| l.contains("agent begun"));
        let last = || log.lines().last().unwrap_or_default().to_owned();
        (exe == program && begun)
            .then_some(())
            .ok_or_else(|| format!("{}: {}", exe.display(), last()))
    });
    program
}

fn wait_proxy(field: &Field, node: &str, old: u32, program: &Path) {
    let dir = host_of(field, node).dir.clone();
    wait_for("the proxy is the new release", PATIENCE, || {
        let pid = look::proxy_pid(&dir).filter(|pid| *pid != old).ok_or("the old one")?;
        let exe = fs::read_link(format!("/proc/{pid}/exe")).map_err(|e| e.to_string())?;
        (exe == program && !is_alive(old)).then_some(()).ok_or_else(|| exe.display().to_string())
    });
}

/// A new release of the agent, by reload: its proxy goes over to it, and nobody notices.
fn agent_upgrade(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    client.forget();
    for (host, node) in ALL.iter().enumerate() {
        let agent = field.hosts[host].pid();
        let old = look::proxy_pid(&field.hosts[host].dir).expect("a proxy");
        field.hosts[host].install(1);
        let program = reload(field, host);
        assert_eq!(field.hosts[host].pid(), agent, "the same pid");
        wait_proxy(field, node, old, &program);
    }
    recovered(field, Instant::now(), notes);
    assert_eq!(pids(field), before);
    client_is_served(&client, &ALL);
    nobody_noticed(&client, &ALL, notes);
}

/// The same while the host is cut off: what goes over stays cut until its time.
fn proxy_upgrade(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    field.hosts[2].install(2);
    let deadline = cut_clients(field, "m-3", "due", UPGRADE_CUT);
    client.forget();
    let old = look::proxy_pid(&field.hosts[2].dir).expect("a proxy");
    let program = reload(field, 2);
    wait_proxy(field, "m-3", old, &program);
    let served = client.seen()["m-3"].clone();
    assert!(look::boottime_ns() < deadline, "the upgrade took longer than the cut");
    assert_eq!((served.answers, served.dials), (0, 0), "bytes crossed the cut");
    ends_in_time(field, "m-3", deadline, notes);
    client_is_served(&client, &ALL);
    recovered(field, Instant::now(), notes);
    assert_eq!(pids(field), before);
    nobody_noticed(&client, &["m-1", "m-2"], notes);
    assert_eq!(client.seen()["m-3"].resets, [], "the open connection only waited");
    no_faults(field);
}

/// A host goes with all its processes and comes back: its node runs once more, its fault goes on.
fn host_reboots(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    let planned = cut_clients(field, "m-2", "due", CUT * 4);
    client.forget();
    let mut host = field.hosts.remove(1);
    host.kill();
    host.place.reboot(&field.net);
    host.age_by_a_boot();
    field.hosts.insert(1, host);
    let gone = Instant::now();
    field.wait("it is down", |status| {
        let unknown = status.nodes[1].observed == NodeState::Unknown;
        (status.hosts[1].state == HostState::Down && unknown).then_some(())
    });
    notes.say(format!("said to be down {:.1} s after", gone.elapsed().as_secs_f64()));
    let since = Instant::now();
    field.hosts[1].start();
    wait_for("its node runs", PATIENCE, || {
        never_two(field);
        let copies = look::copies(&field.hosts[1].place, "m-2");
        (copies.len() == 1).then_some(()).ok_or_else(|| format!("{copies:?}"))
    });
    recovered(field, since, notes);
    assert_eq!(in_force(&field.status()), ["due"]);
    // It goes on from the age that the host knew when it went down.
    let deadline = wait_for("the host knows the new deadline", PATIENCE, || {
        let known = look::deadlines(&field.hosts[1].dir).get("due").copied();
        known.filter(|ns| *ns > planned).ok_or_else(|| format!("{known:?}, {planned}"))
    });
    notes.say(format!("the cut lasts {:.1} s longer", (deadline - planned) as f64 / 1e9));
    let status = field.status();
    let node = crate::lab::find(&status, "m-2");
    let exit = node.exit.as_ref().expect("it ended");
    assert!(node.restarts == 0 && exit.rebooted, "no crash: {node:?}");
    ends_in_time(field, "m-2", deadline, notes);
    let after = pids(field);
    assert_ne!(after["m-2"], before["m-2"]);
    assert_eq!((after["m-1"], after["m-3"]), (before["m-1"], before["m-3"]));
    client_is_served(&client, &ALL);
    nobody_noticed(&client, &["m-1", "m-3"], notes);
    no_faults(field);
}
