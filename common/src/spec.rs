//! What people ask for: the clusters of a lab. Stored as JSON of the same shape as the TOML file.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{
    duration::Span,
    fault::FaultSpec,
    name::{ClusterName, FaultName, HostName, RoleName},
};

/// Most nodes of one role. A lab that wants more wants another tool.
pub const COUNT_MAX: u32 = 1000;

/// Simulated hosts of a local lab where nothing is said.
pub const HOSTS_DEFAULT: u32 = 3;

/// Most simulated hosts of a local lab: each has an address in one /24.
pub const HOSTS_MAX: u32 = 254;

/// Whether a `config` is the configuration itself, and not the path of its file. A content always
/// holds a line break; whoever reads the file takes [`content`] of it.
#[must_use]
pub fn is_content(config: &str) -> bool {
    config.contains('\n')
}

/// The text of a configuration file as a `config` holds it.
#[must_use]
pub fn content(mut text: String) -> String {
    if !is_content(&text) {
        text.push('\n');
    }
    text
}

/// Most bytes of one lab file or object.
pub const SPEC_BYTES_MAX: usize = 1_000_000;

/// A whole lab file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabFile {
    /// The lab itself.
    pub lab: LabSection,
    /// What is said of hosts.
    pub host: BTreeMap<HostName, HostSection>,
    /// The clusters that should exist.
    pub cluster: BTreeMap<ClusterName, ClusterSpec>,
    /// The faults that should be in force.
    pub fault: BTreeMap<FaultName, FaultSpec>,
}

/// `[lab]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabSection {
    /// Simulated hosts of a local lab; [`HOSTS_DEFAULT`] where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<u32>,
    /// A host that heard no coordinator for so long heals its faults; without it no host does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_man: Option<Span>,
}

/// `[host.h1]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostSection {
    /// Labels that targets and placements name as `label:KEY=VALUE`.
    pub labels: BTreeMap<String, String>,
}

/// `[cluster.kv]`: which blueprint, and what differs from its defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// A shipped blueprint's name, or a path to a file (with a slash).
    pub blueprint: String,
    /// What a crash means. The blueprint's word where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_crash: Option<OnCrash>,
    /// How long it may run before its hosts stop it. Until somebody stops it where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Span>,
    /// Whether its members speak TLS with each other, with certificates that the lab makes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// One table for each role; roles not named take the blueprint's defaults.
    #[serde(flatten)]
    pub roles: BTreeMap<RoleName, RoleSpec>,
}

/// What happens after a node exits unasked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCrash {
    /// It stays down and visible: a crash is a finding.
    #[default]
    Stay,
    /// It is started again, with bounded back-off.
    Restart,
}

/// `[cluster.kv.etcd]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoleSpec {
    /// How many nodes; the blueprint's default where it is not said. From 1 to [`COUNT_MAX`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// The program: with a slash a file of the machine of whoever asks; else a name in the host's
    /// PATH, or `host:/FILE`. See `program::source`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A configuration merged over the blueprint's file: its path, or, where it holds a line
    /// break, its content. What a coordinator is sent always holds the content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Where nodes may go: host names or `label:KEY=VALUE`. Empty: spread over all hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Arguments after the blueprint's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment over the blueprint's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Connections that each node may have to one address of another host at a time; the
    /// blueprint's word where it is not said. Only for new nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dial_ports: Option<u16>,
    /// Fields that differ for one node, by its number from 1.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "by_number")]
    pub node: BTreeMap<u32, NodeOverride>,
}

/// Keys of JSON are texts, and below a flattened table serde does not read numbers from them.
fn by_number<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u32, NodeOverride>, D::Error> {
    let named = BTreeMap::<String, NodeOverride>::deserialize(deserializer)?;
    let number = |key: String| {
        key.parse().map_err(|_| D::Error::custom(format!("{key:?} is not the number of a node")))
    };
    named.into_iter().map(|(key, own)| Ok((number(key)?, own))).collect()
}

/// `node.2.path = …`: fields of one node that differ from its role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeOverride {
    /// As [`RoleSpec::path`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// As [`RoleSpec::config`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Instead of the role's arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Over the role's environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The host this node must be placed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
}
