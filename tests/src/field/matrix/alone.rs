//! Rows in which a host, or all of them, are on their own: nobody lives, or can be reached, who could tell them anything.

use std::{
    thread,
    time::{Duration, Instant},
};

use faultbed_common::{
    report::NodeState,
    status::{FaultState, HostState, Status},
};

use super::{
    Row,
    row::{
        ALL, Notes, address, client_is_served, cut_clients, deadline, dials, ended_in_time,
        ends_in_time, in_force, in_time, no_faults, nobody_noticed, outage, pids, recovered,
        silent_until,
    },
};
use crate::{
    field::{Field, PATIENCE, look},
    heard::monotonic_ns,
    wait::wait_for,
};

/// The host that is cut off, its node, and who can still be heard there.
const HOST: usize = 2;
const NODE: &str = "m-3";
/// Coordinators say that a host is down after silence of 7 s; on a busy machine a status takes its time.
const DOWN_WITHIN: Duration = Duration::from_secs(9);
/// How long what ends by itself lasts where everybody is dead: longer than it takes to kill them on any machine.
const CUT: Duration = Duration::from_secs(12);
/// The lab's setting in the row of the dead man's handle.
const DEAD_MAN: Duration = Duration::from_secs(3);
/// An agent knows after so long at most that nobody answers it any more: a ping, and its answer.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);
/// What a noisy machine may add to it.
const NOISE: Duration = Duration::from_secs(20);

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row { name: "host unreachable from its coordinators", run: host_cut_off },
        Row { name: "dead man's handle of such a host", run: dead_man },
        Row { name: "everything dead but proxies and shims", run: all_dead },
    ]
}

/// No packet passes between a host and the coordinators any more, or again.
fn cut_off(field: &Field, is_cut: bool) {
    let coordinators: Vec<u8> = field.coordinators.iter().map(|c| c.place.number()).collect();
    field.hosts[HOST].place.drop_packets(if is_cut { &coordinators } else { &[] });
}

/// Waits until a node hears another one, from now on.
fn hears(field: &Field, (from, to): (&str, &str)) {
    let now = monotonic_ns();
    wait_for(&format!("{to} hears {from}"), PATIENCE, || match field.heard(from, to) {
        Ok(at) if at > now => Ok(()),
        other => Err(format!("{other:?} at {now}")),
    });
}

fn fault_is(status: &Status, name: &str, state: FaultState) -> bool {
    status.faults.iter().any(|fault| fault.name.as_str() == name && fault.state == state)
}

/// Waits until every coordinator says that the host is down, and its node unknown. Until then none of
/// them says that it is up with words that are older than silence may be.
fn said_to_be_down(field: &Field, since: Instant, notes: &mut Notes) {
    let silence = u64::try_from(DOWN_WITHIN.as_millis()).expect("some seconds");
    for at in 0..field.coordinators.len() {
        field.wait_at(at, PATIENCE, "the host is down and its node unknown", |status| {
            let (host, node) = (&status.hosts[HOST], &status.nodes[HOST]);
            let lies = host.state == HostState::Up && host.seen_age_ms.is_none_or(|a| a > silence);
            assert!(!lies, "{status:?}");
            let unknown = node.observed == NodeState::Unknown;
            (host.state == HostState::Down && unknown && !status.converged).then_some(())
        });
    }
    notes.say(format!("said to be down {:.1} s after", since.elapsed().as_secs_f64()));
}

/// A host that hears no coordinator goes on as it was told: what is ordered meanwhile is not said to be so
/// there, and comes true when it is back.
fn host_cut_off(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    field.ok(&["partition", "m-2", NODE, "--name", "stays", "--for", "10m"]);
    let due = cut_clients(field, NODE, "due", outage() + DOWN_WITHIN / 2);
    client.forget();
    cut_off(field, true);
    let began = Instant::now();
    let dials = dials(field, NODE);
    said_to_be_down(field, began, notes);
    ordered_meanwhile(field, notes);
    ended_in_time(dials, NODE, due, notes);
    while began.elapsed() < outage() {
        thread::sleep(Duration::from_millis(100));
    }
    let status = field.status();
    let age = status.hosts[HOST].seen_age_ms.unwrap_or_default();
    let fresh = status.hosts[..HOST].iter().all(|host| host.seen_age_ms < Some(5_000));
    assert!(u128::from(age) + 4_000 > began.elapsed().as_millis() && fresh, "{status:?}");
    notes.say(format!("cut off for {:.0} s, its row {age} ms old", began.elapsed().as_secs_f64()));
    assert_eq!(pids(field), before);
    cut_off(field, false);
    let since = Instant::now();
    for at in 0..field.coordinators.len() {
        field.wait_at(at, PATIENCE, "exactly what was ordered", |status| {
            let healed = fault_is(status, "stays", FaultState::Healed);
            (healed && in_force(status) == ["later"]).then_some(())
        });
    }
    recovered(field, since, notes);
    hears(field, ("m-2", NODE));
    assert_eq!(pids(field), before);
    client_is_served(&client, &ALL);
    nobody_noticed(&client, &["m-1", "m-2"], notes);
    assert_eq!(client.seen()[NODE].resets, [], "the open connection only waited");
    no_faults(field);
}

