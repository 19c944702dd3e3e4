//! Tests of what is judged true, not yet true, and lost.

use faultbed_common::report::ExitReport;

use super::*;
use crate::cli::testing;

const NOW: Duration = Duration::ZERO;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn ready(text: &str, over: u64) -> Goal {
    Goal::Ready(name(text), Incarnation(over))
}

#[test]
fn a_restart_is_done_in_a_later_run_only() {
    let mut status = testing::three_nodes();
    assert!(matches!(judge(&status, &ready("kv-1", 1), NOW), Judgement::NotYet(_)));
    status.nodes[0].incarnation = Incarnation(2);
    assert_eq!(judge(&status, &ready("kv-1", 1), NOW), Judgement::Met(None));
}

#[test]
fn a_first_start_is_not_called_another_one_nor_hashed_before_it_is() {
    let mut status = testing::three_nodes();
    status.nodes[0].incarnation = Incarnation(0);
    let not_yet = Judgement::NotYet("kv-1 has not started yet".into());
    assert_eq!(judge(&status, &ready("kv-1", 0), NOW), not_yet);
    assert_eq!(judge(&status, &Goal::Hashed(name("kv-1"), Incarnation(0)), NOW), not_yet);
}

#[test]
fn a_crash_ends_the_wait_unless_the_agent_starts_it_again() {
    let mut status = testing::three_nodes();
    testing::crash_second(&mut status);
    let lost = judge(&status, &ready("kv-2", 0), NOW);
    assert_eq!(lost, Judgement::Never("kv-2 crashed in run 1: exit 2".into()));
    status.nodes[1].why = Some("starts again in 2s".into());
    assert!(matches!(judge(&status, &ready("kv-2", 0), NOW), Judgement::NotYet(_)));
}

#[test]
fn a_cut_that_forbids_ready_makes_running_enough_and_says_so() {
    let mut status = testing::three_nodes();
    status.faults.push(testing::split());
    status.nodes[0].faults.push("split".parse().unwrap());
    status.nodes[0].observed = NodeState::Starting;
    assert!(matches!(judge(&status, &ready("kv-1", 0), NOW), Judgement::NotYet(_)));
    let Judgement::Met(Some(word)) = judge(&status, &ready("kv-1", 0), FAULTED_GRACE) else {
        panic!("running is enough after the grace");
    };
    assert!(word.contains("while split is in force"), "{word}");
    // It was ready in this run, and is not because of the cut: there is nothing to wait for.
    status.nodes[0].observed = NodeState::Unready;
    assert!(matches!(judge(&status, &ready("kv-1", 0), NOW), Judgement::Met(Some(_))));
    status.faults[0].summary = "latency 50ms".into();
    let late = judge(&status, &ready("kv-1", 0), FAULTED_GRACE);
    assert!(matches!(late, Judgement::NotYet(_)), "a delay forbids nothing: {late:?}");
}

#[test]
fn a_stop_waits_for_gone() {
    let mut status = testing::three_nodes();
    let goal = Goal::Down(name("kv-3"));
    status.nodes[2].observed = NodeState::Stopping;
    assert!(matches!(judge(&status, &goal, NOW), Judgement::NotYet(_)));
    status.nodes[2].observed = NodeState::Stopped;
    assert_eq!(judge(&status, &goal, NOW), Judgement::Met(None));
}

#[test]
fn faults_are_in_force_when_every_host_has_them() {
    let mut status = testing::three_nodes();
    let goal = Goal::InForce("split".parse().unwrap());
    assert!(matches!(judge(&status, &goal, NOW), Judgement::NotYet(_)));
    status.faults.push(testing::split());
    assert_eq!(judge(&status, &goal, NOW), Judgement::Met(None));
    status.faults[0].in_force = false;
    status.faults[0].why = Some("h2 is down".into());
    let Judgement::NotYet(why) = judge(&status, &goal, NOW) else { panic!("not in force") };
    assert!(why.ends_with("h2 is down"), "{why}");
    status.faults[0].state = FaultState::Expired;
    let Judgement::Never(why) = judge(&status, &goal, NOW) else { panic!("it is over") };
    assert!(why.ends_with("give it a longer `--for`"), "{why}");
}

#[test]
fn a_heal_is_observed_and_not_assumed() {
    let mut status = testing::three_nodes();
    let goal = Goal::Ended("split".parse().unwrap());
    status.faults.push(testing::split());
    status.faults[0].state = FaultState::Healed;
    status.faults[0].lingers_on.push("h1".parse().unwrap());
    assert!(matches!(judge(&status, &goal, NOW), Judgement::NotYet(_)), "still in force");
    status.faults[0].lingers_on.clear();
    assert_eq!(judge(&status, &goal, NOW), Judgement::Met(None));
}

#[test]
fn a_fault_that_was_deleted_is_over_when_no_host_has_it() {
    let mut status = testing::three_nodes();
    let goal = Goal::Ended("split".parse().unwrap());
    for name in ["split", "split-2"] {
        status.forgotten.insert(name.parse().unwrap(), vec!["h1".parse().unwrap()]);
    }
    let still = "fault split is still in force on h1".to_owned();
    assert_eq!(judge(&status, &goal, NOW), Judgement::NotYet(still));
    status.forgotten.retain(|name, _| name.as_str() == "split-2");
    assert_eq!(judge(&status, &goal, NOW), Judgement::Met(None), "that is another one");
}

