//! The store's rules as pure data: current keys, history since compaction, leases. Knows no clock, disk or task.
//!
//! A change happens in two steps, so that it can be made durable between them: `decide_*` says what
//! would happen and changes nothing, [`Core::apply`] makes it so. Replaying the same commits gives
//! the same core.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Batch, Compare, Event, Key, Kv, LeaseId, Op, Revision, StoreError, Txn, TxnOut};

/// Most revisions that history keeps before half of it is compacted by itself.
const HISTORY_REVISIONS_MAX: usize = 4_096;

/// Most bytes of keys and values in history before half of it is compacted by itself.
const HISTORY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The state of a store. Time is the time since the store was opened.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Core {
    revision: Revision,
    compacted: Revision,
    current: BTreeMap<Key, Kv>,
    history: BTreeMap<Revision, Vec<Event>>,
    history_bytes: usize,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: LeaseId,
}

#[derive(Debug, Clone, PartialEq)]
struct Lease {
    ttl: Duration,
    ends: Duration,
    keys: BTreeSet<Key>,
}

/// One durable step: what a transaction, a grant or the end of a lease does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    /// The revision of its events.
    pub(super) revision: Revision,
    /// Its events; none for a grant, or the end of a lease without keys.
    pub(super) events: Vec<Event>,
    /// What happens to a lease.
    pub(super) lease: Option<LeaseChange>,
}

/// What happens to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseChange {
    /// It begins.
    Granted(LeaseId, Duration),
    /// It ends.
    Ended(LeaseId),
}

impl Core {
    /// An empty store. Its revision is 1, as a new etcd's.
    pub(super) fn new() -> Self {
        Self { revision: Revision(1), ..Self::at(Revision::ABSENT, Vec::new()) }
    }

    /// A store as it was at a point of compaction, to which later commits are then applied.
    pub(super) fn at(compacted: Revision, kvs: Vec<Kv>) -> Self {
        let mut core = Self {
            revision: compacted,
            compacted,
            current: BTreeMap::new(),
            history: BTreeMap::new(),
            history_bytes: 0,
            leases: BTreeMap::new(),
            last_lease: LeaseId(0),
        };
        for kv in kvs {
            core.current.insert(kv.key.clone(), kv);
        }
        core
    }

