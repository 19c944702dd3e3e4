//! What a host found, did and could not do, with reasons. Facts only; nothing here is wanted.
//!
//! Times are points of the host's CLOCK_BOOTTIME in milliseconds; with [`HostReport::now_ms`] they
//! become ages, so no clock of another machine is ever trusted.

mod sparse;

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    fault::Grade,
    generation::{FaultRevision, Generation, Incarnation},
    link::Link,
    name::{ClusterName, FaultName, HostName, NodeName},
    proxy_spec::LinkEffect,
};

/// The whole report of one host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// The host; `None` only in the default.
    pub host: Option<HostName>,
    /// The agent's version.
    pub version: String,
    /// The boot that the times belong to.
    pub boot_id: String,
    /// When this was written.
    pub now_ms: u64,
    /// The newest generation whose host spec the agent has accepted.
    pub generation: Generation,
    /// What of it is not yet true, and will be. Empty with `stuck` means applied.
    pub pending: Vec<String>,
    /// What of it will not become true without help, and why.
    pub stuck: Vec<String>,
    /// The host's nodes, also those that are stopped.
    pub nodes: BTreeMap<NodeName, NodeReport>,
    /// Link and node faults: in force, and the last 100 ended.
    pub faults: BTreeMap<FaultName, FaultReport>,
    /// Connections to private addresses that no proxy made.
    pub bypasses: Vec<Bypass>,
    /// Listeners of others on this host's address or on every address, and those of nodes that are leaving,
    /// for placement.
    pub foreign: Vec<ForeignListener>,
    /// The proxy process; `None` while it does not run.
    pub proxy: Option<ProxyReport>,
    /// The leases of clusters that have nodes here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub leases: BTreeMap<ClusterName, LeaseReport>,
    /// The lease of the lab.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lab_lease: Option<LeaseReport>,
}

impl HostReport {
    /// The same at a later moment of its host, where nothing else has happened since.
    #[must_use]
    pub fn later(&self, now_ms: u64) -> Self {
        let age_ms = now_ms.saturating_sub(self.now_ms);
        let mut report = Self { now_ms: now_ms.max(self.now_ms), ..self.clone() };
        for fault in report.faults.values_mut() {
            fault.remaining_ms = fault.remaining_ms.map(|ms| ms.saturating_sub(age_ms));
        }
        for lease in report.leases.values_mut().chain(&mut report.lab_lease) {
            lease.remaining_ms = lease.remaining_ms.saturating_sub(age_ms);
        }
        report
    }

    /// What it says but for the time that has passed: two reports without ages differ where something has
    /// happened in between.
    #[must_use]
    pub fn without_ages(&self) -> Self {
        let mut report = Self { now_ms: 0, ..self.clone() };
        for fault in report.faults.values_mut() {
            fault.remaining_ms = None;
        }
        for lease in report.leases.values_mut().chain(&mut report.lab_lease) {
            // That it is over is news, and how long it goes on is none.
            lease.remaining_ms = lease.remaining_ms.min(1);
        }
        report
    }
}

/// A lease as one host keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReport {
    /// Which beginning of it.
    pub revision: FaultRevision,
    /// Milliseconds left; 0 is over.
    pub remaining_ms: u64,
}

/// What a node is seen to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Nothing of it exists.
    #[default]
    Absent,
    /// Its files or data are being made.
    Preparing,
    /// It runs and has not been ready in this incarnation.
    Starting,
    /// It answers its ready probe.
    Ready,
    /// It was ready and does not answer now.
    Unready,
    /// A fault holds all its processes.
    Paused,
    /// It was asked to end and has not.
    Stopping,
    /// It ended because it was asked to.
    Stopped,
    /// It ended by a signal that stands for a failure, as ordered.
    Killed,
    /// It ended unasked.
    Crashed,
    /// The agent cannot tell, or nobody has heard from the host.
    Unknown,
}

impl NodeState {
    /// Whether a node in this state has no process.
    #[must_use]
    pub fn is_down(self) -> bool {
        match self {
            Self::Absent | Self::Stopped | Self::Killed | Self::Crashed => true,
            Self::Preparing
            | Self::Starting
            | Self::Ready
            | Self::Unready
            | Self::Paused
            | Self::Stopping
            | Self::Unknown => false,
        }
    }

    /// The word that people see.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::Crashed => "crashed",
            Self::Unknown => "unknown",
        }
    }
}

