//! What one host's proxy process must do: its listeners, who its diallers are, and the faults of its links.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    duration::Span,
    effect::{Loss, Rate, Ratio, Slice},
    fault::{Grade, HealPolicy},
    generation::{FaultRevision, Generation},
    link::Link,
    name::{FaultName, HostName, LabName, NodeName, PortName},
    port_block::PortBlock,
};

/// The proxy's orders, complete: what is not here must not be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxySpec {
    /// The generation it was compiled from.
    pub generation: Generation,
    /// One for each proxied port of the host's nodes.
    pub listeners: Vec<Listener>,
    /// Who dials from which private address, for every node on this machine.
    pub diallers: BTreeMap<IpAddr, NodeName>,
    /// Who dials from which ports of which host's address, for every node of the lab that has some;
    /// in the order of ports. A node of this host may come from there too.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub blocks: Arc<BTreeMap<IpAddr, Vec<BlockOwner>>>,
    /// Addresses of the lab's other hosts, and where they can be asked who dialled from there. What
    /// dials from elsewhere, by no name, is no node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<IpAddr, HostDesk>,
    /// Where this host answers the others who dialled from here; `None` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desk: Option<SocketAddr>,
    /// Nodes that shall see the host of whoever dials them.
    #[serde(default, skip_serializing_if = "DialSources::is_empty")]
    pub sources: DialSources,
    /// The faults in force on links that touch this host's nodes.
    pub faults: BTreeMap<FaultName, LinkFault>,
}

fn is_empty(blocks: &Arc<BTreeMap<IpAddr, Vec<BlockOwner>>>) -> bool {
    blocks.is_empty()
}

/// Where connections to some nodes come from: the address of the dialler's host, as without a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialSources {
    /// The private addresses that are dialled so.
    pub upstreams: BTreeSet<SocketAddr>,
    /// The host's address of each node of this machine, by the node's private address.
    pub hosts: BTreeMap<IpAddr, IpAddr>,
}

impl DialSources {
    /// Whether no node asks for it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upstreams.is_empty()
    }
}

/// Where a host answers who dialled from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDesk {
    /// The host, as its certificate must name it.
    pub host: HostName,
    /// The port of its identity listener, at its address; `None` where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A block of ports, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockOwner {
    /// The ports.
    pub block: PortBlock,
    /// The node that dials from them.
    pub node: NodeName,
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
    /// The share of connections that it acts on, fixed for each when it is accepted; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<Ratio>,
    /// Whether the agent proves it end to end: by asking the node as a peer would.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub canary: bool,
    /// Bounds how long peers need to notice the heal of a cut, through their own sockets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fast_heal: bool,
}

/// What a fault does to one link: to its bytes, and to connections that carry them. Effects of several
/// faults combine in `rules`.
///
/// Bytes meet these in the order of a real link: held or cut, sliced, corrupted, lost, paced by the
/// bandwidth, then late.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkEffect {
    /// Nothing passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// Bytes wait until the fault ends, then all are delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Every byte is late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// What all connections of the link carry together at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Rate>,
    /// Segments are lost and sent again; each is drawn by itself. Sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loss: Vec<Loss>,
    /// Of each [`SEGMENT_BYTES`] piece: the probability that one of its bits is flipped. The stream is
    /// knowingly broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<Ratio>,
    /// Bytes are delivered in small pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<Slice>,
    /// What becomes of connections dialled from the link's sender to its receiver while it is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dials: Option<Dials>,
    /// An accepted connection stands still for this many microseconds before it reaches its node.
    #[serde(skip_serializing_if = "is_zero")]
    pub accept_delay_us: u64,
    /// How connections of the link are ended.
    #[serde(skip_serializing_if = "Endings::is_none")]
    pub endings: Endings,
}

/// The size of a piece where an effect has a probability for each segment: the payload of a TCP
/// segment with timestamps on an Ethernet of 1500 bytes.
pub const SEGMENT_BYTES: usize = 1448;

fn is_zero(number: &u64) -> bool {
    *number == 0
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

/// Where bytes wait that are not lost and not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Queued in the proxy up to its bound, so that the sender goes on as if all were well.
    Jam,
    /// With the sender: they are not read, its window closes.
    Stall,
}

/// What becomes of new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dials {
    /// A RST, as from a port where nobody listens.
    Refuse,
    /// No answer to the SYN.
    TimeOut,
}

/// A delay of every chunk: pipelined, order kept, redrawn for each chunk. The parts add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delay {
    /// Microseconds that every chunk is late.
    pub base_us: u64,
    /// At most this many microseconds more or less, evenly.
    #[serde(skip_serializing_if = "is_zero")]
    pub jitter_us: u64,
    /// Standard deviation of a normal part, in microseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub normal_us: u64,
    /// Mean of a Pareto part of shape 3 that is added, in microseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub pareto_us: u64,
}

/// How connections of a link are ended. Times run from when the connection met the fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endings {
    /// Those that are there when the fault begins are reset at once, both ends; new ones live.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// Every connection is reset after this many microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_after_us: Option<u64>,
    /// Every connection is closed in order after this many microseconds; what is held is not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_after_us: Option<u64>,
    /// A connection is closed in order once this many bytes of this direction have passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// The end of a stream is passed on this many microseconds late.
    #[serde(skip_serializing_if = "is_zero")]
    pub slow_close_us: u64,
}

impl Endings {
    /// Whether it ends nothing and delays no end.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
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
