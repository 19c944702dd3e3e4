//! The accepted lab: everything that was decided, from which host specs are compiled.
//!
//! Stored as one JSON value per object. Choices made once (hosts, ports, addresses, resolved
//! targets) are here and never made again.

mod host;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    blueprint::Blueprint,
    duration::Span,
    fault::FaultSpec,
    generation::{FaultRevision, Generation, Incarnation},
    host_spec::{StopBy, Wanted},
    link::Link,
    name::{
        BlueprintName, ClusterName, FaultName, HostName, LabName, NodeName, PortName, RoleName,
    },
    port_block::PortBlock,
    program::Pushed,
    shared::Shared,
    spec::ClusterSpec,
    tls::ClusterAuthority,
};

pub use host::{Host, LABEL_BYTES_MAX, LABELS_MAX, Said, check_label};

/// The whole accepted lab at one generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lab {
    /// Its name.
    pub name: LabName,
    /// Which third byte its addresses have on this machine: hosts are `127.77.L.N`.
    pub octet: u8,
    /// The generation it is at.
    pub generation: Generation,
    /// Its hosts.
    pub hosts: BTreeMap<HostName, Host>,
    /// Its clusters.
    pub clusters: BTreeMap<ClusterName, Shared<Cluster>>,
    /// Its faults, ended ones included (the last [`ENDED_FAULTS_MAX`]).
    pub faults: BTreeMap<FaultName, Shared<Fault>>,
    /// Nodes that were removed and whose data goes with them, by the host that has it. A later
    /// node of the same name on that host drops the entry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removed_wiped: BTreeMap<HostName, BTreeSet<NodeName>>,
    /// What holds for the lab as a whole.
    #[serde(default, skip_serializing_if = "Settings::is_default")]
    pub settings: Settings,
    /// Hosts that were removed, and by whom: their agents are told so and end, and what identified
    /// them counts for nothing until they are admitted again (the last [`REMOVED_HOSTS_MAX`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removed_hosts: BTreeMap<HostName, RemovedHost>,
    /// Data of clusters that were removed and left it on their hosts, by the cluster's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept: BTreeMap<ClusterName, KeptData>,
}

/// What a cluster that was removed left on its hosts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KeptData {
    /// The kind of database; `None` while the cluster is there and only nodes of it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blueprint: Option<BlueprintName>,
    /// Its last members, which find each other again in the same places.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<NodeName, KeptNode>,
    /// Nodes that had left it before, which nobody takes for members any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left: BTreeMap<NodeName, HostName>,
    /// Those of them that may still be on their way out, as they were placed: they can be called back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub leaving: BTreeMap<NodeName, Leaving>,
}

/// A node that was told to leave its cluster and may not have gone yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leaving {
    /// What was chosen for it.
    pub placement: Placement,
    /// Whether it goes without its leave.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

/// Where a member was, as its data knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptNode {
    /// Its host.
    pub host: HostName,
    /// Its ports.
    pub ports: BTreeMap<PortName, u16>,
}

/// What holds for a lab as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// A host that heard no coordinator for so long heals its faults by itself; `None` never does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_man: Option<Span>,
    /// When the time of the whole lab is up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
}

impl Settings {
    /// Whether nothing was set.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A time after which the agents stop what it is of, whoever else lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// How long it lasts from its beginning.
    pub lasts: Span,
    /// When it began, on the coordinator's clock, for ages; never sent to a host.
    pub since_unix_ms: u64,
    /// Counts its beginnings: only a newer one moves the deadline that hosts keep.
    pub revision: FaultRevision,
    /// Whether it is over and what it was of is stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
}

/// Removed hosts that are remembered.
pub const REMOVED_HOSTS_MAX: usize = 1000;

/// That a host was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedHost {
    /// Who removed it.
    pub by: String,
    /// By which generation.
    pub generation: Generation,
}

/// A node with the cluster it is of.
#[derive(Debug, Clone, Copy)]
pub struct NodeRef<'a> {
    /// Its name.
    pub name: &'a NodeName,
    /// What was chosen for it.
    pub placement: &'a Placement,
    /// The name of its cluster.
    pub cluster_name: &'a ClusterName,
    /// Its cluster.
    pub cluster: &'a Cluster,
}

