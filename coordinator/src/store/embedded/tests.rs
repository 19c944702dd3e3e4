//! Tests of the embedded store: what is on disk after it broke off at any point.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use rand::{SeedableRng, rngs::StdRng};

use super::{Embedded, disk::Disk, medium::Medium};
use crate::store::{
    LeaseId, Op, Revision, Store, StoreError, Txn,
    contract::{SOON, put, value},
    core::Core,
    seed::seed,
};

const TTL: Duration = Duration::from_secs(60);

fn open(medium: &Medium) -> Result<Disk, StoreError> {
    Disk::open_backend(medium.clone())
}

fn load(medium: &Medium) -> Core {
    open(medium).unwrap().load(Duration::ZERO).unwrap()
}

/// What a store went through, seen from outside.
#[derive(Default)]
struct Outcome {
    /// The state after the last step that was acknowledged.
    acknowledged: Option<Core>,
    /// The state that the step which broke off would have led to.
    attempted: Option<Core>,
}

/// Runs a fixed history of commits, leases and compactions until the end or the first failure.
fn run(medium: &Medium) -> Outcome {
    let mut outcome = Outcome::default();
    let _ = try_run(medium, &mut outcome);
    outcome
}

fn try_run(medium: &Medium, outcome: &mut Outcome) -> Result<(), redb::Error> {
    let Ok(disk) = open(medium) else { return Ok(()) };
    let mut core = disk.load(Duration::ZERO).unwrap();
    outcome.acknowledged = Some(core.clone());
    for step in 0..24_usize {
        let before = core.clone();
        let commit = match step {
            3 | 9 => core.decide_grant(TTL).1,
            15 => core.decide_end(LeaseId(1)).unwrap(),
            12 | 20 => {
                let upto = Revision(core.revision().0 - 3);
                core.compact(upto);
                outcome.attempted = Some(core.clone());
                disk.compact(upto)?;
                outcome.acknowledged = Some(core.clone());
                continue;
            }
            _ => {
                let lease = (step % 5 == 0 && step > 9).then_some(LeaseId(1 + step as u64 % 2));
                let large = vec![step as u8; if step % 4 == 0 { 20_000 } else { 10 }];
                let then = vec![
                    Op::Put(format!("k{}", step % 7).into(), large, lease),
                    Op::put("n", step.to_string()),
                    Op::Delete(format!("k{}", (step + 3) % 7).into()),
                ];
                core.decide(&Txn { then, ..Txn::default() }).unwrap().1.unwrap()
            }
        };
        core.apply(commit.clone(), Duration::ZERO);
        outcome.attempted = Some(core.clone());
        disk.commit(redb::Durability::Immediate, std::slice::from_ref(&commit))
            .inspect_err(|_| outcome.acknowledged = Some(before))?;
        outcome.acknowledged = Some(core.clone());
    }
    Ok(())
}

fn check(medium: &Medium, outcome: Outcome, at: u64) {
    let found = load(medium);
    match outcome.acknowledged {
        None => assert_eq!(found, Core::new(), "broken off at {at}"),
        Some(acknowledged) => assert!(
            found == acknowledged || Some(&found) == outcome.attempted.as_ref(),
            "broken off at {at}: neither the acknowledged nor the attempted state is there"
        ),
    }
    // It is not only readable.
    let txn = Txn { then: vec![Op::put("last", "1")], ..Txn::default() };
    let commit = found.decide(&txn).unwrap().1.unwrap();
    open(medium)
        .unwrap()
        .commit(redb::Durability::Immediate, std::slice::from_ref(&commit))
        .unwrap();
    assert_eq!(load(medium).revision(), found.revision().next());
}

#[test]
fn broken_off_at_any_operation_the_file_holds_all_that_was_acknowledged() {
    for (medium, at) in breaking_points(1) {
        let outcome = run(&medium);
        medium.mend();
        check(&medium, outcome, at);
    }
}

/// Disks with an empty store on them that break after each count of operations, or each `step`th,
/// until one goes through all.
fn breaking_points(step: usize) -> impl Iterator<Item = (Medium, u64)> {
    let made = Medium::default();
    drop(open(&made).unwrap());
    let whole = made.copy();
    run(&whole);
    let points = made.operations()..whole.operations();
    assert!(points.end > points.start + 50);
    points.step_by(step).map(move |at| {
        let medium = made.copy();
        medium.breaks_after(at);
        (medium, at)
    })
}

#[test]
fn after_a_power_failure_the_file_holds_all_that_was_acknowledged() {
    let seed = seed("after_a_power_failure");
    let mut rng = StdRng::seed_from_u64(seed);
    for (medium, at) in breaking_points(3) {
        let outcome = run(&medium);
        medium.power_cycle(&mut rng);
        check(&medium, outcome, at);
    }
}

