//! What transactions and reads must do.

use std::sync::Arc;

use super::{Compare, Op, Revision, Store, StoreError, Txn, kv, put, txn, value};
use crate::store::{TXN_BYTES_MAX, TXN_OPS_MAX};

/// Contending tasks, and the increments of each.
const CONTENDERS: u64 = 8;
const INCREMENTS: u64 = 10;

pub(super) async fn a_new_store_is_empty_and_has_a_revision(store: Arc<dyn Store>) {
    let (revision, kvs) = store.range(b"").await.unwrap();
    assert!(revision > Revision::ABSENT);
    assert_eq!(kvs, Vec::new());
}

pub(super) async fn a_put_is_read_back_with_its_revisions_and_version(store: Arc<dyn Store>) {
    let first = put(&*store, "a", "1").await;
    let second = put(&*store, "a", "2").await;
    assert_eq!(second, first.next());
    let kv = kv(&*store, "a").await.unwrap();
    assert_eq!(kv.value, b"2");
    assert_eq!((kv.created, kv.modified, kv.version), (first, second, 2));
    assert_eq!(kv.lease, None);
    assert_eq!(store.range(b"a").await.unwrap().0, second);
}

pub(super) async fn a_range_is_ordered_and_keeps_to_its_prefix(store: Arc<dyn Store>) {
    for key in ["b/2", "a", "b/10", "c", "b/1", "b", "b0"] {
        put(&*store, key, key).await;
    }
    let (_, kvs) = store.range(b"b/").await.unwrap();
    let keys: Vec<_> = kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key)).collect();
    assert_eq!(keys, ["b/1", "b/10", "b/2"]);
    assert_eq!(store.range(b"").await.unwrap().1.len(), 7);
}

pub(super) async fn one_transaction_is_one_revision(store: Arc<dyn Store>) {
    let before = put(&*store, "c", "0").await;
    let ops = vec![Op::put("a", "1"), Op::put("b", "1"), Op::Delete("c".into())];
    let out = txn(&*store, vec![], ops).await;
    assert_eq!(out.revision, before.next());
    let (revision, kvs) = store.range(b"").await.unwrap();
    assert_eq!(revision, out.revision);
    assert!(kvs.iter().all(|kv| kv.modified == out.revision));
    assert_eq!(kvs.len(), 2);
}

pub(super) async fn a_failed_comparison_changes_nothing_and_takes_the_other_branch(
    store: Arc<dyn Store>,
) {
    let before = put(&*store, "a", "1").await;
    let guarded = Txn {
        when: vec![Compare::Absent("b".into()), Compare::Absent("a".into())],
        then: vec![Op::put("b", "never")],
        or_else: vec![Op::Get("a".into()), Op::Get("b".into())],
        ..Txn::default()
    };
    let out = store.txn(guarded.clone()).await.unwrap();
    assert!(!out.succeeded);
    assert_eq!(out.revision, before);
    let got: Vec<_> = out.got.iter().map(|kv| kv.as_ref().map(|kv| kv.value.as_slice())).collect();
    assert_eq!(got, [Some(b"1".as_slice()), None]);
    let out = store.txn(Txn { or_else: vec![Op::put("c", "else")], ..guarded }).await.unwrap();
    assert!(!out.succeeded);
    assert_eq!(out.revision, before.next());
    assert_eq!(value(&*store, "c").await.as_deref(), Some("else"));
    assert_eq!(value(&*store, "b").await, None);
}

pub(super) async fn deleting_nothing_takes_no_revision(store: Arc<dyn Store>) {
    let before = put(&*store, "a", "1").await;
    let ops = vec![Op::Delete("b".into()), Op::DeletePrefix("c/".into())];
    let out = txn(&*store, vec![], ops).await;
    assert!(out.succeeded);
    assert_eq!(out.revision, before);
    assert_eq!(store.range(b"").await.unwrap().0, before);
}

pub(super) async fn revision_zero_means_absent(store: Arc<dyn Store>) {
    let absent = || vec![Compare::Modified("a".into(), Revision::ABSENT)];
    assert!(txn(&*store, absent(), vec![Op::put("a", "1")]).await.succeeded);
    assert!(!txn(&*store, absent(), vec![Op::put("a", "2")]).await.succeeded);
    let modified = kv(&*store, "a").await.unwrap().modified;
    let same = vec![Compare::Modified("a".into(), modified)];
    assert!(txn(&*store, same.clone(), vec![Op::Delete("a".into())]).await.succeeded);
    assert!(!txn(&*store, same, vec![Op::put("a", "3")]).await.succeeded);
    assert!(txn(&*store, vec![Compare::Absent("a".into())], vec![]).await.succeeded);
}

pub(super) async fn comparisons_of_values_are_exact(store: Arc<dyn Store>) {
    put(&*store, "a", "12").await;
    for (says, holds) in [("12", true), ("1", false), ("123", false), ("", false)] {
        let out = txn(&*store, vec![Compare::Value("a".into(), says.into())], vec![]).await;
        assert_eq!(out.succeeded, holds, "{says:?}");
    }
    assert!(!txn(&*store, vec![Compare::Value("b".into(), "".into())], vec![]).await.succeeded);
}