#[test]
fn a_new_leader_is_the_one_of_the_newest_term() {
    let mut status = testing::three_nodes();
    let goal = Goal::Leader("kv".parse().unwrap(), Some(name("kv-1")));
    let said = "kv-1 still leads kv in term 2; another leader is awaited".to_owned();
    assert_eq!(judge(&status, &goal, NOW), Judgement::NotYet(said));
    let mut election = status.clone();
    election.nodes[0].leader = Some(false);
    (election.nodes[1].observed, election.nodes[1].role_state) = (NodeState::Starting, None);
    let said = "no node of kv leads: kv-1 says leader, kv-2 is starting, kv-3 says follower";
    assert_eq!(judge(&election, &goal, NOW), Judgement::NotYet(said.to_owned()));
    status.nodes[2].leader = Some(true);
    status.nodes[2].term = Some(3);
    // kv-1 is cut off and still believes that it leads.
    assert_eq!(judge(&status, &goal, NOW), Judgement::Met(Some("kv-3 leads cluster kv".into())));
}

#[test]
fn a_node_killed_by_order_is_down_and_no_crash() {
    let mut status = testing::three_nodes();
    status.nodes[0].observed = NodeState::Killed;
    status.nodes[0].exit = Some(ExitReport { signal: Some(9), ..ExitReport::default() });
    assert_eq!(judge(&status, &Goal::Down(name("kv-1")), NOW), Judgement::Met(None));
    assert!(matches!(judge(&status, &ready("kv-1", 0), NOW), Judgement::NotYet(_)));
}

#[test]
fn stuck_is_never_converged() {
    let mut status = testing::three_nodes();
    assert_eq!(judge(&status, &Goal::Converged, NOW), Judgement::Met(None));
    status.converged = false;
    status.stuck.push("port 2379 of kv-1 is held by pid 12 (etcd)".into());
    assert!(matches!(judge(&status, &Goal::Converged, NOW), Judgement::Never(_)));
}

#[test]
fn a_node_is_not_gone_while_it_cannot_leave() {
    let mut status = testing::three_nodes();
    let gone = status.nodes.pop().unwrap();
    let goal = Goal::Removed(gone.name.clone(), Some(gone.host.clone()), Generation(4));
    assert!(matches!(judge(&status, &goal, NOW), Judgement::Met(_)));
    let why = Some("leave the cluster: unhealthy cluster".to_owned());
    status.leaving.push(NodeStatus { why, ..gone });
    let said = "kv-3 is leaving kv: leave the cluster: unhealthy cluster".to_owned();
    assert_eq!(judge(&status, &goal, NOW), Judgement::NotYet(said));
    // Of a cluster that goes as a whole, only the host speaks.
    status.leaving.clear();
    status.stuck.push("h3: kv-3: leave the cluster: unhealthy cluster".to_owned());
    assert!(
        matches!(judge(&status, &goal, NOW), Judgement::NotYet(why) if why.contains("unhealthy"))
    );
}

#[test]
fn a_program_that_is_refused_is_not_waited_for() {
    let mut status = testing::three_nodes();
    let why = "runs on; its restart is refused: `/bin/false --version` prints no version";
    status.nodes[1].why = Some(why.to_owned());
    let goal = ready("kv-2", 1);
    assert!(matches!(judge(&status, &goal, NOW), Judgement::NotYet(_)), "it may just be copied");
    let judged = judge(&status, &goal, REFUSED_GRACE);
    assert!(matches!(&judged, Judgement::Never(said) if said.contains(why)), "{judged:?}");
    status.hosts[1].generation = Generation(3);
    let judged = judge(&status, &goal, REFUSED_GRACE);
    assert!(matches!(judged, Judgement::NotYet(_)), "it speaks of what was wanted before");
    status.hosts[1].generation = Generation(4);
    status.nodes[1].observed = NodeState::Stopped;
    status.nodes[1].why = Some("start: refused: /bin/etcd does not exist".to_owned());
    let said = "kv-2 cannot start, refused: /bin/etcd does not exist".to_owned();
    assert_eq!(judge(&status, &goal, REFUSED_GRACE), Judgement::Never(said));
    status.nodes[1].why = Some("start: it listens already".to_owned());
    let judged = judge(&status, &goal, REFUSED_GRACE);
    assert!(matches!(judged, Judgement::NotYet(_)), "that may end by itself");
}

#[test]
fn a_node_that_crashes_again_and_again_is_lost_and_is_called_so_meanwhile() {
    let mut status = testing::three_nodes();
    let node = &mut status.nodes[1];
    node.exit = Some(ExitReport { code: Some(2), ..ExitReport::default() });
    (node.observed, node.restarts) = (NodeState::Starting, 2);
    let said = "kv-2 crashed 2 times, last: exit 2, and is starting again".to_owned();
    assert_eq!(judge(&status, &ready("kv-2", 0), NOW), Judgement::NotYet(said));
    let node = &mut status.nodes[1];
    (node.observed, node.restarts) = (NodeState::Crashed, CRASHES_MAX);
    node.why = Some("crashed: ended with status 2; starts again soon".to_owned());
    let judged = judge(&status, &ready("kv-2", 0), NOW);
    assert!(matches!(&judged, Judgement::Never(said) if said.contains("exit 2")), "{judged:?}");
    status.clusters[0].state = ClusterState::Starting;
    let goal = Goal::ClusterReady("kv".parse().unwrap());
    assert_eq!(judge(&status, &goal, NOW), judged);
}
