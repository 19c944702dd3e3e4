//! What people see.

use faultbed_common::{
    edit::{Edit, NodeVerb},
    generation::Incarnation,
    link::Link,
    report::{
        Bypass, CanaryReport, CanaryVerdict, ExitReport, LinkEvidence, NodeState, ProxyReport,
    },
    status::{ClusterState, FaultGrade, FaultState, HostState, Status, Verdict},
};

use super::{Detail, status};
use crate::decide::fixtures::{World, empty, key, node, ready};

fn fault<'a>(status: &'a Status, name: &str) -> &'a faultbed_common::status::FaultStatus {
    status.faults.iter().find(|fault| fault.name.as_str() == name).unwrap()
}

fn count(world: &mut World, host: &str, name: &str, link: &str, counted: LinkEvidence) {
    let report = world.said(host);
    let link: Link = link.parse().unwrap();
    report.faults.get_mut(&key(name)).unwrap().links.insert(link, counted);
}

#[test]
fn a_lab_that_obeys_is_converged_and_shows_how_to_connect() {
    let mut world = ready();
    world.obey();
    let status = world.status();
    assert!(status.converged, "{:?} {:?}", status.pending, status.stuck);
    assert_eq!(status.clusters[0].state, ClusterState::Ready);
    let first = &status.nodes[0];
    assert_eq!(first.endpoints["client"], "http://127.77.5.1:2379");
    assert_eq!(first.private["peer"], "http://127.130.128.1:2380");
    assert_eq!((first.leader, status.nodes[1].leader), (Some(true), Some(false)));
    assert_eq!(first.state_age_ms, Some(10_500));
    assert_eq!(status.hosts[0].seen_age_ms, Some(500));
}

#[test]
fn what_is_pending_names_host_and_generation() {
    let mut world = empty();
    world.apply("[cluster.kv]\nblueprint = \"etcd\"\n").unwrap();
    assert_eq!(
        world.status().pending,
        ["h1 has not reported yet", "h2 has not reported yet", "h3 has not reported yet"]
    );
    assert_eq!(world.status().clusters[0].state, ClusterState::Starting);
    world.obey();
    world.chores();
    let behind = world.status();
    assert_eq!(behind.pending[1], "h2 has not applied generation 2");
    assert!(!behind.converged);
}

#[test]
fn a_dead_host_is_stuck_and_its_nodes_unknown() {
    let mut world = ready();
    world.obey();
    let mut hosts = world.seen();
    hosts.get_mut(&key("h2")).unwrap().connected = false;
    let status = status(&world.lab, &hosts, &[], (world.now, Detail::All));
    assert_eq!(status.stuck, ["h2 is down: its agent is not connected"]);
    assert_eq!(status.hosts[1].state, HostState::Down);
    let node = &status.nodes[1];
    assert_eq!((node.observed, node.pid, node.leader), (NodeState::Unknown, None, None));
    assert_eq!(node.why.as_deref(), Some("h2 is down"));
    assert_eq!(status.clusters[0].state, ClusterState::Degraded);
}

#[test]
fn what_a_proxy_could_not_do_is_a_warning_with_what_helps() {
    let mut world = ready();
    world.obey();
    let proxy = |refused| Some(ProxyReport { refused, ..ProxyReport::default() });
    world.said("h1").proxy = proxy(0);
    assert_eq!(world.status().hosts[0].warnings, Vec::<String>::new());
    world.said("h1").proxy = proxy(7);
    let warnings = &world.status().hosts[0].warnings;
    assert!(warnings[0].contains("refused 7 connections") && warnings[0].contains("ulimit"));
}

#[test]
fn a_crash_is_stuck_with_its_exit_and_a_stop_or_kill_is_not() {
    let mut world = ready();
    world.verb("kv-3", NodeVerb::Stop).unwrap();
    world.obey();
    world.report("kv-2", |seen| {
        seen.observed = NodeState::Crashed;
        seen.exit = Some(ExitReport { code: Some(2), ..ExitReport::default() });
    });
    assert_eq!(world.status().stuck, ["kv-2: crashed, exit 2"]);
    world.lab.clusters.get_mut(&key("kv")).unwrap().blueprint.on_crash =
        faultbed_common::spec::OnCrash::Restart;
    let status = world.status();
    assert!(status.stuck.is_empty());
    assert_eq!(status.pending, ["kv-2: crashed, exit 2; it is started again"]);
}

