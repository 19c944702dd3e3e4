//! Tests of the mirror while its store goes away: cut off, killed, stopped, compacted, silent about outcomes.

use std::{path::Path, sync::Arc};

use faultbed_common::{generation::Generation, report::HostReport};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use super::{
    CommitOutcome, Mirror, MirrorHandle,
    gate::Gate,
    tests::{SOON, commit, host, next, says, start},
};
use crate::store::{
    Op, Store, StoreError, Txn, etcd::server::EtcdServer, in_memory, open, seed::seed,
};

/// A mirror behind a gate, and one beside it.
async fn gated() -> (Arc<Gate>, Arc<MirrorHandle>, Arc<dyn Store>, Arc<MirrorHandle>) {
    let store = in_memory().await.unwrap();
    let gate = Gate::new(store.clone());
    let behind: Arc<dyn Store> = gate.clone();
    let (behind, beside) = (start(&behind).await, start(&store).await);
    (gate, behind, store, beside)
}

/// Waits until both have seen all that either has, and compares.
async fn catches_up(one: &MirrorHandle, other: &MirrorHandle) {
    let newest = one.now().revision.max(other.now().revision);
    let there = |mirror: &Mirror| mirror.revision >= newest && mirror.trouble.is_none();
    for handle in [one, other] {
        assert!(handle.wait(SOON, there).await, "{:?} lacks {newest}", handle.now());
    }
    assert_eq!(one.now().lab, other.now().lab);
}

async fn compact_all(store: &dyn Store) {
    let (revision, _) = store.range(b"/nothing").await.unwrap();
    store.compact(revision).await.unwrap();
}

#[tokio::test]
async fn a_mirror_that_was_cut_off_keeps_what_it_has_and_then_catches_up() {
    let (gate, behind, _store, beside) = gated().await;
    commit(&beside, "before").await;
    catches_up(&behind, &beside).await;
    gate.set_cut(true);
    assert!(behind.wait(SOON, |mirror| mirror.trouble.is_some()).await);
    for n in 0..5 {
        commit(&beside, &n.to_string()).await;
    }
    assert_eq!(says(&behind.now()), Some("before"));
    assert!(behind.now().trouble.as_ref().unwrap().contains("the gate is shut"));
    gate.set_cut(false);
    catches_up(&behind, &beside).await;
}

#[tokio::test]
async fn what_happened_behind_compaction_is_listed_anew() {
    let (gate, behind, store, beside) = gated().await;
    let lease = store.lease_grant(SOON * 10).await.unwrap();
    for name in ["h1", "h2", "h3"] {
        beside.claim_host(&host(name), lease).await.unwrap();
        let report = HostReport { version: "1".into(), ..HostReport::default() };
        beside.publish_report(&host(name), &Arc::new(report.clone()), lease).await.unwrap();
    }
    assert!(behind.wait(SOON, |mirror| mirror.reports.len() == 3).await);
    let seen = behind.now().seen.clone();
    gate.set_cut(true);
    assert!(behind.wait(SOON, |mirror| mirror.trouble.is_some()).await);
    commit(&beside, "after").await;
    let report = HostReport { version: "2".into(), ..HostReport::default() };
    beside.publish_report(&host("h1"), &Arc::new(report.clone()), lease).await.unwrap();
    beside.release_host(&host("h2"), lease).await.unwrap();
    let gone = Op::Delete(beside.keys.observed(&host("h3")));
    store.txn(Txn { then: vec![gone], ..Txn::default() }).await.unwrap();
    compact_all(&*store).await;
    gate.set_cut(false);
    catches_up(&behind, &beside).await;
    let mirror = behind.now();
    assert_eq!(mirror.reports.keys().collect::<Vec<_>>(), [&host("h1"), &host("h2")]);
    assert_eq!(mirror.reports[&host("h1")].version, "2");
    assert_eq!(mirror.alive.iter().collect::<Vec<_>>(), [&host("h1"), &host("h3")]);
    assert!(mirror.seen[&host("h1")] > seen[&host("h1")], "a new report is new");
    assert_eq!(mirror.seen[&host("h2")], seen[&host("h2")], "an old report does not look new");
    commit(&beside, "and on").await;
    catches_up(&behind, &beside).await;
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_made_once_and_known_to_be_made() {
    let (gate, behind, _store, _) = gated().await;
    gate.lose_answers(1);
    assert_eq!(commit(&behind, "answer").await, CommitOutcome::Committed);
    assert_eq!(behind.now().lab.generation, Generation(1));
    gate.lose_requests(3);
    assert_eq!(commit(&behind, "request").await, CommitOutcome::Committed);
    assert_eq!(behind.now().lab.generation, Generation(2));
    gate.lose_requests(2);
    gate.lose_answers(2);
    assert_eq!(commit(&behind, "both").await, CommitOutcome::Committed);
    let what: Vec<_> =
        behind.history().await.unwrap().into_iter().map(|entry| entry.what).collect();
    assert_eq!(what, ["say answer", "say request", "say both"]);
}

#[tokio::test]
async fn a_lost_answer_about_a_lost_race_is_still_a_conflict() {
    let (gate, behind, _store, beside) = gated().await;
    let before = behind.now();
    commit(&beside, "first").await;
    gate.lose_answers(1);
    let (lab, entry) = next(&before.lab, "second");
    assert_eq!(behind.commit(&before, &lab, &entry).await.unwrap(), CommitOutcome::Conflict);
    assert_eq!(says(&behind.now()), Some("first"));
}

#[tokio::test]
async fn a_large_change_survives_lost_requests_and_answers() {
    let (gate, behind, _store, beside) = gated().await;
    let before = behind.now();
    let (mut lab, entry) = next(&before.lab, "many");
    let many = lab.hosts[&host("h1")].clone();
    for n in 0..400 {
        lab.hosts.insert(host(&format!("x{n}")), many.clone());
    }
    gate.lose_requests(3);
    gate.lose_answers(4);
    let outcome = behind.commit(&before, &lab, &entry).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed);
    catches_up(&beside, &behind).await;
    assert_eq!(*beside.now().lab, lab);
}

