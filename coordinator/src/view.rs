//! Turns what the mirror holds into what `decide::status` takes: the one place that turns instants into ages.

use faultbed_common::{duration::millis, status::Status};

use tokio::time::Instant;

use crate::{
    decide::status::{Detail, HostSeen, status},
    mirror::Mirror,
};

/// The status of the lab as `seen`.
#[must_use]
pub fn status_of(
    seen: &Mirror,
    refused: &[String],
    (now_unix_ms, detail): (u64, Detail),
) -> Status {
    let now = Instant::now();
    let hosts = seen
        .reports
        .iter()
        .map(|(host, report)| {
            let arrived = seen.seen.get(host).copied().unwrap_or(now);
            let age_ms = millis(now.saturating_duration_since(arrived));
            let connected = seen.alive.contains(host);
            let boot_unix_ms = seen.booted.get(host).copied();
            (host.clone(), HostSeen { report: report.clone(), connected, age_ms, boot_unix_ms })
        })
        .collect();
    let mut status = status(&seen.lab, &hosts, refused, (now_unix_ms, detail));
    if let Some(why) = &seen.trouble {
        // It may be over in a moment, so it is no reason for anybody to give up waiting.
        status.converged = false;
        status.pending.push(format!("the lab's store: {why}; what is shown may be old"));
    }
    status
}
