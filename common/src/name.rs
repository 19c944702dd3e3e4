//! Names people type: parsed once at the edge, bounded, and told apart by their type.

use std::{cmp::Ordering, fmt, marker::PhantomData, num::NonZeroU8, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

/// The longest name accepted, in bytes. It keeps every path and socket below its limit.
pub const NAME_BYTES_MAX: usize = 40;

/// Names that mean something else where a target is expected.
const RESERVED: [&str; 8] = ["clients", "all", "leader", "follower", "host", "label", "not", "lab"];

/// A name of kind `K`: lower-case letters, digits and single dashes, starting with a letter,
/// not ending in a dash, at most [`NAME_BYTES_MAX`] long.
///
/// It holds its text itself: a large lab has hundreds of thousands of names in its links, which are read,
/// copied, compared and dropped with every change, and each would be a piece of memory of its own.
pub struct Name<K> {
    /// The text, then zeros.
    bytes: [u8; NAME_BYTES_MAX],
    /// Of the text.
    len: NonZeroU8,
    /// Of the text without the digits that it ends in.
    stem: u8,
    kind: PhantomData<fn() -> K>,
}

/// What a name can be a name of. `WORD` is used in errors.
pub trait Kind: 'static {
    /// The word for this kind in messages, such as `cluster`.
    const WORD: &'static str;
}

/// Marker types, one for each kind of name.
pub mod kind {
    /// Names a lab.
    #[derive(Debug)]
    pub struct Lab;
    /// Names a host.
    #[derive(Debug)]
    pub struct Host;
    /// Names a cluster.
    #[derive(Debug)]
    pub struct Cluster;
    /// Names a role of a blueprint.
    #[derive(Debug)]
    pub struct Role;
    /// Names a node.
    #[derive(Debug)]
    pub struct Node;
    /// Names a fault.
    #[derive(Debug)]
    pub struct Fault;
    /// Names a port of a role.
    #[derive(Debug)]
    pub struct Port;
    /// Names a blueprint.
    #[derive(Debug)]
    pub struct Blueprint;
    /// Names a person or program with a certificate of its own.
    #[derive(Debug)]
    pub struct User;
    /// Names a coordinator.
    #[derive(Debug)]
    pub struct Coordinator;
}

impl Kind for kind::Lab {
    const WORD: &'static str = "lab";
}
impl Kind for kind::Host {
    const WORD: &'static str = "host";
}
impl Kind for kind::Cluster {
    const WORD: &'static str = "cluster";
}
impl Kind for kind::Role {
    const WORD: &'static str = "role";
}
impl Kind for kind::Node {
    const WORD: &'static str = "node";
}
impl Kind for kind::Fault {
    const WORD: &'static str = "fault";
}
impl Kind for kind::Port {
    const WORD: &'static str = "port";
}
impl Kind for kind::Blueprint {
    const WORD: &'static str = "blueprint";
}
impl Kind for kind::User {
    const WORD: &'static str = "user";
}
impl Kind for kind::Coordinator {
    const WORD: &'static str = "coordinator";
}

/// A lab's name.
pub type LabName = Name<kind::Lab>;
/// A host's name, such as `h1`.
pub type HostName = Name<kind::Host>;
/// A cluster's name, such as `kv`.
pub type ClusterName = Name<kind::Cluster>;
/// A role's name, such as `tikv`.
pub type RoleName = Name<kind::Role>;
/// A node's name, such as `kv-1` or `db-tikv-2`.
pub type NodeName = Name<kind::Node>;
/// A fault's name, such as `partition-3`.
pub type FaultName = Name<kind::Fault>;
/// A port's name, such as `client`.
pub type PortName = Name<kind::Port>;
/// A blueprint's name, such as `etcd`.
pub type BlueprintName = Name<kind::Blueprint>;
/// The name of a user with a certificate, such as `ada`.
pub type UserName = Name<kind::User>;
/// A coordinator's name.
pub type CoordinatorName = Name<kind::Coordinator>;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {word} name: {why}")]
pub struct NameError {
    /// The text as given.
    pub text: String,
    /// The kind of name that was expected.
    pub word: &'static str,
    /// What is wrong, with what is allowed.
    pub why: &'static str,
}

