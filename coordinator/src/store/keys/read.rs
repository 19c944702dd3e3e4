//! From keys to the accepted lab, the editing surface, and what was edited by hand. Pure.

use std::collections::BTreeMap;

use faultbed_common::{
    fault::FaultSpec,
    lab::Lab,
    name::{Kind as NameKind, Name},
    spec::ClusterSpec,
};
use serde::{Deserialize, Serialize};

use super::{Head, Keys, KeysError, Kind, Kvs, decode};
use crate::store::{Kv, Revision};

/// Names an object of the editing surface, as it is written there: nothing about it is checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpecKey {
    /// `cluster` or `fault`, or what somebody made up.
    pub kind: String,
    /// Its name, or what somebody made up.
    pub name: String,
}

/// A value of the editing surface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSpec {
    /// The text, which may be anything.
    pub text: String,
    /// When it was last written.
    pub revision: Revision,
}

/// The editing surface.
pub type Specs = BTreeMap<SpecKey, RawSpec>;

/// Something people changed in the store itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandEdit {
    /// What.
    pub key: SpecKey,
    /// What it says now; `None` where it was deleted.
    pub value: Option<String>,
    /// When it was written; [`Revision::ABSENT`] where it was deleted. With `key` and the lab's
    /// generation it tells whether this edit was judged before.
    pub revision: Revision,
}

/// The head, and when it was written; `None` where there is no such lab.
///
/// # Errors
/// It is not a head.
pub fn head_from(keys: &Keys, kvs: &Kvs) -> Result<Option<(Head, Revision)>, KeysError> {
    let Some(kv) = kvs.get(&keys.head()) else { return Ok(None) };
    Ok(Some((decode(&kv.key, &kv.value)?, kv.modified)))
}

/// The accepted lab; `None` where there is no such lab.
///
/// # Errors
/// Somebody overwrote or deleted accepted keys.
pub fn lab_from(keys: &Keys, kvs: &Kvs) -> Result<Option<Lab>, KeysError> {
    lab_after(None, keys, kvs)
}

/// As [`lab_from`], where the lab as it was at an earlier revision of the same store is known: what was not
/// written since is not read again. A change writes a few of the hundreds of objects of a large lab.
///
/// # Errors
/// As [`lab_from`].
pub fn lab_after(
    before: Option<(&Lab, Revision)>,
    keys: &Keys,
    kvs: &Kvs,
) -> Result<Option<Lab>, KeysError> {
    let Some((head, _)) = head_from(keys, kvs)? else { return Ok(None) };
    let view = view(keys, kvs, &head)?;
    // What is staged is not told by when the key it stands for was written.
    let before = before.filter(|_| head.staged.is_none());
    let read_at = before.map(|(_, revision)| revision);
    let before = before.map(|(lab, _)| lab);
    Ok(Some(Lab {
        hosts: accepted(&view, Kind::Host, read_at.zip(before.map(|lab| &lab.hosts)))?,
        clusters: accepted(&view, Kind::Cluster, read_at.zip(before.map(|lab| &lab.clusters)))?,
        faults: accepted(&view, Kind::Fault, read_at.zip(before.map(|lab| &lab.faults)))?,
        name: head.lab,
        octet: head.octet,
        generation: head.generation,
        removed_wiped: head.removed_wiped,
        settings: head.settings,
        removed_hosts: head.removed_hosts,
        kept: head.kept,
    }))
}

fn accepted<K: NameKind, T: Clone + for<'de> Deserialize<'de>>(
    view: &View<'_>,
    kind: Kind,
    before: Option<(Revision, &BTreeMap<Name<K>, T>)>,
) -> Result<BTreeMap<Name<K>, T>, KeysError> {
    let prefix = format!("accepted/{}/", kind.word());
    let mut objects = BTreeMap::new();
    for (below, kv) in view.range(prefix.as_str()..) {
        let Some(name) = below.strip_prefix(&prefix) else { break };
        let name = Name::parse(name).map_err(|error| KeysError::Unreadable {
            key: String::from_utf8_lossy(&kv.key).into_owned(),
            why: error.to_string(),
        })?;
        let known = before.filter(|(read_at, _)| kv.modified <= *read_at);
        let object = match known.and_then(|(_, objects)| objects.get(&name)) {
            Some(object) => object.clone(),
            None => decode(&kv.key, &kv.value)?,
        };
        objects.insert(name, object);
    }
    Ok(objects)
}

