//! Whoever dies at whatever moment: the same processes, no second copy, the same faults, convergence.

use std::{
    collections::BTreeSet,
    io::Write as _,
    time::{Duration, Instant},
};

use faultbed_common::{name::NodeName, report::NodeState, status::FaultState};
use faultbed_tests::{
    lab::{ETCD, Lab, PATIENCE, find, signal},
    wait::{strike_after, wait_for},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::process::Signal;

/// Changes made while daemons die.
const ROUNDS: usize = 8;

/// A seed from the environment, to replay; else a new one. Printed either way.
fn seed() -> u64 {
    let seed = std::env::var("FAULTBED_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random);
    let replay = format!("FAULTBED_SEED={seed} cargo test -p faultbed-tests --test it crash::");
    writeln!(std::io::stderr(), "replay: {replay}").expect("print the seed");
    seed
}

/// The processes that run etcd with this lab's data of one node.
fn copies(lab: &Lab, node: &str) -> Vec<u32> {
    let own = format!("/nodes/{node}/data");
    let home = lab.home().display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains(&home) && line.contains(&own) && line.contains("etcd") {
            found.push(pid);
        }
    }
    found
}

#[test]
fn daemons_killed_at_random_moments_during_changes_lose_nothing_and_double_nothing() {
    let mut dice = StdRng::seed_from_u64(seed());
    let lab = Lab::up("crashes", ETCD);
    let untouched: Vec<_> = ["kv-1", "kv-2"].iter().map(|n| lab.node(n).pid).collect();
    let mut wanted = BTreeSet::new();
    for round in 0..ROUNDS {
        let name = format!("slow-{round}");
        let change: Vec<&str> = match round % 3 {
            0 | 1 => vec![
                "inject",
                "latency",
                "1ms",
                "--from",
                "kv-1",
                "--to",
                "kv-2",
                "--name",
                &name,
                "--no-wait",
            ],
            _ => vec!["restart", "kv-3", "--no-wait"],
        };
        let mut child = lab
            .command(&change)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("run faultbed");
        strike_after(Duration::from_millis(dice.random_range(0..60)));
        let victim = match dice.random_range(0..4) {
            0 => "coordinator/coordinator.pid".to_owned(),
            host => format!("hosts/h{host}/agent.pid"),
        };
        signal(lab.daemon_pid(&victim), Signal::KILL);
        let code = child.wait().expect("wait").code();
        lab.ok(&["up", "-d"]);
        // A verb whose coordinator died may have been accepted or not: the history knows.
        let accepted = lab.status().faults.iter().any(|f| f.name.to_string() == name);
        assert!(code != Some(0) || round % 3 == 2 || accepted, "an acknowledged fault is there");
        if accepted {
            wanted.insert(name);
        }
    }
    lab.wait_ready();
    let status = lab.wait("exactly the accepted faults are in force", |status| {
        let active: BTreeSet<_> = status
            .faults
            .iter()
            .filter(|f| f.state == FaultState::Active && f.in_force)
            .map(|f| f.name.to_string())
            .collect();
        (active == wanted).then(|| status.clone())
    });
    let now: Vec<_> = ["kv-1", "kv-2"].iter().map(|n| find(&status, n).pid).collect();
    assert_eq!(untouched, now, "nodes that nobody restarted are the same processes");
    for node in ["kv-1", "kv-2", "kv-3"] {
        let node: NodeName = node.parse().expect("a name");
        assert_eq!(copies(&lab, node.as_str()).len(), 1, "one copy of {node}");
    }
}

#[test]
fn a_proxy_killed_during_a_cut_never_comes_back_open() {
    let lab = Lab::up("proxydies", ETCD);
    let node = lab.node("kv-2");
    let address: std::net::SocketAddr =
        node.endpoints["client"].trim_start_matches("http://").parse().expect("an address");
    let dial = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100));
    assert!(dial().is_ok());
    lab.ok(&["partition", "clients", "kv-2", "--across", "--name", "gone", "--for", "10m"]);
    let record = lab.dir().join("hosts").join(node.host.as_str()).join("proxy/proxy.pid.json");
    let pid = || {
        let text = std::fs::read_to_string(&record).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        json["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())
    };
    let first = pid().expect("the proxy runs");
    signal(first, Signal::KILL);
    let start = Instant::now();
    let mut dials = 0;
    while start.elapsed() < Duration::from_secs(3) {
        // Refused while nobody listens, unanswered once the new proxy does; never open.
        assert!(dial().is_err(), "a byte could cross after {:?}", start.elapsed());
        dials += 1;
    }
    assert!(dials > 20, "{dials}");
    wait_for("a new proxy runs", PATIENCE, || {
        pid().filter(|pid| *pid != first).ok_or_else(|| "the old one".to_owned())
    });
    lab.wait("the cut is in force again", |status| {
        status.faults.iter().any(|f| f.in_force).then_some(())
    });
    assert!(dial().is_err());
    lab.ok(&["heal", "gone"]);
    wait_for("it is open again", PATIENCE, || dial().map_err(|e| e.to_string()));
}

#[test]
fn an_agent_that_stands_still_is_seen_and_goes_on_where_it_was() {
    let lab = Lab::up("standstill", ETCD);
    lab.wait_ready();
    let pid = lab.node("kv-2").pid;
    let agent = lab.daemon_pid("hosts/h2/agent.pid");
    signal(agent, Signal::STOP);
    let status = lab.wait("nobody hears of it", |status| {
        (find(status, "kv-2").observed == NodeState::Unknown).then(|| status.clone())
    });
    assert!(!status.converged);
    assert_eq!(status.stuck, ["h2 is down: its agent is not connected"]);
    signal(agent, Signal::CONT);
    lab.wait_ready();
    assert_eq!(lab.node("kv-2").pid, pid);
}

#[test]
fn a_shim_that_is_killed_takes_its_node_along_and_that_is_a_crash() {
    let lab = Lab::up("shimdies", ETCD);
    let pid = lab.node("kv-3").pid.expect("it runs");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read stat");
    let rest = stat.rsplit(") ").next().expect("after the name");
    let shim = rest.split(' ').nth(1).and_then(|pid| pid.parse().ok()).expect("its parent");
    signal(shim, Signal::KILL);
    lab.wait("it is a crash", |status| {
        (find(status, "kv-3").observed == NodeState::Crashed).then_some(())
    });
    assert_eq!(copies(&lab, "kv-3"), Vec::<u32>::new());
    lab.ok(&["start", "kv-3"]);
    lab.wait_ready();
    assert_eq!(copies(&lab, "kv-3").len(), 1);
}

#[test]
fn a_runtime_directory_that_was_cleared_is_put_back_and_the_lab_obeys() {
    let lab = Lab::up("cleared", ETCD);
    lab.wait_ready();
    let pids = |lab: &Lab| lab.status().nodes.iter().map(|node| node.pid).collect::<Vec<_>>();
    let before = pids(&lab);
    lab.ok(&["partition", "kv-1", "kv-2", "--name", "early", "--for", "10m"]);
    std::fs::remove_dir_all(lab.runtime()).expect("remove the runtime directory");
    wait_for("the socket is back", PATIENCE, || {
        let ran = lab.run(&["status"]);
        if ran.code == 0 { Ok(()) } else { Err(ran.stderr) }
    });
    lab.ok(&["heal", "early"]);
    lab.ok(&["partition", "clients", "kv-3", "--across", "--name", "late", "--for", "10m"]);
    lab.ok(&["heal", "late"]);
    lab.wait_ready();
    assert_eq!(pids(&lab), before);
}
