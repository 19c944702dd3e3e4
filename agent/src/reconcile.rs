//! One pass: observe, plan (pure), execute, report. What it compares is here, and how it acts.
//!
//! [`task`] keeps what the [`Hands`] found as [`Observed`]; [`plan`] compares it with what the
//! ledger accepted and says which [`Step`]s are next, and why the rest must wait; [`execute`] does
//! one step each in a task of its own; [`report`] says what was found. [`task`] is the loop around
//! them. A pass never waits: a step that takes long keeps only its own node busy, so new fault
//! rules are in force at once whatever nodes are doing.

pub mod evidence;
pub mod execute;
pub mod hands;
pub mod node_record;
pub mod plan;
pub mod real;
pub mod report;
pub mod step;
pub mod task;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use faultbed_common::{
    generation::Incarnation,
    name::NodeName,
    port_block::FarDials,
    program::Sha256,
    proxy_spec::{Listener, ProxyFile},
};
use serde::{Deserialize, Serialize};

pub use self::{
    hands::Hands,
    node_record::NodeRecord,
    step::{NodeAct, Step, StepKind},
};
use crate::clock::BootTime;

/// What is seen of a host, as far as a plan needs it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Every node that has a directory here.
    pub nodes: BTreeMap<NodeName, ObservedNode>,
    /// The proxy process.
    pub proxy: ObservedProxy,
    /// Pushed programs that are here, whole.
    pub programs: BTreeSet<PathBuf>,
    /// What is being fetched, and how far it is.
    pub fetching: Option<Fetching>,
}

/// How far a program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetching {
    /// Which.
    pub sha256: Sha256,
    /// Bytes that are here.
    pub bytes: u64,
}

/// What is seen of one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedNode {
    /// Its newest incarnation.
    pub run: Run,
    /// Since when its records contradict that it runs.
    pub doubted_since: Option<BootTime>,
    /// What was done for it before.
    pub record: NodeRecord,
    /// What its shim was last told; `None` where this agent has told it nothing yet.
    pub orders: Option<NodeOrders>,
    /// When it was told that.
    pub told_at: BootTime,
    /// The steps that are being done for it.
    pub busy: BTreeSet<StepKind>,
    /// Steps that failed and have not succeeded since.
    pub failures: BTreeMap<StepKind, Failure>,
    /// The newest incarnation whose program was found to be one that can be run.
    pub checked: Option<Incarnation>,
    /// Whether it answers.
    pub ready: Readiness,
}

/// What is seen of the proxy process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedProxy {
    /// Whether the process is there.
    pub running: bool,
    /// Whether it is being told something.
    pub busy: bool,
    /// What it is being told.
    pub telling: Option<Box<ProxyFile>>,
    /// What it has confirmed to be true.
    pub applied: Option<ProxyFile>,
    /// When it did.
    pub applied_at: BootTime,
    /// Listeners it could not open, and why.
    pub failed: BTreeMap<SocketAddr, String>,
    /// Why it still runs another program than this agent.
    pub outdated: Option<String>,
    /// Why it could not be told, lately.
    pub failure: Option<Failure>,
}

impl ObservedProxy {
    /// Whether this listener accepts connections.
    #[must_use]
    pub fn is_open(&self, listener: &Listener) -> bool {
        self.running
            && !self.failed.contains_key(&listener.listen)
            && self.applied.as_ref().is_some_and(|file| file.spec.listeners.contains(listener))
    }
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong, for people.
    pub why: String,
    /// How often in a row.
    pub attempts: u32,
    /// When it failed last.
    pub at: BootTime,
}

/// The newest incarnation of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Run {
    /// There never was one.
    #[default]
    None,
    /// It lives.
    Running(Running),
    /// It is over, with every process of it.
    Ended(Ended),
    /// Nobody can tell, so nothing is started.
    Unknown {
        /// What keeps us from knowing.
        why: String,
    },
}

impl Run {
    /// The number of it; 0 where there is none, or nobody knows.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        match self {
            Self::Running(running) => running.incarnation,
            Self::Ended(ended) => ended.incarnation,
            Self::None | Self::Unknown { .. } => Incarnation(0),
        }
    }
}

/// A living incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Which.
    pub incarnation: Incarnation,
    /// Its main process.
    pub pid: u32,
    /// The shim, its parent.
    pub shim: u32,
    /// Since when.
    pub started: BootTime,
    /// Whether its shim holds all its processes still.
    pub paused: bool,
    /// Whether it was asked to end.
    pub asked: Option<Asked>,
}

/// That an incarnation was asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What for.
    pub why: Why,
    /// By which signal.
    pub signal: i32,
    /// When.
    pub at: BootTime,
}

/// What an incarnation was asked to end for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It shall be down.
    Stop,
    /// It shall die as by a failure.
    Kill,
    /// A newer incarnation shall run.
    Restart,
    /// Its data shall go.
    Wipe,
    /// The node left the lab.
    Remove,
    /// The machine went down and took it along.
    Reboot,
}

/// An incarnation that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub incarnation: Incarnation,
    /// Its exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When.
    pub at: BootTime,
    /// What it was asked to end for, by us or by its machine; a crash was not asked for.
    pub asked: Option<Why>,
}

impl Ended {
    /// How it ended, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        match (self.code, self.signal) {
            (_, Some(signal)) => format!("ended by signal {signal}"),
            (Some(code), None) => format!("exited with status {code}"),
            (None, None) => "ended, nobody saw how".to_owned(),
        }
    }
}

/// Whether a node answers its ready probe. A fact; no fault changes it by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Readiness {
    /// It has not answered in this incarnation; why, where it was asked.
    #[default]
    NotYet,
    /// It answers.
    Ready,
    /// It answered once and does not now.
    Unready,
}

/// What a shim is told besides what to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOrders {
    /// Proxies of the lab on this machine.
    pub dials: Arc<BTreeSet<SocketAddr>>,
    /// Where some are on others: all.
    #[serde(default)]
    pub far: Option<FarDials>,
    /// Its own proxies, which others may be told to dial too.
    #[serde(default)]
    pub own: BTreeSet<SocketAddr>,
    /// Stand still.
    pub pause: Option<PauseUntil>,
    /// Let the disk stand still.
    #[serde(default)]
    pub stall: Option<PauseUntil>,
}

/// Until when a node stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PauseUntil {
    /// It is told otherwise.
    Healed,
    /// This point of CLOCK_BOOTTIME, in nanoseconds.
    BoottimeNs(u64),
}
