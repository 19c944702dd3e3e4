//! A link: the directed flow of bytes from one party to another, whoever dialled.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::{NameError, NodeName};

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
        match self {
            Self::Node(name) => name.fmt(f),
            Self::Clients => f.pad("clients"),
        }
    }
}

impl FromStr for Party {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(if text == "clients" { Self::Clients } else { Self::Node(NodeName::parse(text)?) })
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
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
impl Serialize for Party {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Party {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
