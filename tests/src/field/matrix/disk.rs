//! The row that fills the disk of an agent.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use faultbed_common::{report::NodeState, status::HostState};

use super::{
    Row,
    row::{
        ALL, Notes, client_is_served, cut_clients, ends_in_time, in_force, no_faults,
        nobody_noticed, pids, recovered,
    },
};
use crate::field::{Field, PATIENCE};

/// How long the cut lasts that is in force when the disk is full.
const CUT: Duration = Duration::from_secs(6);
/// What fills it.
const BALLAST: &str = "ballast";

pub(super) fn rows() -> Vec<Row> {
    vec![Row { name: "disk full on the agent", run: disk_full }]
}

/// Nodes, streams and the deadline of what is in force go on; what is new and cannot be kept is said
/// to be stuck, or is in force all the same, and comes true when there is room.
fn disk_full(field: &mut Field, notes: &mut Notes) {
    let before = pids(field);
    let client = field.client();
    client_is_served(&client, &ALL);
    let deadline = cut_clients(field, "m-3", "due", CUT);
    client.forget();
    let dir = field.hosts[2].dir.clone();
    fill(&dir);
    let ran = field.run(
        0,
        &["inject", "latency", "1ms", "--between", "m-2", "m-3", "--name", "slow", "--wait=2s"],
    );
    let status = field.status();
    let said: Vec<_> = status.stuck.iter().chain(&status.pending).cloned().collect();
    notes.say(format!("a new fault with a full disk: exit {}; status says {said:?}", ran.code));
    assert_eq!(status.hosts[2].state, HostState::Up);
    assert!(
        in_force(&status).contains(&"slow".to_owned())
            || said.iter().any(|line| line.contains("h3")),
        "{status:?}"
    );
    ends_in_time(field, "m-3", deadline, notes);
    client_is_served(&client, &ALL);
    assert_eq!(pids(field), before);
    // Whoever is started on a full disk has what was settled before.
    field.hosts[2].kill();
    field.hosts[2].start();
    field.wait("its agent is back", |status| {
        let fresh = status.hosts[2].seen_age_ms.is_some_and(|ms| ms < 5_000);
        let ready = status.nodes[2].observed == NodeState::Ready;
        (status.hosts[2].state == HostState::Up && fresh && ready).then_some(())
    });
    assert_eq!(pids(field), before);
    fs::remove_file(dir.join(BALLAST)).expect("make room");
    let since = Instant::now();
    field.wait_at(0, PATIENCE, "the new fault is in force", |status| {
        (in_force(status) == ["slow"]).then_some(())
    });
    recovered(field, since, notes);
    assert_eq!(pids(field), before);
    client_is_served(&client, &ALL);
    nobody_noticed(&client, &["m-1", "m-2"], notes);
    no_faults(field);
}

/// Until nothing more goes in.
fn fill(dir: &Path) {
    let ran = Command::new("dd")
        .args(["if=/dev/zero", "bs=4096", "status=none"])
        .arg(format!("of={}", dir.join(BALLAST).display()))
        .output();
    let ran = ran.expect("run dd");
    assert!(!ran.status.success(), "the disk has no end: is {} a tmpfs?", dir.display());
}
