//! A coordinator's copy of its lab: kept by list and watch through whatever happens to the store, and the way changes go back.
//!
//! It is always the lab as it was at some revision, a whole one, and never goes backwards. While the
//! store is away it stays as it was and says so in [`Mirror::trouble`].

#[cfg(test)]
mod gate;
#[cfg(test)]
mod outages;
mod state;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use faultbed_common::{
    duration::millis,
    edit::HistoryEntry,
    generation::Generation,
    lab::Lab,
    name::{ClusterName, FaultName, HostName, LabName},
    report::HostReport,
    session::LeaseAges,
};
use futures::StreamExt;
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use self::state::{Fresh, Moment, State, Stir};
pub use self::write::{CommitOutcome, Published};
use crate::{
    editor::unix_ms,
    store::{
        Kv, Op, Revision, Store, StoreError, Txn,
        keys::{self, Keys, Specs},
    },
};

/// The first wait before the store is asked again.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(10);

/// The longest wait before the store is asked again.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// A watch that is lost was good until so long ago at most.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

/// So long after its begin a watch has said what happened while there was none.
const CAUGHT_UP_AFTER: Duration = Duration::from_secs(1);

/// Most revisions that become visible at once, when many are there.
const BATCHES_AT_ONCE: usize = 64;

/// What a coordinator knows of its lab at one moment.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// The accepted lab.
    pub lab: Arc<Lab>,
    /// When head was written: a change decided on this mirror is guarded by it.
    pub head: Revision,
    /// The editing surface, as people left it.
    pub specs: Arc<Specs>,
    /// The last report of each host that ever sent one.
    pub reports: BTreeMap<HostName, Arc<HostReport>>,
    /// The hosts whose agents some coordinator holds a stream to.
    pub alive: BTreeSet<HostName>,
    /// What `pki` keeps but tokens, by what follows `pki/`.
    pub pki: Arc<BTreeMap<String, Kv>>,
    /// When each report arrived here.
    pub seen: BTreeMap<HostName, Instant>,
    /// When the clock of each host was at 0, in milliseconds since the epoch, as who took its reports has
    /// settled.
    pub booted: BTreeMap<HostName, u64>,
    /// When each fault in force began, on our clock.
    begun: BTreeMap<FaultName, Begun>,
    /// When each lease began, likewise; that of the lab has no name.
    leased: BTreeMap<Option<ClusterName>, Begun>,
    /// Why this may be old or wrong: the store cannot be reached, or holds what cannot be read.
    pub trouble: Option<String>,
    /// The newest revision that is in here.
    pub revision: Revision,
    /// A large change is accepted and not yet folded.
    unfolded: bool,
}

/// The beginning of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Begun {
    /// As the lab says it: tells one beginning from another of the same fault.
    since_unix_ms: u64,
    at: Instant,
}

impl Mirror {
    /// How long ago each fault in force began, in milliseconds. What began while we looked is counted
    /// by a clock that nobody steps; only of the rest must the wall clock be believed.
    #[must_use]
    pub fn fault_ages_ms(&self, now: Instant) -> BTreeMap<FaultName, u64> {
        let age = |begun: &Begun| millis(now.saturating_duration_since(begun.at));
        self.begun.iter().map(|(name, begun)| (name.clone(), age(begun))).collect()
    }

    /// How long ago each lease began, likewise.
    #[must_use]
    pub fn lease_ages(&self, now: Instant) -> LeaseAges {
        let age = |begun: &Begun| millis(now.saturating_duration_since(begun.at));
        let of_clusters =
            self.leased.iter().filter_map(|(name, begun)| Some((name.clone()?, age(begun))));
        LeaseAges {
            lab_ms: self.leased.get(&None).map_or(0, age),
            clusters_ms: of_clusters.collect(),
        }
    }