#[test]
fn a_crash_is_told_once_by_node_or_host() {
    let mut world = ready();
    world.obey();
    world.report("kv-2", |seen| {
        seen.observed = NodeState::Crashed;
        seen.exit = Some(ExitReport::default());
    });
    let host = world.said("h2");
    host.stuck = vec!["kv-2: crashed: ended; restarted 100 times".to_owned()];
    assert_eq!(world.status().stuck, ["kv-2: crashed, nobody saw how"]);
    world.lab.clusters.get_mut(&key("kv")).unwrap().blueprint.on_crash =
        faultbed_common::spec::OnCrash::Restart;
    let status = world.status();
    assert_eq!(status.stuck, ["h2: kv-2: crashed: ended; restarted 100 times"]);
    assert!(status.pending.is_empty(), "it is not started again: {:?}", status.pending);
}

#[test]
fn a_restart_that_has_not_happened_is_pending() {
    let mut world = ready();
    world.verb("kv-1", NodeVerb::Restart).unwrap();
    let before = world.reports.clone();
    world.obey();
    for (host, report) in &mut world.reports {
        let report = std::sync::Arc::make_mut(report);
        report.nodes = before[host].nodes.clone();
    }
    assert_eq!(world.placement("kv-1").incarnation, Incarnation(2));
    assert_eq!(world.status().pending, ["kv-1 has not started run 2"]);
}

#[test]
fn a_stale_leader_is_not_shown_to_lead() {
    let mut world = ready();
    world.obey();
    world.report("kv-2", |seen| {
        seen.leader = Some(true);
        seen.term = Some(3);
    });
    let status = world.status();
    let leads: Vec<_> = status.nodes.iter().map(|node| node.leader).collect();
    assert_eq!(leads, [Some(false), Some(true), Some(false)]);
}

#[test]
fn a_fault_is_in_force_when_every_host_of_its_links_says_so() {
    let mut world = ready();
    let name = world.inject("isolate = \"kv-1\"\nfor = \"30s\"").unwrap();
    let pending = world.status();
    assert!(!fault(&pending, name.as_str()).in_force);
    assert!(pending.pending.contains(&format!("fault {name} is not in force on h3 yet")));
    world.obey();
    let status = world.status();
    let seen = fault(&status, name.as_str());
    assert!(seen.in_force && status.converged, "{:?}", status.pending);
    assert_eq!((seen.state, seen.grade, seen.links), (FaultState::Active, FaultGrade::Packet, 4));
    assert_eq!(seen.remaining_ms, Some(29_500));
    assert_eq!(status.nodes[0].faults, std::slice::from_ref(&name));
    // The weakest grade of all hosts is the fault's, and one that fails says why.
    let report = world.said("h2").faults.get_mut(&name).unwrap();
    report.grade = Some(faultbed_common::fault::Grade::Stream);
    assert_eq!(fault(&world.status(), name.as_str()).grade, FaultGrade::Stream);
    let report = world.said("h2").faults.get_mut(&name).unwrap();
    (report.active, report.why) = (false, Some("no proxy".to_owned()));
    let status = world.status();
    assert!(!fault(&status, name.as_str()).in_force);
    assert_eq!(status.stuck, [format!("fault {name} is not in force on h2: no proxy")]);
}

