//! One host's compiled share of the lab: everything its agent must make true, no choices left.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::take,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    blueprint::{DialSource, VersionRule},
    duration::Span,
    generation::{FaultRevision, Generation, Incarnation},
    name::{
        BlueprintName, ClusterName, FaultName, HostName, LabName, NodeName, PortName, RoleName,
    },
    port_block::PortBlock,
    probe::{Probe, RoleProbe},
    program::Pushed,
    proxy_spec::{BlockOwner, DialSources, HostDesk, ProxySpec},
    spec::OnCrash,
    tls::NodeTls,
};

/// What one host must make true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostSpec {
    /// The lab it belongs to.
    pub lab: LabName,
    /// The generation it was compiled from. An agent refuses an older one.
    pub generation: Generation,
    /// The host it is for.
    pub host: HostName,
    /// The nodes that must exist here. One that is missing is stopped, and its data kept
    /// unless `wipe_removed` names it.
    pub nodes: BTreeMap<NodeName, NodeSpec>,
    /// Proxies that the nodes here dial, and where from. Like much of `proxy` it changes with the nodes of
    /// the lab and never with faults.
    #[serde(default)]
    pub dials: Arc<Dials>,
    /// The clusters of the whole lab. A node that goes runs its `leave` only where its cluster
    /// stays: the members of one that goes as a whole, data kept, must find each other again.
    #[serde(default)]
    pub clusters: Arc<BTreeSet<ClusterName>>,
    /// Nodes whose data goes with them.
    #[serde(default)]
    pub wipe_removed: BTreeSet<NodeName>,
    /// Nodes that go without their `leave`: it does not succeed, and somebody said so.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub forced: BTreeSet<NodeName>,
    /// The proxy process.
    pub proxy: ProxySpec,
    /// Until when all this holds.
    #[serde(default, skip_serializing_if = "Terms::is_default")]
    pub terms: Terms,
}

/// What a host is told of the rest of the lab. In a large lab it is most of what there is to tell, and only
/// nodes and hosts that come and go change it, never a fault.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Around {
    dials: Arc<Dials>,
    clusters: Arc<BTreeSet<ClusterName>>,
    diallers: BTreeMap<IpAddr, NodeName>,
    blocks: Arc<BTreeMap<IpAddr, Vec<BlockOwner>>>,
    hosts: BTreeMap<IpAddr, HostDesk>,
    sources: DialSources,
}

impl HostSpec {
    /// Takes out what it says of the rest of the lab; [`HostSpec::put_around`] makes it whole again.
    pub fn take_around(&mut self) -> Around {
        let proxy = &mut self.proxy;
        Around {
            dials: take(&mut self.dials),
            clusters: take(&mut self.clusters),
            diallers: take(&mut proxy.diallers),
            blocks: take(&mut proxy.blocks),
            hosts: take(&mut proxy.hosts),
            sources: take(&mut proxy.sources),
        }
    }

    /// What it says of this host alone.
    #[must_use]
    pub fn without_around(&self) -> Self {
        let proxy = &self.proxy;
        Self {
            lab: self.lab.clone(),
            generation: self.generation,
            host: self.host.clone(),
            nodes: self.nodes.clone(),
            dials: Arc::default(),
            clusters: Arc::default(),
            wipe_removed: self.wipe_removed.clone(),
            forced: self.forced.clone(),
            proxy: ProxySpec {
                generation: proxy.generation,
                listeners: proxy.listeners.clone(),
                diallers: BTreeMap::new(),
                blocks: Arc::default(),
                hosts: BTreeMap::new(),
                desk: proxy.desk,
                sources: DialSources::default(),
                faults: proxy.faults.clone(),
            },
            terms: self.terms.clone(),
        }
    }

    /// Says this of the rest of the lab.
    pub fn put_around(&mut self, around: Around) {
        let Around { dials, clusters, diallers, blocks, hosts, sources } = around;
        (self.dials, self.clusters) = (dials, clusters);
        let proxy = &mut self.proxy;
        (proxy.diallers, proxy.blocks, proxy.hosts, proxy.sources) =
            (diallers, blocks, hosts, sources);
    }
}

/// Until when a host keeps to its spec where it hears nothing more. Durations only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// The lease of the whole lab.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lab: Option<LeaseTerm>,
    /// The leases of clusters that have nodes here.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub clusters: BTreeMap<ClusterName, LeaseTerm>,
    /// Faults are healed after so long without a coordinator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_man: Option<Span>,
}

impl Terms {
    /// Whether it holds until further notice.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A lease as hosts know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTerm {
    /// Only a newer one moves the deadline.
    pub revision: FaultRevision,
    /// From its beginning.
    #[serde(rename = "for")]
    pub lasts: Span,
}