/// What the agent knows of one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// What it is seen to be.
    pub observed: NodeState,
    /// Since when, in milliseconds of the host's CLOCK_BOOTTIME.
    pub since_ms: u64,
    /// The newest incarnation there was.
    pub incarnation: Incarnation,
    /// Its main process while it runs.
    pub pid: Option<u32>,
    /// Whether this incarnation has ever been ready.
    pub been_ready: bool,
    /// Its role as its database says, such as `leader`.
    pub role_state: Option<String>,
    /// Whether it leads.
    pub leader: Option<bool>,
    /// The term of the election it speaks of.
    pub term: Option<u64>,
    /// How many parts of the data it leads.
    pub leads: Option<u64>,
    /// How its last incarnation ended.
    pub exit: Option<ExitReport>,
    /// What it runs.
    pub binary: Option<BinaryReport>,
    /// How its connections are named.
    pub identity: Identity,
    /// Starts after crashes since it was last started on purpose.
    pub restarts: u32,
    /// Why it is not as wanted: the failed probe, the step that failed, the gate; of one that is, why
    /// its role is not known.
    pub why: Option<String>,
    /// How many wipes were done.
    pub wipes: u64,
}

/// How an incarnation ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Which incarnation.
    pub incarnation: Incarnation,
    /// Its exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When, in milliseconds of the host's CLOCK_BOOTTIME.
    pub at_ms: u64,
    /// Whether it was asked to end: this, not the code, tells a stop from a crash.
    pub asked: bool,
    /// Whether its machine went down and took it along: it is started again, and that is no crash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rebooted: bool,
    /// Its last lines of output, at most 20; kept for crashes.
    pub last_lines: Vec<String>,
    /// The faults in force on the host at that moment.
    pub faults: Vec<FaultName>,
    /// The ready probe's last failure in that incarnation.
    pub probe: Option<String>,
}

/// Which program a node runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BinaryReport {
    /// Where it was found.
    pub path: String,
    /// Its content, in hexadecimal.
    pub sha256: String,
    /// The line it prints of its version.
    pub version: Option<String>,
}

/// How it begins to say why a node's shim has nothing to answer: neither does the kernel ask it for the name of
/// a connection, nor before a call that waits for a disk.
pub const NO_LISTENER: &str = "no seccomp listener";

/// How it begins to say why what a node is to run cannot be run there: time does not help, somebody must.
pub const REFUSED: &str = "refused: ";

/// How a node's connections are told from others'.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// Not known yet.
    #[default]
    Unknown,
    /// By source address: its connects are bound before they leave.
    Address,
    /// By asking the kernel who owns a connection, for this reason.
    Lookup(String),
}

/// A fault as one host sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// Which revision of it.
    pub revision: FaultRevision,
    /// Whether it is in force here.
    pub active: bool,
    /// Whether its deadline ended it here.
    pub expired: bool,
    /// The grade it has here; `None` for faults on nodes.
    pub grade: Option<Grade>,
    /// Milliseconds left; `None` is until healed.
    pub remaining_ms: Option<u64>,
    /// Why it is not in force although wanted.
    pub why: Option<String>,
    /// Why the host healed it by itself, where it did; it stays healed at this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healed: Option<String>,
    /// Whether it has been in force here, also once it is over; only for faults on nodes, whose effects
    /// nobody counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub acted: bool,
    /// What it did to each link, as counted here. Most counters are 0 and not said: a host may have
    /// thousands of links, and reports them whenever one counts.
    #[serde(serialize_with = "sparse::links")]
    pub links: BTreeMap<Link, LinkEvidence>,
    /// What came of asking nodes of this host as their peers would; only for faults that want it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub canary: BTreeMap<Link, CanaryReport>,
    /// Links that no canary asks over, since there are too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub canary_skipped: u64,
    /// Connections around the proxies that were seen on its links while it was in force; kept after
    /// its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bypasses: Vec<Bypass>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What came of asking the receiver of a link as its sender would, before, during and after a fault.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CanaryReport {
    /// Whether it answered just before the fault began; `None` where it was not asked then.
    pub before: Option<bool>,
    /// Questions that were begun and over while the fault was in force.
    pub tries: u64,
    /// Of those, the ones that were answered.
    pub answers: u64,
    /// The fastest of those answers, in microseconds from the connect to the last byte.
    pub fastest_us: Option<u64>,
    /// Milliseconds from the end of the fault to the first answer; `None` while there was none.
    pub healed_after_ms: Option<u64>,
    /// Whether it is not asked any more: it answered after the end, or was given up.
    pub is_over: bool,
    /// What follows.
    pub verdict: CanaryVerdict,
    /// Why, where it contradicts the fault or proves nothing.
    pub why: Option<String>,
}

/// What a canary says of its fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CanaryVerdict {
    /// Nothing yet, or nothing that could not be so without the fault.
    #[default]
    Unproven,
    /// What was seen is what the fault says.
    Agrees,
    /// What was seen cannot be, if the fault does what it says.
    Contradicts,
}

