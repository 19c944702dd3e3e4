//! What was done for one node, kept in its directory: what must not be done twice, and what must be undone.

use std::collections::BTreeMap;

use faultbed_common::{
    generation::{FaultRevision, Incarnation},
    name::FaultName,
    probe::Probe,
    report::ExitReport,
};
use serde::{Deserialize, Serialize};

use crate::binaries::Binary;

/// The marks of one node. Written by the agent alone; a new agent goes on from it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRecord {
    /// How many of the `init` commands were done on this data.
    pub init_done: usize,
    /// Whether the `join` command was done for this data.
    pub joined: bool,
    /// Whether the `leave` command was done, or given up.
    pub left: bool,
    /// Whether the cluster was set up from here.
    pub bootstrapped: bool,
    /// How often its data was wiped.
    pub wipes: u64,
    /// Starts after crashes since it was last started on purpose.
    pub restarts: u32,
    /// The newest incarnation that was ready.
    pub ready_in: Option<Incarnation>,
    /// How its last incarnation ended, as it was seen then.
    pub exit: Option<ExitReport>,
    /// What it runs.
    pub binary: Option<Binary>,
    /// Custom effects that were switched on, or may have been, and must be switched off.
    pub effects: BTreeMap<FaultName, EffectMark>,
}

/// A custom effect that must be switched off. Written before it is switched on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EffectMark {
    /// Which version of the fault.
    pub revision: FaultRevision,
    /// In which incarnation that was begun last.
    #[serde(default)]
    pub tried_in: Option<Incarnation>,
    /// In which incarnation it was switched on for certain.
    pub on_in: Option<Incarnation>,
    /// What switches it off; nothing where only a restart does.
    #[serde(default)]
    pub off: Option<Probe>,
}

impl NodeRecord {
    /// The record of the same node without data.
    #[must_use]
    pub fn wiped(&self, wipes: u64) -> Self {
        Self {
            init_done: 0,
            joined: false,
            left: false,
            bootstrapped: false,
            wipes,
            ..self.clone()
        }
    }

    /// What a later node of the same name takes over: what is true of the data.
    #[must_use]
    pub fn retired(&self) -> Self {
        Self { init_done: self.init_done, bootstrapped: self.bootstrapped, ..Self::default() }
    }
}
