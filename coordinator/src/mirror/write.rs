//! How a coordinator writes: changes of the lab exactly once, reports and presence of hosts.

use std::{sync::Arc, time::Duration};

use faultbed_common::{edit::HistoryEntry, lab::Lab, name::HostName, report::HostReport};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    BACKOFF_MAX, BACKOFF_MIN, Mirror, MirrorHandle,
    state::{Stamp, Written},
};
use crate::{
    decide::clock,
    editor::unix_ms,
    store::{
        Compare, Kv, LeaseId, Op, Revision, StoreError, Txn, TxnOut,
        keys::{self, OpId, Record, Seen},
    },
};

/// How long a change is tried again while the store does not answer.
pub(super) const COMMIT_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a change waits for the mirror to show it, or to show what was in its way.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It is accepted, and the mirror shows it (unless the store went away in between).
    Committed,
    /// Something else came first; decide again on what the mirror shows now.
    Conflict,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is in the store.
    Written,
    /// Another coordinator holds the host's stream now, so this report is old.
    NotOurs,
}

impl MirrorHandle {
    /// Changes the lab from what `before` shows into `lab`, with `entry` in the history.
    ///
    /// # Errors
    /// [`StoreError::Invalid`]: an object is too large. [`StoreError::Unavailable`]: the store did
    /// not answer for 10 s; the change may have been accepted or may yet be.
    pub async fn commit(
        &self,
        before: &Mirror,
        lab: &Lab,
        entry: &HistoryEntry,
    ) -> Result<CommitOutcome, StoreError> {
        if before.unfolded {
            self.fold().await?;
            return Ok(self.conflict(before).await);
        }
        let op = OpId::new(StdRng::from_os_rng().random());
        let seen = Seen { head: before.head, specs: &before.specs };
        let mut txns = keys::commit(&self.keys, (Some(&before.lab), lab), (entry, &op), seen)
            .map_err(|error| StoreError::Invalid(error.to_string()))?;
        let Some(accept) = txns.pop() else { return Ok(CommitOutcome::Conflict) };
        let staged = !txns.is_empty();
        let deadline = Instant::now() + COMMIT_TIME_MAX;
        for txn in txns {
            // Guarded by head, and writes only keys of this operation: harmless twice.
            if !self.settle(txn, deadline).await?.succeeded {
                return Ok(self.conflict(before).await);
            }
        }
        let out = self.settle(accept, deadline).await?;
        let revision = match out.succeeded {
            true => Some(out.revision),
            // It may have been accepted by an attempt whose answer was lost.
            false => out.got.first().and_then(|kv| ours(kv.as_ref(), &op)),
        };
        let Some(revision) = revision else { return Ok(self.conflict(before).await) };
        if staged && let Err(error) = self.fold().await {
            tracing::warn!(%error, "folding a large change failed, the next change will do it");
        }
        // What is shown half-folded cannot be changed: the next change would meet a conflict.
        let is_shown = |mirror: &Mirror| {
            mirror.revision >= revision
                && !(mirror.unfolded && mirror.lab.generation <= lab.generation)
        };
        self.wait(CATCH_UP_MAX, is_shown).await;
        Ok(CommitOutcome::Committed)
    }

    /// Commits a transaction that is harmless when repeated, until it is answered.
    async fn settle(&self, txn: Txn, deadline: Instant) -> Result<TxnOut, StoreError> {
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.store.txn(txn.clone()).await {
                Err(StoreError::Unavailable(why)) if Instant::now() + backoff < deadline => {
                    tracing::debug!(%why, "a change got no answer, trying again");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
                answer => return answer,
            }
        }
    }

    async fn conflict(&self, before: &Mirror) -> CommitOutcome {
        // What was in the way is under the lab's prefix, so the mirror will show it.
        self.wait(CATCH_UP_MAX, |mirror| mirror.revision > before.revision).await;
        CommitOutcome::Conflict
    }

