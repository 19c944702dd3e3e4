//! Decides one change of the lab: what it becomes and what is answered, or why it is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use faultbed_common::{
    edit::{Edit, EditReply, EditRequest},
    lab::{Lab, Means},
    program::Content,
    target::Reports,
    tls::ClusterAuthority,
};

mod apply;
pub(super) mod change;
mod cluster;
mod control;
mod diff;
pub(super) mod fault;
mod hand;
mod host;
mod kept;
pub(super) mod lease;
mod leaving;
mod node;
mod programs;
mod remove;
mod set;

use change::Change;
pub use host::{host_joins, host_readmitted, removed};

/// A change that was decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The lab after it, one generation on where anything changed.
    pub lab: Lab,
    /// The answer.
    pub reply: EditReply,
    /// What was asked, in words, for the history.
    pub what: String,
    /// Contents that it takes from the asker, by path: they must be there before it is accepted.
    pub takes: BTreeMap<String, Content>,
}

/// Why a change is refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request makes no sense, with what to do.
    #[error("{0}")]
    Invalid(String),
    /// The lab is at another generation than the request was computed from.
    #[error("the lab is at generation {0} now; look at `faultbed plan` again")]
    Moved(u64),
}

/// Who asks, when, and a number nobody can guess for tokens and seeds.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The user.
    pub by: String,
    /// Milliseconds since the epoch.
    pub now_unix_ms: u64,
    /// Random.
    pub dice: u64,
    /// Where coordinators are reached, as far as they said numbers: no node may have these ports.
    pub control: BTreeSet<SocketAddr>,
    /// A new CA, for a cluster that begins now and whose members speak TLS; or why there is none.
    pub authority: Result<ClusterAuthority, String>,
}

/// Decides `request`.
///
/// # Errors
/// Says why it is refused and what to do.
pub fn decide(
    lab: &Lab,
    reports: &Reports,
    request: &EditRequest,
    asked: &Asked,
) -> Result<Decision, Refusal> {
    if let Some(seen) = request.if_generation
        && seen != lab.generation
    {
        return Err(Refusal::Moved(lab.generation.0));
    }
    let mut change = Change::new(lab, reports, asked);
    change.blueprints = Some(&request.blueprints);
    change.everyone = request.everyone;
    change.force = request.force;
    let what = match &request.edit {
        Edit::Apply(file) => {
            apply::apply(&mut change, file)?;
            "apply".to_owned()
        }
        Edit::StartCluster { name, spec } => {
            cluster::start(&mut change, name, spec)?;
            format!("start cluster {name}")
        }
        Edit::DeleteCluster { name, wipe } => {
            cluster::delete(&mut change, name, *wipe)?;
            format!("delete cluster {name}{}", if *wipe { " --wipe" } else { "" })
        }
        Edit::Node { targets, verb } => node::act(&mut change, targets, *verb)?,
        Edit::Set { targets, field, value } => {
            set::set(&mut change, targets, field, value)?;
            format!("set {} {field}={value}", targets.join(","))
        }
        Edit::Remove { targets } => {
            remove::remove(&mut change, targets)?;
            format!("remove {}", targets.join(","))
        }
        Edit::Inject { name, spec, replace } => {
            fault::inject(&mut change, name.as_ref(), spec, *replace)?
        }
        Edit::Heal { faults } => fault::heal(&mut change, faults)?,
        Edit::LabLease { lasts } => lease::lab(&mut change, *lasts),
        Edit::DrainHost { name, drained } => host::drain(&mut change, name, *drained)?,
        Edit::RemoveHost { name, force } => host::remove(&mut change, name, *force)?,
        Edit::LabelHost { name, set, unset } => host::label(&mut change, name, set, unset)?,
        Edit::DeleteFault { name } => {
            fault::delete(&mut change, name)?;
            format!("delete fault {name}")
        }
    };
    programs::settle(&mut change, request)?;
    change.finish(what)
}

/// Decides on a spec that was put into the store by hand: `kind` is `cluster` or `fault`; `value`
/// is its JSON, `None` where it was deleted. Whoever can write the store is asked for no owner.
///
/// # Errors
/// Says why it is refused.
pub fn decide_hand_edit(
    lab: &Lab,
    reports: &Reports,
    (kind, name, value): (&str, &str, Option<&str>),
    asked: &Asked,
) -> Result<Decision, Refusal> {
    let mut change = Change::new(lab, reports, asked);
    change.everyone = true;
    change.means = Means::Hand;
    let what = hand::adopt(&mut change, kind, name, value)?;
    programs::settle_without_files(&mut change)?;
    change.finish(what)
}

/// A refusal with this sentence.
pub(super) fn invalid(message: impl ToString) -> Refusal {
    Refusal::Invalid(message.to_string())
}

#[cfg(test)]
mod tests;
