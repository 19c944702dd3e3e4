//! Puts lab and reports together into what people see.

use std::collections::BTreeMap;

use faultbed_common::{lab::Lab, name::HostName, report::HostReport, status::Status};

/// What is known of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostSeen {
    /// Its last report.
    pub report: HostReport,
    /// Whether its agent is connected to some coordinator.
    pub connected: bool,
    /// How old the report is, in milliseconds.
    pub age_ms: u64,
}

/// The status of the lab. `refused` are hand edits that were refused, as sentences.
#[must_use]
pub fn status(
    lab: &Lab,
    hosts: &BTreeMap<HostName, HostSeen>,
    refused: &[String],
    now_unix_ms: u64,
) -> Status {
    let _ = (lab, hosts, refused, now_unix_ms);
    todo!()
}
