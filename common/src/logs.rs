//! Log lines of nodes: how they are asked for and how they travel.

use serde::{Deserialize, Serialize};

use crate::{generation::Incarnation, name::NodeName};

/// What a person asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogQuery {
    /// Targets as written.
    pub targets: Vec<String>,
    /// Go on as lines are written.
    pub follow: bool,
    /// Lines from the end to begin with; `None` is all.
    pub tail: Option<u32>,
    /// An earlier incarnation; `None` is the newest.
    pub incarnation: Option<Incarnation>,
}

/// What a coordinator asks of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    /// Names the answer's batches.
    pub id: u64,
    /// `None` ends the request.
    pub wanted: Option<LogWanted>,
}

/// Which lines of which nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogWanted {
    /// The nodes, all of this host.
    pub nodes: Vec<NodeName>,
    /// As in [`LogQuery`].
    pub follow: bool,
    /// As in [`LogQuery`].
    pub tail: Option<u32>,
    /// As in [`LogQuery`].
    pub incarnation: Option<Incarnation>,
}

/// Some lines, in order for each node and source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBatch {
    /// The request's id.
    pub id: u64,
    /// The lines.
    pub lines: Vec<LogLine>,
    /// Nothing more follows.
    pub end: bool,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Whose.
    pub node: NodeName,
    /// The file's name, `output` for its standard output and error.
    pub source: String,
    /// The line without its end.
    pub text: String,
    /// No line of the node: its host is not connected to the coordinator that was asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
}
