//! What people see of leases.

use faultbed_common::{
    duration::millis,
    lab::Lease,
    name::ClusterName,
    report::{HostReport, LeaseReport},
    status::LeaseStatus,
};

use super::View;

/// The lease of one cluster.
pub(super) fn of_cluster(view: &View<'_>, name: &ClusterName, lease: &Lease) -> LeaseStatus {
    status(view, lease, |host| host.leases.get(name))
}

/// The lease of the lab.
pub(super) fn of_lab(view: &View<'_>, lease: &Lease) -> LeaseStatus {
    status(view, lease, |host| host.lab_lease.as_ref())
}

/// The least that any host has left; before any has said so, what our own clock tells.
fn status(
    view: &View<'_>,
    lease: &Lease,
    said: impl Fn(&HostReport) -> Option<&LeaseReport>,
) -> LeaseStatus {
    let of_hosts = view.hosts.values().filter_map(|seen| {
        let said = said(&seen.report).filter(|said| said.revision == lease.revision)?;
        Some(said.remaining_ms.saturating_sub(seen.age_ms))
    });
    let by_our_clock = || {
        let end = lease.since_unix_ms.saturating_add(millis(lease.lasts.0));
        end.saturating_sub(view.now_unix_ms)
    };
    let left = if lease.ended { 0 } else { of_hosts.min().unwrap_or_else(by_our_clock) };
    LeaseStatus {
        lasts_ms: millis(lease.lasts.0),
        remaining_ms: left,
        ended: lease.ended || left == 0,
    }
}
