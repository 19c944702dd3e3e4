//! Decides one change of the lab: what it becomes and what is answered, or why it is refused.

use faultbed_common::{
    edit::{EditReply, EditRequest},
    lab::Lab,
    target::Reports,
};

/// A change that was decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The lab after it, one generation on where anything changed.
    pub lab: Lab,
    /// The answer.
    pub reply: EditReply,
    /// What was asked, in words, for the history.
    pub what: String,
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
    let _ = (lab, reports, request, asked);
    todo!()
}

/// Decides on a spec that was put into the store by hand: `kind` is `cluster` or `fault`; `value`
/// is its JSON, `None` where it was deleted.
///
/// # Errors
/// Says why it is refused.
pub fn decide_hand_edit(
    lab: &Lab,
    reports: &Reports,
    (kind, name, value): (&str, &str, Option<&str>),
    asked: &Asked,
) -> Result<Decision, Refusal> {
    let _ = (lab, reports, kind, name, value, asked);
    todo!()
}
