//! The grammar of targets and what they resolve to: `kv`, `db/tikv`, `leader:kv`, `host:h1`, `label:dc=east`, `clients`, globs.

use std::collections::BTreeMap;

use crate::{
    lab::Lab,
    link::Party,
    name::{HostName, NodeName},
    report::HostReport,
};

/// Reports by host, as far as they are known and their host is up.
pub type Reports = BTreeMap<HostName, HostReport>;

/// Why a target cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{target:?}: {why}")]
pub struct TargetError {
    /// The target as written.
    pub target: String,
    /// What is wrong, with the nearest valid name or the candidates.
    pub why: String,
    /// It may resolve later: a role is not known yet.
    pub later: bool,
}

/// The nodes that `targets` name, in natural order, each once. `clients` is refused here.
///
/// # Errors
/// A target is malformed, matches nothing, or is ambiguous.
pub fn nodes(
    lab: &Lab,
    reports: &Reports,
    targets: &[String],
) -> Result<Vec<NodeName>, TargetError> {
    let _ = (lab, reports, targets);
    todo!()
}

/// The parties that `targets` name: nodes, and `clients` where it is named.
///
/// # Errors
/// As [`nodes`].
pub fn parties(
    lab: &Lab,
    reports: &Reports,
    targets: &[String],
) -> Result<Vec<Party>, TargetError> {
    let _ = (lab, reports, targets);
    todo!()
}

/// Whether a text is a target at all, without a lab: for files.
///
/// # Errors
/// The pattern to write it by.
pub fn check(target: &str) -> Result<(), TargetError> {
    let _ = target;
    todo!()
}