#[test]
fn evidence_of_both_proxies_adds_up_to_a_verdict() {
    let mut world = ready();
    let name = world.inject("partition = [\"kv-1\", \"kv-2,kv-3\"]\nfor = \"30s\"").unwrap();
    let name = name.as_str();
    world.obey();
    assert_eq!(fault(&world.status(), name).evidence.verdict, Verdict::Quiet);
    let hits = |segments, at| LinkEvidence {
        dropped_segments: segments,
        first_hit_ms: Some(at),
        last_hit_ms: Some(at),
        ..LinkEvidence::default()
    };
    count(&mut world, "h1", name, "kv-1>kv-2", hits(3, 58_000));
    count(&mut world, "h2", name, "kv-1>kv-2", hits(4, 59_000));
    count(&mut world, "h3", name, "kv-3>kv-1", hits(5, 59_500));
    let status = world.status();
    let evidence = &fault(&status, name).evidence;
    assert_eq!(evidence.verdict, Verdict::Confirmed);
    let link: Link = "kv-1>kv-2".parse().unwrap();
    assert_eq!(evidence.links[&link].dropped_segments, 7);
    assert_eq!(evidence.links[&link].first_hit_ms, Some(world.now - 2_500));
    assert_eq!(evidence.total.dropped_segments, 12);
    assert_eq!(evidence.total.last_hit_ms, Some(world.now - 1_000));
    let leak = LinkEvidence { leaked_bytes: 1, ..LinkEvidence::default() };
    count(&mut world, "h3", name, "kv-3>kv-1", leak);
    assert_eq!(fault(&world.status(), name).evidence.verdict, Verdict::Mismatch);
}

#[test]
fn what_a_fault_did_stays_so_when_a_node_that_it_met_is_removed() {
    for is_healed in [true, false] {
        let mut world = ready();
        let name = world.inject("partition = [\"kv-1\", \"kv-2,kv-3\"]").unwrap();
        let name = name.as_str();
        world.obey();
        let drops = |dropped_segments| LinkEvidence { dropped_segments, ..LinkEvidence::default() };
        count(&mut world, "h1", name, "kv-1>kv-2", drops(3));
        count(&mut world, "h2", name, "kv-1>kv-2", drops(4));
        let reports = world.reports.clone();
        if is_healed {
            world.edit(Edit::Heal { faults: vec![] }).unwrap();
        }
        world.edit(Edit::Remove { targets: vec!["kv-2".to_owned()] }).unwrap();
        world.reports = reports;
        let status = world.status();
        let evidence = &fault(&status, name).evidence;
        let found = (evidence.total.dropped_segments, evidence.verdict);
        assert_eq!(found, (7, Verdict::Confirmed), "healed before: {is_healed}");
    }
}

#[test]
fn what_a_fault_did_stays_so_when_a_host_that_counted_it_is_removed() {
    let mut world = ready();
    let name = world.inject("partition = [\"kv-1\", \"kv-2,kv-3\"]").unwrap();
    let name = name.as_str();
    world.obey();
    let drops = |dropped_segments| LinkEvidence { dropped_segments, ..LinkEvidence::default() };
    count(&mut world, "h1", name, "kv-1>kv-2", drops(3));
    count(&mut world, "h2", name, "kv-1>kv-2", drops(4));
    let host = key("h2");
    world.edit(Edit::RemoveHost { name: host, force: true }).unwrap();
    let mut hosts = world.seen();
    let status =
        |world: &World, hosts: &_| status(&world.lab, hosts, &[], (world.now, Detail::All));
    hosts.get_mut(&key("h2")).unwrap().connected = false;
    let evidence = &fault(&status(&world, &hosts), name).evidence.clone();
    let found = (evidence.total.dropped_segments, evidence.verdict);
    assert_eq!(found, (7, Verdict::Confirmed));
    // Its agent healed what it had when it was told to go, and will never say so.
    world.edit(Edit::Heal { faults: vec![] }).unwrap();
    let lingers_on = fault(&status(&world, &hosts), name).lingers_on.clone();
    assert!(!lingers_on.contains(&key("h2")), "{lingers_on:?}");
}

