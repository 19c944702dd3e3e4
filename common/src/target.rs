//! The grammar of targets and what they resolve to: `kv`, `db/tikv`, `leader:kv`, `host:h1`, `label:dc=east`, `clients`, globs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    lab::Lab,
    link::Party,
    name::{ClusterName, HostName, NodeName},
    report::HostReport,
};

mod parse;
mod resolve;

use parse::{Part, What};

/// Reports by host, as far as they are known and their host is up. Whoever takes a look shares them: a large
/// lab has many, and each look takes all.
pub type Reports = BTreeMap<HostName, Arc<HostReport>>;

/// Most parts of one list of targets. Longer ones are a slip of a script.
pub const PARTS_MAX: usize = 4096;

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
    let found = parties(lab, reports, targets)?;
    found
        .into_iter()
        .map(|party| match party {
            Party::Node(name) => Ok(name),
            Party::Clients => Err(refuse("clients", "only nodes can be named here".to_owned())),
        })
        .collect()
}

/// The parties that `targets` name: nodes in natural order, then `clients` where it is named.
///
/// # Errors
/// As [`nodes`].
pub fn parties(
    lab: &Lab,
    reports: &Reports,
    targets: &[String],
) -> Result<Vec<Party>, TargetError> {
    let parts = parse::parts(targets)?;
    // An unknown name is worse than a leader that is not known yet, so it is looked for first.
    known(lab, &parts)?;
    let mut found = BTreeSet::new();
    for part in parts.iter().filter(|part| !part.exclude) {
        found.extend(resolve::one(lab, reports, part)?);
    }
    for part in parts.iter().filter(|part| part.exclude) {
        for party in resolve::one(lab, reports, part)? {
            found.remove(&party);
        }
    }
    if found.is_empty() {
        return Err(refuse(&targets.join(","), "excludes everything that it names".to_owned()));
    }
    Ok(found.into_iter().collect())
}

/// The clusters that `targets` speak of, as far as the lab alone tells: without the reports that
/// tell who leads.
///
/// # Errors
/// A target is malformed or can never resolve in this lab: an unknown name, a host without nodes.
pub fn clusters(lab: &Lab, targets: &[String]) -> Result<BTreeSet<ClusterName>, TargetError> {
    let parts = parse::parts(targets)?;
    known(lab, &parts)
}

/// Whether any of `targets` can move while the lab stays: `leader:` and `follower:`.
#[must_use]
pub fn can_move(targets: &[String]) -> bool {
    parse::parts(targets).is_ok_and(|parts| {
        parts.iter().any(|part| matches!(part.what, What::Leader(_) | What::Follower(_)))
    })
}

/// Whether a text is a target at all, without a lab: for files.
///
/// # Errors
/// The pattern to write it by.
pub fn check(target: &str) -> Result<(), TargetError> {
    parse::syntax(target).map(|_| ())
}

/// Checks that every part can resolve, and collects the clusters of those that are not excluded.
fn known(lab: &Lab, parts: &[Part]) -> Result<BTreeSet<ClusterName>, TargetError> {
    let mut clusters = BTreeSet::new();
    for part in parts {
        let candidates = resolve::candidates(lab, part)?;
        if !part.exclude {
            let of = |name: &NodeName| lab.node(name).map(|node| node.cluster_name.clone());
            clusters.extend(candidates.iter().filter_map(|party| party.node().and_then(of)));
        }
    }
    Ok(clusters)
}

fn refuse(target: &str, why: String) -> TargetError {
    TargetError { target: target.to_owned(), why, later: false }
}

#[cfg(test)]
pub(crate) mod tests;