impl<K: Kind> Name<K> {
    /// Parses a name.
    ///
    /// # Errors
    /// Says what is allowed where `text` is not a name of this kind.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let refuse = |why| Err(NameError { text: text.to_owned(), word: K::WORD, why });
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > NAME_BYTES_MAX {
            return refuse("it is longer than 40 bytes");
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return refuse("it must start with a lower-case letter");
        }
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if !text.bytes().all(|byte| is_allowed(byte) || byte == b'-') {
            return refuse("only lower-case letters, digits and '-' are allowed");
        }
        if text.ends_with('-') || text.as_bytes().windows(2).any(|two| two == b"--") {
            return refuse("it must not end in '-' or hold '--'");
        }
        // Labs, roles and ports are never named where targets are.
        if RESERVED.contains(&text) && !matches!(K::WORD, "lab" | "role" | "port") {
            return refuse("this word means something else where targets are named");
        }
        let digits = text.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (Ok(len), Ok(stem)) = (u8::try_from(text.len()), u8::try_from(text.len() - digits))
        else {
            return refuse("it is longer than 40 bytes");
        };
        let Some(len) = NonZeroU8::new(len) else { return refuse("it is empty") };
        let mut bytes = [0; NAME_BYTES_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, len, stem, kind: PhantomData })
    }
}

impl<K> Name<K> {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // What was parsed is a text.
        std::str::from_utf8(self.text()).unwrap_or_default()
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len.get())]
    }

    /// The digits that it ends in; a number that no `u64` holds is 0.
    fn number(&self) -> u64 {
        let (_, digits) = self.text().split_at(usize::from(self.stem));
        let number = digits.iter().try_fold(0_u64, |number, digit| {
            number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        });
        number.unwrap_or_default()
    }
}

impl<K> Clone for Name<K> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes, len: self.len, stem: self.stem, kind: PhantomData }
    }
}
impl<K> PartialEq for Name<K> {
    fn eq(&self, other: &Self) -> bool {
        // No text holds a zero, so the lengths need no look of their own.
        self.bytes == other.bytes
    }
}
impl<K> Eq for Name<K> {}
impl<K> std::hash::Hash for Name<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text().hash(state);
    }
}
impl<K> PartialOrd for Name<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
/// Natural order: `kv-2` before `kv-10`. It is not the order of texts, so a name cannot be looked
/// up by its text (there is no `Borrow<str>`): a map would search in the wrong place.
impl<K> Ord for Name<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        let stem = |name: &Self| usize::from(name.stem);
        let stems = self.bytes[..stem(self)].cmp(&other.bytes[..stem(other)]);
        // Most names that are compared differ before their numbers.
        stems
            .then_with(|| self.number().cmp(&other.number()))
            .then_with(|| self.bytes.cmp(&other.bytes))
    }
}
impl<K> fmt::Debug for Name<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
impl<K> fmt::Display for Name<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl<K: Kind> FromStr for Name<K> {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}
impl<K> AsRef<str> for Name<K> {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}
impl<K> Serialize for Name<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
impl<'de, K: Kind> Deserialize<'de> for Name<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Reads { what: K::WORD, parse: Self::parse })
    }
}

/// Reads a text without a copy of it.
pub(crate) struct Reads<P> {
    /// What it is, for messages.
    pub(crate) what: &'static str,
    /// What becomes of it.
    pub(crate) parse: P,
}

impl<T, E: fmt::Display, P: Fn(&str) -> Result<T, E>> Visitor<'_> for Reads<P> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the text of a {}", self.what)
    }
    fn visit_str<R: serde::de::Error>(self, text: &str) -> Result<T, R> {
        (self.parse)(text).map_err(R::custom)
    }
}

/// The name of node `index` (1-based) of a role. Blueprints of one role leave the role out.
///
/// # Errors
/// Refused where cluster and role together are too long for a name.
pub fn node_name(
    cluster: &ClusterName,
    role: Option<&RoleName>,
    index: u32,
) -> Result<NodeName, NameError> {
    NodeName::parse(&match role {
        Some(role) => format!("{cluster}-{role}-{index}"),
        None => format!("{cluster}-{index}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slashes_newlines_and_capitals_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "empty"),
            ("a/b", "only lower-case"),
            ("a\nb", "only lower-case"),
            ("Kv", "start with a lower-case"),
            ("1kv", "start with a lower-case"),
            ("kv-", "must not end"),
            ("clients", "means something else"),
            (&"a".repeat(41), "longer than 40"),
        ] {
            let error = ClusterName::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn nodes_sort_by_number() {
        let mut names: Vec<NodeName> =
            ["kv-10", "kv-2", "kv-1"].iter().map(|n| n.parse().unwrap()).collect();
        names.sort();
        assert_eq!(names.iter().map(Name::as_str).collect::<Vec<_>>(), ["kv-1", "kv-2", "kv-10"]);
    }
}
