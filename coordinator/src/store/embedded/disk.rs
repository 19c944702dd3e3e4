//! The embedded store's file: a log of events by revision over a snapshot, in one redb database.
//!
//! Each commit is one redb transaction with a row per event, durable or made so by the next durable one. Compaction folds log rows into
//! the snapshot rows of their keys. A revision is here as a whole or not at all.

use std::{fs, io, path::Path, time::Duration};

use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend,
    TableDefinition, WriteTransaction,
};

use crate::store::{
    Event, Key, Kv, LeaseId, Revision, StoreError,
    core::{Commit, Core, LeaseChange},
};

/// Value or deletion, created, version, lease (0 is none).
type LogRow = (&'static [u8], Option<&'static [u8]>, u64, u64, u64);
/// Value, created, modified, version, lease (0 is none).
type SnapshotRow = (&'static [u8], u64, u64, u64, u64);

/// (revision, position in it) to the event's key and the rest of it.
const LOG: TableDefinition<'_, (u64, u32), LogRow> = TableDefinition::new("log");
/// Every key as it was at the point of compaction.
const SNAPSHOT: TableDefinition<'_, &[u8], SnapshotRow> = TableDefinition::new("snapshot");
/// Lease to time to live in milliseconds.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
/// The numbers below.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const META_FORMAT: &str = "format";
const META_COMPACTED: &str = "compacted";
const META_LAST_LEASE: &str = "last lease";

/// The layout above. A file with another number is refused.
const FORMAT: u64 = 1;

/// Marks a file that is being made, before the pid of its maker.
const UNFINISHED: &str = "unfinished-";

/// Memory for redb's pages; everything is in the core anyway.
const CACHE_BYTES: usize = 1024 * 1024;

/// The open file.
#[derive(Debug)]
pub(super) struct Disk {
    database: Database,
}

/// Anything redb says, with what was attempted.
pub(super) fn failed(what: &str) -> impl Fn(redb::Error) -> StoreError {
    move |error| StoreError::Unavailable(format!("{what}: {error}"))
}

impl Disk {
    /// Opens or makes the file.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let what = format!("open store {}", path.display());
        let io = |error: io::Error| StoreError::Unavailable(format!("{what}: {error}"));
        if !path.try_exists().map_err(io)? {
            make(path, &what)?;
        }
        let database = Database::builder().set_cache_size(CACHE_BYTES).open(path);
        let disk = Self::prepare(database, &what)?;
        remove_unfinished(path).map_err(io)?;
        Ok(disk)
    }

    /// Opens or makes a database elsewhere than in a file. Making it is not safe to break off.
    pub(super) fn open_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend);
        Self::prepare(database, "open store")
    }

    fn prepare(database: Result<Database, DatabaseError>, what: &str) -> Result<Self, StoreError> {
        let database = database.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::Unavailable(format!(
                "{what}: another process has it open; is a coordinator of this lab running already?"
            )),
            other => failed(what)(other.into()),
        })?;
        let disk = Self { database };
        let format = disk.write(|txn| {
            let mut meta = txn.open_table(META)?;
            let format = meta.get(META_FORMAT)?.map(|row| row.value());
            if format.is_none() {
                meta.insert(META_FORMAT, FORMAT)?;
                meta.insert(META_COMPACTED, Revision::ABSENT.0)?;
                meta.insert(META_LAST_LEASE, 0)?;
                // Made here so that reading never meets a table that is missing.
                txn.open_table(LOG)?;
                txn.open_table(SNAPSHOT)?;
                txn.open_table(LEASES)?;
            }
            Ok(format.unwrap_or(FORMAT))
        });
        match format.map_err(failed(what))? {
            FORMAT => Ok(disk),
            other => Err(StoreError::Invalid(format!(
                "{what}: it has format {other}, this version reads {FORMAT}"
            ))),
        }
    }

    fn write<T>(
        &self,
        body: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        self.write_as(Durability::Immediate, body)
    }

    fn write_as<T>(
        &self,
        durability: Durability,
        body: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(durability)?;
        let value = body(&txn)?;
        txn.commit()?;
        Ok(value)
    }

    /// Reads everything into a core.
    pub(super) fn load(&self, now: Duration) -> Result<Core, StoreError> {
        let (compacted, kvs, commits) = self.read().map_err(failed("read store"))?;
        let mut core = match compacted {
            Revision::ABSENT => Core::new(),
            _ => Core::at(compacted, kvs),
        };
        for commit in commits {
            if commit.revision != core.revision().next() {
                return Err(StoreError::Unavailable(format!(
                    "read store: it is damaged, revision {} follows {}",
                    commit.revision,
                    core.revision()
                )));
            }
            core.apply(commit, now);
        }
        let (leases, last) = self.read_leases().map_err(failed("read store"))?;
        core.restore_leases(leases, last, now);
        Ok(core)
    }

    fn read(&self) -> Result<(Revision, Vec<Kv>, Vec<Commit>), redb::Error> {
        let txn = self.database.begin_read()?;
        let compacted = txn.open_table(META)?.get(META_COMPACTED)?.map_or(0, |row| row.value());
        let mut kvs = Vec::new();
        for row in txn.open_table(SNAPSHOT)?.iter()? {
            let (key, rest) = row?;
            let (value, created, modified, version, lease) = rest.value();
            let parts = (created, modified, version, lease);
            kvs.push(kv(key.value().to_vec(), value, parts));
        }
        let mut commits: Vec<Commit> = Vec::new();
        for row in txn.open_table(LOG)?.iter()? {
            let (at, rest) = row?;
            let revision = Revision(at.value().0);
            let event = event(revision, rest.value());
            match commits.last_mut().filter(|commit| commit.revision == revision) {
                Some(commit) => commit.events.push(event),
                None => commits.push(Commit { revision, events: vec![event], lease: None }),
            }
        }
        Ok((Revision(compacted), kvs, commits))
    }

    fn read_leases(&self) -> Result<(Vec<(LeaseId, Duration)>, LeaseId), redb::Error> {
        let txn = self.database.begin_read()?;
        let last = txn.open_table(META)?.get(META_LAST_LEASE)?.map_or(0, |row| row.value());
        let mut leases = Vec::new();
        for row in txn.open_table(LEASES)?.iter()? {
            let (id, ttl) = row?;
            leases.push((LeaseId(id.value()), Duration::from_millis(ttl.value())));
        }
        Ok((leases, LeaseId(last)))
    }

    /// Writes commits, all of them or none. Where they are durable, they survive anything when this returns,
    /// and so does all that came before; others are made durable by the next that are.
    pub(super) fn commit(
        &self,
        durability: Durability,
        commits: &[Commit],
    ) -> Result<(), redb::Error> {
        self.write_as(durability, |txn| commits.iter().try_for_each(|commit| log(txn, commit)))
    }
}

