//! What watches and compaction must do.

use std::sync::Arc;

use futures::FutureExt;

use super::{Batch, Op, Revision, Store, StoreError, kv, next, put, refusal, signs, txn};

pub(super) async fn a_watch_gives_whole_revisions_in_order(store: Arc<dyn Store>) {
    let first = put(&*store, "a", "1").await;
    let ops = vec![Op::put("b", "1"), Op::put("a", "2"), Op::put("c", "1")];
    let second = txn(&*store, vec![], ops).await.revision;
    let third = put(&*store, "a", "3").await;
    let mut watch = store.watch(b"", first).await.unwrap();
    let batches = next(&mut watch, 3).await;
    let revisions: Vec<_> = batches.iter().map(|batch| batch.revision).collect();
    assert_eq!(revisions, [first, second, third]);
    assert_eq!(signs(&batches[0]), ["+a"]);
    assert_eq!(signs(&batches[1]), ["+b", "+a", "+c"]);
    assert_eq!(signs(&batches[2]), ["+a"]);
}

pub(super) async fn a_watch_begins_with_the_revision_it_names(store: Arc<dyn Store>) {
    put(&*store, "a", "1").await;
    let second = put(&*store, "a", "2").await;
    let third = put(&*store, "a", "3").await;
    let mut watch = store.watch(b"a", second).await.unwrap();
    let revisions: Vec<_> = next(&mut watch, 2).await.iter().map(|batch| batch.revision).collect();
    assert_eq!(revisions, [second, third]);
}

pub(super) async fn a_watch_keeps_to_its_prefix(store: Arc<dyn Store>) {
    let first = put(&*store, "x/1", "1").await;
    put(&*store, "y", "1").await;
    put(&*store, "x", "1").await;
    let ops = vec![Op::put("x0", "1"), Op::put("x/2", "1"), Op::put("w", "1")];
    txn(&*store, vec![], ops).await;
    let mut watch = store.watch(b"x/", first).await.unwrap();
    let batches = next(&mut watch, 2).await;
    assert_eq!(signs(&batches[0]), ["+x/1"]);
    assert_eq!(signs(&batches[1]), ["+x/2"]);
}

pub(super) async fn a_watch_tells_deletions(store: Arc<dyn Store>) {
    let first = put(&*store, "a/1", "1").await;
    put(&*store, "a/2", "1").await;
    put(&*store, "b", "1").await;
    txn(&*store, vec![], vec![Op::Delete("b".into()), Op::DeletePrefix("a/".into())]).await;
    let mut watch = store.watch(b"", first).await.unwrap();
    let batches = next(&mut watch, 4).await;
    assert_eq!(signs(&batches[3]), ["-b", "-a/1", "-a/2"]);
}

pub(super) async fn a_watch_goes_on_with_what_happens_later(store: Arc<dyn Store>) {
    let first = put(&*store, "a", "1").await;
    let mut watch = store.watch(b"a", first).await.unwrap();
    next(&mut watch, 1).await;
    for n in 0..200 {
        put(&*store, "a", &n.to_string()).await;
    }
    let batches = next(&mut watch, 200).await;
    let revisions: Vec<_> = batches.iter().map(|batch| batch.revision.0).collect();
    assert_eq!(revisions, (first.0 + 1..=first.0 + 200).collect::<Vec<_>>());
}

pub(super) async fn a_watch_from_the_future_waits(store: Arc<dyn Store>) {
    let now = put(&*store, "a", "1").await;
    let mut watch = store.watch(b"a", now.next().next()).await.unwrap();
    put(&*store, "a", "too early").await;
    let second = put(&*store, "a", "3").await;
    assert_eq!(next(&mut watch, 1).await[0].revision, second);
    assert!(futures::StreamExt::next(&mut watch).now_or_never().is_none());
}

pub(super) async fn a_watch_below_compaction_says_where_history_begins(store: Arc<dyn Store>) {
    let first = put(&*store, "a", "1").await;
    put(&*store, "a", "2").await;
    let third = put(&*store, "a", "3").await;
    put(&*store, "a", "4").await;
    store.compact(third).await.unwrap();
    assert_eq!(refusal(&*store, "a", first).await, StoreError::Compacted(third));
    assert_eq!(refusal(&*store, "nothing", first).await, StoreError::Compacted(third));
}

pub(super) async fn a_watch_past_compaction_works(store: Arc<dyn Store>) {
    put(&*store, "a", "1").await;
    let second = put(&*store, "a", "2").await;
    let third = put(&*store, "a", "3").await;
    store.compact(second).await.unwrap();
    let mut watch = store.watch(b"a", second.next()).await.unwrap();
    assert_eq!(next(&mut watch, 1).await[0].revision, third);
}

pub(super) async fn a_watch_from_before_the_first_revision_is_refused(store: Arc<dyn Store>) {
    let refused = refusal(&*store, "a", Revision::ABSENT).await;
    assert!(matches!(refused, StoreError::Invalid(_)), "{refused:?}");
}

pub(super) async fn current_keys_survive_compaction(store: Arc<dyn Store>) {
    put(&*store, "gone", "1").await;
    let kept = put(&*store, "kept", "1").await;
    txn(&*store, vec![], vec![Op::Delete("gone".into())]).await;
    let before = store.range(b"").await.unwrap();
    store.compact(before.0).await.unwrap();
    assert_eq!(store.range(b"").await.unwrap(), before);
    assert_eq!(kv(&*store, "kept").await.unwrap().modified, kept);
    let next = put(&*store, "kept", "2").await;
    assert_eq!(next, before.0.next());
    assert_eq!(kv(&*store, "kept").await.unwrap().version, 2);
}

pub(super) async fn compacting_the_future_is_refused_and_the_past_is_done(store: Arc<dyn Store>) {
    put(&*store, "a", "1").await;
    let now = put(&*store, "a", "2").await;
    let refused = store.compact(now.next()).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    store.compact(now).await.unwrap();
    store.compact(now).await.unwrap();
    store.compact(Revision(now.0 - 1)).await.unwrap();
}

pub(super) async fn two_watches_see_the_same(store: Arc<dyn Store>) {
    let first = put(&*store, "a", "0").await;
    let mut early = store.watch(b"", first).await.unwrap();
    for n in 0..20 {
        txn(&*store, vec![], vec![Op::put("a", n.to_string()), Op::put(format!("b{n}"), "1")])
            .await;
    }
    let mut late = store.watch(b"", first).await.unwrap();
    let one: Vec<Batch> = next(&mut early, 21).await;
    assert_eq!(one, next(&mut late, 21).await);
}
