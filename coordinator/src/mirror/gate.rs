//! A store for tests with a gate before it: it can be cut off, and requests or answers of changes can get lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::watch;

use crate::store::{Kv, LeaseId, Revision, Store, StoreError, Txn, TxnOut, Watch};

/// A store as it is seen through the gate.
#[derive(Debug)]
pub(super) struct Gate {
    inner: Arc<dyn Store>,
    cut: watch::Sender<bool>,
    lost_requests: AtomicU32,
    lost_answers: AtomicU32,
}

fn away() -> StoreError {
    StoreError::Unavailable("the gate is shut".into())
}

impl Gate {
    pub(super) fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        let (cut, _) = watch::channel(false);
        Arc::new(Self { inner, cut, lost_requests: 0.into(), lost_answers: 0.into() })
    }

    /// Ends every watch and lets nothing through, or lets everything through again.
    pub(super) fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// The next changes never arrive.
    pub(super) fn lose_requests(&self, count: u32) {
        self.lost_requests.store(count, Ordering::SeqCst);
    }

    /// The next changes happen and nobody says so.
    pub(super) fn lose_answers(&self, count: u32) {
        self.lost_answers.store(count, Ordering::SeqCst);
    }

    fn pass(&self) -> Result<&dyn Store, StoreError> {
        if *self.cut.borrow() { Err(away()) } else { Ok(&*self.inner) }
    }
}

/// Takes one of what is left, if anything is.
fn take(count: &AtomicU32) -> bool {
    let less = |count: u32| count.checked_sub(1);
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
}

#[async_trait]
impl Store for Gate {
    async fn range(&self, prefix: &[u8]) -> Result<(Revision, Vec<Kv>), StoreError> {
        self.pass()?.range(prefix).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOut, StoreError> {
        let store = self.pass()?;
        if take(&self.lost_requests) {
            return Err(away());
        }
        let out = store.txn(txn).await?;
        if take(&self.lost_answers) { Err(away()) } else { Ok(out) }
    }

    async fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, StoreError> {
        let inner = self.pass()?.watch(prefix, from).await?;
        let mut cut = self.cut.subscribe();
        let shut = async move {
            let _ = cut.wait_for(|cut| *cut).await;
        };
        let end = futures::stream::once(async { Err(away()) });
        Ok(inner.take_until(Box::pin(shut)).chain(end).boxed())
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.pass()?.lease_grant(ttl).await
    }

    async fn lease_keep(&self, id: LeaseId) -> Result<(), StoreError> {
        self.pass()?.lease_keep(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.pass()?.lease_revoke(id).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.pass()?.compact(revision).await
    }
}
