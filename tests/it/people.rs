//! A lab that several people share: programs and files beside nodes, cuts by host and from clients,
//! and what ends by itself with every coordinator dead.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use faultbed_common::{
    report::NodeState,
    status::{FaultState, Status},
};
use faultbed_tests::{
    lab::{Lab, PATIENCE, find, is_alive, signal},
    wait::wait_for,
};
use rustix::process::Signal;

const FILE: &str = "[lab]\nhosts = 3\ndead_man = \"2s\"\n\n[host.h1]\nlabels = { dc = \"east\" }\n\n\
                    [cluster.kv]\nblueprint = \"etcd\"\nlease = \"1h\"\n";

/// Runs `faultbed` with something on its standard input; its output as bytes.
fn piped(lab: &Lab, args: &[&str], input: &[u8]) -> (i32, Vec<u8>, String) {
    let mut command = lab.command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("run faultbed");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("wait for faultbed");
    writer.join().expect("write").ok();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), output.stdout, said)
}

/// Every byte there is, longer than one piece.
fn bytes() -> Vec<u8> {
    (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

fn programs_and_files(lab: &Lab) {
    let script = "cat; echo \"$FAULTBED_NAME $PWD\" >&2; exit 7";
    let (code, out, said) = piped(lab, &["exec", "kv-2", "--", "sh", "-c", script], &bytes());
    assert_eq!(code, 7, "{said}");
    assert!(out == bytes(), "{} bytes came back", out.len());
    assert!(said.starts_with("kv-2 ") && said.trim_end().ends_with("nodes/kv-2"), "{said}");
    let (code, ..) = piped(lab, &["exec", "kv-2", "--", "sh", "-c", "kill -TERM $$"], b"");
    assert_eq!(code, 143);
    let (code, _, said) = piped(lab, &["exec", "kv-2", "--", "no-such-program"], b"");
    assert!(code == 1 && said.contains("no-such-program"), "{said}");

    let here = lab.home().join("here.bin");
    std::fs::write(&here, bytes()).expect("write file");
    lab.ok(&["cp", "here.bin", "kv-1:data/"]);
    lab.ok(&["cp", "kv-1:data/here.bin", "back.bin"]);
    assert!(std::fs::read(lab.home().join("back.bin")).expect("read file") == bytes());
    for (args, reason) in [
        (["cp", "kv-1:../../../../etc/passwd", "x"], "is not below the directory of kv-1"),
        (["cp", "kv-1:/etc/passwd", "x"], "is not below the directory of kv-1"),
        (["cp", "here.bin", "kv-1:runs/x"], "records of the agent"),
        (["cp", "here.bin", "kv:data/x"], "kv is 3 nodes"),
    ] {
        let refused = lab.run(&args);
        assert!(refused.code != 0 && refused.stderr.contains(reason), "{}", refused.stderr);
    }
    // A program ends with whoever asked for it.
    let mark = format!("97{}", std::process::id());
    let mut asking = lab.command(&["exec", "kv-3", "--", "sleep", &mark]).spawn().expect("run");
    let runs = || {
        let found = Command::new("pgrep").args(["-fx", &format!("sleep {mark}")]).output();
        found.expect("run pgrep").status.success()
    };
    wait_for("the program runs", PATIENCE, || runs().then_some(()).ok_or_else(String::new));
    asking.kill().expect("kill");
    asking.wait().expect("wait");
    wait_for("it ends", PATIENCE, || (!runs()).then_some(()).ok_or_else(String::new));
    assert!(lab.ok(&["events"]).contains("asks to run sleep"));
}

fn by_host(lab: &Lab) {
    let reply = lab.ok(&["partition", "host:h1 | host:h2,host:h3", "--name", "split"]);
    assert!(reply.contains("split: kv-1 | kv-2, kv-3"), "{reply}");
    lab.ok(&["heal", "split"]);
    let reply = lab.ok(&["isolate", "label:dc=east", "--name", "east", "--plan"]);
    assert!(reply.contains("kv-1 | kv-2, kv-3"), "{reply}");
    let refused = lab.run(&["isolate", "label:dc=north"]);
    assert!(refused.stderr.contains("dc=east"), "{}", refused.stderr);
}

/// `etcdctl` of one node's address, which needs no coordinator.
fn reaches(endpoint: &str) -> bool {
    let health = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args([&format!("--endpoints={endpoint}"), "--dial-timeout=1s", "--command-timeout=1s"])
        .args(["endpoint", "health"])
        .output();
    health.expect("run etcdctl").status.success()
}

fn fault_state(status: &Status, name: &str) -> Option<(FaultState, Option<String>)> {
    let fault = status.faults.iter().find(|fault| fault.name.as_str() == name)?;
    Some((fault.state, fault.why.clone()))
}

fn kill_coordinator(lab: &Lab) {
    signal(lab.daemon_pid("coordinator/coordinator.pid"), Signal::KILL);
}

#[test]
fn a_shared_lab_reaches_its_nodes_and_ends_what_nobody_ends() {
    let lab = Lab::up("people", FILE);
    lab.wait_ready();
    assert!(lab.ok(&["status"]).contains("kv ready (lease 59m"));
    programs_and_files(&lab);
    by_host(&lab);

    // Cut from clients alone: its peers still reach it, so it stays a member in good health.
    let status = lab.status();
    let endpoint = find(&status, "kv-1").endpoints["client"].clone();
    lab.ok(&["partition", "kv-1", "clients", "--for", "none", "--name", "alone"]);
    assert!(!reaches(&endpoint));
    assert!(reaches(&find(&status, "kv-2").endpoints["client"]));

    // Nobody is left who could heal it: its host does.
    kill_coordinator(&lab);
    wait_for("the host heals by itself", PATIENCE, || {
        reaches(&endpoint).then_some(()).ok_or_else(|| "still cut".to_owned())
    });
    lab.ok(&["up", "-d"]);
    lab.wait("the fault says who healed it", |status| {
        let (state, why) = fault_state(status, "alone")?;
        let said = why.is_some_and(|why| why.contains("heard no coordinator for 2s"));
        (state == FaultState::Healed && said).then_some(())
    });
    assert!(lab.ok(&["history"]).contains("alone healed: host h1 heard no coordinator for 2s"));

    // The end of a lease, likewise.
    lab.wait_ready();
    let pids: Vec<u32> = lab.status().nodes.iter().filter_map(|node| node.pid).collect();
    assert_eq!(pids.len(), 3);
    lab.ok(&["set", "kv", "lease=6s"]);
    // Every host has heard of it.
    lab.wait("every host has it", |status| status.converged.then_some(()));
    kill_coordinator(&lab);
    wait_for("the hosts stop its nodes", PATIENCE, || {
        let alive = pids.iter().filter(|pid| is_alive(**pid)).count();
        if alive == 0 { Ok(()) } else { Err(format!("{alive} live")) }
    });
    lab.ok(&["up", "-d"]);
    lab.wait("the cluster is stopped", |status| {
        let lease = status.clusters[0].lease.as_ref()?;
        let down = status.nodes.iter().all(|node| node.observed == NodeState::Stopped);
        (lease.ended && down && status.converged).then_some(())
    });
    assert!(lab.ok(&["status"]).contains("kv stopped (lease ended)"));
    let reply = lab.ok(&["set", "kv", "lease=1h"]);
    assert!(reply.contains("`faultbed start kv` starts them"), "{reply}");
    lab.ok(&["start", "kv"]);
    lab.wait_ready();
}
