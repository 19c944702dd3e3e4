//! A host that comes for the first time, or at another address or directory than before.

use faultbed_common::{
    lab::{Host, Lab},
    name::HostName,
    target::Reports,
};

use super::{Asked, Decision, Refusal, change::Change};

/// Enters `host` into the lab. Its labels stay as the file says.
///
/// # Errors
/// The lab would not compile with the host as it is now.
pub fn host_joins(
    lab: &Lab,
    (name, host): (&HostName, Host),
    asked: &Asked,
) -> Result<Decision, Refusal> {
    let reports = Reports::new();
    let mut change = Change::new(lab, &reports, asked);
    let known = lab.hosts.get(name);
    let labels = known.map_or_else(|| host.labels.clone(), |known| known.labels.clone());
    let next_block = known.and_then(|known| known.next_block);
    change.lab.hosts.insert(name.clone(), Host { labels, next_block, ..host });
    change.finish(format!("host {name} joins"))
}