/// One node, fully rendered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The cluster it is of.
    pub cluster: ClusterName,
    /// The kind of database that it is of; `None` in the orders of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blueprint: Option<BlueprintName>,
    /// Its role.
    pub role: RoleName,
    /// Whether it should run.
    pub wanted: Wanted,
    /// It must run in this incarnation or a later one; a lower one is ended, then started again.
    pub incarnation: Incarnation,
    /// How an incarnation that must end is ended.
    pub stop_by: StopBy,
    /// Data is wiped, with the node down, until the agent has done it this often.
    #[serde(default)]
    pub wipes: u64,
    /// How often it was called back while it was leaving: more than when it left means that it stays.
    #[serde(default, skip_serializing_if = "crate::lab::is_zero")]
    pub recalled: u32,
    /// Why it must not start yet, such as `waiting for pd of db`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// What is run.
    pub launch: Launch,
    /// Where its data is; made before the first start.
    pub data: PathBuf,
    /// Its private address; every port binds here.
    pub private: IpAddr,
    /// The address others reach it at; its host's.
    pub address: IpAddr,
    /// Its ports, the same number on both sides.
    pub ports: BTreeMap<PortName, NodePort>,
    /// Log files of its own, beside its output.
    #[serde(default)]
    pub logs: Vec<PathBuf>,
    /// How it is asked whether it serves; without it, running is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Probe>,
    /// How it is asked for its role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_state: Option<RoleProbe>,
    /// How it is stopped gracefully.
    pub stop: Stop,
    /// What its own exit means.
    pub on_crash: OnCrash,
    /// Faults on the node itself.
    #[serde(default)]
    pub faults: BTreeMap<FaultName, NodeFault>,
    /// Its ports for dials to other hosts; without them these are named by asking its host's proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<PortBlock>,
}

/// Proxies of the lab, by where connects to them come from: the same for all nodes of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dials {
    /// Those on this machine: a connect to one of these is bound to the node's private address.
    pub near: Arc<BTreeSet<SocketAddr>>,
    /// Where some are not near: all of the lab, so that every host is told the same. Those that are not
    /// near see the node come from its host's address.
    pub all: Arc<BTreeSet<SocketAddr>>,
}

/// What is run and with what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// With a slash a file, else a name looked up in the agent's PATH.
    pub program: String,
    /// What that file must hold, where it was pushed: it is fetched before the node starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<Pushed>,
    /// Where the program and all commands are looked for after PATH; see `blueprint::Role::search`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Its arguments, without the program.
    pub args: Vec<String>,
    /// Over the agent's own environment, less `http_proxy` and the like.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The user to run as, by name; only where the agent is root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Directories made before the start.
    #[serde(default)]
    pub dirs: Vec<PathBuf>,
    /// Files written before each start.
    #[serde(default)]
    pub files: BTreeMap<PathBuf, String>,
    /// Run once, in order, before the first start on empty data; each must exit 0.
    #[serde(default)]
    pub init: Vec<Vec<String>>,
    /// Run once after the node runs, until it exits 0 or prints one of `done`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
    /// Run before the first start of a node that joins a running cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Vec<String>>,
    /// Run before the node is stopped because it left the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave: Option<Vec<String>>,
    /// The node stays until `leave` has succeeded; without this it goes after a few tries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leave_required: bool,
    /// How long one try of `leave` may take; `None` is the agent's own bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave_timeout: Option<Span>,
    /// Limits set before it runs.
    #[serde(default)]
    pub limits: Limits,
    /// Arguments that make the program print its version, such as `["--version"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub version: Vec<String>,
    /// What that must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_rule: Option<VersionRule>,
    /// What its certificate is made from, where it needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<NodeTls>,
    /// Other programs that must be there, found as the program is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
}

/// A command that sets up the whole cluster, run on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// An output that also means it was done before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<String>,
}

/// Resource limits; `None` leaves the agent's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// RLIMIT_NOFILE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nofile: Option<u64>,
    /// The least of it that the program can do with; where it cannot be had, nothing is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nofile_min: Option<u64>,
    /// RLIMIT_CORE in bytes; `u64::MAX` is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<u64>,
}

/// One port of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePort {
    /// The number, the same at the private and the advertised address.
    pub port: u16,
    /// Whether the host's proxy listens for it.
    pub proxied: bool,
    /// The scheme people put before it, such as `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where the proxy's connections to it come from.
    #[serde(default, skip_serializing_if = "DialSource::is_proxy")]
    pub source: DialSource,
}

/// Whether a node should run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// Up.
    #[default]
    Running,
    /// Down on purpose.
    Stopped,
}

/// How an incarnation is ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopBy {
    /// By the blueprint's signal and grace.
    #[default]
    Grace,
    /// By this signal, as a failure would; after the grace by SIGKILL.
    Signal(i32),
}

/// How a node is stopped gracefully.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The signal's number.
    pub signal: i32,
    /// After this the whole tree gets SIGKILL.
    pub grace: Span,
}

/// A fault on a node itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeFault {
    /// As for link faults.
    pub revision: FaultRevision,
    /// As for link faults.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
    /// What it does.
    pub effect: NodeEffect,
}

/// What a fault does to a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeEffect {
    /// Every process of it stands still.
    Pause,
    /// What it asks its disk to keep is not kept, and it waits for the answer.
    DiskStall,
    /// It is kept down.
    Down(StopBy),
    /// A blueprint's own effect: `on` when it begins and after each restart, `off` when it ends.
    Custom {
        /// Its name in the blueprint.
        name: String,
        /// What switches it on.
        on: Box<Probe>,
        /// What switches it off; nothing where only a restart does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        off: Option<Box<Probe>>,
    },
}