    /// Ends a large change that was accepted: copies it over the keys it stands for.
    async fn fold(&self) -> Result<(), StoreError> {
        let (_, kvs) = self.store.range(self.keys.prefix().as_bytes()).await?;
        let kvs = kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        let txns = keys::folds(&self.keys, &kvs)
            .map_err(|error| StoreError::Invalid(error.to_string()))?;
        for txn in txns {
            if !self.store.txn(txn).await?.succeeded {
                // Somebody else folds, or edits a spec by hand: the next change looks again.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes over a host: this coordinator holds its agent's stream, under this lease.
    ///
    /// # Errors
    /// [`StoreError::NoLease`], [`StoreError::Unavailable`].
    pub async fn claim_host(&self, host: &HostName, lease: LeaseId) -> Result<(), StoreError> {
        let put = Op::Put(self.keys.alive(host), claim(lease), Some(lease));
        // Unguarded: the newest stream is the one that counts.
        self.store.txn(Txn { then: vec![put], ..Txn::default() }).await.map(drop)
    }

    /// Gives a host up, unless another coordinator has taken it over.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: it ends with the lease anyway.
    pub async fn release_host(&self, host: &HostName, lease: LeaseId) -> Result<(), StoreError> {
        let key = self.keys.alive(host);
        let when = vec![Compare::Value(key.clone(), claim(lease))];
        let txn = Txn { when, then: vec![Op::Delete(key)], ..Txn::default() };
        self.store.txn(txn).await.map(drop)
    }

    /// Writes a host's report, if this coordinator holds the host under `lease`.
    ///
    /// # Errors
    /// [`StoreError::Invalid`]: it is too large. [`StoreError::Unavailable`]: a later report
    /// makes up for it.
    pub async fn publish_report(
        &self,
        host: &HostName,
        report: &Arc<HostReport>,
        lease: LeaseId,
    ) -> Result<Published, StoreError> {
        let received_unix_ms = unix_ms();
        let boot_unix_ms = self.booted(host, report, received_unix_ms);
        let value = serde_json::to_vec(&Observed { received_unix_ms, boot_unix_ms, report })
            .map_err(|error| StoreError::Invalid(format!("write report of {host}: {error}")))?;
        let stamp =
            Stamp { received_unix_ms: Some(received_unix_ms), boot_unix_ms: Some(boot_unix_ms) };
        let written = Written { value: value.clone(), stamp, report: Arc::clone(report) };
        self.fresh.put(host.clone(), written);
        let when = vec![Compare::Value(self.keys.alive(host), claim(lease))];
        let then = vec![Op::put(self.keys.observed(host), value)];
        // The next report says it again, so it waits for no disk: people wait for reports.
        let txn = Txn { when, then, is_passing: true, ..Txn::default() };
        let out = self.store.txn(txn).await?;
        Ok(if out.succeeded { Published::Written } else { Published::NotOurs })
    }

    /// When the clock was at 0 that a report tells the time of.
    fn booted(&self, host: &HostName, report: &HostReport, now_unix_ms: u64) -> u64 {
        let mirror = self.now();
        let of_this_boot = |before: &&Arc<HostReport>| before.boot_id == report.boot_id;
        let before = mirror.reports.get(host).filter(of_this_boot);
        let known = before.and_then(|_| mirror.booted.get(host)).copied();
        clock::boot_unix_ms(known, report.now_ms, now_unix_ms)
    }
}

/// What `observed/<host>` says: the report, and when a coordinator took it, so that one that begins
/// later knows how old it is, and shows its moments as the one before did.
#[derive(Debug, Serialize)]
struct Observed<'a> {
    received_unix_ms: u64,
    boot_unix_ms: u64,
    #[serde(flatten)]
    report: &'a HostReport,
}

/// What `alive/<host>` says.
fn claim(lease: LeaseId) -> Vec<u8> {
    format!("{{\"lease\":{}}}", lease.0).into_bytes()
}

/// When a history entry was written, if this operation wrote it.
fn ours(kv: Option<&Kv>, op: &OpId) -> Option<Revision> {
    let kv = kv?;
    let record: Record = serde_json::from_slice(&kv.value).ok()?;
    (record.op == *op).then_some(kv.modified)
}
