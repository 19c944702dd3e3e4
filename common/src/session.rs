//! What an agent and a coordinator open their stream with, and what hosts are sent.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    host_spec::HostSpec,
    name::{ClusterName, FaultName, HostName, LabName},
};

/// Where a host's proxy answers other hosts who dialled from there, unless its settings say another
/// port. It is below the ports that nodes dial from, and no database's own.
pub const IDENTITY_PORT: u16 = 7476;

/// What a coordinator says in the metadata of a session's answer where it takes [`Still`],
pub const TAKES_STILL: &str = "faultbed-takes-still";

/// Said instead of a report that would differ from the last one by the time alone: in a large lab in which
/// nothing happens, these would be most of what hosts say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Still {
    /// Now, as in reports.
    pub now_ms: u64,
}

/// The first message of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The lab it means to serve.
    pub lab: LabName,
    /// Its host.
    pub host: HostName,
    /// Where other hosts reach it.
    pub address: IpAddr,
    /// The directory under which everything of its nodes is.
    pub dir: PathBuf,
    /// Its version.
    pub version: String,
    /// The ports its kernel gives to sockets that ask for any, first and last, as its
    /// `ip_local_port_range` said; `None` where it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_range: Option<(u16, u16)>,
    /// Where its proxy answers who dialled from there, at its address; `None` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_port: Option<u16>,
    /// What its own settings say of it. They count until somebody gives the host others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether it remembers, for as long as the stream lasts, what it was told of the rest of the lab, and
    /// need be told that only where it has changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remembers: bool,
}

/// A host spec on its way to its host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Orders {
    /// What must be true.
    pub spec: HostSpec,
    /// Whether `spec` lacks its [`Around`](crate::host_spec::Around), which is what was last told on the
    /// same stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_around: bool,
    /// How long ago each fault began, in milliseconds, when this was sent. A host that sees a
    /// fault for the first time sets its deadline from this; wall times never travel.
    pub fault_ages_ms: BTreeMap<FaultName, u64>,
    /// How long ago each lease began, likewise.
    #[serde(default)]
    pub lease_ages: LeaseAges,
}

/// Ages of leases, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseAges {
    /// That of the lab's.
    pub lab_ms: u64,
    /// Those of clusters.
    pub clusters_ms: BTreeMap<ClusterName, u64>,
}