impl Lab {
    /// A lab with nothing in it.
    #[must_use]
    pub fn new(name: LabName, octet: u8) -> Self {
        Self {
            name,
            octet,
            generation: Generation::default(),
            hosts: BTreeMap::new(),
            clusters: BTreeMap::new(),
            faults: BTreeMap::new(),
            removed_wiped: BTreeMap::new(),
            settings: Settings::default(),
            removed_hosts: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    /// Every node of every cluster, by cluster and then in natural order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeRef<'_>> {
        self.clusters.iter().flat_map(|(cluster_name, cluster)| {
            cluster.nodes.iter().map(move |(name, placement)| NodeRef {
                name,
                placement,
                cluster_name,
                cluster,
            })
        })
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<NodeRef<'_>> {
        // A node is called after its cluster, so only clusters are looked at whose names it begins with:
        // labs of hundreds are asked for each of their nodes again and again.
        let text = name.as_str();
        text.rmatch_indices('-').find_map(|(at, _)| {
            let cluster = ClusterName::parse(text.get(..at)?).ok()?;
            let (cluster_name, cluster) = self.clusters.get_key_value(&cluster)?;
            let (name, placement) = cluster.nodes.get_key_value(name)?;
            Some(NodeRef { name, placement, cluster_name, cluster })
        })
    }
}

impl Cluster {
    /// The nodes of one role, in natural order.
    pub fn of_role<'a>(
        &'a self,
        role: &'a RoleName,
    ) -> impl Iterator<Item = (&'a NodeName, &'a Placement)> {
        self.nodes.iter().filter(move |(_, placement)| placement.role == *role)
    }

    /// Whether every role that has nodes has been ready once.
    #[must_use]
    pub fn has_been_ready(&self) -> bool {
        self.nodes.values().all(|placement| self.been_ready.contains(&placement.role))
    }
}

/// Ended faults that stay visible.
pub const ENDED_FAULTS_MAX: usize = 50;

/// Who made an object and by which means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The user.
    pub owner: String,
    /// The means: `apply` replaces what an earlier `apply` made and leaves the rest.
    pub by: Means,
}

/// By which means an object came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Means {
    /// A file.
    Apply,
    /// A verb.
    Verb,
    /// An edit in the store.
    Hand,
}

/// An accepted cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// What was asked for.
    pub spec: ClusterSpec,
    /// How to run it, as it was when it was accepted.
    pub blueprint: Blueprint,
    /// Where it came from.
    pub origin: Origin,
    /// Its nodes.
    pub nodes: BTreeMap<NodeName, Placement>,
    /// The highest number ever given, by role: numbers are never used again.
    #[serde(default)]
    pub last_index: BTreeMap<RoleName, u32>,
    /// Roles whose nodes have all been ready once; those `after` them may start.
    #[serde(default)]
    pub been_ready: BTreeSet<RoleName>,
    /// Nodes whose files are to list others that came or went.
    #[serde(default, skip_serializing_if = "Relist::is_empty")]
    pub relist: Relist,
    /// Tells this cluster from an earlier one of the same name, for `--initial-cluster-token`s.
    pub token: String,
    /// How long it may run, where that is bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// Who signs for its members, where they speak TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<ClusterAuthority>,
}

/// Nodes whose files list others that came or went since they started; see
/// [`restart_with`](crate::blueprint::Role::restart_with).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Relist {
    /// Those that came or went.
    pub moved: BTreeSet<NodeName>,
    /// Those that restart once these are ready, or gone; one at a time.
    pub restart: BTreeSet<NodeName>,
}

impl Relist {
    /// Whether nobody has to restart.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.restart.is_empty()
    }
}

/// What was chosen once for a node, and what verbs ask of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// Its role.
    pub role: RoleName,
    /// Its number within the role, from 1.
    pub index: u32,
    /// Its host.
    pub host: HostName,
    /// Its private address, unique on the machine.
    pub private: IpAddr,
    /// Its ports.
    pub ports: BTreeMap<PortName, u16>,
    /// The ports it dials other hosts from, unique on its host's address; `None` on simulated hosts,
    /// and where its host had none left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<PortBlock>,
    /// Whether it should run.
    #[serde(default)]
    pub wanted: Wanted,
    /// At least this incarnation.
    pub incarnation: Incarnation,
    /// How one that must end is ended.
    #[serde(default)]
    pub stop_by: StopBy,
    /// How often its data must have been wiped.
    #[serde(default)]
    pub wipes: u64,
    /// How often it was called back while it was leaving its cluster.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub recalled: u32,
    /// Whether it came after its cluster's beginning, so that it must join.
    #[serde(default)]
    pub joined: bool,
    /// The program that was pushed for it, as it was when it was last told to start. `None` where
    /// it runs a file of its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<Pushed>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
