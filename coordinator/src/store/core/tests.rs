//! Tests of the core against a naive model: whole copies of the map, one for each revision.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::{Core, HISTORY_BYTES_MAX, HISTORY_REVISIONS_MAX, LeaseChange};
use crate::store::{Batch, Compare, Event, Key, Kv, LeaseId, Op, Revision, StoreError, Txn};

const KEYS: [&str; 6] = ["a", "a/1", "a/2", "b", "b/1", "c"];
const TTL: Duration = Duration::from_secs(10);

/// One step of a history. Numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    Txn(Vec<(u8, u8, u8)>, Vec<(u8, u8, u8, u8)>, Vec<(u8, u8, u8, u8)>),
    Grant,
    End(u8),
    Compact(u8),
}

/// The state at each revision that was, the newest last.
#[derive(Debug)]
struct Model {
    states: Vec<(Revision, BTreeMap<Key, Kv>, Vec<Event>)>,
    leases: Vec<LeaseId>,
    compacted: Revision,
}

impl Model {
    fn new() -> Self {
        let first = (Revision(1), BTreeMap::new(), Vec::new());
        Self { states: vec![first], leases: Vec::new(), compacted: Revision::ABSENT }
    }

    fn revision(&self) -> Revision {
        self.states.last().unwrap().0
    }

    fn map(&self) -> BTreeMap<Key, Kv> {
        self.states.last().unwrap().1.clone()
    }

    fn push(&mut self, map: BTreeMap<Key, Kv>, events: Vec<Event>) {
        if !events.is_empty() {
            self.states.push((self.revision().next(), map, events));
        }
    }

    fn txn(&mut self, txn: &Txn) -> Result<(bool, Vec<Option<Kv>>), StoreError> {
        txn.check()?;
        let mut map = self.map();
        let holds = txn.when.iter().all(|compare| match compare {
            Compare::Absent(key) => !map.contains_key(key),
            Compare::Modified(key, at) => map.get(key).map_or(0, |kv| kv.modified.0) == at.0,
            Compare::Value(key, value) => map.get(key).is_some_and(|kv| kv.value == *value),
        });
        let (mut events, mut got) = (Vec::new(), Vec::new());
        for op in if holds { &txn.then } else { &txn.or_else } {
            match op {
                Op::Get(key) => got.push(map.get(key).cloned()),
                Op::Delete(key) => {
                    events.extend(map.remove(key).map(|kv| Event::Delete(kv.key)));
                }
                Op::DeletePrefix(prefix) => {
                    let gone: Vec<Key> =
                        map.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
                    for key in gone {
                        map.remove(&key);
                        events.push(Event::Delete(key));
                    }
                }
                Op::Put(key, value, lease) => {
                    if lease.is_some_and(|id| !self.leases.contains(&id)) {
                        return Err(StoreError::NoLease);
                    }
                    let old = map.get(key);
                    let modified = self.revision().next();
                    let kv = Kv {
                        key: key.clone(),
                        value: value.clone(),
                        created: old.map_or(modified, |kv| kv.created),
                        modified,
                        version: old.map_or(0, |kv| kv.version) + 1,
                        lease: *lease,
                    };
                    map.insert(key.clone(), kv.clone());
                    events.push(Event::Put(kv));
                }
            }
        }
        self.push(map, events);
        Ok((holds, got))
    }

    fn end(&mut self, id: LeaseId) -> Result<(), StoreError> {
        if !self.leases.contains(&id) {
            return Err(StoreError::NoLease);
        }
        self.leases.retain(|lease| *lease != id);
        let (gone, map): (BTreeMap<_, _>, BTreeMap<_, _>) =
            self.map().into_iter().partition(|(_, kv)| kv.lease == Some(id));
        self.push(map, gone.into_keys().map(Event::Delete).collect());
        Ok(())
    }

    fn since(&self, prefix: &str, from: Revision) -> Result<Vec<Batch>, StoreError> {
        if from <= self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        let mut batches = Vec::new();
        for (revision, _, events) in self.states.iter().filter(|(revision, ..)| *revision >= from) {
            let mut events = events.clone();
            events.retain(|event| event.key().starts_with(prefix.as_bytes()));
            if !events.is_empty() {
                batches.push(Batch { revision: *revision, events });
            }
        }
        Ok(batches)
    }
}

fn op((what, key, value, lease): (u8, u8, u8, u8), leases: &[LeaseId]) -> Op {
    let key = KEYS[usize::from(key) % KEYS.len()].as_bytes().to_vec();
    match what % 6 {
        0 => Op::Delete(key),
        1 => Op::DeletePrefix(key),
        2 => Op::Get(key),
        _ => {
            let lease = match leases.get(usize::from(lease)) {
                Some(lease) => Some(*lease),
                None => (lease == u8::MAX).then_some(LeaseId(777)),
            };
            Op::Put(key, vec![value % 3], lease)
        }
    }
}

fn txn(step: &Step, model: &Model) -> Option<Txn> {
    let Step::Txn(when, then, or_else) = step else { return None };
    let compare = |(what, key, value): &(u8, u8, u8)| {
        let key = KEYS[usize::from(*key) % KEYS.len()].as_bytes().to_vec();
        match what % 3 {
            0 => Compare::Absent(key),
            1 => Compare::Value(key, vec![value % 3]),
            _ => {
                let modified = model.map().get(&key).map_or(Revision::ABSENT, |kv| kv.modified);
                Compare::Modified(key, Revision(modified.0 + u64::from(*value == 0)))
            }
        }
    };
    let ops = |ops: &[(u8, u8, u8, u8)]| ops.iter().map(|raw| op(*raw, &model.leases)).collect();
    let when = when.iter().map(compare).collect();
    Some(Txn { when, then: ops(then), or_else: ops(or_else), is_passing: false })
}

