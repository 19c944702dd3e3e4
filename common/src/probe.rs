//! How a node is asked for its state: rendered, nothing left to choose.

use serde::{Deserialize, Serialize};

use crate::duration::Span;

/// What one question is and how long its answer may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked.
    #[serde(flatten)]
    pub ask: Ask,
    /// An expression over the answer that must be true: `status` (HTTP status or exit code),
    /// `text` (body or standard output), `json` (the body parsed). Without it the answer itself
    /// must be a success (2xx, exit 0, SERVING, a connection, a matching line).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// How long one answer may take.
    pub timeout: Span,
}

/// A question to a node, always at its private addresses, so that no fault changes the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// An HTTP/1.1 request.
    Http {
        /// `GET`, `POST`, `PUT` or `DELETE`.
        method: String,
        /// Without `http://`: `127.128.0.1:2379/health`.
        url: String,
        /// Sent as JSON where it is not empty.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        body: String,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// `address:port`.
        address: String,
        /// The service asked for; empty is the whole server.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        service: String,
    },
    /// A connection that opens.
    Tcp {
        /// `address:port`.
        address: String,
    },
    /// A program and its arguments, without a shell.
    Command {
        /// The program first.
        argv: Vec<String>,
    },
    /// A line of the node's own output in this incarnation.
    Log {
        /// A regular expression.
        pattern: String,
    },
}

/// How a node's role in its database is read from one answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleProbe {
    /// What is asked, every second.
    #[serde(flatten)]
    pub probe: Probe,
    /// An expression: true where this node leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// An expression: the name of the role (`"follower"`). Without it `leader`/`follower`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// An expression: the term of the election that this answer speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
    /// An expression: how many parts of the data this node leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leads: Option<String>,
}
