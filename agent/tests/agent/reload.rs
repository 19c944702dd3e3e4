//! A reload: the agent goes on as the program that is now at its path, under the same pid.

use std::{fs, path::Path, time::Duration};

use faultbed_common::report::{HostReport, NodeState};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{AGENT, Lab, is_alive};

/// Puts a program at a path in one step, as a package manager does.
fn install(path: &Path, program: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    let fresh = path.with_extension("new");
    fs::write(&fresh, program).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&fresh, path).unwrap();
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(std::time::Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_reload_runs_the_program_now_at_its_path_and_nobody_else_notices() {
    let mut lab = Lab::new();
    lab.kill_agent();
    lab.program = lab.dir.path().join("faultbed-agent");
    let release = fs::read(AGENT).unwrap();
    install(&lab.program, &release);
    lab.start_agent();
    lab.add("kv-1", "exec sleep 1000");
    lab.order();
    let node = lab.wait_state("kv-1", NodeState::Ready).pid.unwrap();
    let proxy_of = |report: &HostReport| report.proxy.as_ref().map(|proxy| proxy.pid);
    let proxy = proxy_of(&lab.wait("a proxy", |report| report.proxy.is_some())).unwrap();
    let agent = lab.agent.as_ref().unwrap().id();
    let hang_up = || {
        let pid = Pid::from_raw(agent.cast_signed()).unwrap();
        kill_process(pid, Signal::HUP).unwrap();
    };
    // A program that cannot run costs nothing.
    install(&lab.program, b"#!/bin/sh\nexit 3\n");
    hang_up();
    wait_for("it is refused", || lab.log().contains("not reloaded"));
    assert!(is_alive(agent));

    // Another program that does the same: what follows the last section is not loaded.
    install(&lab.program, &[release.as_slice(), b"next"].concat());
    hang_up();
    wait_for("it runs", || {
        fs::read_link(format!("/proc/{agent}/exe")).is_ok_and(|exe| exe == lab.program)
            && lab
                .log()
                .split("agent reloads")
                .nth(1)
                .is_some_and(|log| log.contains("agent begun"))
    });
    let other = lab.wait("a proxy of the new release", |report| {
        proxy_of(report).is_some_and(|pid| pid != proxy)
    });
    assert_eq!(other.nodes.values().next().unwrap().pid, Some(node), "the same process");
    wait_for("the old proxy is collected", || !Path::new(&format!("/proc/{proxy}")).exists());
    assert!(is_alive(node));
}
