//! From a change of the lab to the transactions that make it, all at once or not at all. Pure.

use std::collections::BTreeMap;

use faultbed_common::{
    edit::{HistoryEntry, ObjectChange},
    generation::Generation,
    lab::Lab,
    name::Name,
    trust::Who,
};
use serde::Serialize;

use super::{
    HISTORY_ENTRY_BYTES_MAX, HISTORY_KEPT, Head, Keys, KeysError, Kind, Kvs, OpId, Record, Specs,
    Staged, encode,
    read::{head_from, is_deletion, overrides, spec_key, staged},
};
use crate::{
    pki::record::member_of,
    store::{Compare, Op, Revision, TXN_BYTES_MAX, TXN_OPS_MAX, Txn},
};

/// Operations of the accepting transaction that are not the change's own: head, history, the
/// oldest history and leftovers of staging.
const ACCEPT_OPS: usize = 4;

/// Bytes of the accepting transaction that are not the change's own, and of guards: room to spare.
const ACCEPT_BYTES: usize = HISTORY_ENTRY_BYTES_MAX + 64 * 1024;

/// Most bytes of changes in one transaction.
const BATCH_BYTES_MAX: usize = TXN_BYTES_MAX - ACCEPT_BYTES;

/// What a change was decided on: guarded, so that it cannot undo what its author did not see.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// When head was written; [`Revision::ABSENT`] for a lab that is new.
    pub head: Revision,
    /// The editing surface.
    pub specs: &'a Specs,
}

/// One key of a change.
struct Write {
    /// Below the lab.
    below: String,
    /// `None` deletes.
    value: Option<String>,
    /// For keys that people write too: when it was last written.
    seen: Option<Revision>,
}

/// The transactions that turn `before` into `after`, to be committed in order while each
/// succeeds. The last accepts the change; those before it only stage what is too large for one.
/// Where the last compares false, its `or_else` has read `history/<generation>`, so that its
/// author can see whether the change is there already.
///
/// # Errors
/// [`KeysError::TooLarge`].
pub fn commit(
    keys: &Keys,
    (before, after): (Option<&Lab>, &Lab),
    (entry, op): (&HistoryEntry, &OpId),
    seen: Seen<'_>,
) -> Result<Vec<Txn>, KeysError> {
    let writes = writes(before, after, seen.specs)?;
    let fits = writes.len() + ACCEPT_OPS <= TXN_OPS_MAX
        && writes.iter().map(Write::bytes).sum::<usize>() <= BATCH_BYTES_MAX;
    let mut accept = accept(keys, after, entry, op, seen.head);
    if fits {
        for write in writes {
            let key = keys.at(&write.below);
            accept.when.extend(write.seen.map(|seen| Compare::Modified(key.clone(), seen)));
            accept.then.push(write.value.map_or(Op::Delete(key.clone()), |v| Op::put(key, v)));
        }
        accept.then.push(Op::put(keys.head(), encode(&head(after, None))));
        accept.then.push(Op::DeletePrefix(keys.staged_for(after.generation)));
        return Ok(vec![accept]);
    }
    let staged = Staged { op: op.clone(), keys: writes.len() };
    accept.then.push(Op::put(keys.head(), encode(&head(after, Some(staged)))));
    let mut txns = stage(keys, after.generation, op, writes, seen.head);
    txns.push(accept);
    Ok(txns)
}

fn head(lab: &Lab, staged: Option<Staged>) -> Head {
    let Lab { generation, name, octet, removed_wiped, removed_hosts, kept, settings, .. } = lab;
    Head {
        generation: *generation,
        lab: name.clone(),
        octet: *octet,
        removed_wiped: removed_wiped.clone(),
        settings: settings.clone(),
        removed_hosts: removed_hosts.clone(),
        kept: kept.clone(),
        staged,
    }
}