fn log(txn: &WriteTransaction, commit: &Commit) -> Result<(), redb::Error> {
    let mut log = txn.open_table(LOG)?;
    for (position, event) in (0u32..).zip(&commit.events) {
        let row = match event {
            Event::Put(kv) => {
                let lease = kv.lease.map_or(0, |id| id.0);
                let value = Some(kv.value.as_slice());
                (kv.key.as_slice(), value, kv.created.0, kv.version, lease)
            }
            Event::Delete(key) => (key.as_slice(), None, 0, 0, 0),
        };
        log.insert((commit.revision.0, position), row)?;
    }
    match commit.lease {
        Some(LeaseChange::Granted(id, ttl)) => {
            let ttl = faultbed_common::duration::millis(ttl);
            txn.open_table(LEASES)?.insert(id.0, ttl)?;
            // An id is never given twice: its old holder might still use it.
            txn.open_table(META)?.insert(META_LAST_LEASE, id.0)?;
        }
        Some(LeaseChange::Ended(id)) => {
            txn.open_table(LEASES)?.remove(id.0)?;
        }
        None => {}
    }
    Ok(())
}

impl Disk {
    /// Folds the log up to `revision` into the snapshot.
    pub(super) fn compact(&self, revision: Revision) -> Result<(), redb::Error> {
        self.write(|txn| {
            let mut log = txn.open_table(LOG)?;
            let mut snapshot = txn.open_table(SNAPSHOT)?;
            for row in log.extract_from_if(..(revision.0 + 1, 0), |_, _| true)? {
                let (at, rest) = row?;
                match event(Revision(at.value().0), rest.value()) {
                    Event::Put(kv) => {
                        let lease = kv.lease.map_or(0, |id| id.0);
                        let value = kv.value.as_slice();
                        let row = (value, kv.created.0, kv.modified.0, kv.version, lease);
                        snapshot.insert(kv.key.as_slice(), row)?;
                    }
                    Event::Delete(key) => {
                        snapshot.remove(key.as_slice())?;
                    }
                }
            }
            txn.open_table(META)?.insert(META_COMPACTED, revision.0)?;
            Ok(())
        })
    }
}

/// Makes the file whole or not at all. One that was left half made could never be opened again:
/// redb would take it for a file of somebody else's.
fn make(path: &Path, what: &str) -> Result<(), StoreError> {
    let io = |error: io::Error| StoreError::Unavailable(format!("{what}: {error}"));
    let unfinished = path.with_extension(format!("{UNFINISHED}{}", std::process::id()));
    let database = Database::builder().create(&unfinished);
    drop(Disk::prepare(database, what)?);
    // Not a rename: that would replace what another process made in the meantime.
    match fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
        Ok(()) | Err(_) => {}
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

/// Removes what this process, or one that was killed, made on the way. Whoever else is at it right
/// now finds the lab's store taken anyway.
fn remove_unfinished(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let unfinished = entry?.path();
        let extension = unfinished.extension().unwrap_or_default().to_string_lossy().into_owned();
        if unfinished.file_stem() == path.file_stem() && extension.starts_with(UNFINISHED) {
            fs::remove_file(unfinished)?;
        }
    }
    Ok(())
}

fn event(
    revision: Revision,
    (key, value, created, version, lease): (&[u8], Option<&[u8]>, u64, u64, u64),
) -> Event {
    match value {
        Some(value) => Event::Put(kv(key.to_vec(), value, (created, revision.0, version, lease))),
        None => Event::Delete(key.to_vec()),
    }
}

fn kv(key: Key, value: &[u8], (created, modified, version, lease): (u64, u64, u64, u64)) -> Kv {
    let lease = (lease != 0).then_some(LeaseId(lease));
    let (created, modified) = (Revision(created), Revision(modified));
    Kv { key, value: value.to_vec(), created, modified, version, lease }
}
