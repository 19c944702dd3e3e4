//! What the loop makes of what its proxy process says, and of its end.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_proxy_that_dies_comes_back_with_the_same_rules() {
    let mut lab = Harness::new();
    lab.set("kv-1", node_spec());
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
    let rules = lab.hands.rules();
    let pid = lab.hands.living(&node("kv-1"));
    lab.hands.kill_proxy();
    tokio::time::timeout(PATIENCE, lab.hands.ruled()).await.expect("a new proxy has rules");
    lab.wait_done().await;
    assert_eq!(lab.hands.rules(), rules);
    assert_eq!(lab.hands.living(&node("kv-1")), pid);
}

#[tokio::test(start_paused = true)]
async fn what_the_proxy_confirmed_is_not_taken_back_by_an_answer_from_before() {
    let mut lab = Harness::new();
    lab.order().await;
    lab.wait_done().await;
    lab.hands.delay_answers(Duration::from_millis(50));
    let cut: FaultName = "cut".parse().unwrap();
    let is_cut = |report: &HostReport| report.faults.get(&cut).is_some_and(|f| f.active);
    for is_wanted in [false, true] {
        // The proxy is asked whenever it was told, so the second change comes amid a question.
        for is_wanted in [!is_wanted, is_wanted] {
            match is_wanted {
                true => drop(lab.spec.proxy.faults.insert(cut.clone(), link_fault())),
                false => drop(lab.spec.proxy.faults.remove(&cut)),
            }
            lab.order().await;
            let generation = lab.spec.generation;
            lab.wait("told", |r| r.generation == generation && is_cut(r) == is_wanted).await;
        }
        let later = lab.hands.now() + Duration::from_secs(2);
        while lab.hands.now() < later {
            lab.reports.changed().await.unwrap();
            assert_eq!(is_cut(&lab.reports.borrow_and_update()), is_wanted, "it flaps");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_fault_met_is_not_said_of_a_later_one_of_its_name() {
    let mut lab = Harness::new();
    lab.order().await;
    lab.wait_done().await;
    let slow: FaultName = "slow".parse().unwrap();
    let late = LinkEvidence { delayed_chunks: 10, ..LinkEvidence::default() };
    lab.hands.count(FaultRevision(1), [("kv-1>kv-2".parse().unwrap(), late)].into());
    lab.spec.proxy.faults.insert(slow.clone(), link_fault());
    lab.order().await;
    let met = |report: &HostReport| report.faults.get(&slow).is_some_and(|f| !f.links.is_empty());
    lab.wait("it met something", met).await;
    // The proxy says what it counted only some time after it was told.
    lab.hands.silence();
    let again = LinkFault { revision: FaultRevision(2), ..link_fault() };
    lab.spec.proxy.faults.insert(slow.clone(), again);
    lab.order().await;
    let is_again = |report: &HostReport| {
        report.faults.get(&slow).is_some_and(|f| f.revision == FaultRevision(2) && f.active)
    };
    let report = lab.wait("in force again", is_again).await;
    assert!(!met(&report), "{:?}", report.faults[&slow].links);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_in_force_while_no_proxy_runs() {
    let mut lab = Harness::new();
    let cut: FaultName = "cut".parse().unwrap();
    lab.spec.proxy.faults.insert(cut.clone(), link_fault());
    lab.order().await;
    lab.wait("in force", |r| r.faults.get(&cut).is_some_and(|f| f.active)).await;
    lab.hands.hold_rules(true);
    lab.hands.kill_proxy();
    let report =
        lab.wait("noticed", |r| r.faults.get(&cut).is_some_and(|fault| !fault.active)).await;
    assert_eq!(report.faults[&cut].why.as_deref(), Some("the proxy process does not run"));
    lab.hands.hold_rules(false);
    lab.wait("in force again", |r| r.faults.get(&cut).is_some_and(|f| f.active)).await;
}
