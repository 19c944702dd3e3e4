//! A link: the directed flow of bytes from one party to another, whoever dialled.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::{NAME_BYTES_MAX, NameError, NodeName, Reads};

/// How whatever is no node is called.
const CLIENTS: &str = "clients";

/// The longest link, as text.
const LINK_BYTES_MAX: usize = 2 * NAME_BYTES_MAX + 1;

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A node of the lab.
    Node(NodeName),
    /// Whatever is not a node of the lab.
    Clients,
}

impl Party {
    /// The node, unless it is clients.
    #[must_use]
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Node(name) => Some(name),
            Self::Clients => None,
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Node(name) => name.as_str(),
            Self::Clients => CLIENTS,
        }
    }
}

/// The flow of bytes from `from` to `to`, on connections dialled by either.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// Where the bytes come from.
    pub from: Party,
    /// Where the bytes go.
    pub to: Party,
}

impl Link {
    /// A link between two nodes.
    #[must_use]
    pub fn between(from: &NodeName, to: &NodeName) -> Self {
        Self { from: Party::Node(from.clone()), to: Party::Node(to.clone()) }
    }

    /// The link the other way.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { from: self.to.clone(), to: self.from.clone() }
    }

    /// Whether `node` is at either end.
    #[must_use]
    pub fn touches(&self, node: &NodeName) -> bool {
        [&self.from, &self.to].iter().any(|p| matches!(p, Party::Node(n) if n == node))
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Party {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(if text == CLIENTS { Self::Clients } else { Self::Node(NodeName::parse(text)?) })
    }
}

/// Written `kv-1>kv-2`.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}>{}", self.from, self.to)
    }
}

impl FromStr for Link {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (from, to) = text.split_once('>').ok_or_else(|| NameError {
            text: text.to_owned(),
            word: "link",
            why: "a link is written FROM>TO",
        })?;
        Ok(Self { from: from.parse()?, to: to.parse()? })
    }
}

impl Serialize for Link {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // In one piece: each part of a text is looked at by itself for what must be escaped.
        let mut text = String::with_capacity(LINK_BYTES_MAX);
        text.push_str(self.from.as_str());
        text.push('>');
        text.push_str(self.to.as_str());
        serializer.serialize_str(&text)
    }
}
impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Reads { what: "link", parse: str::parse::<Self> })
    }
}
impl Serialize for Party {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
impl<'de> Deserialize<'de> for Party {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Reads { what: "party", parse: str::parse::<Self> })
    }
}
