//! Renders one node of a cluster from its blueprint: arguments, environment, files, probes.

use std::path::Path;

use crate::{
    host_spec::NodeSpec,
    lab::{Cluster, Lab},
    name::{ClusterName, NodeName},
};

/// Why a node cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {place}: {why}")]
pub struct RenderError {
    /// The node.
    pub node: NodeName,
    /// Which template, such as `args[2]` or `ready.http`.
    pub place: String,
    /// What is wrong with it.
    pub why: String,
}

/// The directory of a node below its host's. Data is in `data`, runs in `runs/NNNN`.
#[must_use]
pub fn node_dir(host_dir: &Path, node: &NodeName) -> std::path::PathBuf {
    host_dir.join("nodes").join(node.as_str())
}

/// Renders everything of one node except its faults and dials, which `compile` adds.
///
/// # Errors
/// Names the template that cannot be rendered and why.
pub fn render(
    lab: &Lab,
    name: &ClusterName,
    cluster: &Cluster,
    node: &NodeName,
) -> Result<NodeSpec, RenderError> {
    let _ = (lab, name, cluster, node);
    todo!()
}
