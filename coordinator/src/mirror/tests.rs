//! Tests of the mirror on a store in memory; what servers do to it is in `outages`.

use std::{sync::Arc, time::Duration};

use faultbed_common::{
    edit::HistoryEntry,
    generation::Generation,
    lab::{Host, Lab},
    name::{HostName, LabName},
    report::HostReport,
};

use super::{CommitOutcome, Mirror, MirrorHandle, Published};
use crate::store::{
    Compare, Op, Store, StoreError, Txn, in_memory,
    keys::{HandEdit, Kind, hand_edits},
};

/// How long anything here may take before it counts as never.
pub(super) const SOON: Duration = Duration::from_secs(20);

const OCTET: u8 = 7;

fn lab_name() -> LabName {
    LabName::parse("demo").unwrap()
}

pub(super) fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

pub(super) async fn start(store: &Arc<dyn Store>) -> Arc<MirrorHandle> {
    Mirror::start(store.clone(), lab_name(), OCTET).await.unwrap()
}

/// The lab one generation on, with a host whose label says so.
pub(super) fn next(before: &Lab, says: &str) -> (Lab, HistoryEntry) {
    let mut lab = before.clone();
    lab.generation = before.generation.next();
    let mut h1 = Host::new("127.77.7.1".parse().unwrap(), "/h1".into());
    h1.relabel(|said| said.file = [("says".to_owned(), says.to_owned())].into());
    lab.hosts.insert(host("h1"), h1);
    let entry = HistoryEntry {
        generation: lab.generation,
        at_unix_ms: 1,
        by: "ann".into(),
        what: format!("say {says}"),
        objects: Vec::new(),
    };
    (lab, entry)
}

pub(super) async fn commit(handle: &MirrorHandle, says: &str) -> CommitOutcome {
    let before = handle.now();
    let (lab, entry) = next(&before.lab, says);
    handle.commit(&before, &lab, &entry).await.unwrap()
}

pub(super) fn says(mirror: &Mirror) -> Option<&str> {
    mirror.lab.hosts.get(&host("h1")).map(|host| host.labels["says"].as_str())
}

#[tokio::test]
async fn a_new_lab_begins_at_generation_zero_and_is_there_for_the_next_coordinator() {
    let store = in_memory().await.unwrap();
    let first = start(&store).await;
    assert_eq!(first.now().lab.generation, Generation(0));
    assert_eq!(commit(&first, "hello").await, CommitOutcome::Committed);
    drop(first);
    let second = start(&store).await;
    assert_eq!(second.now().lab.generation, Generation(1));
    assert_eq!(says(&second.now()), Some("hello"));
}

#[tokio::test]
async fn a_report_is_as_old_for_a_coordinator_that_began_after_it_came() {
    let store = in_memory().await.unwrap();
    let first = start(&store).await;
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    first.claim_host(&host("h1"), lease).await.unwrap();
    let report = HostReport { host: Some(host("h1")), ..HostReport::default() };
    first.publish_report(&host("h1"), &Arc::new(report.clone()), lease).await.unwrap();
    // An hour passes: only the stamp can tell.
    let (_, kvs) = store.range(b"/faultbed/v1/demo/observed/").await.unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&kvs[0].value).unwrap();
    let stamp = value["received_unix_ms"].as_u64().unwrap();
    value["received_unix_ms"] = (stamp - 3_600_000).into();
    let put = Op::put(kvs[0].key.clone(), serde_json::to_vec(&value).unwrap());
    store.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    drop(first);
    let second = start(&store).await;
    let mirror = second.now();
    assert_eq!(*mirror.reports[&host("h1")], report);
    let age = mirror.seen[&host("h1")].elapsed();
    assert!(age >= Duration::from_secs(3_600), "{age:?}");
}

