//! What is kept under which key, and how. Pure: turns keys into a lab and a change of the lab into transactions.
//!
//! ```text
//! /faultbed/v1/<lab>/
//!   head                       generation, lab, octet; every accepted change writes it
//!   accepted/<kind>/<name>     the last good version: cluster, fault, host
//!   spec/<kind>/<name>         the editing surface: cluster, fault
//!   history/<generation>       who changed what, and which operation that was
//!   staged/<generation>/<op>/  a change too large for one transaction, before and while it is folded
//!   observed/<host>            its last report
//!   pki/…                      the CA, tokens, members and coordinators; `pki` knows what is in there
//!   alive/<host>               under the lease of the coordinator that holds its stream
//! ```
//! A large change is staged in batches, accepted by one guarded write of `head` that names it, then
//! folded: copied over the keys it stands for and deleted. Whoever reads between acceptance and the
//! end of folding lays what is staged over the rest, so a change is seen as a whole or not at all.

mod change;
mod read;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    edit::HistoryEntry,
    generation::Generation,
    lab::{KeptData, RemovedHost, Settings},
    name::{ClusterName, HostName, LabName, NodeName},
};
use serde::{Deserialize, Serialize};

pub use self::{
    change::{Seen, commit, folds, found},
    read::{
        HandEdit, RawSpec, SpecKey, Specs, hand_edits, head_from, lab_after, lab_from, specs_from,
    },
};
use super::{Key, Kv};

/// Generations whose history is kept.
pub const HISTORY_KEPT: u64 = 1000;

/// Most bytes of one history entry; a larger one is kept without the texts of its objects.
pub const HISTORY_ENTRY_BYTES_MAX: usize = 64 * 1024;

/// The keys of a lab and what they hold.
pub type Kvs = BTreeMap<Key, Kv>;

/// Where the keys of one lab are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// Kinds of objects, as they are written in keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A cluster.
    Cluster,
    /// A fault.
    Fault,
    /// A host; people do not edit these.
    Host,
}

/// The value of `head`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The generation the lab is at.
    pub generation: Generation,
    /// Its name.
    pub lab: LabName,
    /// As [`faultbed_common::lab::Lab::octet`].
    pub octet: u8,
    /// As [`faultbed_common::lab::Lab::removed_wiped`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removed_wiped: BTreeMap<HostName, BTreeSet<NodeName>>,
    /// As [`faultbed_common::lab::Lab::settings`].
    #[serde(default, skip_serializing_if = "Settings::is_default")]
    pub settings: Settings,
    /// As [`faultbed_common::lab::Lab::removed_hosts`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removed_hosts: BTreeMap<HostName, RemovedHost>,
    /// As [`faultbed_common::lab::Lab::kept`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept: BTreeMap<ClusterName, KeptData>,
    /// The change that is accepted and not yet folded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<Staged>,
}

/// Names a staged change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The operation that made it.
    pub op: OpId,
    /// How many keys it has.
    pub keys: usize,
}

/// Tells one attempt to change the lab from every other, so that after a lost answer its author
/// can find out whether it was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpId(String);

impl OpId {
    /// An id from a number nobody else has.
    #[must_use]
    pub fn new(dice: u128) -> Self {
        Self(format!("{dice:032x}"))
    }
}

/// The value of a history key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which operation it was.
    pub op: OpId,
    /// The rest.
    #[serde(flatten)]
    pub entry: HistoryEntry,
}

/// What cannot be read from the store or written to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// Somebody has put something else there.
    #[error("read key {key}: {why}")]
    Unreadable {
        /// The whole key.
        key: String,
        /// What is wrong with its value.
        why: String,
    },
    /// Keys of an accepted change are missing.
    #[error("read {prefix}: {found} of {keys} keys are there")]
    Incomplete {
        /// Where they should be.
        prefix: String,
        /// How many are there.
        found: usize,
        /// How many there should be.
        keys: usize,
    },
    /// It can never be stored.
    #[error("store {kind} {name}: its {bytes} bytes are more than {max}")]
    TooLarge {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        max: usize,
    },
}

impl Kind {
    /// The word in keys.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Fault => "fault",
            Self::Host => "host",
        }
    }
}

impl Keys {
    /// The keys of a lab.
    #[must_use]
    pub fn new(lab: &LabName) -> Self {
        Self { prefix: format!("/faultbed/v1/{lab}/") }
    }

    /// Everything of the lab is under this.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key that guards every change.
    #[must_use]
    pub fn head(&self) -> Key {
        self.at("head")
    }

    /// The last good version of an object.
    #[must_use]
    pub fn accepted(&self, kind: Kind, name: &str) -> Key {
        self.at(&format!("accepted/{}/{name}", kind.word()))
    }

    /// Where people edit an object.
    #[must_use]
    pub fn spec(&self, kind: Kind, name: &str) -> Key {
        self.at(&format!("spec/{}/{name}", kind.word()))
    }

    /// All of history, in order.
    #[must_use]
    pub fn histories(&self) -> Key {
        self.at("history/")
    }

    /// Who made a generation, and how.
    #[must_use]
    pub fn history(&self, generation: Generation) -> Key {
        self.at(&format!("history/{:020}", generation.0))
    }

    /// The last report of a host.
    #[must_use]
    pub fn observed(&self, host: &HostName) -> Key {
        self.at(&format!("observed/{host}"))
    }

    /// There while a coordinator holds the stream of a host's agent.
    #[must_use]
    pub fn alive(&self, host: &HostName) -> Key {
        self.at(&format!("alive/{host}"))
    }

    /// What `pki` keeps.
    #[must_use]
    pub fn pki(&self, below: &str) -> Key {
        self.at(&format!("pki/{below}"))
    }

    /// All that was ever staged for a generation.
    #[must_use]
    pub fn staged_for(&self, generation: Generation) -> Key {
        self.at(&format!("staged/{:020}/", generation.0))
    }

    /// The keys of one staged change: this, followed by the key below the lab that each stands for.
    #[must_use]
    pub fn staged(&self, generation: Generation, op: &OpId) -> Key {
        self.at(&format!("staged/{:020}/{}/", generation.0, op.0))
    }

    /// What follows the lab's prefix, for keys that are text.
    #[must_use]
    pub fn below<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)
    }

    fn at(&self, below: &str) -> Key {
        format!("{}{below}", self.prefix).into_bytes()
    }
}

/// Indented JSON: people read and edit these.
fn encode<T: Serialize>(value: &T) -> String {
    // Our types have text keys and no fallible `Serialize`, so this cannot fail; an empty value
    // would be reported as unreadable, not obeyed.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn decode<T: for<'de> Deserialize<'de>>(key: &[u8], value: &[u8]) -> Result<T, KeysError> {
    serde_json::from_slice(value).map_err(|error| KeysError::Unreadable {
        key: String::from_utf8_lossy(key).into_owned(),
        why: error.to_string(),
    })
}
