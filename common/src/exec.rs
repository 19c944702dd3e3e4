//! A command on a node's host, or a file of a node: how it is asked for and how it ends.

use serde::{Deserialize, Serialize};

use crate::name::{HostName, NodeName};

/// Most bytes of one piece of input, output or a file.
pub const PIECE_BYTES_MAX: usize = 64 * 1024;

/// What a person asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// A target that names one node.
    pub target: String,
    /// What to do there.
    pub work: Work,
    /// Also where the node is somebody else's.
    #[serde(default)]
    pub everyone: bool,
}

/// What is to be done on a node's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Run a program, as the node's user, in its directory. Never by a shell.
    Run {
        /// The program and its arguments.
        command: Vec<String>,
    },
    /// Send a file.
    Read {
        /// Below the node's directory.
        path: String,
    },
    /// Take a file.
    Write {
        /// Below one of the directories in the node's own.
        path: String,
        /// Its permissions, less what is not for files.
        mode: u32,
    },
}

impl Work {
    /// In a few words, for events: `run etcdctl member list`.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Run { command } => format!("run {}", command.join(" ")),
            Self::Read { path } => format!("read {path}"),
            Self::Write { path, .. } => format!("write {path}"),
        }
    }
}

/// The first message of an agent on a stream of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attendance {
    /// Who it is.
    pub host: HostName,
    /// Which order it attends to; `None` waits for orders.
    #[serde(default)]
    pub order: Option<String>,
}

/// What an agent is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Nobody can guess it.
    pub id: String,
    /// Which of its nodes.
    pub node: NodeName,
    /// What to do.
    pub work: Work,
    /// For whom.
    pub by: String,
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// The exit code of a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it could not be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The permissions of a file that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

impl Done {
    /// It was not done, for this reason.
    pub fn failed(why: impl Into<String>) -> Self {
        Self { error: Some(why.into()), ..Self::default() }
    }
}