#[test]
fn a_brief_status_says_of_faults_what_the_whole_one_says_but_for_links() {
    let mut world = ready();
    let name = world.inject("partition = [\"kv-1\", \"kv-2,kv-3\"]").unwrap();
    world.obey();
    let drops = LinkEvidence { dropped_segments: 3, ..LinkEvidence::default() };
    count(&mut world, "h1", name.as_str(), "kv-1>kv-2", drops);
    let of = |detail| status(&world.lab, &world.seen(), &[], (world.now, detail));
    let mut whole = of(Detail::All);
    for fault in &mut whole.faults {
        assert!(!fault.evidence.links.is_empty() && !fault.resolved.links.is_empty());
        fault.evidence.links.clear();
        fault.resolved.links.clear();
    }
    assert_eq!(of(Detail::NoLinks), whole);
    let faults = of(Detail::OnlyFaults);
    assert_eq!((&faults.faults, &faults.hosts), (&whole.faults, &whole.hosts));
    assert!(faults.nodes.is_empty() && !faults.converged);
    // Who waits for the end of a fault that was deleted hears of it by nothing else.
    let reports = world.reports.clone();
    world.edit(Edit::DeleteFault { name: name.clone() }).unwrap();
    world.reports = reports;
    let brief = status(&world.lab, &world.seen(), &[], (world.now, Detail::OnlyFaults));
    assert_eq!(brief.forgotten[&name], [key("h1"), key("h2"), key("h3")]);
}

#[test]
fn a_moment_that_was_shown_stays_what_it_was() {
    let mut world = ready();
    let name = world.inject("partition = [\"kv-1\", \"kv-2,kv-3\"]").unwrap();
    world.obey();
    let hit = LinkEvidence { first_hit_ms: Some(58_000), ..LinkEvidence::default() };
    count(&mut world, "h1", name.as_str(), "kv-1>kv-2", hit);
    let booted = world.now - 60_500;
    let shown = |age_ms, asked_later_ms| {
        let mut seen = world.seen();
        let h1 = seen.get_mut(&key("h1")).unwrap();
        (h1.age_ms, h1.boot_unix_ms) = (age_ms, Some(booted));
        let status = status(&world.lab, &seen, &[], (world.now + asked_later_ms, Detail::All));
        fault(&status, name.as_str()).evidence.total.first_hit_ms
    };
    for (age_ms, asked_later_ms) in [(500, 0), (0, 0), (2_700, 100), (60_000, 3_600_000)] {
        assert_eq!(shown(age_ms, asked_later_ms), Some(booted + 58_000));
    }
}

#[test]
fn a_connection_around_the_proxies_makes_faults_of_its_links_a_mismatch() {
    let mut world = ready();
    let cut = world.inject("partition = [\"kv-1\", \"kv-2\"]").unwrap();
    let slow = world.inject("between = [\"kv-1\", \"kv-2\"]\nrtt = \"2ms\"").unwrap();
    let clients = world.inject("isolate = \"kv-3\"\nclients = true").unwrap();
    world.obey();
    let to = |world: &mut World, from: &str, to: &str| {
        let address = "127.130.128.2:2380".parse().unwrap();
        let bypass = Bypass { from: from.to_owned(), to: node(to), address };
        world.said("h2").bypasses = vec![bypass];
    };
    let verdict = |world: &World, name: &str| fault(&world.status(), name).evidence.verdict;
    to(&mut world, "kv-1", "kv-2");
    assert_eq!(verdict(&world, cut.as_str()), Verdict::Mismatch);
    assert_eq!(verdict(&world, slow.as_str()), Verdict::Mismatch, "what goes around is not late");
    assert_eq!(verdict(&world, clients.as_str()), Verdict::Quiet);
    assert_eq!(world.status().bypasses[0].from, "kv-1");
    let why = fault(&world.status(), cut.as_str()).evidence.why.clone().unwrap();
    assert_eq!(why, "kv-1 reached kv-2 at 127.130.128.2:2380 around its proxy");
    to(&mut world, "pid 12 (curl)", "kv-3");
    assert_eq!(verdict(&world, cut.as_str()), Verdict::Quiet);
    assert_eq!(verdict(&world, clients.as_str()), Verdict::Mismatch);
}

