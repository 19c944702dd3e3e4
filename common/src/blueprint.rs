//! A blueprint: how to run one kind of database. Templates are minijinja, rendered one argument
//! at a time in strict mode, never a shell string.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    duration::Span,
    host_spec::Limits,
    name::{BlueprintName, PortName, RoleName},
    spec::OnCrash,
};

/// Text with `{{ … }}` in it. Checked when the blueprint is parsed, rendered by `render`.
pub type Template = String;

/// A whole blueprint, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Blueprint {
    /// Its name, which is its file's stem.
    pub name: BlueprintName,
    /// One line for people.
    pub summary: String,
    /// What a crash means unless the cluster says otherwise.
    #[serde(default)]
    pub on_crash: OnCrash,
    /// Its roles.
    #[serde(rename = "role")]
    pub roles: BTreeMap<RoleName, Role>,
    /// Effects of its own, injected like any other.
    #[serde(default, rename = "effect", skip_serializing_if = "BTreeMap::is_empty")]
    pub effects: BTreeMap<String, Effect>,
}

impl Effect {
    /// Its values as one fault has them: those that it names, and the others as they are anyway.
    ///
    /// # Errors
    /// It names one that there is not, or leaves one open that must be chosen.
    pub fn values(
        &self,
        chosen: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, String> {
        let known = || self.values.keys().map(String::as_str).collect::<Vec<_>>();
        if let Some(wrong) = chosen.keys().find(|name| !self.values.contains_key(*name)) {
            return Err(match known().as_slice() {
                [] => format!("it has no values, and so no {wrong}"),
                known => format!("it has no value {wrong:?}; it has {}", known.join(", ")),
            });
        }
        let all: BTreeMap<String, String> =
            self.values.iter().chain(chosen).map(|(k, v)| (k.clone(), v.clone())).collect();
        match all.iter().find(|(_, value)| value.is_empty()) {
            Some((open, _)) => Err(format!("say which {open}: {open}=…")),
            None => Ok(all),
        }
    }
}

impl Role {
    /// A cluster can be without it.
    #[must_use]
    pub fn may_be_none(&self) -> bool {
        self.least == Some(0)
    }

    /// The scheme of a port.
    #[must_use]
    pub fn url(&self, port: &PortName, is_tls: bool) -> Option<&String> {
        let over = self.tls.as_ref().filter(|_| is_tls).and_then(|tls| tls.urls.get(port));
        over.or_else(|| self.ports.get(port)?.url.as_ref())
    }
}

impl Blueprint {
    /// The first role whose nodes cannot speak TLS with each other.
    #[must_use]
    pub fn without_tls(&self) -> Option<&RoleName> {
        self.roles.iter().find(|(_, role)| role.tls.is_none()).map(|(name, _)| name)
    }

    /// The one role of a simple blueprint: its nodes are named without it.
    #[must_use]
    pub fn only_role(&self) -> Option<&RoleName> {
        (self.roles.len() == 1).then(|| self.roles.keys().next()).flatten()
    }
}

/// `[role.NAME]`: one kind of process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Role {
    /// The program run where the cluster names no path.
    pub program: String,
    /// Directories where the program and the commands are looked for after PATH: absolute or below
    /// `~`, with `*` in names; of several that match the one with the highest version comes first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// How many nodes where the cluster does not say.
    pub count: u32,
    /// How few nodes it can have, where its program does not run with fewer; 0 where the others do without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<u32>,
    /// How many nodes it can have at most, where its program knows a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<u32>,
    /// Its ports.
    #[serde(default, rename = "port")]
    pub ports: BTreeMap<PortName, Port>,
    /// Connections that a node may have to one address of another host at a time;
    /// [`BLOCK_DEFAULT`](crate::port_block::BLOCK_DEFAULT) where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dial_ports: Option<u16>,
    /// Arguments.
    #[serde(default)]
    pub args: Vec<Template>,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, Template>,
    /// Directories made before the start, relative to the node's directory.
    #[serde(default)]
    pub dirs: Vec<Template>,
    /// Files written before each start: path (relative to the node's directory) to content.
    #[serde(default)]
    pub files: BTreeMap<String, Template>,
    /// Which of `files` a cluster's `config` is merged over (TOML into TOML, else appended).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Roles whose nodes must have been ready once before this one starts.
    #[serde(default)]
    pub after: Vec<RoleName>,
    /// Roles whose nodes its files list: when nodes of these came or went, its own restart, one at a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_with: Vec<RoleName>,
    /// Commands before the first start on empty data, each must exit 0.
    #[serde(default)]
    pub init: Vec<Vec<Template>>,
    /// A command that sets up the whole cluster, run on the role's first node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<BootstrapRule>,
    /// How to ask whether it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ProbeRule>,
    /// How to ask for its role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_state: Option<RoleRule>,
    /// How to stop it.
    #[serde(default)]
    pub stop: StopRule,
    /// Log files beside its output.
    #[serde(default)]
    pub logs: Vec<Template>,
    /// Limits set before it runs.
    #[serde(default)]
    pub limits: Limits,
    /// What joins a node to a running cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Hook>,
    /// What makes a node leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave: Option<Hook>,
    /// The user it must run as where the agent is root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Arguments that print its version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub version: Vec<String>,
    /// What of that must be so, where it tells the program from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_rule: Option<VersionRule>,
    /// What is added where the members of a cluster speak TLS; without it they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsRule>,
    /// Other programs that its commands run; without them no node starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
}

