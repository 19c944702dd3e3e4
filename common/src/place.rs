//! Places the nodes of a cluster: host, private address and ports, chosen once and kept.

use std::collections::BTreeMap;

use crate::{
    blueprint::Blueprint,
    lab::{Cluster, Lab},
    name::{ClusterName, HostName},
    report::ForeignListener,
    spec::ClusterSpec,
};

/// Why a cluster cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cluster {cluster}: {why}")]
pub struct PlaceError {
    /// The cluster.
    pub cluster: ClusterName,
    /// What is in the way, and what to do.
    pub why: String,
}

/// Gives `next` the nodes that `spec` asks for. Nodes of `next.nodes` that are still asked for keep
/// every choice; others go; new ones get the next unused number, spread over the allowed hosts.
/// `foreign` are listeners of others, by host. `next` holds the new spec and blueprint already.
///
/// # Errors
/// No host fits, names clash or are too long, or no free port was found.
pub fn place(
    lab: &Lab,
    name: &ClusterName,
    next: &mut Cluster,
    foreign: &BTreeMap<HostName, Vec<ForeignListener>>,
) -> Result<(), PlaceError> {
    let _ = (lab, name, next, foreign);
    todo!()
}

/// How many nodes of each role `spec` asks for, defaults included.
#[must_use]
pub fn counts(spec: &ClusterSpec, blueprint: &Blueprint) -> BTreeMap<crate::name::RoleName, u32> {
    let _ = (spec, blueprint);
    todo!()
}