/// While a host is cut off, one of its faults is healed and one begins, as far as the others know.
fn ordered_meanwhile(field: &Field, notes: &mut Notes) {
    let heal = field.run(0, &["heal", "stays", "--wait=1s"]);
    let last = heal.stderr.lines().next().unwrap_or_default();
    notes.say(format!("a heal meanwhile: exit {}, {last}", heal.code));
    assert_ne!(heal.code, 0, "{}", heal.stdout);
    field.ok(&[
        "inject",
        "latency",
        "1ms",
        "--between",
        "m-1",
        NODE,
        "--name",
        "later",
        "--no-wait",
    ]);
    let status = field.status();
    assert_eq!(in_force(&status), Vec::<String>::new(), "{status:?}");
    let said = status.stuck.iter().chain(&status.pending).any(|line| line.contains("h3"));
    assert!(said && !status.converged, "{status:?}");
    // Its peers are reached, and what was ordered before is still so on it.
    hears(field, ("m-1", NODE));
    hears(field, (NODE, "m-1"));
    let held = field.heard("m-2", NODE).unwrap_or_default();
    hears(field, ("m-1", NODE));
    assert_eq!(field.heard("m-2", NODE).unwrap_or_default(), held, "bytes crossed the cut");
}

/// With the lab's setting, such a host heals its own faults in time, and says so when it is back; those
/// of others stay.
fn dead_man(field: &mut Field, notes: &mut Notes) {
    field.settle(&format!("dead_man = \"{}s\"", DEAD_MAN.as_secs()));
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    field.ok(&["partition", "m-1", "m-2", "--name", "near", "--for", "10m"]);
    field.ok(&["partition", "clients", NODE, "--across", "--name", "held", "--for", "10m"]);
    client.forget();
    cut_off(field, true);
    let began = Instant::now();
    let _opened = look::opens_at(&field.outside, address(field, NODE), PATIENCE);
    let took = began.elapsed();
    notes.say(format!(
        "cut off, it healed its fault after {:.1} s (setting {DEAD_MAN:?})",
        took.as_secs_f64()
    ));
    assert!((DEAD_MAN..DEAD_MAN + NOTICED_WITHIN + NOISE).contains(&took), "{took:?}");
    let status = field.status();
    assert_eq!(in_force(&status), ["near"], "what a silent host does is not known");
    assert_eq!(pids(field), before);
    cut_off(field, false);
    let since = Instant::now();
    for at in 0..field.coordinators.len() {
        field.wait_at(at, PATIENCE, "the host says what it did", |status| {
            let fault = status.faults.iter().find(|fault| fault.name.as_str() == "held")?;
            let why = fault.why.as_ref()?;
            let said = fault.state == FaultState::Healed
                && why.contains(&format!("host h3 heard no coordinator for {DEAD_MAN:?}"));
            (said && in_force(status) == ["near"]).then_some(())
        });
    }
    notes.say(format!("said {:.1} s after it was back", since.elapsed().as_secs_f64()));
    recovered(field, since, notes);
    assert_eq!(pids(field), before);
    client_is_served(&client, &ALL);
    nobody_noticed(&client, &["m-1", "m-2"], notes);
    assert_eq!(client.seen()[NODE].resets, [], "the open connection only waited");
    no_faults(field);
    field.settle("");
}

/// Agents, coordinators and their store are all dead when faults are due: those of links and those of
/// nodes end in time.
fn all_dead(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    let lasts = format!("{}s", CUT.as_secs());
    field.ok(&["pause", "m-2", "--name", "still", "--for", &lasts]);
    let resumes = deadline(field, "m-2", "still");
    let opens = cut_clients(field, NODE, "due", CUT + Duration::from_secs(1));
    client.forget();
    let (coordinators, hosts) = (&mut field.coordinators, &mut field.hosts);
    coordinators.iter_mut().chain(hosts).for_each(|daemon| daemon.kill());
    (0..3).for_each(|member| field.etcd.kill_member(member));
    let refused = field.run(0, &["status"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    // A node that stands still has a short queue for dials, which must not be full when it goes on.
    silent_until(&client, "m-2", resumes);
    let resumed = look::opens_at(&field.outside, address(field, "m-2"), PATIENCE);
    in_time("the pause of m-2", resumed, resumes, notes);
    ends_in_time(field, NODE, opens, notes);
    client_is_served(&client, &ALL);
    assert_eq!(pids(field), before);
    (0..3).for_each(|member| field.etcd.start_member(member));
    field.etcd.wait_ready();
    let since = Instant::now();
    let (coordinators, hosts) = (&mut field.coordinators, &mut field.hosts);
    coordinators.iter_mut().chain(hosts).for_each(|daemon| daemon.start());
    for at in 0..field.coordinators.len() {
        field.wait_at(at, PATIENCE, "both are over", |status| {
            let over = |name| fault_is(status, name, FaultState::Expired);
            (over("due") && over("still")).then_some(())
        });
    }
    recovered(field, since, notes);
    assert_eq!(pids(field), before, "the same processes");
    nobody_noticed(&client, &["m-1"], notes);
    for node in ["m-2", NODE] {
        assert_eq!(client.seen()[node].resets, [], "the open connection of {node} only waited");
    }
    no_faults(field);
}