/// `tls`: what a node gets besides where its cluster has `tls = true`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsRule {
    /// Arguments after all others of the blueprint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Template>,
    /// Environment over the blueprint's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Template>,
    /// Schemes in place of those of ports.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub urls: BTreeMap<PortName, String>,
}

/// `version = { args, like, min }`: which program this is, and which versions of it will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRule {
    /// A regular expression that the line of the version matches; its first group is the number.
    pub like: String,
    /// The oldest that will do, compared number by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
}

/// The number of a signal that is named like `SIGTERM`; Linux on x86 and ARM.
#[must_use]
pub fn signal_number(name: &str) -> Option<i32> {
    SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The signals that a blueprint can stop a node by.
pub const SIGNALS: [(&str, i32); 9] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGABRT", 6),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGTERM", 15),
    ("SIGCONT", 18),
];

/// `port.NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The number where it is free.
    pub default: u16,
    /// The scheme people put before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Ports the program takes beside it: `"+1"`, `"+10000"`.
    #[serde(default)]
    pub reserve: Vec<String>,
    /// Whether a proxy owns its advertised address; metrics ports may stay private.
    #[serde(default = "yes")]
    pub proxied: bool,
    /// Where connections seem to come from.
    #[serde(default, skip_serializing_if = "DialSource::is_proxy")]
    pub source: DialSource,
}

/// Where the connections that a proxy makes to a node come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DialSource {
    /// Wherever the machine has its proxy.
    #[default]
    Proxy,
    /// The address of the dialler's host, for programs that let in nobody else; where the dialler is a
    /// node on the same machine.
    Host,
}

impl DialSource {
    /// Whether it is nothing special.
    #[must_use]
    pub fn is_proxy(&self) -> bool {
        *self == Self::Proxy
    }
}

fn yes() -> bool {
    true
}

/// A probe as written: exactly one of the questions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeRule {
    /// `[METHOD ]address/path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Template>,
    /// The body of `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Template>,
    /// `address[/service]` of grpc.health.v1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Template>,
    /// `address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Template>,
    /// Program and arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<Template>>,
    /// A regular expression over its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// See `probe::Probe::expect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// One second where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

/// `role_state`: a probe and how its answer is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoleRule {
    /// The question.
    #[serde(flatten)]
    pub probe: ProbeRule,
    /// See `probe::RoleProbe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// See `probe::RoleProbe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// See `probe::RoleProbe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
    /// See `probe::RoleProbe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leads: Option<String>,
}

/// `stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopRule {
    /// A name such as `SIGTERM`.
    pub signal: String,
    /// After this, SIGKILL to the whole tree.
    pub grace: Span,
}

impl Default for StopRule {
    fn default() -> Self {
        Self { signal: "SIGTERM".to_owned(), grace: Span(std::time::Duration::from_secs(10)) }
    }
}

/// `bootstrap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapRule {
    /// Program and arguments.
    pub command: Vec<Template>,
    /// An output that also means it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<String>,
}

/// `join` and `leave`: a command and arguments that change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hook {
    /// Run before the node starts (join) or stops (leave).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Template>,
    /// Run once a node that joined runs, until it exits 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Template>,
    /// A node that cannot leave stays: without it, data would be lost. It is tried again and again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// Why no node can leave without losing data: nodes are only taken away by force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuse: Option<String>,
    /// How long one try of a leave may take; ten seconds where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Arguments for a node that joined, in place of the role's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<Template>>,
}

/// `[effect.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    /// The roles whose nodes have it; empty is all.
    #[serde(default)]
    pub roles: Vec<RoleName>,
    /// What whoever injects it may choose, as `{{ value.NAME }}`, and what it is where they do not;
    /// one that is empty must be chosen.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, String>,
    /// Switches it on.
    pub on: ProbeRule,
    /// Switches it off. `off = "restart"` in a file is nothing here: only a graceful stop and a new
    /// start undo it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<ProbeRule>,
}
