//! The embedded store: the pure core behind a lock, and a file that hears of each commit first.
//!
//! Writers are serial; each commit is on disk before anyone can see it, except passing ones, which
//! follow within a second. Readers and watches only
//! ever look at the core, so a slow watch costs no memory: it reads history at its own pace and
//! ends with [`StoreError::Compacted`] if it falls behind what is kept.

mod disk;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod medium;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
    time::Duration,
};

use async_trait::async_trait;
use redb::Durability;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use self::disk::{Disk, failed};
use super::{
    Batch, Kv, LeaseId, Revision, Store, StoreError, Txn, TxnOut, Watch,
    core::{Commit, Core},
};

/// Most revisions that a watch copies out of the core in one go.
const WATCH_REVISIONS_MAX: usize = 64;

/// How soon the end of a lease is tried again after the disk refused it.
const EXPIRY_RETRY: Duration = Duration::from_secs(1);

/// A crash takes at most the passing commits of so long,
const PASSING_FOR: Duration = Duration::from_secs(1);

/// and at most so many.
const PASSING_MAX: usize = 256;

/// An open embedded store.
#[derive(Debug)]
pub(super) struct Embedded {
    shared: Arc<Shared>,
    writer: Arc<Mutex<Writer>>,
    /// Passing transactions that nobody has begun to write.
    queue: Mutex<Vec<Queued>>,
    /// Held by who writes such: what comes meanwhile is written together by the next.
    turn: tokio::sync::Mutex<()>,
    changed: watch::Receiver<Revision>,
    expiry: JoinHandle<()>,
}

/// A passing transaction, and who waits for it.
type Queued = (Txn, oneshot::Sender<Result<TxnOut, StoreError>>);

/// What readers see.
#[derive(Debug)]
struct Shared {
    core: RwLock<Core>,
    opened: Instant,
}

/// What changes it, one at a time.
struct Writer {
    shared: Arc<Shared>,
    /// `None` after a failed write, until it could be opened again.
    disk: Option<Disk>,
    /// Commits that are visible and not durable yet.
    passing: Vec<Commit>,
    /// When everything was durable last.
    durable: Duration,
    reopen: Reopen,
    published: watch::Sender<Revision>,
    /// Wakes the expiry task when a lease comes or is kept.
    leases: watch::Sender<()>,
}

/// How the file is opened, again too after a failed write.
type Reopen = Box<dyn Fn() -> Result<Disk, StoreError> + Send>;

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Shared {
    // A panic while the lock was held is a bug in the core, which changes nothing before it has
    // decided; refusing all later work because of it would help nobody.
    fn core(&self) -> RwLockReadGuard<'_, Core> {
        self.core.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn core_mut(&self) -> RwLockWriteGuard<'_, Core> {
        self.core.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn since(&self, prefix: &[u8], from: Revision) -> Result<(Vec<Batch>, Revision), StoreError> {
        self.core().since(prefix, from, WATCH_REVISIONS_MAX)
    }

    fn now(&self) -> Duration {
        self.opened.elapsed()
    }
}

impl Embedded {
    /// Opens or makes the store at `path`.
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        Self::open_with(Box::new(move || Disk::open(&path))).await
    }

    /// A store that is gone when it is dropped.
    pub(super) async fn in_memory() -> Result<Self, StoreError> {
        let open = || Disk::open_backend(redb::backends::InMemoryBackend::new());
        Self::open_with(Box::new(open)).await
    }

    async fn open_with(reopen: Reopen) -> Result<Self, StoreError> {
        let (disk, core, reopen) = blocking(move || {
            let disk = reopen()?;
            let core = disk.load(Duration::ZERO)?;
            Ok((disk, core, reopen))
        })
        .await?;
        let (published, changed) = watch::channel(core.revision());
        let (leases, leases_changed) = watch::channel(());
        let shared = Arc::new(Shared { core: RwLock::new(core), opened: Instant::now() });
        let disk = Some(disk);
        let writer = Writer {
            shared: shared.clone(),
            disk,
            passing: Vec::new(),
            durable: shared.now(),
            reopen,
            published,
            leases,
        };
        let writer = Arc::new(Mutex::new(writer));
        let expiry = tokio::spawn(expire(shared.clone(), Arc::downgrade(&writer), leases_changed));
        let (queue, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self { shared, writer, queue, turn, changed, expiry })
    }

    /// Commits a passing transaction, together with all others that have come by its turn: hundreds of hosts
    /// report within the same moment, and each write to the file costs as much as many rows of one.
    async fn passing(&self, txn: Txn) -> Result<TxnOut, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue().push((txn, answer));
        let turn = self.turn.lock().await;
        let queued = std::mem::take(&mut *self.queue());
        if !queued.is_empty() {
            self.write(move |writer| {
                writer.commit_passing(queued);
                Ok(())
            })
            .await?;
        }
        drop(turn);
        let lost = |_| Err(StoreError::Unavailable("write store: it was given up".into()));
        answered.await.unwrap_or_else(lost)
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Vec<Queued>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Writer) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let writer = self.writer.clone();
        blocking(move || body(&mut writer.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.expiry.abort();
    }
}