#[tokio::test]
async fn where_a_hosts_clock_began_is_settled_for_all_coordinators_and_anew_for_each_boot() {
    let store = in_memory().await.unwrap();
    let (one, two) = (start(&store).await, start(&store).await);
    let lease = store.lease_grant(SOON * 10).await.unwrap();
    let h1 = host("h1");
    one.claim_host(&h1, lease).await.unwrap();
    let mut report =
        HostReport { boot_id: "first".into(), now_ms: 3_600_000, ..Default::default() };
    let mut shown = Vec::new();
    // Reports that were on their way for longer and longer, and then after a boot.
    for (boot, later_ms) in [("first", 0), ("first", 700), ("first", 1_900), ("second", 2_000)] {
        report.boot_id = boot.into();
        report.now_ms -= later_ms;
        for by in [&one, &two] {
            assert_eq!(
                by.publish_report(&h1, &Arc::new(report.clone()), lease).await.unwrap(),
                Published::Written
            );
            let there =
                |mirror: &Mirror| mirror.reports.get(&h1).map(AsRef::as_ref) == Some(&report);
            assert!(one.wait(SOON, there).await && two.wait(SOON, there).await);
        }
        assert_eq!(one.now().booted, two.now().booted);
        shown.push(one.now().booted[&h1]);
    }
    assert_eq!((shown[1], shown[2]), (shown[0], shown[0]));
    assert!(shown[3] >= shown[0] + 4_000, "{shown:?}");
}

#[tokio::test]
async fn a_lab_with_another_octet_is_refused_with_both() {
    let store = in_memory().await.unwrap();
    start(&store).await;
    let refused = Mirror::start(store, lab_name(), OCTET + 1).await.unwrap_err().to_string();
    assert!(refused.contains("127.77.7.N") && refused.contains("127.77.8.N"), "{refused}");
    assert!(refused.contains("another store"), "{refused}");
}

#[tokio::test]
async fn two_labs_share_a_store_and_do_not_meet() {
    let store = in_memory().await.unwrap();
    let demo = start(&store).await;
    let other = LabName::parse("demo-2").unwrap();
    let other = Mirror::start(store.clone(), other, OCTET + 1).await.unwrap();
    assert_eq!(commit(&demo, "hello").await, CommitOutcome::Committed);
    assert_eq!(commit(&other, "other").await, CommitOutcome::Committed);
    assert_eq!((says(&demo.now()), says(&other.now())), (Some("hello"), Some("other")));
}

#[tokio::test]
async fn a_committed_change_is_what_the_mirror_shows_when_it_returns() {
    let store = in_memory().await.unwrap();
    let (one, two) = (start(&store).await, start(&store).await);
    for n in 1..=20 {
        let text = n.to_string();
        assert_eq!(commit(&one, &text).await, CommitOutcome::Committed);
        assert_eq!(says(&one.now()), Some(text.as_str()));
        assert_eq!(one.now().lab.generation, Generation(n));
    }
    assert!(two.wait(SOON, |mirror| says(mirror) == Some("20")).await);
    let history = one.history().await.unwrap();
    let what: Vec<_> = history.iter().map(|entry| entry.what.as_str()).collect();
    assert_eq!((what.len(), what[0], what[19]), (20, "say 1", "say 20"));
}

