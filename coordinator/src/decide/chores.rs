//! Decides the changes nobody asks for: faults begin and end, roles' gates open, followed targets move.

use faultbed_common::{lab::Lab, target::Reports};

use super::edit::{Asked, Decision};

/// The next automatic change, if one is due. Called after every change of lab or reports and
/// when [`next_at_unix_ms`] has come.
#[must_use]
pub fn due(lab: &Lab, reports: &Reports, asked: &Asked) -> Option<Decision> {
    let _ = (lab, reports, asked);
    todo!()
}

/// When a change becomes due by time alone.
#[must_use]
pub fn next_at_unix_ms(lab: &Lab) -> Option<u64> {
    let _ = lab;
    todo!()
}