impl Writer {
    /// Makes a commit durable, then visible.
    fn commit(&mut self, commit: Commit) -> Result<(), StoreError> {
        let disk = self.disk()?;
        let commits = std::slice::from_ref(&commit);
        let written = disk.commit(Durability::Immediate, commits).map_err(failed("write store"));
        self.written(written)?;
        self.apply(commit);
        self.publish();
        Ok(())
    }

    /// Makes transactions visible that may become durable a little later, and answers who waits for them.
    fn commit_passing(&mut self, queued: Vec<Queued>) {
        let mut done = Vec::new();
        let mut commits = Vec::new();
        for (txn, answer) in queued {
            let decided = self.shared.core().decide(&txn);
            match decided {
                Ok((out, commit)) => {
                    done.push((out, answer));
                    // The next is decided on what this one did.
                    if let Some(commit) = commit {
                        self.apply(commit.clone());
                        commits.push(commit);
                    }
                }
                // Nobody may wait for it any more.
                Err(error) => drop(answer.send(Err(error))),
            }
        }
        let written = self.write_passing(commits);
        for (out, answer) in done {
            drop(answer.send(written.clone().map(|()| out)));
        }
        self.publish();
    }

    fn write_passing(&mut self, commits: Vec<Commit>) -> Result<(), StoreError> {
        if commits.is_empty() {
            return Ok(());
        }
        self.passing.extend(commits.iter().cloned());
        let age = self.shared.now().saturating_sub(self.durable);
        let is_durable = age >= PASSING_FOR || self.passing.len() >= PASSING_MAX;
        let durability = if is_durable { Durability::Immediate } else { Durability::None };
        let disk = self.disk()?;
        let written = disk.commit(durability, &commits).map_err(failed("write store"));
        match is_durable {
            true => self.written(written),
            false => {
                if written.is_err() {
                    self.recover();
                }
                written
            }
        }
    }

    /// Takes note of a durable write: with it everything before is durable.
    fn written(&mut self, written: Result<(), StoreError>) -> Result<(), StoreError> {
        match &written {
            Ok(()) => {
                self.passing.clear();
                self.durable = self.shared.now();
            }
            Err(_) => self.recover(),
        }
        written
    }

    fn apply(&self, commit: Commit) {
        let now = self.shared.now();
        self.shared.core_mut().apply(commit, now);
    }

    /// Tells that something was applied, which is on disk.
    fn publish(&mut self) {
        let (revision, overgrown) = {
            let core = self.shared.core();
            (core.revision(), core.overgrown())
        };
        self.published.send_replace(revision);
        // The commit is done; history that stays longer than it should harms nobody.
        if let Some(revision) = overgrown
            && let Err(error) = self.compact(revision)
        {
            tracing::warn!(%error, "compacting the store failed");
        }
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if !self.shared.core().decide_compact(revision)? {
            return Ok(());
        }
        let compacted = self.disk()?.compact(revision).map_err(failed("compact store"));
        self.written(compacted)?;
        self.shared.core_mut().compact(revision);
        Ok(())
    }

    fn disk(&mut self) -> Result<&Disk, StoreError> {
        if self.disk.is_none() {
            self.reload()?;
        }
        self.disk.as_ref().ok_or_else(|| StoreError::Unavailable("write store: not open".into()))
    }

    /// After a failed write nobody knows whether it is on disk: what the file says then counts.
    fn recover(&mut self) {
        if let Err(error) = self.reload() {
            tracing::error!(%error, "opening the store again after a failed write failed");
        }
    }