#[tokio::test]
async fn a_large_change_whose_author_died_is_finished_by_the_next_change() {
    let (gate, behind, store, beside) = gated().await;
    let before = behind.now();
    let (mut lab, entry) = next(&before.lab, "many");
    let many = lab.hosts[&host("h1")].clone();
    for n in 0..400 {
        lab.hosts.insert(host(&format!("x{n}")), many.clone());
    }
    // The author dies after some transaction of it, before, at or after acceptance.
    for transactions in 1..12 {
        let author = behind.clone();
        let (before, lab, entry) = (before.clone(), lab.clone(), entry.clone());
        gate.lose_requests(0);
        let task = tokio::spawn(async move { author.commit(&before, &lab, &entry).await });
        for _ in 0..transactions {
            tokio::task::yield_now().await;
        }
        task.abort();
        let _ = task.await;
    }
    while commit(&beside, "next").await == CommitOutcome::Conflict {}
    assert_eq!(says(&beside.now()), Some("next"));
    let hosts = beside.now().lab.hosts.len();
    assert!(hosts == 1 || hosts == lab.hosts.len(), "{hosts} hosts are half a change");
    let (_, kvs) = store.range(b"/faultbed/v1/demo/staged/").await.unwrap();
    assert_eq!(kvs.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_given_up_when_the_store_stays_away() {
    let (gate, behind, _store, _) = gated().await;
    gate.set_cut(true);
    let before = behind.now();
    let (lab, entry) = next(&before.lab, "never");
    let began = Instant::now();
    let refused = behind.commit(&before, &lab, &entry).await.unwrap_err();
    assert_eq!(refused, StoreError::Unavailable("the gate is shut".into()));
    assert!(began.elapsed() <= super::write::COMMIT_TIME_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_on_the_way_no_change_is_lost_doubled_or_seen_in_parts() {
    let seed = seed("whatever_happens_on_the_way");
    let mut rng = StdRng::seed_from_u64(seed);
    let (gate, behind, store, beside) = gated().await;
    let other = tokio::spawn({
        let beside = beside.clone();
        async move { say_all(&beside, "beside", 60).await }
    });
    let one = tokio::spawn({
        let behind = behind.clone();
        async move { say_all(&behind, "behind", 60).await }
    });
    while !(one.is_finished() && other.is_finished()) {
        match rng.random_range(0..4) {
            0 => gate.lose_requests(rng.random_range(1..4)),
            1 => gate.lose_answers(rng.random_range(1..4)),
            2 => compact_all(&*store).await,
            _ => gate.set_cut(true),
        }
        pause(&mut rng, 3_000).await;
        compact_all(&*store).await;
        let said = said(&behind.now(), "behind");
        gate.set_cut(false);
        // Progress can be asked for only where the faults leave time for it.
        let deadline = Instant::now() + SOON;
        while !one.is_finished() && self::said(&behind.now(), "behind") == said {
            assert!(Instant::now() < deadline, "nothing goes on: {:?}", behind.now());
            pause(&mut rng, 2_000).await;
        }
        pause(&mut rng, 5_000).await;
    }
    gate.set_cut(false);
    one.await.unwrap();
    other.await.unwrap();
    catches_up(&behind, &beside).await;
    check_history(&beside, ["beside", "behind"], 60).await;
}

/// What somebody who says things in turn has said last.
fn said(mirror: &Mirror, who: &str) -> Option<String> {
    mirror.lab.hosts.get(&host(who)).map(|host| host.labels["says"].clone())
}

async fn pause(rng: &mut StdRng, micros_max: u64) {
    let micros = rng.random_range(0..micros_max);
    tokio::time::sleep(std::time::Duration::from_micros(micros)).await;
}

/// Says `who/0`, `who/1`, …, each until it is certain that it was said.
async fn say_all(handle: &MirrorHandle, who: &str, count: u64) {
    for n in 0..count {
        let text = format!("{who}/{n}");
        let deadline = Instant::now() + SOON * 3;
        loop {
            assert!(Instant::now() < deadline, "{text} is never said: {:?}", handle.now().trouble);
            let before = handle.now();
            let (mut lab, entry) = next(&before.lab, &text);
            // Kept apart by who, so that a lost answer can be looked up.
            let kept = lab.hosts[&host("h1")].clone();
            if before.lab.hosts.get(&host(who)) == Some(&kept) {
                break;
            }
            lab.hosts.insert(host(who), kept);
            match handle.commit(&before, &lab, &entry).await {
                Ok(CommitOutcome::Committed) => break,
                Ok(CommitOutcome::Conflict) | Err(StoreError::Unavailable(_)) => {
                    handle.wait(SOON, |mirror| mirror.trouble.is_none()).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

async fn check_history(handle: &MirrorHandle, who: [&str; 2], count: u64) {
    let history = handle.history().await.unwrap();
    assert_eq!(history.len() as u64, 2 * count);
    for (entry, generation) in history.iter().zip(1..) {
        assert_eq!(entry.generation, Generation(generation));
    }
    for who in who {
        let said: Vec<_> = history
            .iter()
            .filter_map(|entry| entry.what.strip_prefix(&format!("say {who}/")))
            .map(|n| n.parse::<u64>().unwrap())
            .collect();
        assert_eq!(said, (0..count).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_killed_stopped_and_compacted_loses_no_change() {
    let mut server = EtcdServer::start().await;
    let store = open(&server.choice(""), Path::new("/nowhere")).await.unwrap();
    let other = open(&server.choice(""), Path::new("/nowhere")).await.unwrap();
    let (one, two) = (start(&store).await, start(&other).await);
    let says_all = |handle: &Arc<MirrorHandle>, who: &'static str| {
        let handle = handle.clone();
        tokio::spawn(async move { say_all(&handle, who, 40).await })
    };
    let (first, second) = (says_all(&one, "one"), says_all(&two, "two"));
    for generation in [10, 20, 30] {
        assert!(one.wait(SOON, |mirror| mirror.lab.generation.0 >= generation).await);
        compact_all(&*store).await;
        server.kill();
        assert!(one.wait(SOON, |mirror| mirror.trouble.is_some()).await);
        server.respawn();
        server.answers().await;
    }
    assert!(one.wait(SOON, |mirror| mirror.lab.generation.0 >= 40).await);
    server.pause();
    assert!(one.wait(SOON, |mirror| mirror.trouble.is_some()).await, "a stopped server is noticed");
    server.go_on();
    server.answers().await;
    compact_all(&*store).await;
    first.await.unwrap();
    second.await.unwrap();
    catches_up(&one, &two).await;
    check_history(&one, ["one", "two"], 40).await;
}