pub(crate) fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// An accepted fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// What was asked for.
    pub spec: FaultSpec,
    /// Where it came from.
    pub origin: Origin,
    /// Counts its versions.
    pub revision: FaultRevision,
    /// Where it stands.
    pub phase: Phase,
    /// What its targets are, once it has begun (and as last resolved before).
    #[serde(default)]
    pub resolved: Resolved,
    /// Whether it may meet clusters of others, also when its targets are resolved later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everyone: bool,
    /// Why it ended, where nobody asked for it and its time was not up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_because: Option<String>,
}

impl Fault {
    /// Whether it has begun and is not over.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active { .. })
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }
}

/// Where a fault stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Phase {
    /// Not begun, because of this.
    Pending {
        /// Such as `kv not ready`.
        why: String,
    },
    /// Begun.
    Active {
        /// On the coordinator's clock, for ages; never sent to a host.
        since_unix_ms: u64,
    },
    /// Over.
    Ended {
        /// How.
        how: Ended,
        /// On the coordinator's clock.
        at_unix_ms: u64,
    },
}

/// How a fault ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// Its time was up.
    Expired,
    /// Somebody healed it.
    Healed,
}

/// Names of which sentences for people tell all; of more they tell fewer, and how many there are.
const TOLD_MAX: usize = 20;
/// Names that are told of many.
const TOLD_OF_MANY: usize = 5;

/// Names in a sentence: `kv-1,kv-2`, or `kv-1,kv-2,… (700 in all)`.
#[must_use]
pub fn few<S: AsRef<str>>(names: impl ExactSizeIterator<Item = S>, comma: &str) -> String {
    let count = names.len();
    let told = if count > TOLD_MAX { TOLD_OF_MANY } else { count };
    let mut text = String::new();
    for (at, name) in names.take(told).enumerate() {
        text.push_str(if at == 0 { "" } else { comma });
        text.push_str(name.as_ref());
    }
    if told < count {
        text.push_str(&format!("{comma}… ({count} in all)"));
    }
    text
}

/// What a fault's targets turned out to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resolved {
    /// The groups or sides as resolved, for people: `["kv-1"]`, `["kv-2","kv-3"]`.
    pub groups: Vec<Vec<String>>,
    /// The links it acts on.
    pub links: BTreeSet<Link>,
    /// The nodes it acts on.
    pub nodes: BTreeSet<NodeName>,
    /// Nodes of the same clusters that are in no group and keep all their links.
    pub untouched: Vec<NodeName>,
}

impl Resolved {
    /// Every node it acts on, also as an end of a link.
    #[must_use]
    pub fn touched(&self) -> BTreeSet<&NodeName> {
        let mut touched: BTreeSet<&NodeName> = self.nodes.iter().collect();
        let mut last = None;
        for link in &self.links {
            // Links are in the order of their senders.
            if last != Some(&link.from) {
                last = Some(&link.from);
                touched.extend(link.from.node());
            }
            touched.extend(link.to.node());
        }
        touched
    }

    /// What to write between the groups: `" > "` where no link has its opposite, as with a fault
    /// that acts one way, else `" | "`.
    #[must_use]
    pub fn between(&self) -> &'static str {
        let has_opposite = |link: &Link| {
            self.links.contains(&Link { from: link.to.clone(), to: link.from.clone() })
        };
        if self.links.is_empty() || self.links.iter().any(has_opposite) { " | " } else { " > " }
    }

    /// Its groups in words, or its nodes where there are none: `kv-1 | kv-2,kv-3`, and of many names only
    /// the first. `comma` is written between names.
    #[must_use]
    pub fn sides(&self, comma: &str) -> String {
        let groups: Vec<String> = match self.groups.is_empty() {
            true => vec![few(self.nodes.iter(), comma)],
            false => self.groups.iter().map(|group| few(group.iter(), comma)).collect(),
        };
        groups.join(self.between())
    }

    /// Whether there is nothing to act on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.nodes.is_empty()
    }
}
