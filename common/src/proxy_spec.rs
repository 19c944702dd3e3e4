//! What one host's proxy process must do: its listeners, who its diallers are, and the faults of its links.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    duration::Span,
    fault::{Grade, HealPolicy},
    generation::{FaultRevision, Generation},
    link::Link,
    name::{FaultName, LabName, NodeName, PortName},
};

/// The proxy's orders, complete: what is not here must not be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxySpec {
    /// The generation it was compiled from.
    pub generation: Generation,
    /// One for each proxied port of the host's nodes.
    pub listeners: Vec<Listener>,
    /// Who dials from which address, for every node of the lab that can reach this host.
    pub diallers: BTreeMap<IpAddr, NodeName>,
    /// The faults in force on links that touch this host's nodes.
    pub faults: BTreeMap<FaultName, LinkFault>,
}

/// One listener, which owns a node's advertised address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listener {
    /// The node behind it: the party that accepts.
    pub node: NodeName,
    /// Which of its ports.
    pub port: PortName,
    /// The advertised address.
    pub listen: SocketAddr,
    /// The node's private address.
    pub upstream: SocketAddr,
}

/// One fault, as far as this host's links meet it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFault {
    /// Only a newer revision extends the deadline of what is already in force.
    pub revision: FaultRevision,
    /// How long it lasts from its beginning; `None` is until healed.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
    /// What it does to each of its links.
    pub effect: LinkEffect,
    /// `Some` where only this grade will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// What its end does to connections that met it.
    pub heal: HealPolicy,
    /// The links it acts on (only those that touch this host).
    pub links: BTreeSet<Link>,
    /// Where its dice come from.
    pub seed: u64,
}

/// What a fault does to the bytes of one link. Effects of several faults combine in `rules`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkEffect {
    /// Nothing passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// Every byte is late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
}

/// What a cut stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// The bytes of this direction only. Handshakes and acknowledgements pass.
    Bytes,
    /// Every packet of this direction, acknowledgements and SYNs included.
    Packets,
}

/// A delay of every chunk: pipelined, order kept, redrawn for each chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delay {
    /// Microseconds that every chunk is late.
    pub base_us: u64,
    /// At most this many microseconds more or less, uniformly.
    pub jitter_us: u64,
}

/// A point of CLOCK_BOOTTIME at which a fault ends, and the boot it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The revision it was set for.
    pub revision: FaultRevision,
    /// Nanoseconds of CLOCK_BOOTTIME; `None` is until healed.
    pub boottime_ns: Option<u64>,
}

/// What the agent writes for the proxy process, and all that it starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyFile {
    /// The version of this format; this release writes 1.
    pub version: u32,
    /// The lab whose nodes count as nodes where a connection's owner is looked up; `None` is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lab: Option<LabName>,
    /// The boot whose clock the deadlines are of.
    pub boot_id: String,
    /// What to do.
    pub spec: ProxySpec,
    /// When each fault ends.
    pub deadlines: BTreeMap<FaultName, Deadline>,
}