#[tokio::test]
async fn of_two_changes_of_the_same_generation_one_is_told_to_decide_again() {
    let store = in_memory().await.unwrap();
    let (one, two) = (start(&store).await, start(&store).await);
    let before = two.now();
    assert_eq!(commit(&one, "first").await, CommitOutcome::Committed);
    let (lab, entry) = next(&before.lab, "second");
    assert_eq!(two.commit(&before, &lab, &entry).await.unwrap(), CommitOutcome::Conflict);
    assert_eq!(says(&two.now()), Some("first"), "the mirror shows what was in the way");
    assert_eq!(commit(&two, "second").await, CommitOutcome::Committed);
    assert_eq!(says(&two.now()), Some("second"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contending_coordinators_lose_no_change() {
    let store = in_memory().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for coordinator in 0..4 {
        let store = store.clone();
        tasks.spawn(async move {
            let handle = start(&store).await;
            for n in 0..10 {
                while commit(&handle, &format!("{coordinator}/{n}")).await
                    == CommitOutcome::Conflict
                {}
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let handle = start(&store).await;
    assert_eq!(handle.now().lab.generation, Generation(40));
    let mut what: Vec<_> =
        handle.history().await.unwrap().into_iter().map(|entry| entry.what).collect();
    what.sort();
    what.dedup();
    assert_eq!(what.len(), 40);
}

#[tokio::test]
async fn a_change_too_large_for_one_transaction_is_one_change() {
    let store = in_memory().await.unwrap();
    let (one, two) = (start(&store).await, start(&store).await);
    let before = one.now();
    let (mut lab, entry) = next(&before.lab, "many");
    let many = lab.hosts[&host("h1")].clone();
    for n in 0..400 {
        lab.hosts.insert(host(&format!("x{n}")), many.clone());
    }
    let mut seen = two.receiver.clone();
    let outcome = one.commit(&before, &lab, &entry);
    assert_eq!(outcome.await.unwrap(), CommitOutcome::Committed);
    assert_eq!(*one.now().lab, lab);
    loop {
        let hosts = seen.borrow_and_update().lab.hosts.len();
        assert!(hosts == 0 || hosts == lab.hosts.len(), "{hosts} hosts are half a change");
        if hosts > 0 {
            break;
        }
        tokio::time::timeout(SOON, seen.changed()).await.unwrap().unwrap();
    }
    assert_eq!(commit(&one, "next").await, CommitOutcome::Committed);
    let (_, kvs) = store.range(b"/faultbed/v1/demo/staged/").await.unwrap();
    assert_eq!(kvs, Vec::new());
}

#[tokio::test]
async fn a_hand_edit_shows_in_the_mirror() {
    let store = in_memory().await.unwrap();
    let handle = start(&store).await;
    let key = handle.keys.spec(Kind::Fault, "mine");
    let edit = Txn { then: vec![Op::put(key, "{}")], ..Txn::default() };
    store.txn(edit).await.unwrap();
    let edits = |mirror: &Mirror| hand_edits(&mirror.lab, &mirror.specs);
    assert!(handle.wait(SOON, |mirror| !edits(mirror).is_empty()).await);
    let HandEdit { key, value, .. } = edits(&handle.now()).remove(0);
    assert_eq!((key.kind.as_str(), key.name.as_str()), ("fault", "mine"));
    assert_eq!(value.as_deref(), Some("{}"));
}

#[tokio::test]
async fn a_broken_accepted_object_leaves_the_last_good_lab_and_says_so() {
    let store = in_memory().await.unwrap();
    let handle = start(&store).await;
    commit(&handle, "good").await;
    let key = handle.keys.accepted(Kind::Host, "h1");
    let put = |value: &str| Txn { then: vec![Op::put(key.clone(), value)], ..Txn::default() };
    let good = store.range(&key).await.unwrap().1.remove(0).value;
    store.txn(put("{ broken")).await.unwrap();
    assert!(handle.wait(SOON, |mirror| mirror.trouble.is_some()).await);
    assert!(handle.now().trouble.as_ref().unwrap().contains("accepted/host/h1"));
    assert_eq!(says(&handle.now()), Some("good"));
    store.txn(put(&String::from_utf8(good).unwrap())).await.unwrap();
    assert!(handle.wait(SOON, |mirror| mirror.trouble.is_none()).await);
}

#[tokio::test]
async fn a_report_reaches_every_coordinator_while_its_host_is_held() {
    let store = in_memory().await.unwrap();
    let (one, two) = (start(&store).await, start(&store).await);
    let lease = store.lease_grant(SOON * 10).await.unwrap();
    let h1 = host("h1");
    let report = HostReport { version: "1.2".into(), ..HostReport::default() };
    let early = one.publish_report(&h1, &Arc::new(report.clone()), lease).await.unwrap();
    assert_eq!(early, Published::NotOurs, "nobody has claimed it yet");
    one.claim_host(&h1, lease).await.unwrap();
    assert_eq!(
        one.publish_report(&h1, &Arc::new(report.clone()), lease).await.unwrap(),
        Published::Written
    );
    let there = |mirror: &Mirror| {
        mirror.alive.contains(&h1) && mirror.reports.get(&h1).map(AsRef::as_ref) == Some(&report)
    };
    assert!(two.wait(SOON, there).await);
    assert!(two.now().seen.contains_key(&h1));
    store.lease_revoke(lease).await.unwrap();
    assert!(two.wait(SOON, |mirror| !mirror.alive.contains(&h1)).await);
    assert_eq!(
        two.now().reports.get(&h1).map(AsRef::as_ref),
        Some(&report),
        "what was last known stays"
    );
    let late = one.claim_host(&h1, lease).await;
    assert_eq!(late, Err(StoreError::NoLease));
}

#[tokio::test]
async fn a_coordinator_that_lost_a_host_cannot_overwrite_its_report() {
    let store = in_memory().await.unwrap();
    let (one, two) = (start(&store).await, start(&store).await);
    let old = store.lease_grant(SOON * 10).await.unwrap();
    let new = store.lease_grant(SOON * 10).await.unwrap();
    let h1 = host("h1");
    let report = HostReport::default();
    one.claim_host(&h1, old).await.unwrap();
    two.claim_host(&h1, new).await.unwrap();
    assert_eq!(
        one.publish_report(&h1, &Arc::new(report.clone()), old).await.unwrap(),
        Published::NotOurs
    );
    one.release_host(&h1, old).await.unwrap();
    assert_eq!(
        two.publish_report(&h1, &Arc::new(report.clone()), new).await.unwrap(),
        Published::Written
    );
    two.release_host(&h1, new).await.unwrap();
    assert!(one.wait(SOON, |mirror| mirror.alive.is_empty() && mirror.seen.len() == 1).await);
}

#[tokio::test]
async fn keys_that_are_not_ours_do_no_harm() {
    let store = in_memory().await.unwrap();
    let handle = start(&store).await;
    let below = |key: &[u8]| [b"/faultbed/v1/demo/", key].concat();
    let ops = [&b"alive/NOT A NAME"[..], b"observed/h1", b"spec/", b"x\xff", b"observed/-"];
    let ops = ops.iter().map(|key| Op::put(below(key), "{ rubbish")).collect();
    let txn = Txn { when: vec![Compare::Absent(below(b"x"))], then: ops, ..Txn::default() };
    store.txn(txn).await.unwrap();
    assert_eq!(commit(&handle, "fine").await, CommitOutcome::Committed);
    let mirror = handle.now();
    assert_eq!((says(&mirror), &mirror.trouble), (Some("fine"), &None));
    assert!(mirror.alive.is_empty() && mirror.reports.is_empty());
}

#[test]
fn an_age_is_bounded_by_how_long_nobody_looked() {
    let at = tokio::time::Instant::now() + Duration::from_secs(100_000);
    let moment = |unix_ms, earliest| super::state::Moment { at, unix_ms, earliest };
    let age = |moment: super::state::Moment, stamp| at - moment.came(Some(stamp));
    assert_eq!(age(moment(None, None), 5_000), Duration::ZERO, "seen when it came");
    assert_eq!(age(moment(Some(15_000), None), 5_000), Duration::from_secs(10));
    // The clock of who wrote it was an hour behind ours, or ahead of it.
    let earliest = at.checked_sub(Duration::from_secs(3));
    assert_eq!(age(moment(Some(3_615_000), earliest), 5_000), Duration::from_secs(3));
    assert_eq!(age(moment(Some(15_000), earliest), 3_605_000), Duration::ZERO);
}
