//! The store: a small ordered map with history, guarded commits, watches and leases.
//!
//! Two back ends keep one contract, and `store/contract.rs` holds both to it: `etcd`, and
//! `embedded`, which is a pure in-memory core with one redb file as its log.
//!
//! # The contract
//! - Every successful [`Store::txn`] that changes anything takes exactly one new [`Revision`];
//!   one whose comparison fails, or that only deletes what is not there, takes none.
//! - [`Store::range`] sees every commit acknowledged before it was called, by anyone.
//! - A watch gives whole revisions, in order, each once, beginning with the one it names, and only
//!   the events under its prefix. It never skips: where history is gone it ends with
//!   [`StoreError::Compacted`]. Nothing resumes by itself; `mirror` shows the loop that does.
//! - A lease that ends, revoked or not kept, takes all its keys with it in one revision.
//! - After a restart of the store every acknowledged commit is there, and leases have their whole
//!   time to live before them again. Only of passing commits, such as reports of hosts, the last ones
//!   may be gone, those of a second at most; what was committed after one is never there without it.
//! - [`StoreError::Unavailable`] of a write says nothing about its outcome. Guard every write by
//!   what it was computed from, so that repeating it is harmless.
//!
//! Left out on purpose: reads at old revisions, nested transactions, ranges other than prefixes,
//! paging.

#[cfg(test)]
mod contract;
mod core;
mod embedded;
pub(crate) mod etcd;
pub mod keys;
#[cfg(test)]
pub(crate) mod seed;

use std::{
    collections::BTreeSet, fmt, path::Path, pin::Pin, str::FromStr, sync::Arc, time::Duration,
};

use async_trait::async_trait;
use futures::Stream;

pub use self::etcd::{EtcdAccess, EtcdAddress, EtcdUser};

/// Most comparisons, and most operations of either branch, of one transaction: etcd's default.
pub const TXN_OPS_MAX: usize = 128;

/// Most bytes of keys and values in one transaction. etcd's default for a request is 1.5 MiB,
/// its framing included.
pub const TXN_BYTES_MAX: usize = 1_400_000;

/// The embedded store's file in the coordinator's directory.
pub const EMBEDDED_FILE: &str = "store.redb";

/// A key. Bytes, because people can put anything under a prefix.
pub type Key = Vec<u8>;

/// The whole revisions of a watch, in order. Its first error is its last item.
pub type Watch = Pin<Box<dyn Stream<Item = Result<Batch, StoreError>> + Send>>;

/// A point in the history of the store, and of a key the point of its last change. Opaque: only
/// for guards and watches, never for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a key that is not there.
    pub const ABSENT: Self = Self(0);

    /// The next revision.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kv {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Vec<u8>,
    /// When it came to be, since it was last absent.
    pub created: Revision,
    /// When it was last written.
    pub modified: Revision,
    /// How often it was written since it was last absent, from 1.
    pub version: u64,
    /// The lease it ends with.
    pub lease: Option<LeaseId>,
}

/// What must hold for a transaction to take its `then` branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key was last written at this revision; [`Revision::ABSENT`] is a key that is not there.
    Modified(Key, Revision),
    /// The key is not there.
    Absent(Key),
    /// The key is there with this value.
    Value(Key, Vec<u8>),
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key, under a lease or under none.
    Put(Key, Vec<u8>, Option<LeaseId>),
    /// Deletes a key, if it is there.
    Delete(Key),
    /// Deletes every key under a prefix.
    DeletePrefix(Key),
    /// Reads a key, as the operations before it left it.
    Get(Key),
}

impl Op {
    /// Writes a key under no lease.
    pub fn put(key: impl Into<Key>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put(key.into(), value.into(), None)
    }
}

/// A transaction: where all of `when` hold, all of `then` happen, else all of `or_else`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// The comparisons.
    pub when: Vec<Compare>,
    /// Where all hold.
    pub then: Vec<Op>,
    /// Where one does not.
    pub or_else: Vec<Op>,
    /// A crash may take it back, for what it says is said again soon: it need not wait for a disk.
    pub is_passing: bool,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnOut {
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// The store's revision after it: its own where it changed anything.
    pub revision: Revision,
    /// What each [`Op::Get`] of the branch read, in order.
    pub got: Vec<Option<Kv>>,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It was written.
    Put(Kv),
    /// It was deleted.
    Delete(Key),
}

impl Event {
    /// The key it happened to.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete(key) => key,
        }
    }
}

/// All events of one revision under the prefix of a watch; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: Revision,
    /// Its events.
    pub events: Vec<Event>,
}

/// Why the store did not answer as hoped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// History up to this revision is gone: list anew.
    #[error("read history: everything up to revision {0} is compacted")]
    Compacted(Revision),
    /// The lease has ended or never was.
    #[error("use lease: it has ended")]
    NoLease,
    /// The request can never succeed.
    #[error("{0}")]
    Invalid(String),
    /// The store did not answer. The outcome of a write is unknown.
    #[error("{0}")]
    Unavailable(String),
}