    /// Begins to mirror a lab, and makes it where it is new.
    ///
    /// # Errors
    /// The store cannot be reached; or it holds this lab with another octet, or unreadable.
    pub async fn start(
        store: Arc<dyn Store>,
        lab: LabName,
        octet: u8,
    ) -> Result<Arc<MirrorHandle>, StoreError> {
        let keys = Keys::new(&lab);
        let new = Lab::new(lab, octet);
        store.txn(keys::found(&keys, &new)).await?;
        let (revision, kvs) = store.range(keys.prefix().as_bytes()).await?;
        let fresh = Arc::<Fresh>::default();
        let known = (new, Arc::clone(&fresh));
        let state = State::new(keys.clone(), known, (revision, kvs), listed())
            .map_err(|error| StoreError::Invalid(error.to_string()))?;
        let held = state.mirror.lab.octet;
        if held != octet {
            return Err(StoreError::Invalid(format!(
                "open lab {}: the store holds a lab of this name whose addresses are 127.77.{held}.N, \
                 and this one was set up for 127.77.{octet}.N; use another lab name or another store",
                state.mirror.lab.name
            )));
        }
        let (sender, receiver) = watch::channel(Arc::new(state.mirror.clone()));
        let shown =
            Shown { mirror: sender, news: watch::Sender::new(()), lab: watch::Sender::new(()) };
        let (news, lab) = (shown.news.subscribe(), shown.lab.subscribe());
        let task = tokio::spawn(follow(store.clone(), state, shown));
        Ok(Arc::new(MirrorHandle { store, keys, receiver, news, lab, fresh, task }))
    }
}

/// A running mirror; it ends when this is dropped.
#[derive(Debug)]
pub struct MirrorHandle {
    store: Arc<dyn Store>,
    keys: Keys,
    receiver: watch::Receiver<Arc<Mirror>>,
    news: watch::Receiver<()>,
    lab: watch::Receiver<()>,
    fresh: Arc<Fresh>,
    task: JoinHandle<()>,
}

/// Where a mirror is shown. Each host of a large lab says every few seconds that all is as it was, and each
/// has somebody who waits for orders: who was woken by all that comes would have no time for anything else.
#[derive(Debug)]
struct Shown {
    mirror: watch::Sender<Arc<Mirror>>,
    news: watch::Sender<()>,
    lab: watch::Sender<()>,
}

impl MirrorHandle {
    /// The lab as it is known now.
    #[must_use]
    pub fn now(&self) -> Arc<Mirror> {
        self.receiver.borrow().clone()
    }

    /// Tells when something has happened, on a host or in the store: anything but that a host says once more
    /// what it has said.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.clone()
    }

    /// Tells when there may be something to tell hosts: the lab has changed, or who counts as a member of it,
    /// or the store has gone or come back.
    #[must_use]
    pub fn lab_changes(&self) -> watch::Receiver<()> {
        self.lab.clone()
    }

    /// Where the keys of its lab are.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The store behind it, for leases.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Every accepted generation that is kept, oldest first.
    ///
    /// # Errors
    /// The store cannot be reached. An entry that cannot be read is left out with a warning.
    pub async fn history(&self) -> Result<Vec<HistoryEntry>, StoreError> {
        let (_, kvs) = self.store.range(&self.keys.histories()).await?;
        let read = |kv: &crate::store::Kv| match serde_json::from_slice::<keys::Record>(&kv.value) {
            Ok(record) => Some(record.entry),
            Err(error) => {
                let key = String::from_utf8_lossy(&kv.key);
                tracing::warn!(%key, %error, "reading a history entry failed");
                None
            }
        };
        Ok(kvs.iter().filter_map(read).collect())
    }

    /// The accepted change that made this generation; `None` where it is not kept.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub async fn change(&self, generation: Generation) -> Result<Option<HistoryEntry>, StoreError> {
        let get = Op::Get(self.keys.history(generation));
        let out = self.store.txn(Txn { then: vec![get], ..Txn::default() }).await?;
        let kv = out.got.into_iter().flatten().next();
        Ok(kv.and_then(|kv| Some(serde_json::from_slice::<keys::Record>(&kv.value).ok()?.entry)))
    }

    /// Waits until the mirror satisfies `enough`, at most `time`; says whether it did.
    pub(crate) async fn wait(&self, time: Duration, enough: impl Fn(&Mirror) -> bool) -> bool {
        let mut receiver = self.receiver.clone();
        let waited = tokio::time::timeout(time, receiver.wait_for(|mirror| enough(mirror))).await;
        matches!(waited, Ok(Ok(_)))
    }
}