/// The accepting transaction, without the write of head.
fn accept(keys: &Keys, after: &Lab, entry: &HistoryEntry, op: &OpId, head_seen: Revision) -> Txn {
    let history = keys.history(after.generation);
    let mut then = vec![Op::put(history.clone(), record(entry, op))];
    if let Some(oldest) = after.generation.0.checked_sub(HISTORY_KEPT) {
        then.push(Op::Delete(keys.history(Generation(oldest))));
    }
    let when = vec![Compare::Modified(keys.head(), head_seen)];
    Txn { when, then, or_else: vec![Op::Get(history)], is_passing: false }
}

fn record(entry: &HistoryEntry, op: &OpId) -> String {
    let whole = encode(&Record { op: op.clone(), entry: entry.clone() });
    if whole.len() <= HISTORY_ENTRY_BYTES_MAX {
        return whole;
    }
    let short = |text: &Option<String>| {
        text.as_ref().map(|text| format!("# {} bytes, too many to keep\n", text.len()))
    };
    let objects = entry.objects.iter().map(|object| ObjectChange {
        kind: object.kind.clone(),
        name: object.name.clone(),
        before: short(&object.before),
        after: short(&object.after),
    });
    let entry = HistoryEntry { objects: objects.collect(), ..entry.clone() };
    encode(&Record { op: op.clone(), entry })
}

fn stage(
    keys: &Keys,
    generation: Generation,
    op: &OpId,
    writes: Vec<Write>,
    head_seen: Revision,
) -> Vec<Txn> {
    let prefix = String::from_utf8_lossy(&keys.staged(generation, op)).into_owned();
    let guard = Compare::Modified(keys.head(), head_seen);
    let mut batches = Batches::new(guard);
    for Write { below, value, seen } in writes {
        let compare = seen.map(|seen| Compare::Modified(keys.at(&below), seen));
        let value = value.unwrap_or_else(|| "null".to_owned());
        batches.push(Op::put(format!("{prefix}{below}"), value), compare);
    }
    batches.txns
}

/// What is left to do for the change that head names as staged: each transaction may be committed
/// by anyone, any number of times, in order; the last one ends it.
///
/// # Errors
/// As [`super::lab_from`].
pub fn folds(keys: &Keys, kvs: &Kvs) -> Result<Vec<Txn>, KeysError> {
    let Some((head, revision)) = head_from(keys, kvs)? else { return Ok(Vec::new()) };
    if head.staged.is_none() {
        return Ok(Vec::new());
    }
    let guard = Compare::Modified(keys.head(), revision);
    let mut batches = Batches::new(guard.clone());
    for (below, kv) in staged(keys, kvs, &head)? {
        let key = keys.at(below);
        let there = kvs.get(&key);
        if !overrides(kv, there) {
            continue;
        }
        let seen = there.map_or(Revision::ABSENT, |there| there.modified);
        let compare = Some(Compare::Modified(key.clone(), seen));
        let op = match is_deletion(kv) {
            true => Op::Delete(key),
            false => Op::put(key, kv.value.clone()),
        };
        batches.push(op, compare);
    }
    let done = Head { staged: None, ..head };
    let mut txns = batches.txns;
    txns.push(Txn {
        when: vec![guard],
        then: vec![
            Op::put(keys.head(), encode(&done)),
            Op::DeletePrefix(keys.staged_for(done.generation)),
        ],
        ..Txn::default()
    });
    Ok(txns)
}

/// The transaction that makes a lab, or does nothing where it is.
#[must_use]
pub fn found(keys: &Keys, lab: &Lab) -> Txn {
    Txn {
        when: vec![Compare::Absent(keys.head())],
        then: vec![Op::put(keys.head(), encode(&head(lab, None)))],
        ..Txn::default()
    }
}

/// Transactions under one guard, none too large.
struct Batches {
    guard: Compare,
    bytes: usize,
    txns: Vec<Txn>,
}

impl Batches {
    fn new(guard: Compare) -> Self {
        Self { guard, bytes: 0, txns: Vec::new() }
    }

