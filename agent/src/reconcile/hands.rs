//! The hands of an agent: everything a pass touches outside itself, so that tests can give it others.

use std::{future::Future, io, path::PathBuf, sync::Arc, time::Duration};

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use faultbed_common::{
    generation::Incarnation,
    host_spec::NodeSpec,
    name::{FaultName, LabName, NodeName},
    probe::Probe,
    program::Pushed,
    proxy_spec::ProxyFile,
    report::{Bypass, FaultReport, ForeignListener, Identity, ProxyReport},
};

use super::{Asked, Fetching, NodeOrders, NodeRecord, Run, Running, evidence::Kept, step::Cause};
use crate::{
    binaries::Binary,
    canary::{Answer, Question},
    clock::BootTime,
};

/// Everything needed to start a node.
#[derive(Debug, Clone)]
pub struct StartOrder {
    /// Which.
    pub node: NodeName,
    /// How.
    pub spec: Arc<NodeSpec>,
    /// As which incarnation.
    pub incarnation: Incarnation,
    /// Why, which decides the binary.
    pub cause: Cause,
    /// What it ran before.
    pub before: Option<Binary>,
    /// What its shim must know.
    pub orders: NodeOrders,
}

/// A command of a blueprint.
#[derive(Debug, Clone)]
pub struct CommandOrder {
    /// For which node.
    pub node: NodeName,
    /// Its spec: environment, directories and files are as for the node itself.
    pub spec: Arc<NodeSpec>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// After this it is killed.
    pub timeout: Duration,
}

/// What the proxy process has confirmed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProxyApplied {
    /// Listeners that are not open, and why.
    pub failed: BTreeMap<SocketAddr, String>,
    /// The faults as they are in force now.
    pub faults: BTreeMap<FaultName, FaultReport>,
    /// Why it still runs another program than this agent.
    pub outdated: Option<String>,
}

/// What the proxy process says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProxySeen {
    /// The process.
    pub report: ProxyReport,
    /// The faults on links, ended ones too.
    pub faults: BTreeMap<FaultName, FaultReport>,
}

/// What is seen of sockets on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Connections around the proxy.
    pub bypasses: Vec<Bypass>,
    /// Listeners of others.
    pub foreign: Vec<ForeignListener>,
    /// Why a `fast_heal` is not had.
    pub slow: Option<String>,
}

/// What a survey must know.
#[derive(Debug, Clone, Default)]
pub struct SurveyOrder {
    /// The private addresses of this host's nodes.
    pub private: BTreeMap<SocketAddr, NodeName>,
    /// The shims of this host's living nodes.
    pub shims: BTreeMap<u32, NodeName>,
    /// The lab whose nodes count as nodes, also where another host of this machine runs them.
    pub lab: Option<LabName>,
    /// The nodes that shall notice a heal soon.
    pub eager: BTreeSet<NodeName>,
    /// This host's address.
    pub address: Option<std::net::IpAddr>,
}