impl Txn {
    /// Checks what every back end must refuse alike.
    ///
    /// # Errors
    /// [`StoreError::Invalid`]: too many operations, too many bytes, an empty key, or one branch
    /// that writes a key twice or both writes and deletes it.
    pub fn check(&self) -> Result<(), StoreError> {
        for count in [self.when.len(), self.then.len(), self.or_else.len()] {
            if count > TXN_OPS_MAX {
                return Err(StoreError::Invalid(format!(
                    "commit transaction: {count} operations are more than {TXN_OPS_MAX}"
                )));
            }
        }
        let bytes = self.bytes();
        if bytes > TXN_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "commit transaction: {bytes} bytes are more than {TXN_BYTES_MAX}"
            )));
        }
        check_keys(&self.then)?;
        check_keys(&self.or_else)
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let when = self.when.iter().map(|compare| match compare {
            Compare::Modified(key, _) | Compare::Absent(key) => key.len(),
            Compare::Value(key, value) => key.len() + value.len(),
        });
        let ops = self.then.iter().chain(&self.or_else).map(Op::bytes);
        when.chain(ops).sum()
    }
}

impl Op {
    fn bytes(&self) -> usize {
        match self {
            Self::Put(key, value, _) => key.len() + value.len(),
            Self::Delete(key) | Self::DeletePrefix(key) | Self::Get(key) => key.len(),
        }
    }
}

fn check_keys(ops: &[Op]) -> Result<(), StoreError> {
    let refuse = |key: &[u8], why| {
        let key = String::from_utf8_lossy(key);
        Err(StoreError::Invalid(format!("commit transaction: {why} {key:?}")))
    };
    let mut written = BTreeSet::new();
    for op in ops {
        if let Op::Put(key, ..) = op {
            if key.is_empty() {
                return refuse(key, "cannot write the empty key");
            }
            if !written.insert(key.as_slice()) {
                return refuse(key, "it writes twice the key");
            }
        }
    }
    for op in ops {
        let clash = match op {
            Op::Put(..) | Op::Get(_) => None,
            Op::Delete(key) => written.get(key.as_slice()),
            Op::DeletePrefix(prefix) => {
                written.range(prefix.as_slice()..).next().filter(|key| key.starts_with(prefix))
            }
        };
        if let Some(key) = clash {
            return refuse(key, "it both writes and deletes the key");
        }
    }
    Ok(())
}

/// Refuses a watch from before the first revision, which etcd would take for "from now on".
fn check_from(from: Revision) -> Result<(), StoreError> {
    match from {
        Revision::ABSENT => Err(StoreError::Invalid("watch store: the first revision is 1".into())),
        _ => Ok(()),
    }
}

/// The store. The module describes the contract.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Every key under a prefix, in order, and the store's revision at that moment.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn range(&self, prefix: &[u8]) -> Result<(Revision, Vec<Kv>), StoreError>;

    /// Commits a transaction.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] and [`StoreError::NoLease`] changed nothing; after
    /// [`StoreError::Unavailable`] nobody knows.
    async fn txn(&self, txn: Txn) -> Result<TxnOut, StoreError>;

    /// The changes under a prefix from a revision on, itself included. The first revision is 1.
    ///
    /// # Errors
    /// Here or as the only item: [`StoreError::Compacted`] where `from` is below the point of
    /// compaction; [`StoreError::Unavailable`].
    async fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, StoreError>;

    /// A new lease that ends unless it is kept. The back end may round `ttl` up to 2 s.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: a lease may be there that ends by itself.
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Gives a lease its whole time to live again.
    ///
    /// # Errors
    /// [`StoreError::NoLease`], [`StoreError::Unavailable`].
    async fn lease_keep(&self, id: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and its keys now.
    ///
    /// # Errors
    /// [`StoreError::NoLease`], also where an earlier attempt without an answer ended it;
    /// [`StoreError::Unavailable`].
    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError>;

    /// Forgets history up to and including `revision`. What is already forgotten is no error.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a revision yet to come, [`StoreError::Unavailable`].
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}

/// Which store a coordinator keeps its lab in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StoreChoice {
    /// A file of its own: one machine, nothing to install.
    #[default]
    Embedded,
    /// An etcd of the user's.
    Etcd(EtcdAddress),
}

impl FromStr for StoreChoice {
    type Err = StoreError;

    /// Reads `embedded` or `etcd=URL,URL`.
    fn from_str(text: &str) -> Result<Self, StoreError> {
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        match text.strip_prefix("etcd=") {
            Some(urls) => Ok(Self::Etcd(urls.parse()?)),
            None => Err(StoreError::Invalid(format!(
                "read store {text:?}: write `embedded` or `etcd=http://HOST:2379,…`"
            ))),
        }
    }
}

/// Written as it is read.
impl fmt::Display for StoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.pad("embedded"),
            Self::Etcd(address) => write!(f, "etcd={address}"),
        }
    }
}

/// Opens the store; the embedded one keeps its file in `dir`, which must exist.
///
/// # Errors
/// [`StoreError::Unavailable`], for people: etcd cannot be reached, or the file is in use by
/// another coordinator, damaged, or cannot be written.
pub async fn open(choice: &StoreChoice, dir: &Path) -> Result<Arc<dyn Store>, StoreError> {
    open_with(choice, &EtcdAccess::default(), dir).await
}

/// As [`open`], for an etcd that does not let everybody in.
///
/// # Errors
/// As [`open`]; and [`StoreError::Invalid`] where what is given cannot be used.
pub async fn open_with(
    choice: &StoreChoice,
    access: &EtcdAccess,
    dir: &Path,
) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match choice {
        StoreChoice::Embedded => {
            Arc::new(embedded::Embedded::open(&dir.join(EMBEDDED_FILE)).await?)
        }
        StoreChoice::Etcd(address) => Arc::new(etcd::Etcd::open(address, access).await?),
    })
}

/// A store in memory that keeps the contract until it is dropped: for tests of what is above it.
///
/// # Errors
/// None that a caller could meet.
pub async fn in_memory() -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(embedded::Embedded::in_memory().await?))
}
