//! What `status -o json` prints: stable, only ever added to. Ages end in `_age_ms`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    generation::{Generation, Incarnation},
    host_spec::Wanted,
    lab::Resolved,
    link::Link,
    name::{ClusterName, FaultName, HostName, LabName, NodeName, RoleName},
    port_block::PortBlock,
    report::{BinaryReport, CanaryReport, ExitReport, Identity, LinkEvidence, NodeState},
};

/// The lab as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of this document: 1.
    pub api: u32,
    /// The lab's name.
    pub lab: LabName,
    /// The newest accepted generation.
    pub generation: Generation,
    /// Every host applied it, and nothing is pending or stuck.
    pub converged: bool,
    /// What is not yet true.
    pub pending: Vec<String>,
    /// What will not become true without help.
    pub stuck: Vec<String>,
    /// The hosts.
    pub hosts: Vec<HostStatus>,
    /// The clusters.
    pub clusters: Vec<ClusterStatus>,
    /// The nodes, of all clusters.
    pub nodes: Vec<NodeStatus>,
    /// Nodes that were taken out of their cluster and are not gone yet, and why they are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<NodeStatus>,
    /// The faults, the newest last.
    pub faults: Vec<FaultStatus>,
    /// Faults that were deleted, and the hosts that still have them in force.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub forgotten: BTreeMap<FaultName, Vec<HostName>>,
    /// Connections around the proxies.
    pub bypasses: Vec<BypassStatus>,
    /// How long the lab may run, where that is bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseStatus>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: HostName,
    /// Where others reach it.
    pub address: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `up` while an agent is connected, else `down`.
    pub state: HostState,
    /// Whether no new node may come to it.
    #[serde(default)]
    pub drained: bool,
    /// The generation it has.
    pub generation: Generation,
    /// Its agent's version.
    pub version: String,
    /// How old its last report is; `None` where there never was one.
    pub seen_age_ms: Option<u64>,
    /// Which boot of the machine that report is of; empty where there never was one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// What is not as it should be there although everything wanted is in force, and what helps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Whether a host's agent is connected to any coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// It is.
    Up,
    /// It is not.
    Down,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: ClusterName,
    /// Its blueprint.
    pub blueprint: String,
    /// Who made it.
    pub owner: String,
    /// How it is.
    pub state: ClusterState,
    /// How long it may run, where that is bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseStatus>,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// How long it lasts from its beginning.
    pub lasts_ms: u64,
    /// How long is left; 0 is over.
    pub remaining_ms: u64,
    /// Whether it is over, and what it was of is stopped or being stopped.
    pub ended: bool,
}

/// How a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterState {
    /// Not all its nodes have been ready yet.
    Starting,
    /// Every node that should run is ready.
    Ready,
    /// Some node that should run is not ready.
    Degraded,
    /// No node should run.
    Stopped,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its role in the blueprint.
    pub role: RoleName,
    /// Its host.
    pub host: HostName,
    /// What was asked for.
    pub wanted: Wanted,
    /// What is seen.
    pub observed: NodeState,
    /// Its main process.
    pub pid: Option<u32>,
    /// The newest start.
    pub incarnation: Incarnation,
    /// Whether it leads; `None` where unknown.
    pub leader: Option<bool>,
    /// Its role as its database says.
    pub role_state: Option<String>,
    /// The election term it speaks of.
    pub term: Option<u64>,
    /// How many parts it leads.
    pub leads: Option<u64>,
    /// How its last incarnation ended.
    pub exit: Option<ExitReport>,
    /// Advertised addresses by port name, with the scheme where there is one.
    pub endpoints: BTreeMap<String, String>,
    /// Private addresses by port name.
    pub private: BTreeMap<String, String>,
    /// What it runs.
    pub binary: Option<BinaryReport>,
    /// How its connections are named.
    pub identity: Identity,
    /// The ports it dials other machines from; `None` on a simulated host, whose nodes have addresses
    /// of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dial_ports: Option<PortBlock>,
    /// The faults in force that touch it.
    pub faults: Vec<FaultName>,
    /// Why it is not as wanted.
    pub why: Option<String>,
    /// Crash restarts since it was last started on purpose.
    pub restarts: u32,
    /// How long it is in this state; `None` where unknown.
    pub state_age_ms: Option<u64>,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultStatus {
    /// Its name.
    pub name: FaultName,
    /// Who made it.
    pub owner: String,
    /// Where it stands.
    pub state: FaultState,
    /// Why it is pending, or not in force on a host.
    pub why: Option<String>,
    /// What it does, in a few words: `cut`, `latency 50ms`.
    pub summary: String,
    /// The weakest grade any host gives it.
    pub grade: FaultGrade,
    /// Whether every host that must has it in force.
    pub in_force: bool,
    /// How true it is on each host, where hosts have said it.
    #[serde(default)]
    pub grades: BTreeMap<HostName, FaultGrade>,
    /// Hosts where it is over and still in force, or about to be, as far as is known.
    #[serde(default)]
    pub lingers_on: Vec<HostName>,
    /// How many links it acts on.
    pub links: usize,
    /// How long it has left; `None` is until healed, or not begun.
    pub remaining_ms: Option<u64>,
    /// What its targets are.
    pub resolved: Resolved,
    /// What it did.
    pub evidence: Evidence,
}

/// Where a fault stands, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultState {
    /// Not begun.
    Pending,
    /// Begun.
    Active,
    /// Ended by its deadline.
    Expired,
    /// Ended by somebody.
    Healed,
}

/// How true a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultGrade {
    /// Held in user space.
    Stream,
    /// Dropped by the kernel.
    Packet,
    /// A fault on nodes.
    Node,
}

/// What a fault did, over all hosts. First and last hits are here points of the coordinator's clock,
/// in milliseconds since the epoch, since those of several hosts could not be compared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The verdict.
    pub verdict: Verdict,
    /// All links together.
    pub total: LinkEvidence,
    /// Each link, as its two proxies counted it together.
    pub links: BTreeMap<Link, LinkEvidence>,
    /// What contradicts the fault, where something does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What came of asking nodes as their peers would; only for faults that want it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub canary: BTreeMap<Link, CanaryReport>,
    /// Links that no canary asks over, since there are too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub canary_skipped: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Whether a fault acted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Traffic met it and it acted.
    Confirmed,
    /// No traffic met it.
    #[default]
    Quiet,
    /// Bytes crossed, or a connection goes around it.
    Mismatch,
}

/// A connection around a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassStatus {
    /// Who holds it.
    pub from: String,
    /// The node it reaches.
    pub to: NodeName,
    /// Where.
    pub address: String,
}