/// The editing surface.
///
/// # Errors
/// As [`lab_from`].
pub fn specs_from(keys: &Keys, kvs: &Kvs) -> Result<Specs, KeysError> {
    let Some((head, _)) = head_from(keys, kvs)? else { return Ok(Specs::new()) };
    let view = view(keys, kvs, &head)?;
    let specs = view.iter().filter_map(|(below, kv)| {
        let (kind, name) = below.strip_prefix("spec/")?.split_once('/')?;
        let key = SpecKey { kind: kind.to_owned(), name: name.to_owned() };
        let text = String::from_utf8_lossy(&kv.value).into_owned();
        Some((key, RawSpec { text, revision: kv.modified }))
    });
    Ok(specs.collect())
}

/// The keys below the lab that hold objects, with an accepted and unfolded change laid over them.
type View<'a> = BTreeMap<&'a str, &'a Kv>;

fn view<'a>(keys: &Keys, kvs: &'a Kvs, head: &Head) -> Result<View<'a>, KeysError> {
    let below = |kv: &'a Kv| Some((keys.below(&kv.key)?, kv));
    let mut view: View<'_> = kvs
        .values()
        .filter_map(below)
        .filter(|(below, _)| below.starts_with("accepted/") || below.starts_with("spec/"))
        .collect();
    for (below, kv) in staged(keys, kvs, head)? {
        if overrides(kv, view.get(below).copied()) {
            match is_deletion(kv) {
                true => view.remove(below),
                false => view.insert(below, kv),
            };
        }
    }
    Ok(view)
}

/// What an accepted change has staged: the key below the lab each stands for, and what is staged.
pub(super) fn staged<'a>(
    keys: &Keys,
    kvs: &'a Kvs,
    head: &Head,
) -> Result<Vec<(&'a str, &'a Kv)>, KeysError> {
    let Some(staged) = &head.staged else { return Ok(Vec::new()) };
    let prefix = keys.staged(head.generation, &staged.op);
    let found: Vec<_> = kvs
        .range(prefix.clone()..)
        .map_while(|(key, kv)| Some((std::str::from_utf8(key.strip_prefix(&*prefix)?).ok()?, kv)))
        .collect();
    if found.len() != staged.keys {
        let prefix = String::from_utf8_lossy(&prefix).into_owned();
        return Err(KeysError::Incomplete { prefix, found: found.len(), keys: staged.keys });
    }
    Ok(found)
}

/// Whether what is staged counts, not what is there: a spec that people wrote after the staging
/// is theirs.
pub(super) fn overrides(staged: &Kv, there: Option<&Kv>) -> bool {
    there.is_none_or(|kv| kv.modified <= staged.created)
}

/// Whether a staged value says that the key goes away.
pub(super) fn is_deletion(staged: &Kv) -> bool {
    staged.value == b"null"
}

/// What people have changed in the editing surface since the lab was accepted.
#[must_use]
pub fn hand_edits(lab: &Lab, specs: &Specs) -> Vec<HandEdit> {
    let mut wanted = BTreeMap::new();
    for (name, cluster) in &lab.clusters {
        wanted.insert(spec_key(Kind::Cluster, name.as_str()), Wanted::Cluster(&cluster.spec));
    }
    for (name, fault) in &lab.faults {
        wanted.insert(spec_key(Kind::Fault, name.as_str()), Wanted::Fault(&fault.spec));
    }
    let mut edits = Vec::new();
    for (key, raw) in specs {
        let same = wanted.remove(key).is_some_and(|wanted| wanted.is_said_by(&raw.text));
        if !same {
            let (value, revision) = (Some(raw.text.clone()), raw.revision);
            edits.push(HandEdit { key: key.clone(), value, revision });
        }
    }
    let deleted = wanted.into_keys();
    edits.extend(deleted.map(|key| HandEdit { key, value: None, revision: Revision::ABSENT }));
    edits
}

pub(super) fn spec_key(kind: Kind, name: &str) -> SpecKey {
    SpecKey { kind: kind.word().to_owned(), name: name.to_owned() }
}

enum Wanted<'a> {
    Cluster(&'a ClusterSpec),
    Fault(&'a FaultSpec),
}

impl Wanted<'_> {
    /// Compares what is meant, so that other spaces or an order of fields are no edit.
    fn is_said_by(&self, text: &str) -> bool {
        fn says<T: for<'de> Deserialize<'de> + Serialize + PartialEq>(
            text: &str,
            spec: &T,
        ) -> bool {
            serde_json::from_str::<T>(text).is_ok_and(|said| said == *spec)
        }
        match self {
            Self::Cluster(spec) => says(text, *spec),
            Self::Fault(spec) => says(text, *spec),
        }
    }
}