impl Drop for MirrorHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why following stopped for a moment.
enum Lost {
    /// What lies between is compacted.
    History,
    /// The store went away.
    Store(String),
}

/// Lists, then watches; after a broken watch goes on from the last revision; where that is
/// compacted lists again.
async fn follow(store: Arc<dyn Store>, mut state: State, shown: Shown) {
    let mut list = false;
    let mut backoff = BACKOFF_MIN;
    // What a watch first says cannot be older than this.
    let mut earliest = Some(Instant::now());
    loop {
        let (before, began) = (state.mirror.revision, Instant::now());
        let lost = match list {
            true => relist(store.as_ref(), &mut state).await,
            false => Ok(()),
        };
        let lost = match lost {
            Ok(()) => watch_until_lost(store.as_ref(), &mut state, &shown, earliest).await,
            Err(lost) => lost,
        };
        earliest = Instant::now().checked_sub(NOTICED_WITHIN);
        // It worked for a while: whatever happened now is new.
        if state.mirror.revision > before || began.elapsed() > BACKOFF_MAX {
            backoff = BACKOFF_MIN;
        }
        match lost {
            Lost::History => list = true,
            Lost::Store(why) => {
                // The list is still owed where it was the list that failed.
                list = list && state.mirror.revision == before;
                tracing::warn!(error = %why, "following the store was interrupted");
                state.store_trouble(Some(why));
                publish(&mut state, &shown);
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Now, for a list: what is in it may have been there for long.
fn listed() -> Moment {
    Moment { at: Instant::now(), unix_ms: Some(unix_ms()), earliest: None }
}

async fn relist(store: &dyn Store, state: &mut State) -> Result<(), Lost> {
    let prefix = state.keys.prefix().as_bytes().to_vec();
    match store.range(&prefix).await {
        Ok((revision, kvs)) => {
            state.replace(revision, kvs, listed());
            Ok(())
        }
        Err(error) => Err(Lost::Store(error.to_string())),
    }
}

async fn watch_until_lost(
    store: &dyn Store,
    state: &mut State,
    shown: &Shown,
    earliest: Option<Instant>,
) -> Lost {
    let prefix = state.keys.prefix().as_bytes().to_vec();
    let watch = match store.watch(&prefix, state.mirror.revision.next()).await {
        Ok(watch) => watch,
        Err(error) => return lost(error),
    };
    state.store_trouble(None);
    publish(state, shown);
    let mut batches = watch.ready_chunks(BATCHES_AT_ONCE);
    // Until the watch has caught up, what it says may have been there for as long as there was none.
    let began = Instant::now();
    let mut caught_up = false;
    while let Some(chunk) = batches.next().await {
        for batch in chunk {
            match batch {
                Ok(batch) => {
                    let unix_ms = (!caught_up).then(unix_ms);
                    state.apply(batch, Moment { at: Instant::now(), unix_ms, earliest });
                }
                Err(error) => {
                    publish(state, shown);
                    return lost(error);
                }
            }
        }
        caught_up = CAUGHT_UP_AFTER < began.elapsed();
        publish(state, shown);
    }
    Lost::Store("watch store: it ended".into())
}

fn lost(error: StoreError) -> Lost {
    match error {
        StoreError::Compacted(_) => Lost::History,
        StoreError::NoLease | StoreError::Invalid(_) | StoreError::Unavailable(_) => {
            Lost::Store(error.to_string())
        }
    }
}

fn publish(state: &mut State, shown: &Shown) {
    shown.mirror.send_replace(Arc::new(state.mirror.clone()));
    let Stir { lab, news } = std::mem::take(&mut state.stir);
    if lab {
        shown.lab.send_replace(());
    }
    if lab || news {
        shown.news.send_replace(());
    }
}