#[test]
fn a_fault_is_confirmed_by_what_its_own_effect_counts() {
    let mut world = ready();
    let slow = world.inject("between = [\"kv-1\", \"kv-2\"]\nrtt = \"2ms\"").unwrap();
    let cut = world.inject("partition = [\"kv-1\", \"kv-2\"]").unwrap();
    world.obey();
    let late = LinkEvidence { delayed_chunks: 2, ..LinkEvidence::default() };
    let verdict = |world: &World, name: &str| fault(&world.status(), name).evidence.verdict;
    for name in [&slow, &cut] {
        count(&mut world, "h1", name.as_str(), "kv-1>kv-2", late.clone());
    }
    assert_eq!(verdict(&world, slow.as_str()), Verdict::Confirmed);
    assert_eq!(verdict(&world, cut.as_str()), Verdict::Quiet, "a delay does not prove a cut");
}

#[test]
fn a_canary_proves_a_fault_that_no_other_traffic_met_or_contradicts_it() {
    let mut world = ready();
    let name = world.inject("partition = [\"kv-1\", \"kv-2\"]").unwrap();
    world.obey();
    let mut tell = |verdict| {
        let report = world.said("h2").faults.get_mut(&name).unwrap();
        let why = (verdict == CanaryVerdict::Contradicts).then(|| "kv-2 answered".to_owned());
        let canary = CanaryReport { verdict, why, ..CanaryReport::default() };
        report.canary.insert("kv-1>kv-2".parse().unwrap(), canary);
        fault(&world.status(), name.as_str()).evidence.clone()
    };
    assert_eq!(tell(CanaryVerdict::Unproven).verdict, Verdict::Quiet);
    assert_eq!(tell(CanaryVerdict::Agrees).verdict, Verdict::Confirmed);
    let bad = tell(CanaryVerdict::Contradicts);
    assert_eq!(bad.verdict, Verdict::Mismatch);
    assert_eq!(bad.why.unwrap(), "canary kv-1>kv-2: kv-2 answered");
}

#[test]
fn a_bypass_is_remembered_after_the_heal() {
    let mut world = ready();
    let name = world.inject("partition = [\"kv-1\", \"kv-2\"]").unwrap();
    world.obey();
    let address = "127.130.128.2:2380".parse().unwrap();
    let bypass = Bypass { from: "kv-1".to_owned(), to: node("kv-2"), address };
    let report = world.said("h2").faults.get_mut(&name).unwrap();
    (report.active, report.bypasses) = (false, vec![bypass]);
    let reports = world.reports.clone();
    world.edit(faultbed_common::edit::Edit::Heal { faults: vec![] }).unwrap();
    world.reports = reports;
    assert_eq!(fault(&world.status(), name.as_str()).evidence.verdict, Verdict::Mismatch);
}

#[test]
fn a_heal_is_observed_not_assumed() {
    let mut world = ready();
    let name = world.inject("isolate = \"kv-1\"").unwrap();
    world.obey();
    let reports = world.reports.clone();
    world.edit(faultbed_common::edit::Edit::Heal { faults: vec![] }).unwrap();
    world.reports = reports;
    let status = world.status();
    assert_eq!(fault(&status, name.as_str()).state, FaultState::Healed);
    assert!(status.pending.contains(&format!("fault {name} is still in force on h1")));
    assert_eq!(fault(&status, name.as_str()).lingers_on, [key("h1"), key("h2"), key("h3")]);
    world.obey();
    assert!(world.status().converged);
    assert!(world.status().faults[0].lingers_on.is_empty());
}

#[test]
fn a_heal_is_not_over_on_a_host_that_died_with_the_fault_in_force() {
    let mut world = ready();
    let name = world.inject("isolate = \"kv-1\"\nfor = \"30s\"").unwrap();
    world.obey();
    let mut hosts = world.seen();
    hosts.get_mut(&key("h2")).unwrap().connected = false;
    world.edit(faultbed_common::edit::Edit::Heal { faults: vec![] }).unwrap();
    let leftover = |hosts: &_| {
        let status = status(&world.lab, hosts, &[], (world.now, Detail::All));
        let start = format!("fault {name} is still in force on h2");
        status.pending.iter().any(|sentence| sentence.starts_with(&start))
    };
    assert!(leftover(&hosts), "its proxy goes on without the agent");
    hosts.get_mut(&key("h2")).unwrap().age_ms = 30_000;
    assert!(!leftover(&hosts), "the proxy ends it at its deadline");
}

