//! What the agent and its proxy process say to each other: one line of JSON each way, versioned.

use std::{collections::BTreeMap, net::SocketAddr};

use faultbed_common::{
    fault::Grade,
    generation::Generation,
    name::FaultName,
    report::{FaultReport, ProxyReport},
};
use serde::{Deserialize, Serialize};

/// The version of this conversation.
pub(crate) const VERSION: u32 = 1;

/// What the agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) v: u32,
    pub(crate) op: Op,
    /// Of a successor: the oldest and the newest version of a hand-over that it understands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) formats: Option<(u32, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    /// Read the file again and make it true.
    Apply,
    /// Say what is and was.
    Report,
    /// Close everything and exit.
    Stop,
    /// Give everything to the process whose line comes with this, and exit.
    Handover,
}

/// The file is in force on every connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Applied {
    /// The generation of the file.
    pub generation: Generation,
    /// Listeners that are wanted and not open. They are tried again every second.
    pub failed: Vec<FailedListener>,
    /// Each fault of the file.
    pub faults: BTreeMap<FaultName, FaultInForce>,
}

/// A listener that could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedListener {
    /// Its advertised address.
    pub listener: SocketAddr,
    /// The reason, with the holder of the port where that is it.
    pub why: String,
}

/// How a fault of the file stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FaultInForce {
    /// The grade it has here.
    pub grade: Option<Grade>,
    /// Whether it acts.
    pub active: bool,
    /// Why it does not act, or less than it should.
    pub why: Option<String>,
}

/// What the proxy process is, and what faults did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyState {
    /// The process.
    pub report: ProxyReport,
    /// Faults of the file, and the last 100 that ended.
    pub faults: BTreeMap<FaultName, FaultReport>,
    /// Listeners that are wanted and not open.
    pub failed: Vec<FailedListener>,
    /// Nodes were seen to dial from addresses that are not theirs.
    pub unnamed_nodes: bool,
}
