//! A fault: a recorded wish to disturb links or nodes, with targets, effects and a deadline.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    duration::Span,
    effect::{Distribution, Loss, Rate, Ratio, Size, Slice},
    name::FaultName,
};

/// How long a fault made by a verb lasts where nothing is said.
pub const FOR_DEFAULT: Duration = Duration::from_secs(600);

/// `[fault.NAME]`: what the user wrote. Exactly one shape (`partition`, `isolate`, `halves`, `minority`,
/// `ring`, `bridge`, `from`+`to`, `between`, `on`), and effects that fit it and each other; `shape::check`
/// says which do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultSpec {
    /// Two or more groups; links between groups are cut (or get the effects named).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<Vec<Targets>>,
    /// Cuts these nodes from the other nodes of their cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolate: Option<Targets>,
    /// Cuts a random half of these nodes from the other half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halves: Option<Targets>,
    /// Cuts a random minority of these nodes from the rest of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minority: Option<Targets>,
    /// Cuts links so that each of these nodes still sees a majority of them, and no two the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring: Option<Targets>,
    /// Cuts these nodes into two halves; one random node keeps its links to both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Targets>,
    /// With `to`: links from these to those, exactly as named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Targets>,
    /// With `from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Targets>,
    /// Two sides; links both ways, exactly as named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub between: Option<Vec<Targets>>,
    /// The nodes that an effect on nodes meets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<Targets>,

    /// Link effect: nothing passes. What a shape of groups does where no other effect is named.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Link effect: one-way delay of every byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Span>,
    /// Link effect: round-trip delay, split over both directions (`between` only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt: Option<Span>,
    /// With `latency` or `rtt`: how much each chunk's delay varies, one way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Span>,
    /// With `jitter`: how it is distributed; evenly where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
    /// Link effect: what all connections of a link carry together at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Rate>,
    /// Link effect: segments are lost and sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// Link effect: of every segment's worth of bytes, the share of which one bit is flipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<Ratio>,
    /// Refused always, with the reason: a stream is delivered once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<Ratio>,
    /// Refused always, with the reason: a stream is delivered in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reorder: Option<Ratio>,
    /// Link effect: bytes arrive in small pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<Slice>,
    /// Link effect: bytes are not read; they wait with their sender and arrive late.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stall: bool,
    /// Link effect: bytes are taken and held, as if all were well, and arrive late.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub jam: bool,

    /// Connection effect: those that are there are reset at once.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// Connection effect: each is reset this long after it met the fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_after: Option<Span>,
    /// Connection effect: each is closed this long after it met the fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_after: Option<Span>,
    /// Connection effect: each is closed after so many bytes one way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Size>,
    /// Connection effect: the end of a stream is passed on this much later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_close: Option<Span>,
    /// Connection effect: new ones are refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refuse: bool,
    /// Connection effect: new ones get no answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub time_out: bool,
    /// Connection effect: new ones stand still this long before they reach their node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_delay: Option<Span>,

    /// A named link of `preset`: sets the link effects that are not set here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// The share of connections that meet it, drawn for each when it is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<Ratio>,

    /// Node effect: every process of the node stands still.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pause: bool,
    /// Node effect: killed with SIGKILL and kept down until the fault ends.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub kill: bool,
    /// Node effect: stopped gracefully and kept down until the fault ends.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
    /// Node effect: nothing that the node writes gets to its disk, and it waits for that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disk_stall: bool,
    /// Node effect: one that the cluster's blueprint defines as `[effect.NAME]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,

    /// Only the bytes from the first side to the second are stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_way: Option<OneWay>,
    /// `isolate`: also from clients.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub clients: bool,
    /// Shapes also act between clusters.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub across: bool,
    /// Targets such as `leader:kv` are resolved anew when roles change.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
    /// How long it lasts once begun. Required in a file.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Lasts>,
    /// When it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Begin>,
    /// Refuse where this grade cannot be had. Without it: the best the host has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// What happens to connections that were held when it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heal: Option<HealPolicy>,
    /// Where dice come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Prove the fault and its heal by connections of our own: a cut, a hold, a delay or a refusal.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub canary: bool,
    /// Bound how long peers take to notice the heal of a cut, through their own sockets.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fast_heal: bool,
}

impl FaultSpec {
    /// Its seed, or one made of its name, so that the same file draws the same dice (FNV-1a).
    #[must_use]
    pub fn seed_for(&self, name: &FaultName) -> u64 {
        self.seed.unwrap_or_else(|| {
            name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
        })
    }
}

/// Targets as written, united: a string with commas or an array. Parsed by `target::Target`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets(pub Vec<String>);

impl Targets {
    /// Splits `a,b` into its parts.
    #[must_use]
    pub fn split(text: &str) -> Self {
        Self(text.split(',').map(|part| part.trim().to_owned()).collect())
    }
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            many => many.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            One(String),
            Many(Vec<String>),
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::One(text) => Self::split(&text),
            Written::Many(parts) => Self(parts),
        })
    }
}

/// How long a fault lasts once it has begun: `"30s"`, or `"none"` for until it is healed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// Ends by itself; the hosts enforce it alone if everybody else is dead.
    For(Span),
    /// Until it is healed.
    UntilHealed,
}

impl std::fmt::Display for Lasts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::For(span) => span.fmt(f),
            Self::UntilHealed => f.pad("none"),
        }
    }
}
impl std::str::FromStr for Lasts {
    type Err = crate::duration::SpanError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "none" { Self::UntilHealed } else { Self::For(text.parse()?) })
    }
}
impl Serialize for Lasts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Lasts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a one-way cut stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OneWay {
    /// The bytes from A to B, while B to A flows, whoever dialled.
    Bytes,
    /// Packets as an IP filter would: acknowledgements die too, no new connection either way.
    Packets,
}

/// When a fault begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Begin {
    /// When its clusters have been ready once.
    #[default]
    Ready,
    /// At once: for tests of the start itself.
    Start,
}

/// How true a link fault is to a real network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// Bytes are held in user space; the peer's kernel sees acknowledgements.
    Stream,
    /// The kernel drops on the proxy's own sockets; the peer's kernel sees a real cut.
    Packet,
}

/// What a heal does to connections that met the fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealPolicy {
    /// The stream goes on, whole.
    #[default]
    Resume,
    /// A real RST to both ends.
    Reset,
    /// An orderly end to both ends.
    Close,
}
