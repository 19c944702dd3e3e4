//! From what a fault says to the links and nodes it acts on, and to its effect on each.

use crate::{
    fault::FaultSpec,
    host_spec::NodeEffect,
    lab::{Lab, Resolved},
    link::Link,
    name::NodeName,
    proxy_spec::LinkEffect,
    target::{Reports, TargetError},
};

/// Why a fault makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Its fields contradict each other or one is missing; true whatever the lab is.
    #[error("{0}")]
    Malformed(String),
    /// A target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Its targets are fine, and yet it would act on nothing.
    #[error("{0}")]
    Empty(String),
}

/// Checks everything about a fault that needs no lab.
///
/// # Errors
/// Says which fields contradict each other or are missing.
pub fn check(spec: &FaultSpec) -> Result<(), ShapeError> {
    let _ = spec;
    todo!()
}

/// Resolves the targets of a fault to links or nodes.
///
/// # Errors
/// A target does not resolve, or nothing is left to act on.
pub fn resolve(lab: &Lab, reports: &Reports, spec: &FaultSpec) -> Result<Resolved, ShapeError> {
    let _ = (lab, reports, spec);
    todo!()
}

/// What the fault does to the bytes of one of its links; `None` for faults on nodes.
#[must_use]
pub fn link_effect(spec: &FaultSpec, resolved: &Resolved, link: &Link) -> Option<LinkEffect> {
    let _ = (spec, resolved, link);
    todo!()
}

/// What the fault does to one of its nodes; `None` for faults on links. Custom effects are rendered
/// by `render::custom_effect`.
#[must_use]
pub fn node_effect(spec: &FaultSpec, node: &NodeName) -> Option<NodeEffect> {
    let _ = (spec, node);
    todo!()
}

/// The fault in a few words, for tables: `cut`, `one-way cut`, `latency 50ms ±5ms`, `pause`.
#[must_use]
pub fn summary(spec: &FaultSpec) -> String {
    let _ = spec;
    todo!()
}
