//! A machine that goes down and comes back: its nodes run again, and only what crashed has crashed.

use std::{fs, path::Path, time::Duration};

use faultbed_common::{generation::Incarnation, report::NodeState};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    POLITE,
    lab::{Lab, is_alive},
};

/// Makes what is on disk that of an earlier boot, which is all that a machine keeps over one.
fn age_by_a_boot(dir: &Path, boot_id: &str) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            age_by_a_boot(&path, boot_id);
        } else if path.extension().is_some_and(|name| name == "json") {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace(boot_id, "the-boot-before")).unwrap();
        }
    }
}

fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

#[test]
fn a_reboot_starts_nodes_again_and_is_no_crash_of_theirs() {
    let mut lab = Lab::new();
    for name in ["told", "cut-off"] {
        lab.add(name, POLITE);
    }
    lab.add("broken", "exit 3");
    lab.order();
    let pids = ["told", "cut-off"].map(|name| lab.wait_state(name, NodeState::Ready).pid.unwrap());
    lab.wait_state("broken", NodeState::Crashed);
    let before = lab.wait("a proxy", |report| report.proxy.is_some());
    // One shim is told before its machine goes down, the other loses its power.
    lab.kill_agent();
    let shims = pids.map(parent);
    send(shims[0], Signal::TERM);
    send(shims[1], Signal::KILL);
    send(before.proxy.unwrap().pid, Signal::KILL);
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while pids.iter().chain(&shims).any(|pid| is_alive(*pid)) {
        assert!(std::time::Instant::now() < end, "they live: {pids:?} {shims:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    age_by_a_boot(&lab.host_dir(), &before.boot_id);

    lab.start_agent();
    for name in ["told", "cut-off"] {
        let node = lab.wait_state(name, NodeState::Ready);
        assert_eq!((node.incarnation, node.restarts), (Incarnation(2), 0), "{name}");
        let exit = node.exit.unwrap();
        assert!(exit.rebooted && exit.last_lines.is_empty(), "{name}: {exit:?}");
    }
    let broken = lab.wait_state("broken", NodeState::Crashed);
    assert_eq!(broken.incarnation, Incarnation(1), "what crashed before stays down");
    assert!(!broken.exit.unwrap().rebooted);
}