/// What a fault did to one link, counted by one proxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkEvidence {
    /// Connections that carried the link while the fault was in force.
    pub connections: u64,
    /// Bytes held back when the fault stopped them (stream grade, or already read).
    pub held_bytes: u64,
    /// Segments the kernel dropped on these connections' sockets.
    pub dropped_segments: u64,
    /// Chunks that were delayed.
    pub delayed_chunks: u64,
    /// Delayed chunks by added lateness: under 1, 10, 100, 1000 ms, and more.
    pub delay_histogram: [u64; 5],
    /// Connection attempts that were dropped (SYNs) or refused.
    pub attempts_refused: u64,
    /// Accepted connections that were let stand still first.
    pub delayed_accepts: u64,
    /// Chunks that were lost and sent again, in user space; lost segments count as dropped.
    pub lost_chunks: u64,
    /// Bytes with a flipped bit.
    pub corrupted_bytes: u64,
    /// Bytes that were paced by a bandwidth.
    pub paced_bytes: u64,
    /// Pieces that were made of longer chunks.
    pub slices: u64,
    /// Connections that were reset by the fault.
    pub resets: u64,
    /// Connections that were closed by the fault, or whose end was passed on late.
    pub closes: u64,
    /// Bytes that crossed while a cut was in force: must be 0.
    pub leaked_bytes: u64,
    /// First hit, in milliseconds of the host's CLOCK_BOOTTIME.
    pub first_hit_ms: Option<u64>,
    /// Last hit.
    pub last_hit_ms: Option<u64>,
}

impl LinkEvidence {
    /// Whether the fault did anything that this effect does: the counters that it makes, and no
    /// others, say so. What only its end did (`heal = "reset"`) is no proof that it acted.
    #[must_use]
    pub fn shows(&self, effect: &LinkEffect) -> bool {
        let LinkEffect {
            cut,
            hold,
            delay,
            bandwidth,
            loss,
            corrupt,
            slice,
            dials,
            accept_delay_us,
            endings,
        } = effect;
        let any = |counts: &[u64]| counts.iter().any(|count| *count > 0);
        cut.is_some() && any(&[self.dropped_segments, self.held_bytes, self.attempts_refused])
            || hold.is_some() && any(&[self.held_bytes])
            || delay.is_some() && any(&[self.delayed_chunks])
            || bandwidth.is_some() && any(&[self.paced_bytes])
            || !loss.is_empty() && any(&[self.lost_chunks, self.dropped_segments])
            || corrupt.is_some() && any(&[self.corrupted_bytes])
            || slice.is_some() && any(&[self.slices])
            || dials.is_some() && any(&[self.attempts_refused])
            || *accept_delay_us > 0 && any(&[self.delayed_accepts])
            || !endings.is_none() && any(&[self.resets, self.closes])
    }

    /// Adds what was counted elsewhere, or at another time, on the same clock.
    pub fn add(&mut self, more: &Self) {
        let Self {
            connections,
            held_bytes,
            dropped_segments,
            delayed_chunks,
            delay_histogram,
            attempts_refused,
            delayed_accepts,
            lost_chunks,
            corrupted_bytes,
            paced_bytes,
            slices,
            resets,
            closes,
            leaked_bytes,
            first_hit_ms,
            last_hit_ms,
        } = more;
        for (sum, more) in [
            (&mut self.connections, connections),
            (&mut self.held_bytes, held_bytes),
            (&mut self.dropped_segments, dropped_segments),
            (&mut self.delayed_chunks, delayed_chunks),
            (&mut self.attempts_refused, attempts_refused),
            (&mut self.delayed_accepts, delayed_accepts),
            (&mut self.lost_chunks, lost_chunks),
            (&mut self.corrupted_bytes, corrupted_bytes),
            (&mut self.paced_bytes, paced_bytes),
            (&mut self.slices, slices),
            (&mut self.resets, resets),
            (&mut self.closes, closes),
            (&mut self.leaked_bytes, leaked_bytes),
        ] {
            *sum = sum.saturating_add(*more);
        }
        for (sum, more) in self.delay_histogram.iter_mut().zip(delay_histogram) {
            *sum = sum.saturating_add(*more);
        }
        self.first_hit_ms = match (self.first_hit_ms, *first_hit_ms) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self.last_hit_ms = self.last_hit_ms.max(*last_hit_ms);
    }
}

/// A connection to a private address that its proxy did not make.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bypass {
    /// Who holds it: a node, or `pid 123 (curl)`.
    pub from: String,
    /// The node it reaches.
    pub to: NodeName,
    /// The private address it reaches.
    pub address: SocketAddr,
}

/// A listener that is not ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForeignListener {
    /// What it listens on; an unspecified address takes the port everywhere.
    pub address: SocketAddr,
    /// Who: `pid 123 (etcd)`, or `another user's process`.
    pub holder: String,
}

/// The proxy process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyReport {
    /// Its pid.
    pub pid: u32,
    /// The generation whose rules it enforces.
    pub generation: Generation,
    /// Listeners it has open.
    pub listeners: u32,
    /// Connections it carries.
    pub connections: u64,
    /// The best grade it can give.
    pub best_grade: Option<Grade>,
    /// Why it still runs another program than its agent; `None` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outdated: Option<String>,
    /// Connections it refused for want of descriptors.
    #[serde(default)]
    pub refused: u64,
    /// Connections it reset because nobody could say who had dialled while that mattered.
    #[serde(default)]
    pub unknown_reset: u64,
}

#[cfg(test)]
mod tests;