    fn reload(&mut self) -> Result<(), StoreError> {
        // Closed first: a file cannot be open twice.
        self.disk = None;
        let disk = (self.reopen)()?;
        let mut core = disk.load(self.shared.now())?;
        // What was seen stays: a revision that went back would be given twice.
        let lost: Vec<Commit> = self
            .passing
            .iter()
            .filter(|commit| commit.revision > core.revision())
            .cloned()
            .collect();
        disk.commit(Durability::Immediate, &lost).map_err(failed("write store"))?;
        for commit in &lost {
            core.apply(commit.clone(), self.shared.now());
        }
        self.passing.clear();
        let revision = core.revision();
        *self.shared.core_mut() = core;
        self.disk = Some(disk);
        self.published.send_replace(revision);
        self.leases.send_replace(());
        Ok(())
    }

    fn end_lease(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let commit = self.shared.core().decide_end(id)?;
        self.commit(commit)
    }
}

/// Ends leases when their time is up, for as long as the store is open.
async fn expire(
    shared: Arc<Shared>,
    writer: Weak<Mutex<Writer>>,
    mut changed: watch::Receiver<()>,
) {
    loop {
        changed.borrow_and_update();
        let next = shared.core().next_end();
        let woken = match next {
            None => changed.changed().await,
            Some((ends, _)) => tokio::select! {
                woken = changed.changed() => woken,
                () = tokio::time::sleep_until(shared.opened + ends) => Ok(()),
            },
        };
        if woken.is_err() {
            return;
        }
        let Some((_, id)) = next.filter(|_| due(&shared)) else { continue };
        let Some(writer) = writer.upgrade() else { return };
        let shared = shared.clone();
        let ended = blocking(move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            // It may have been kept while this waited for the lock.
            let due = shared.core().next_end().filter(|(ends, _)| *ends <= shared.now());
            match due {
                Some((_, id)) => writer.end_lease(id),
                None => Ok(()),
            }
        });
        if let Err(error) = ended.await {
            tracing::warn!(lease = id.0, %error, "ending a lease failed");
            tokio::time::sleep(EXPIRY_RETRY).await;
        }
    }
}

fn due(shared: &Shared) -> bool {
    shared.core().next_end().is_some_and(|(ends, _)| ends <= shared.now())
}

async fn blocking<T: Send + 'static>(
    body: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let joined = tokio::task::spawn_blocking(body).await;
    joined.unwrap_or_else(|error| Err(StoreError::Unavailable(format!("use store: {error}"))))
}

#[async_trait]
impl Store for Embedded {
    async fn range(&self, prefix: &[u8]) -> Result<(Revision, Vec<Kv>), StoreError> {
        let core = self.shared.core();
        Ok((core.revision(), core.range(prefix)))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOut, StoreError> {
        if txn.is_passing {
            return self.passing(txn).await;
        }
        self.write(move |writer| {
            let (out, commit) = writer.shared.core().decide(&txn)?;
            if let Some(commit) = commit {
                writer.commit(commit)?;
            }
            Ok(out)
        })
        .await
    }

    async fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, StoreError> {
        super::check_from(from)?;
        let (shared, mut changed) = (self.shared.clone(), self.changed.clone());
        let prefix = prefix.to_vec();
        // Told at once where it comes too late, not when it is first polled.
        shared.since(&prefix, from)?;
        Ok(Box::pin(async_stream::try_stream! {
            let mut next = from;
            loop {
                changed.borrow_and_update();
                let (batches, then) = shared.since(&prefix, next)?;
                let caught_up = then == next;
                next = then;
                for batch in batches {
                    yield batch;
                }
                if caught_up && changed.changed().await.is_err() {
                    Err(StoreError::Unavailable("watch store: it was closed".into()))?;
                }
            }
        }))
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.write(move |writer| {
            let (id, commit) = writer.shared.core().decide_grant(ttl);
            writer.commit(commit)?;
            writer.leases.send_replace(());
            Ok(id)
        })
        .await
    }

    async fn lease_keep(&self, id: LeaseId) -> Result<(), StoreError> {
        // Needs no disk: a lease has its whole time again after a restart anyway.
        let now = self.shared.now();
        self.shared.core_mut().keep(id, now)
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.write(move |writer| writer.end_lease(id)).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.write(move |writer| writer.compact(revision)).await
    }
}