    fn push(&mut self, op: Op, compare: Option<Compare>) {
        let bytes = Txn { then: vec![op.clone()], ..Txn::default() }.bytes();
        // One comparison for each operation and the guard: there is room for one less.
        let full = self.txns.last().is_none_or(|txn| txn.then.len() + 1 >= TXN_OPS_MAX);
        if full || self.bytes + bytes > BATCH_BYTES_MAX {
            self.txns.push(Txn { when: vec![self.guard.clone()], ..Txn::default() });
            self.bytes = 0;
        }
        self.bytes += bytes;
        if let Some(txn) = self.txns.last_mut() {
            txn.when.extend(compare);
            txn.then.push(op);
        }
    }
}

impl Write {
    fn bytes(&self) -> usize {
        self.below.len() + self.value.as_ref().map_or(0, String::len)
    }
}

fn writes(before: Option<&Lab>, after: &Lab, specs: &Specs) -> Result<Vec<Write>, KeysError> {
    let mut writes = Vec::new();
    changed(&mut writes, Kind::Host, before.map(|lab| &lab.hosts), &after.hosts)?;
    changed(&mut writes, Kind::Cluster, before.map(|lab| &lab.clusters), &after.clusters)?;
    changed(&mut writes, Kind::Fault, before.map(|lab| &lab.faults), &after.faults)?;

    let mut spec = |kind: Kind, name: &str, value: Option<String>| {
        let seen = specs.get(&spec_key(kind, name)).map_or(Revision::ABSENT, |raw| raw.revision);
        let below = format!("spec/{}/{name}", kind.word());
        writes.push(Write { below, value, seen: Some(seen) });
    };
    let clusters = before.map(|lab| &lab.clusters);
    for (name, cluster) in differing(clusters, &after.clusters, |a, b| a.spec == b.spec) {
        spec(Kind::Cluster, name.as_str(), cluster.map(|cluster| encode(&cluster.spec)));
    }
    let faults = before.map(|lab| &lab.faults);
    for (name, fault) in differing(faults, &after.faults, |a, b| a.spec == b.spec) {
        spec(Kind::Fault, name.as_str(), fault.map(|fault| encode(&fault.spec)));
    }
    // In the same commit: a host that is gone must not come in for one moment more.
    let removed = before.map(|lab| &lab.removed_hosts);
    for (name, host) in differing(removed, &after.removed_hosts, |a, b| a == b) {
        if host.is_some() {
            let below = format!("pki/member/{}", member_of(&Who::Host(name.clone())));
            writes.push(Write { below, value: None, seen: None });
        }
    }
    Ok(writes)
}

fn changed<K, T: Serialize + PartialEq>(
    writes: &mut Vec<Write>,
    kind: Kind,
    before: Option<&BTreeMap<Name<K>, T>>,
    after: &BTreeMap<Name<K>, T>,
) -> Result<(), KeysError> {
    for (name, object) in differing(before, after, |a, b| a == b) {
        let value = object.map(encode);
        let bytes = value.as_ref().map_or(0, String::len);
        if bytes > BATCH_BYTES_MAX {
            let (kind, name, max) = (kind.word(), name.to_string(), BATCH_BYTES_MAX);
            return Err(KeysError::TooLarge { kind, name, bytes, max });
        }
        let below = format!("accepted/{}/{name}", kind.word());
        writes.push(Write { below, value, seen: None });
    }
    Ok(())
}

/// The objects that are new or other after, and those that are gone as `None`.
fn differing<'a, K, T>(
    before: Option<&'a BTreeMap<Name<K>, T>>,
    after: &'a BTreeMap<Name<K>, T>,
    same: impl Fn(&T, &T) -> bool,
) -> Vec<(&'a Name<K>, Option<&'a T>)> {
    let mut differing = Vec::new();
    for name in before.into_iter().flat_map(BTreeMap::keys) {
        if !after.contains_key(name) {
            differing.push((name, None));
        }
    }
    for (name, object) in after {
        let before = before.and_then(|before| before.get(name));
        if !before.is_some_and(|before| same(before, object)) {
            differing.push((name, Some(object)));
        }
    }
    differing
}
