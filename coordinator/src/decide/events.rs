//! Derives events from two statuses: every coordinator that sees the same changes tells the same story.

use faultbed_common::{event::EventKind, status::Status};

/// What happened between two statuses: kind, subject, sentence. In a fixed order.
#[must_use]
pub fn events(before: &Status, after: &Status) -> Vec<(EventKind, String, String)> {
    let _ = (before, after);
    todo!()
}