#[test]
fn a_heal_waits_for_hosts_that_have_yet_to_hear_of_the_fault() {
    let mut world = ready();
    world.obey();
    let before = world.reports.clone();
    let name = world.inject("isolate = \"kv-1\"").unwrap();
    world.edit(faultbed_common::edit::Edit::Heal { faults: vec![] }).unwrap();
    world.reports = before;
    let start = format!("fault {name} is still in force on h3, or about to be");
    let pending = world.status().pending;
    assert!(pending.iter().any(|sentence| sentence.starts_with(&start)), "{pending:?}");
    world.obey();
    assert!(world.status().converged);
}

#[test]
fn what_a_fault_forbids_is_not_pending() {
    let mut world = ready();
    let held = world.inject("on = \"kv-3\"\nkill = true").unwrap();
    world.inject("isolate = \"kv-2\"").unwrap();
    world.obey();
    world.report("kv-3", |seen| seen.observed = NodeState::Killed);
    world.report("kv-2", |seen| seen.observed = NodeState::Unready);
    let status = world.status();
    assert!(status.converged, "{:?} {:?}", status.pending, status.stuck);
    assert_eq!(fault(&status, held.as_str()).evidence.verdict, Verdict::Confirmed);
    assert_eq!(fault(&status, held.as_str()).grade, FaultGrade::Node);
}

#[test]
fn refused_hand_edits_are_stuck_sentences() {
    let mut world = ready();
    world.obey();
    let refused = ["cluster kv: blueprint etcd has no role x".to_owned()];
    let status = status(&world.lab, &world.seen(), &refused, (world.now, Detail::All));
    assert_eq!(status.stuck, refused);
}

#[test]
fn a_node_that_is_taken_out_is_shown_until_its_host_lets_it_go() {
    let mut world = ready();
    world.obey();
    world.edit(Edit::Remove { targets: vec!["kv-3".to_owned()] }).unwrap();
    let seen = world.said("h3").nodes.get_mut(&node("kv-3")).unwrap();
    seen.why = Some("leave the cluster: unhealthy cluster".to_owned());
    let status = world.status();
    assert!(status.nodes.iter().all(|seen| seen.name != node("kv-3")));
    let [leaving] = status.leaving.as_slice() else { panic!("{:?}", status.leaving) };
    assert_eq!((leaving.name.as_str(), leaving.role.as_str()), ("kv-3", "etcd"));
    assert_eq!((leaving.host.as_str(), leaving.observed), ("h3", NodeState::Ready));
    assert_eq!(leaving.why.as_deref(), Some("leave the cluster: unhealthy cluster"));
    assert_eq!(status.clusters[0].state, ClusterState::Ready, "it is not counted any more");
    // More nodes are new ones: who asks for them is told what becomes of the one that leaves.
    let count = |value: &str| Edit::Set {
        targets: vec!["kv".to_owned()],
        field: "count".to_owned(),
        value: value.to_owned(),
    };
    let notes = world.edit(count("3")).unwrap().reply.notes.join("\n");
    assert!(notes.contains("kv-3 is still leaving, and goes: kv-4 is a new node"), "{notes}");
    world.obey();
    assert!(world.status().leaving.is_empty(), "{:?}", world.status().leaving);
}

#[test]
fn nobody_waits_for_a_node_of_a_host_that_is_out_of_the_lab() {
    let mut world = ready();
    world.obey();
    let name = key("h3");
    world.edit(Edit::RemoveHost { name, force: true }).unwrap();
    let status = world.status();
    assert!(status.leaving.is_empty(), "{:?}", status.leaving);
}