pub(super) async fn a_key_made_anew_begins_again(store: Arc<dyn Store>) {
    put(&*store, "a", "1").await;
    put(&*store, "a", "2").await;
    txn(&*store, vec![], vec![Op::Delete("a".into())]).await;
    let anew = put(&*store, "a", "3").await;
    let kv = kv(&*store, "a").await.unwrap();
    assert_eq!((kv.created, kv.modified, kv.version), (anew, anew, 1));
}

pub(super) async fn reads_see_the_operations_before_them(store: Arc<dyn Store>) {
    put(&*store, "a", "1").await;
    put(&*store, "b", "1").await;
    let ops = vec![
        Op::Get("a".into()),
        Op::put("a", "2"),
        Op::Get("a".into()),
        Op::Delete("b".into()),
        Op::Get("b".into()),
    ];
    let out = txn(&*store, vec![], ops).await;
    let got: Vec<_> = out.got.iter().map(|kv| kv.as_ref().map(|kv| kv.value.as_slice())).collect();
    assert_eq!(got, [Some(b"1".as_slice()), Some(b"2"), None]);
    assert_eq!(out.got[1].as_ref().unwrap().modified, out.revision);
}

async fn refused(store: &dyn Store, then: Vec<Op>) {
    let before = store.range(b"").await.unwrap();
    let refused = store.txn(Txn { then, ..Txn::default() }).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    assert_eq!(store.range(b"").await.unwrap(), before);
}

pub(super) async fn writing_a_key_twice_is_refused(store: Arc<dyn Store>) {
    refused(&*store, vec![Op::put("a", "1"), Op::put("a", "2")]).await;
    refused(&*store, vec![Op::put("a", "1"), Op::Delete("a".into())]).await;
    refused(&*store, vec![Op::DeletePrefix("a".into()), Op::put("ab", "2")]).await;
    refused(&*store, vec![Op::put("", "1")]).await;
}

pub(super) async fn too_many_operations_are_refused(store: Arc<dyn Store>) {
    let puts = |count: usize| (0..count).map(|n| Op::put(format!("k{n}"), "v")).collect::<Vec<_>>();
    refused(&*store, puts(TXN_OPS_MAX + 1)).await;
    assert!(txn(&*store, vec![], puts(TXN_OPS_MAX)).await.succeeded);
}

pub(super) async fn too_many_bytes_are_refused(store: Arc<dyn Store>) {
    let half = |key: &str| Op::put(key, vec![b'x'; TXN_BYTES_MAX / 2]);
    refused(&*store, vec![half("a"), half("b"), half("c")]).await;
    let whole = Op::put("a", vec![b'x'; TXN_BYTES_MAX - 1]);
    assert!(txn(&*store, vec![], vec![whole]).await.succeeded);
    assert_eq!(kv(&*store, "a").await.unwrap().value.len(), TXN_BYTES_MAX - 1);
}

pub(super) async fn deleting_a_prefix_spares_its_neighbours(store: Arc<dyn Store>) {
    for key in ["a", "b", "b/1", "b/2", "b0"] {
        put(&*store, key, "1").await;
    }
    txn(&*store, vec![], vec![Op::DeletePrefix("b/".into())]).await;
    let (_, kvs) = store.range(b"").await.unwrap();
    let keys: Vec<_> = kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key)).collect();
    assert_eq!(keys, ["a", "b", "b0"]);
}

pub(super) async fn values_may_hold_any_bytes(store: Arc<dyn Store>) {
    let any: Vec<u8> = (0..=255).collect();
    txn(&*store, vec![], vec![Op::put(&b"k\xff\x00"[..], any.clone())]).await;
    let (_, kvs) = store.range(b"k\xff").await.unwrap();
    assert_eq!(kvs.len(), 1);
    assert_eq!((kvs[0].key.as_slice(), kvs[0].value.as_slice()), (&b"k\xff\x00"[..], &any[..]));
    txn(&*store, vec![], vec![Op::put("empty", "")]).await;
    assert_eq!(value(&*store, "empty").await.as_deref(), Some(""));
}

pub(super) async fn eighty_contended_increments_are_eighty(store: Arc<dyn Store>) {
    put(&*store, "n", "0").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONTENDERS {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..INCREMENTS {
                increment(&*store).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let total = (CONTENDERS * INCREMENTS).to_string();
    assert_eq!(value(&*store, "n").await, Some(total));
}

/// Adds one, as often as it takes; every failed attempt was another's success.
async fn increment(store: &dyn Store) {
    for _ in 0..=CONTENDERS * INCREMENTS {
        let kv = kv(store, "n").await.unwrap();
        let number: u64 = String::from_utf8(kv.value).unwrap().parse().unwrap();
        let when = vec![Compare::Modified("n".into(), kv.modified)];
        if txn(store, when, vec![Op::put("n", (number + 1).to_string())]).await.succeeded {
            return;
        }
    }
    panic!("others cannot have succeeded more often than that");
}
