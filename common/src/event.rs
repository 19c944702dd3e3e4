//! What happened, for people: one line each, on the coordinator's clock.

use serde::{Deserialize, Serialize};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one; orders the events of one coordinator.
    pub seq: u64,
    /// When the coordinator saw it, in milliseconds since the epoch.
    pub at_unix_ms: u64,
    /// What kind of thing happened.
    pub kind: EventKind,
    /// What it happened to: a node, fault, host or cluster name.
    pub subject: String,
    /// One sentence.
    pub text: String,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A generation was accepted.
    Change,
    /// A node's state changed.
    Node,
    /// A node's role in its database changed.
    Role,
    /// A fault began, was confirmed or ended.
    Fault,
    /// A host came or went.
    Host,
    /// Something will not become true without help.
    Stuck,
    /// A hand edit was refused.
    Refused,
}

/// What a person asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventQuery {
    /// Go on as they happen.
    pub follow: bool,
    /// How many of the past to begin with; `None` is all that are kept.
    pub tail: Option<u32>,
    /// Only those with higher numbers: who was cut off goes on from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}
