//! What leases must do.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Op, Store, StoreError, Txn, kv, next, put, signs, value};
use crate::store::LeaseId;

/// The shortest that every back end grants as asked.
const TTL: Duration = Duration::from_secs(2);

async fn put_under(store: &dyn Store, keys: &[&str], lease: LeaseId) -> Result<(), StoreError> {
    let ops = keys.iter().map(|key| Op::Put((*key).into(), b"1".to_vec(), Some(lease)));
    store.txn(Txn { then: ops.collect(), ..Txn::default() }).await.map(drop)
}

pub(super) async fn a_kept_lease_outlives_its_time(store: Arc<dyn Store>) {
    let lease = store.lease_grant(TTL).await.unwrap();
    put_under(&*store, &["a"], lease).await.unwrap();
    let began = Instant::now();
    // The one place that must let time pass: nothing else tells a kept lease from a fresh one.
    while began.elapsed() < TTL * 2 {
        store.lease_keep(lease).await.unwrap();
        assert_eq!(value(&*store, "a").await.as_deref(), Some("1"));
        tokio::time::sleep(TTL / 8).await;
    }
    store.lease_revoke(lease).await.unwrap();
}

pub(super) async fn a_lease_that_ends_takes_its_keys_in_one_revision(store: Arc<dyn Store>) {
    let lease = store.lease_grant(TTL).await.unwrap();
    put_under(&*store, &["a", "b"], lease).await.unwrap();
    let kept = put(&*store, "c", "1").await;
    assert_eq!(kv(&*store, "a").await.unwrap().lease, Some(lease));
    let mut watch = store.watch(b"", kept.next()).await.unwrap();
    let ended = next(&mut watch, 1).await;
    let mut gone = signs(&ended[0]);
    gone.sort();
    assert_eq!(gone, ["-a", "-b"]);
    assert_eq!(value(&*store, "c").await.as_deref(), Some("1"));
    assert_eq!(store.lease_keep(lease).await, Err(StoreError::NoLease));
    assert_eq!(put_under(&*store, &["a"], lease).await, Err(StoreError::NoLease));
}

pub(super) async fn a_revoked_lease_takes_its_keys_in_one_revision(store: Arc<dyn Store>) {
    let lease = store.lease_grant(TTL * 100).await.unwrap();
    put_under(&*store, &["a", "b", "c"], lease).await.unwrap();
    let before = store.range(b"").await.unwrap().0;
    store.lease_revoke(lease).await.unwrap();
    let (after, kvs) = store.range(b"").await.unwrap();
    assert_eq!(after, before.next());
    assert_eq!(kvs, Vec::new());
    assert_eq!(store.lease_revoke(lease).await, Err(StoreError::NoLease));
}

pub(super) async fn an_unknown_lease_is_refused(store: Arc<dyn Store>) {
    let before = put(&*store, "a", "1").await;
    let nobody = LeaseId(987_654_321);
    assert_eq!(put_under(&*store, &["b"], nobody).await, Err(StoreError::NoLease));
    assert_eq!(store.lease_keep(nobody).await, Err(StoreError::NoLease));
    assert_eq!(store.lease_revoke(nobody).await, Err(StoreError::NoLease));
    assert_eq!(store.range(b"").await.unwrap().0, before);
}

pub(super) async fn a_key_written_without_its_lease_outlives_it(store: Arc<dyn Store>) {
    let first = store.lease_grant(TTL * 100).await.unwrap();
    let second = store.lease_grant(TTL * 100).await.unwrap();
    put_under(&*store, &["free", "moved", "held"], first).await.unwrap();
    put(&*store, "free", "2").await;
    put_under(&*store, &["moved"], second).await.unwrap();
    store.lease_revoke(first).await.unwrap();
    let (_, kvs) = store.range(b"").await.unwrap();
    let left: Vec<_> = kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key)).collect();
    assert_eq!(left, ["free", "moved"]);
    store.lease_revoke(second).await.unwrap();
    assert_eq!(store.range(b"").await.unwrap().1.len(), 1);
}