async fn embedded(medium: &Medium) -> Embedded {
    let medium = medium.clone();
    Embedded::open_with(Box::new(move || open(&medium))).await.unwrap()
}

#[tokio::test]
async fn a_second_opener_is_told_that_the_first_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let first = Embedded::open(&path).await.unwrap();
    put(&first, "a", "1").await;
    let second = Embedded::open(&path).await.unwrap_err().to_string();
    assert!(second.contains("another process has it open"), "{second}");
    assert!(second.contains("store.redb"), "{second}");
    drop(first);
    let third = Embedded::open(&path).await.unwrap();
    assert_eq!(value(&third, "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    std::fs::write(&path, "my notes").unwrap();
    let refused = Embedded::open(&path).await.unwrap_err().to_string();
    assert!(refused.contains("store.redb"), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), b"my notes");
    let nowhere = Embedded::open(&dir.path().join("no/such/dir")).await.unwrap_err().to_string();
    assert!(nowhere.contains("No such file"), "{nowhere}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[tokio::test]
async fn a_store_that_is_opened_again_is_the_same() {
    let medium = Medium::default();
    let store = embedded(&medium).await;
    put(&store, "gone", "1").await;
    let lease = store.lease_grant(TTL).await.unwrap();
    let under = Op::Put("leased".into(), b"1".to_vec(), Some(lease));
    store.txn(Txn { then: vec![under], ..Txn::default() }).await.unwrap();
    put(&store, "kept", "1").await;
    let compacted = store.range(b"").await.unwrap().0;
    store.compact(compacted).await.unwrap();
    let delete = Op::Delete("gone".into());
    store.txn(Txn { then: vec![delete], ..Txn::default() }).await.unwrap();
    put(&store, "kept", "2").await;
    let before = store.range(b"").await.unwrap();
    drop(store);

    let store = embedded(&medium).await;
    assert_eq!(store.range(b"").await.unwrap(), before);
    let early = store.watch(b"", compacted).await.err();
    assert_eq!(early, Some(StoreError::Compacted(compacted)));
    let watch = store.watch(b"", compacted.next()).await.unwrap();
    let batches: Vec<_> = watch.take(2).collect().await;
    let revisions: Vec<_> = batches.into_iter().map(|batch| batch.unwrap().revision.0).collect();
    assert_eq!(revisions, [compacted.0 + 1, compacted.0 + 2]);
    store.lease_keep(lease).await.unwrap();
    assert_ne!(store.lease_grant(TTL).await.unwrap(), lease, "an id is never given twice");
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(value(&store, "leased").await, None);
}

#[tokio::test]
async fn a_lease_id_is_not_given_again_after_its_lease_has_ended() {
    let medium = Medium::default();
    let store = embedded(&medium).await;
    let lease = store.lease_grant(TTL).await.unwrap();
    store.lease_revoke(lease).await.unwrap();
    drop(store);
    assert_ne!(embedded(&medium).await.lease_grant(TTL).await.unwrap(), lease);
}

#[tokio::test(start_paused = true)]
async fn a_lease_has_its_whole_time_again_after_a_reopening_and_then_ends() {
    let medium = Medium::default();
    let store = embedded(&medium).await;
    let lease = store.lease_grant(TTL).await.unwrap();
    let under = Op::Put("leased".into(), b"1".to_vec(), Some(lease));
    store.txn(Txn { then: vec![under], ..Txn::default() }).await.unwrap();
    tokio::time::advance(TTL - Duration::from_secs(1)).await;
    drop(store);
    let store = embedded(&medium).await;
    tokio::time::advance(TTL - Duration::from_secs(1)).await;
    assert_eq!(value(&store, "leased").await.as_deref(), Some("1"));
    let from = store.range(b"").await.unwrap().0.next();
    let mut watch = store.watch(b"", from).await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    let ended = watch.next().await.unwrap().unwrap();
    assert_eq!(ended.events.len(), 1);
    assert_eq!(store.lease_keep(lease).await, Err(StoreError::NoLease));
}

#[tokio::test]
async fn a_full_disk_is_one_clear_error_and_no_lost_revision() {
    let medium = Medium::default();
    let store = embedded(&medium).await;
    let first = put(&store, "a", "1").await;
    let mut watch = store.watch(b"", first).await.unwrap();
    medium.set_full(true);
    for n in 0..3 {
        let txn = Txn { then: vec![Op::put("a", n.to_string())], ..Txn::default() };
        let refused = store.txn(txn).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
        assert!(refused.to_string().contains("no storage space"), "{refused}");
    }
    assert_eq!(value(&store, "a").await.as_deref(), Some("1"), "reading goes on");
    medium.set_full(false);
    let last = put(&store, "a", "2").await;
    assert_eq!(value(&store, "a").await.as_deref(), Some("2"));
    let mut revision = Revision::ABSENT;
    while revision < last {
        let batch = tokio::time::timeout(SOON, watch.next()).await.unwrap().unwrap().unwrap();
        assert!(revision == Revision::ABSENT || batch.revision == revision.next());
        revision = batch.revision;
    }
    drop(store);
    assert_eq!(value(&embedded(&medium).await, "a").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn history_and_file_stay_bounded() {
    let medium = Medium::default();
    let store = embedded(&medium).await;
    let first = put(&store, "a", "0").await;
    let report = "x".repeat(20_000);
    for _ in 0..1_200 {
        put(&store, "observed/h1", &report).await;
    }
    assert!(matches!(store.watch(b"", first).await.err(), Some(StoreError::Compacted(_))));
    assert_eq!(value(&store, "a").await.as_deref(), Some("0"));
    let before = store.range(b"").await.unwrap();
    drop(store);
    // Written: 24 MB. Kept: at most 16 MB of history, in pages of a tree that was rewritten.
    assert!(medium.size() < 64 * 1024 * 1024, "{} bytes", medium.size());
    assert_eq!(embedded(&medium).await.range(b"").await.unwrap(), before);
}

#[tokio::test]
async fn a_watch_that_falls_behind_ends_with_where_history_begins() {
    let store: Arc<dyn Store> = crate::store::in_memory().await.unwrap();
    let first = put(&*store, "a", "0").await;
    let mut watch = store.watch(b"", first).await.unwrap();
    watch.next().await.unwrap().unwrap();
    for n in 0..10 {
        put(&*store, "a", &n.to_string()).await;
    }
    let last = put(&*store, "a", "last").await;
    store.compact(last).await.unwrap();
    assert_eq!(watch.next().await, Some(Err(StoreError::Compacted(last))));
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn closing_the_store_ends_its_watches() {
    let store = crate::store::in_memory().await.unwrap();
    let first = put(&*store, "a", "0").await;
    let mut watch = store.watch(b"", first.next()).await.unwrap();
    drop(store);
    let ended = tokio::time::timeout(SOON, watch.next()).await.unwrap();
    assert!(matches!(ended, Some(Err(StoreError::Unavailable(_)))), "{ended:?}");
}

/// A commit that a crash may take back.
async fn pass(store: &Embedded, key: &str, value: &str) -> Result<Revision, StoreError> {
    let then = vec![Op::put(key, value)];
    let out = store.txn(Txn { then, is_passing: true, ..Txn::default() }).await?;
    Ok(out.revision)
}

#[tokio::test(start_paused = true)]
async fn after_a_power_failure_only_the_last_passing_commits_are_gone() {
    let seed = seed("passing_commits");
    let mut rng = StdRng::seed_from_u64(seed);
    let medium = Medium::default();
    let store = embedded(&medium).await;
    pass(&store, "r", "1").await.unwrap();
    put(&store, "a", "1").await;
    pass(&store, "r", "2").await.unwrap();
    let seen = pass(&store, "r", "3").await.unwrap();
    assert_eq!(value(&store, "r").await.as_deref(), Some("3"), "it is seen at once");
    // A crash is no orderly end: what is there now is all there is.
    let crashed = medium.copy();
    crashed.power_cycle(&mut rng);
    let after = embedded(&crashed).await;
    assert_eq!(value(&after, "a").await.as_deref(), Some("1"));
    let r: u64 = value(&after, "r").await.unwrap().parse().unwrap();
    assert!((1..=3).contains(&r), "seed {seed}: what came before a durable commit is durable");
    assert!(after.range(b"").await.unwrap().0 <= seen);
    // One a second waits for the disk, so no more than that is ever at stake.
    tokio::time::advance(Duration::from_secs(1)).await;
    pass(&store, "r", "4").await.unwrap();
    let crashed = medium.copy();
    crashed.power_cycle(&mut rng);
    assert_eq!(value(&embedded(&crashed).await, "r").await.as_deref(), Some("4"));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_takes_back_nothing_that_was_seen() {
    let medium = Medium::default();
    let store = embedded(&medium).await;
    put(&store, "a", "1").await;
    pass(&store, "r", "1").await.unwrap();
    let last = pass(&store, "r", "2").await.unwrap();
    medium.set_full(true);
    let refused = store.txn(Txn { then: vec![Op::put("a", "2")], ..Txn::default() }).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert_eq!(value(&store, "r").await.as_deref(), Some("2"));
    medium.set_full(false);
    assert_eq!(put(&store, "a", "3").await, last.next(), "no revision is given twice");
    assert_eq!(value(&store, "r").await.as_deref(), Some("2"));
    drop(store);
    assert_eq!(value(&embedded(&medium).await, "r").await.as_deref(), Some("2"));
}