fn step() -> impl Strategy<Value = Step> {
    let ops = || proptest::collection::vec(any::<(u8, u8, u8, u8)>(), 0..5);
    let when = proptest::collection::vec(any::<(u8, u8, u8)>(), 0..2);
    prop_oneof![
        12 => (when, ops(), ops()).prop_map(|(when, then, or_else)| Step::Txn(when, then, or_else)),
        2 => Just(Step::Grant),
        2 => any::<u8>().prop_map(Step::End),
        1 => any::<u8>().prop_map(Step::Compact),
    ]
}

fn agree(core: &Core, model: &Model) {
    assert_eq!(core.revision(), model.revision());
    let map: Vec<Kv> = model.map().into_values().collect();
    assert_eq!(core.range(b""), map);
    for prefix in ["", "a", "a/", "b/1", "x"] {
        let under = |kv: &&Kv| kv.key.starts_with(prefix.as_bytes());
        let range: Vec<Kv> = map.iter().filter(under).cloned().collect();
        assert_eq!(core.range(prefix.as_bytes()), range);
        for from in 1..=model.revision().0 + 2 {
            let batches = core.since(prefix.as_bytes(), Revision(from), usize::MAX);
            assert_eq!(batches.map(|(batches, _)| batches), model.since(prefix, Revision(from)));
        }
    }
}

proptest! {
    #[test]
    fn the_core_does_what_a_naive_store_does(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut core, mut model) = (Core::new(), Model::new());
        let mut snapshot = Core::new();
        let mut replayed = Vec::new();
        for step in &steps {
            let commit = match step {
                Step::Txn(..) => {
                    let txn = txn(step, &model).unwrap();
                    match core.decide(&txn) {
                        Ok((out, commit)) => {
                            prop_assert_eq!(model.txn(&txn), Ok((out.succeeded, out.got)));
                            prop_assert_eq!(out.revision, model.revision());
                            commit
                        }
                        Err(error) => {
                            prop_assert_eq!(model.txn(&txn), Err(error));
                            None
                        }
                    }
                }
                Step::Grant => {
                    let (id, commit) = core.decide_grant(TTL);
                    prop_assert!(!model.leases.contains(&id));
                    model.leases.push(id);
                    Some(commit)
                }
                Step::End(which) => {
                    let nobody = LeaseId(777);
                    let id = model.leases.get(usize::from(*which) % 4).copied().unwrap_or(nobody);
                    let ended = core.decide_end(id);
                    prop_assert_eq!(ended.clone().map(drop), model.end(id));
                    ended.ok()
                }
                Step::Compact(back) => {
                    let upto = Revision((model.revision().0 + 1).saturating_sub(u64::from(*back % 9)));
                    match core.decide_compact(upto) {
                        Ok(true) => {
                            core.compact(upto);
                            model.compacted = upto;
                        }
                        Ok(false) => prop_assert!(upto <= model.compacted),
                        Err(_) => prop_assert!(upto > model.revision()),
                    }
                    None
                }
            };
            if let Some(commit) = commit {
                replayed.push(commit.clone());
                core.apply(commit, Duration::ZERO);
            }
            agree(&core, &model);
        }
        // Replaying the same commits gives the same core.
        for commit in replayed {
            snapshot.apply(commit, Duration::ZERO);
        }
        if model.compacted != Revision::ABSENT {
            snapshot.compact(model.compacted);
        }
        prop_assert_eq!(snapshot, core);
    }
}

fn put(core: &mut Core, key: &str, value: Vec<u8>, lease: Option<LeaseId>) {
    let txn = Txn { then: vec![Op::Put(key.into(), value, lease)], ..Txn::default() };
    let commit = core.decide(&txn).unwrap().1.unwrap();
    core.apply(commit, Duration::ZERO);
}

#[test]
fn the_first_lease_to_end_is_the_one_kept_least() {
    let mut core = Core::new();
    let grant = |core: &mut Core, now| {
        let (id, commit) = core.decide_grant(TTL);
        core.apply(commit, now);
        id
    };
    let one = grant(&mut core, Duration::ZERO);
    let two = grant(&mut core, Duration::from_secs(1));
    assert_eq!(core.next_end(), Some((TTL, one)));
    core.keep(one, Duration::from_secs(5)).unwrap();
    assert_eq!(core.next_end(), Some((TTL + Duration::from_secs(1), two)));
    let commit = core.decide_end(two).unwrap();
    assert_eq!(commit.lease, Some(LeaseChange::Ended(two)));
    core.apply(commit, Duration::from_secs(6));
    assert_eq!(core.keep(two, Duration::from_secs(6)), Err(StoreError::NoLease));
}

#[test]
fn history_that_grows_too_long_or_too_large_is_halved() {
    let mut core = Core::new();
    for _ in 0..HISTORY_REVISIONS_MAX {
        put(&mut core, "a", vec![1], None);
        assert_eq!(core.overgrown(), None);
    }
    put(&mut core, "a", vec![1], None);
    let upto = core.overgrown().unwrap();
    core.compact(upto);
    assert_eq!(core.history.len(), HISTORY_REVISIONS_MAX / 2);

    let mut core = Core::new();
    let megabyte = 1024 * 1024;
    for _ in 0..HISTORY_BYTES_MAX / megabyte {
        put(&mut core, "a", vec![1; megabyte], None);
    }
    let upto = core.overgrown().unwrap();
    core.compact(upto);
    assert!(core.history_bytes <= HISTORY_BYTES_MAX / 2);
    assert!(core.history.len() >= HISTORY_BYTES_MAX / megabyte / 2 - 1);
    assert_eq!(core.overgrown(), None);
}
