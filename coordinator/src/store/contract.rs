//! The contract of the store as checks, run on every back end: each gets a store of its own with no key in it.
//!
//! Revisions are compared with what was seen before, never with numbers: on etcd one server serves
//! all checks, under a namespace for each.

mod history;
mod leases;
mod txns;

use std::{path::Path, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture};

use super::{
    Batch, Compare, Event, Kv, Op, Revision, Store, StoreChoice, StoreError, Txn, TxnOut, Watch,
    open,
};
use crate::store::etcd::server::EtcdServer;

/// How long anything here may take before it counts as never.
pub(super) const SOON: Duration = Duration::from_secs(20);

type Check = (&'static str, fn(Arc<dyn Store>) -> BoxFuture<'static, ()>);

/// A check by its function's name.
macro_rules! checks {
    ($($module:ident::$name:ident),* $(,)?) => {
        const CHECKS: &[Check] = &[$((stringify!($name), |store| $module::$name(store).boxed())),*];
    };
}

checks![
    txns::a_new_store_is_empty_and_has_a_revision,
    txns::a_put_is_read_back_with_its_revisions_and_version,
    txns::a_range_is_ordered_and_keeps_to_its_prefix,
    txns::one_transaction_is_one_revision,
    txns::a_failed_comparison_changes_nothing_and_takes_the_other_branch,
    txns::deleting_nothing_takes_no_revision,
    txns::revision_zero_means_absent,
    txns::comparisons_of_values_are_exact,
    txns::a_key_made_anew_begins_again,
    txns::reads_see_the_operations_before_them,
    txns::writing_a_key_twice_is_refused,
    txns::too_many_operations_are_refused,
    txns::too_many_bytes_are_refused,
    txns::deleting_a_prefix_spares_its_neighbours,
    txns::values_may_hold_any_bytes,
    txns::eighty_contended_increments_are_eighty,
    history::a_watch_gives_whole_revisions_in_order,
    history::a_watch_begins_with_the_revision_it_names,
    history::a_watch_keeps_to_its_prefix,
    history::a_watch_tells_deletions,
    history::a_watch_goes_on_with_what_happens_later,
    history::a_watch_from_the_future_waits,
    history::a_watch_below_compaction_says_where_history_begins,
    history::a_watch_past_compaction_works,
    history::a_watch_from_before_the_first_revision_is_refused,
    history::current_keys_survive_compaction,
    history::compacting_the_future_is_refused_and_the_past_is_done,
    history::two_watches_see_the_same,
    leases::a_kept_lease_outlives_its_time,
    leases::a_lease_that_ends_takes_its_keys_in_one_revision,
    leases::a_revoked_lease_takes_its_keys_in_one_revision,
    leases::an_unknown_lease_is_refused,
    leases::a_key_written_without_its_lease_outlives_it,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_the_contract() {
    for (name, check) in CHECKS {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&StoreChoice::Embedded, dir.path()).await.unwrap();
        run(name, *check, store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_the_contract() {
    let server = EtcdServer::start().await;
    for (name, check) in CHECKS {
        let store = open(&server.choice(name), Path::new("/nowhere")).await.unwrap();
        run(name, *check, store).await;
    }
}

async fn run(
    name: &str,
    check: fn(Arc<dyn Store>) -> BoxFuture<'static, ()>,
    store: Arc<dyn Store>,
) {
    println!("checking that {}", name.replace('_', " "));
    let checked = tokio::spawn(check(store));
    let ended = tokio::time::timeout(SOON * 2, checked).await;
    ended.unwrap_or_else(|_| panic!("{name} takes for ever")).unwrap();
}

/// Puts a key, unguarded.
pub(super) async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    let txn = Txn { then: vec![Op::put(key, value)], ..Txn::default() };
    store.txn(txn).await.unwrap().revision
}

/// The value of a key.
pub(super) async fn value(store: &dyn Store, key: &str) -> Option<String> {
    kv(store, key).await.map(|kv| String::from_utf8(kv.value).unwrap())
}

async fn kv(store: &dyn Store, key: &str) -> Option<Kv> {
    let (_, kvs) = store.range(key.as_bytes()).await.unwrap();
    kvs.into_iter().find(|kv| kv.key == key.as_bytes())
}

async fn txn(store: &dyn Store, when: Vec<Compare>, then: Vec<Op>) -> TxnOut {
    store.txn(Txn { when, then, ..Txn::default() }).await.unwrap()
}

/// The next `count` revisions of a watch.
async fn next(watch: &mut Watch, count: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    while batches.len() < count {
        let item = tokio::time::timeout(SOON, watch.next()).await.expect("nothing more happens");
        batches.push(item.expect("the watch goes on").expect("the watch works"));
    }
    batches
}

/// The keys of a revision's events: `+key` where it was written, `-key` where it was deleted.
fn signs(batch: &Batch) -> Vec<String> {
    let sign = |event: &Event| match event {
        Event::Put(kv) => format!("+{}", String::from_utf8_lossy(&kv.key)),
        Event::Delete(key) => format!("-{}", String::from_utf8_lossy(key)),
    };
    batch.events.iter().map(sign).collect()
}

/// The error a watch ends with, at its opening or as its first item.
async fn refusal(store: &dyn Store, prefix: &str, from: Revision) -> StoreError {
    let mut watch = match store.watch(prefix.as_bytes(), from).await {
        Ok(watch) => watch,
        Err(error) => return error,
    };
    let item = tokio::time::timeout(SOON, watch.next()).await.expect("it is refused");
    item.expect("it says why").expect_err("it is refused")
}
