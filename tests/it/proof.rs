//! What proves a fault, and what goes with it: canaries, a fast heal, targets that follow, a database's own word.

use std::fs;

use faultbed_common::{
    report::CanaryVerdict,
    status::{FaultState, FaultStatus, Status, Verdict},
};
use faultbed_tests::{
    lab::{ETCD, Lab, PATIENCE, leader},
    wait::wait_for,
};
use rustix::{
    net::sockopt,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

fn fault<'a>(status: &'a Status, name: &str) -> &'a FaultStatus {
    status.faults.iter().find(|f| f.name.as_str() == name).expect("fault is in the status")
}

/// The two nodes that do not lead.
fn followers(of: &str) -> [&'static str; 2] {
    let others: Vec<_> = ["kv-1", "kv-2", "kv-3"].into_iter().filter(|node| *node != of).collect();
    others.try_into().expect("two")
}

/// How many sockets of a process have a patience of more than a quarter of an hour, which no database
/// gives them by itself.
fn patient_sockets(pid: u32) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("look at the node");
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let process = Pid::from_raw(pid.cast_signed()).expect("a pid");
    let process = pidfd_open(process, PidfdFlags::empty()).expect("open the node");
    let patience = |number: i32| {
        let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
        sockopt::tcp_user_timeout(socket).ok()
    };
    numbers.filter_map(patience).filter(|ms| *ms > 15 * 60 * 1000).count()
}

#[test]
fn a_canary_proves_a_cut_and_its_heal_and_a_fast_heal_reaches_the_nodes() {
    let lab = Lab::up("proof", ETCD);
    let [a, b] = followers(lab.wait_ready().as_str());
    lab.ok(&["partition", a, b, "--canary", "--fast-heal", "--name", "cut", "--for", "10m"]);
    lab.wait("each is asked as the other, and is silent", |status| {
        let cut = fault(status, "cut");
        assert_ne!(cut.evidence.verdict, Verdict::Mismatch, "{:?}", cut.evidence);
        let all = cut.evidence.canary.values();
        let silent =
            all.filter(|one| one.before == Some(true) && one.tries > 1 && one.answers == 0);
        (silent.count() == 2 && cut.in_force && cut.why.is_none()).then_some(())
    });
    let pid = lab.node(a).pid.expect("it runs");
    let bounded = |wanted: bool| {
        wait_for(&format!("its sockets are bounded: {wanted}"), PATIENCE, || {
            let count = patient_sockets(pid);
            if (count > 0) == wanted { Ok(()) } else { Err(format!("{count} sockets")) }
        });
    };
    bounded(true);
    lab.ok(&["heal", "cut", "--require", "confirmed"]);
    lab.wait("both answer again, which agrees", |status| {
        let all: Vec<_> = fault(status, "cut").evidence.canary.values().collect();
        let healed = all.iter().all(|one| {
            one.healed_after_ms.is_some() && one.verdict == CanaryVerdict::Agrees && one.is_over
        });
        (healed && all.len() == 2).then_some(())
    });
    bounded(false);
    let status = lab.status();
    assert_eq!(fault(&status, "cut").state, FaultState::Healed);
    assert_eq!(fault(&status, "cut").evidence.verdict, Verdict::Confirmed);

    // The same lab: a fault whose target is whoever leads.
    let first = lab.wait_ready();
    let inject = "inject latency 1ms --from clients --to leader:kv --follow --name tail --for 10m";
    lab.ok(&inject.split(' ').collect::<Vec<_>>());
    assert!(fault(&lab.status(), "tail").resolved.touched().contains(&first));
    lab.ok(&["stop", first.as_str()]);
    lab.wait("the fault has moved to the new leader", |status| {
        let new = leader(status).filter(|new| *new != first)?;
        let tail = fault(status, "tail");
        let touched = tail.resolved.touched();
        (tail.in_force && touched.contains(&new) && !touched.contains(&first)).then_some(())
    });
    lab.ok(&["start", first.as_str()]);
    lab.wait_ready();
}

#[test]
fn a_database_notices_corruption_between_members_and_keeps_its_data() {
    // Etcd 3.4 crashes where a bit of its peer's version header is not what it was. And the two must stay
    // followers on a busy machine: an altered log would be in their data for good.
    let more = "on_crash = \"restart\"\n\n[cluster.kv.etcd]\n\
                args = [\"--heartbeat-interval=300\", \"--election-timeout=3000\"]\n";
    let lab = Lab::up("corrupt", &format!("{ETCD}{more}"));
    let [a, b] = followers(lab.wait_ready().as_str());
    let all = ["kv-1", "kv-2", "kv-3"];
    assert_eq!(lab.etcdctl(&all, &["put", "before", "1"]).stdout, "OK\n");
    // Between followers there are only signs of life: the log of writes goes from the leader to each.
    lab.ok(&["inject", "corrupt", "100%", "--between", a, b, "--name", "noise", "--for", "10m"]);
    lab.wait("a member says that its peer's words make no sense, or dies of them", |status| {
        let is_dead = status.nodes.iter().any(|node| node.restarts > 0);
        let said = [a, b].map(|node| lab.ok(&["logs", node, "-n", "all"])).join("\n");
        let is_told = |line: &str| {
            line.contains("lost TCP streaming connection")
                || line.contains("peer became inactive")
                || line.contains("failed to dial in stream")
        };
        (is_dead || said.lines().any(is_told)).then_some(())
    });
    lab.ok(&["heal", "noise", "--require", "confirmed"]);
    lab.wait_ready();
    assert!(fault(&lab.status(), "noise").evidence.total.corrupted_bytes > 0);
    assert_eq!(lab.etcdctl(&all, &["put", "after", "2"]).stdout, "OK\n");
    wait_for("all three agree", PATIENCE, || {
        let got =
            all.map(|n| lab.etcdctl(&[n], &["get", "--prefix", "", "--consistency=s"]).stdout);
        let same = got.iter().all(|one| one == "after\n2\nbefore\n1\n");
        if same { Ok(()) } else { Err(format!("{got:?}")) }
    });
}