/// What a pass can touch. Everything here may block for a moment, never long, except what is async.
pub trait Hands: Send + Sync + 'static {
    /// The host's clock.
    fn now(&self) -> BootTime;

    /// The nodes that have a directory here.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn nodes(&self) -> io::Result<Vec<NodeName>>;

    /// The marks of a node; the default where there are none.
    ///
    /// # Errors
    /// They are there and cannot be read.
    fn load_record(&self, node: &NodeName) -> io::Result<NodeRecord>;

    /// Keeps the marks of a node.
    ///
    /// # Errors
    /// The disk does not take them.
    fn save_record(&self, node: &NodeName, record: &NodeRecord) -> io::Result<()>;

    /// The newest incarnation of a node.
    fn inspect(&self, node: &NodeName) -> Run;

    /// How a node's connections are named.
    fn identity(&self, node: &NodeName, incarnation: Incarnation) -> Identity;

    /// What the shim of this incarnation was told last, by this agent or an earlier one.
    fn told(&self, node: &NodeName, incarnation: Incarnation) -> Option<NodeOrders>;

    /// Is over when this incarnation is.
    fn ended(
        &self,
        node: &NodeName,
        running: &Running,
    ) -> impl Future<Output = ()> + Send + 'static;

    /// Whether a pushed program is here, whole.
    fn has_program(&self, pushed: &Pushed) -> bool;

    /// Fetches a pushed program, and verifies it.
    ///
    /// # Errors
    /// Why it cannot be had, for people.
    fn fetch(&self, pushed: Pushed) -> impl Future<Output = Result<(), String>> + Send;

    /// What is being fetched now.
    fn fetching(&self) -> Option<Fetching>;

    /// Whether a start would run the program that a node is to run next, as far as that can be told
    /// without one. Changes nothing.
    ///
    /// # Errors
    /// Why it would not, for people.
    fn check(&self, node: &NodeName, spec: &NodeSpec) -> Result<(), String>;

    /// Starts a node, and says what it runs.
    ///
    /// # Errors
    /// Why it does not run, for people.
    fn start(&self, order: &StartOrder) -> Result<Binary, String>;

    /// Hashes and pins what a node runs. Takes long for a large file.
    ///
    /// # Errors
    /// Why it cannot, for people.
    fn identify(&self, binary: &Binary, version: &[String]) -> Result<Binary, String>;

    /// Asks an incarnation to end. One that is over already is no error.
    ///
    /// # Errors
    /// Why it cannot be asked, for people.
    fn signal(&self, node: &NodeName, of: Incarnation, asked: &Asked) -> Result<(), String>;

    /// Ends every process of an incarnation. One that is over already is no error.
    ///
    /// # Errors
    /// Why it cannot, for people.
    fn kill_tree(&self, node: &NodeName, of: Incarnation) -> Result<(), String>;

    /// Tells a shim what it must know.
    ///
    /// # Errors
    /// Why it cannot be told, for people.
    fn set_orders(
        &self,
        node: &NodeName,
        of: Incarnation,
        orders: &NodeOrders,
    ) -> Result<(), String>;

    /// Deletes the data of a node that is down.
    ///
    /// # Errors
    /// Why it cannot, for people.
    fn wipe(&self, node: &NodeName, spec: &NodeSpec) -> Result<(), String>;

    /// Puts away the runs of a node that left, and its data too where `wipe` says so.
    ///
    /// # Errors
    /// Why it cannot, for people.
    fn retire(&self, node: &NodeName, wipe: bool) -> Result<(), String>;

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It failed; with its last output.
    fn command(
        &self,
        order: CommandOrder,
    ) -> impl Future<Output = Result<String, CommandFailed>> + Send;

    /// Asks a node once. A command of its is found, and runs, as the node's own are; without its spec,
    /// as ours are.
    ///
    /// # Errors
    /// The answer is not as expected, for people.
    fn call(
        &self,
        node: &NodeName,
        spec: Option<&NodeSpec>,
        probe: &Probe,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Asks a node as its peer would, through its proxy, and waits no longer than `patience`.
    fn ask_as_peer(
        &self,
        question: Question,
        patience: Duration,
    ) -> impl Future<Output = Answer> + Send;

    /// The last lines of a node's output.
    fn last_lines(&self, node: &NodeName, incarnation: Incarnation, count: usize) -> Vec<String>;

    /// The proxy process of this host, if it lives.
    fn find_proxy(&self) -> Option<u32>;

    /// Is over when the proxy process is.
    fn proxy_ended(&self) -> impl Future<Output = ()> + Send + 'static;

    /// Makes the proxy process run and do exactly this, and run the agent's own program: one of
    /// another release hands over to a new process.
    ///
    /// # Errors
    /// Why it does not, for people.
    fn apply_proxy(&self, file: &ProxyFile) -> Result<ProxyApplied, String>;

    /// What the proxy process says.
    ///
    /// # Errors
    /// Why it does not answer, for people.
    fn ask_proxy(&self) -> Result<ProxySeen, String>;

    /// What faults did, as an earlier agent kept it.
    ///
    /// # Errors
    /// It is there and cannot be read.
    fn load_evidence(&self) -> io::Result<Kept>;

    /// Keeps what faults did.
    ///
    /// # Errors
    /// The disk does not take it.
    fn save_evidence(&self, kept: &Kept) -> io::Result<()>;

    /// Removes pinned programs that are none of these, by hash; a few stay.
    fn prune_binaries(&self, used: &BTreeSet<String>);

    /// Looks at the sockets of this machine.
    fn survey(&self, order: &SurveyOrder) -> Survey;

    /// Where a node's files are.
    fn node_dir(&self, node: &NodeName) -> PathBuf;
}

/// A command that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandFailed {
    /// Why, for people.
    pub why: String,
    /// Everything it printed, bounded.
    pub output: String,
}