    /// Sets the leases after a reopening: each has its whole time before it again.
    pub(super) fn restore_leases(
        &mut self,
        leases: Vec<(LeaseId, Duration)>,
        last: LeaseId,
        now: Duration,
    ) {
        for (id, ttl) in leases {
            let held = self.current.values().filter(|kv| kv.lease == Some(id));
            let keys = held.map(|kv| kv.key.clone()).collect();
            self.leases.insert(id, Lease { ttl, ends: now + ttl, keys });
        }
        self.last_lease = last;
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn range(&self, prefix: &[u8]) -> Vec<Kv> {
        self.under(prefix).cloned().collect()
    }

    fn under(&self, prefix: &[u8]) -> impl Iterator<Item = &Kv> {
        let kvs = self.current.range(prefix.to_vec()..);
        kvs.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, kv)| kv)
    }

    /// What a transaction would do; no commit where it changes nothing.
    pub(super) fn decide(&self, txn: &Txn) -> Result<(TxnOut, Option<Commit>), StoreError> {
        txn.check()?;
        let succeeded = txn.when.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.then } else { &txn.or_else };
        let mut draft = Draft { core: self, changed: BTreeMap::new(), events: Vec::new() };
        let mut got = Vec::new();
        for op in ops {
            match op {
                Op::Put(key, value, lease) => draft.put(key, value, *lease)?,
                Op::Delete(key) => draft.delete(key),
                Op::DeletePrefix(prefix) => {
                    self.under(prefix).for_each(|kv| draft.delete(&kv.key));
                }
                Op::Get(key) => got.push(draft.find(key).cloned()),
            }
        }
        let revision = if draft.events.is_empty() { self.revision } else { self.revision.next() };
        let out = TxnOut { succeeded, revision, got };
        let events = draft.events;
        let commit = (!events.is_empty()).then_some(Commit { revision, events, lease: None });
        Ok((out, commit))
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Modified(key, revision) => {
                self.current.get(key).map_or(Revision::ABSENT, |kv| kv.modified) == *revision
            }
            Compare::Absent(key) => !self.current.contains_key(key),
            Compare::Value(key, value) => {
                self.current.get(key).is_some_and(|kv| kv.value == *value)
            }
        }
    }

    /// A new lease.
    pub(super) fn decide_grant(&self, ttl: Duration) -> (LeaseId, Commit) {
        let id = LeaseId(self.last_lease.0 + 1);
        let lease = Some(LeaseChange::Granted(id, ttl));
        (id, Commit { revision: self.revision, events: Vec::new(), lease })
    }

    /// The end of a lease and all its keys, in one revision.
    pub(super) fn decide_end(&self, id: LeaseId) -> Result<Commit, StoreError> {
        let lease = self.leases.get(&id).ok_or(StoreError::NoLease)?;
        let events: Vec<Event> = lease.keys.iter().cloned().map(Event::Delete).collect();
        let revision = if events.is_empty() { self.revision } else { self.revision.next() };
        Ok(Commit { revision, events, lease: Some(LeaseChange::Ended(id)) })
    }

    /// The lease whose time was up first, and when.
    pub(super) fn next_end(&self) -> Option<(Duration, LeaseId)> {
        self.leases.iter().map(|(id, lease)| (lease.ends, *id)).min()
    }

    /// Gives a lease its whole time again.
    pub(super) fn keep(&mut self, id: LeaseId, now: Duration) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&id).ok_or(StoreError::NoLease)?;
        lease.ends = now + lease.ttl;
        Ok(())
    }

    /// Makes a commit true. It must have been decided on this very state.
    pub(super) fn apply(&mut self, commit: Commit, now: Duration) {
        let Commit { revision, events, lease } = commit;
        for event in &events {
            let before = match event {
                Event::Put(kv) => self.current.insert(kv.key.clone(), kv.clone()),
                Event::Delete(key) => self.current.remove(key),
            };
            self.attach(event, before.and_then(|kv| kv.lease));
        }
        match lease {
            Some(LeaseChange::Granted(id, ttl)) => {
                self.leases.insert(id, Lease { ttl, ends: now + ttl, keys: BTreeSet::new() });
                self.last_lease = self.last_lease.max(id);
            }
            Some(LeaseChange::Ended(id)) => {
                self.leases.remove(&id);
            }
            None => {}
        }
        if !events.is_empty() {
            // Invariant: every revision has events, so history has no holes.
            debug_assert_eq!(revision, self.revision.next());
            self.revision = revision;
            self.history_bytes += bytes(&events);
            self.history.insert(revision, events);
        }
    }

    fn attach(&mut self, event: &Event, lease_before: Option<LeaseId>) {
        if let Some(lease) = lease_before.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(event.key());
        }
        if let Event::Put(Kv { key, lease: Some(id), .. }) = event
            && let Some(lease) = self.leases.get_mut(id)
        {
            lease.keys.insert(key.clone());
        }
    }

    /// Whole revisions of a prefix from `from` on, out of at most `limit` revisions of history,
    /// and from where to go on.
    pub(super) fn since(
        &self,
        prefix: &[u8],
        from: Revision,
        limit: usize,
    ) -> Result<(Vec<Batch>, Revision), StoreError> {
        if from <= self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        let mut batches = Vec::new();
        let mut next = from;
        for (&revision, events) in self.history.range(from..).take(limit) {
            next = revision.next();
            let events: Vec<_> =
                events.iter().filter(|event| event.key().starts_with(prefix)).cloned().collect();
            if !events.is_empty() {
                batches.push(Batch { revision, events });
            }
        }
        Ok((batches, next))
    }

    /// Whether `compact` may go there: false where it already has.
    pub(super) fn decide_compact(&self, revision: Revision) -> Result<bool, StoreError> {
        if revision > self.revision {
            return Err(StoreError::Invalid(format!(
                "compact up to revision {revision}: the store is at {}",
                self.revision
            )));
        }
        Ok(revision > self.compacted)
    }

    /// Forgets history up to `revision`.
    pub(super) fn compact(&mut self, revision: Revision) {
        let kept = self.history.split_off(&revision.next());
        let gone = std::mem::replace(&mut self.history, kept);
        self.history_bytes -= gone.values().map(|events| bytes(events)).sum::<usize>();
        self.compacted = self.compacted.max(revision);
    }

    /// Up to where history should be compacted because it has outgrown its bounds.
    pub(super) fn overgrown(&self) -> Option<Revision> {
        if self.history.len() <= HISTORY_REVISIONS_MAX && self.history_bytes <= HISTORY_BYTES_MAX {
            return None;
        }
        let (mut count, mut size) = (self.history.len(), self.history_bytes);
        let mut upto = None;
        for (&revision, events) in &self.history {
            if count <= HISTORY_REVISIONS_MAX / 2 && size <= HISTORY_BYTES_MAX / 2 {
                break;
            }
            (count, size) = (count - 1, size - bytes(events));
            upto = Some(revision);
        }
        upto
    }
}

/// A transaction being worked out over an unchanged core.
struct Draft<'a> {
    core: &'a Core,
    changed: BTreeMap<Key, Option<Kv>>,
    events: Vec<Event>,
}

impl Draft<'_> {
    fn find(&self, key: &[u8]) -> Option<&Kv> {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.core.current.get(key),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8], lease: Option<LeaseId>) -> Result<(), StoreError> {
        if lease.is_some_and(|id| !self.core.leases.contains_key(&id)) {
            return Err(StoreError::NoLease);
        }
        let modified = self.core.revision.next();
        let (created, version) =
            self.find(key).map_or((modified, 1), |kv| (kv.created, kv.version + 1));
        let (key, value) = (key.to_vec(), value.to_vec());
        let kv = Kv { key: key.clone(), value, created, modified, version, lease };
        self.changed.insert(key, Some(kv.clone()));
        self.events.push(Event::Put(kv));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) {
        if self.find(key).is_some() {
            self.changed.insert(key.to_vec(), None);
            self.events.push(Event::Delete(key.to_vec()));
        }
    }
}

fn bytes(events: &[Event]) -> usize {
    let sizes = events.iter().map(|event| match event {
        Event::Put(kv) => kv.key.len() + kv.value.len(),
        Event::Delete(key) => key.len(),
    });
    sizes.sum()
}
