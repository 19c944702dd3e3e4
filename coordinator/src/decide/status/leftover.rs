//! What is over and may still be in force on some host: a heal is observed, not assumed.

use std::collections::BTreeMap;

use faultbed_common::{
    lab::Fault,
    name::{FaultName, HostName},
};

use super::{HostSeen, View};

/// A fault that is not wanted any more, and a host that still has it, or may be about to.
pub(super) struct Leftover<'a> {
    pub fault: &'a FaultName,
    pub host: &'a HostName,
    /// For people.
    pub sentence: String,
}

/// All of them, those that hosts speak of first.
pub(super) fn all<'a>(view: &View<'a>) -> Vec<Leftover<'a>> {
    let mut found = still_active(view);
    for (name, fault) in view.lab.faults.iter().filter(|(_, fault)| fault.is_ended()) {
        let seen = view.touched_hosts(name).filter_map(|host| Some((host, view.up(host)?)));
        for (host, _) in seen.filter(|(_, seen)| may_begin(view, seen, name, fault)) {
            let sentence = format!(
                "fault {name} is still in force on {host}, or about to be: {host} has not applied generation {}",
                view.lab.generation
            );
            found.push(Leftover { fault: name, host, sentence });
        }
    }
    found
}

/// Those of faults that the lab does not have any more.
pub(super) fn of_forgotten(
    view: &View<'_>,
    leftovers: &[Leftover<'_>],
) -> BTreeMap<FaultName, Vec<HostName>> {
    let mut forgotten: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for leftover in leftovers.iter().filter(|it| !view.lab.faults.contains_key(it.fault)) {
        forgotten.entry(leftover.fault.clone()).or_default().push(leftover.host.clone());
    }
    forgotten
}

fn still_active<'a>(view: &View<'a>) -> Vec<Leftover<'a>> {
    let is_wanted = |name| view.lab.faults.get(name).is_some_and(|fault| fault.is_active());
    let mut found = Vec::new();
    // A host that was removed heals what it has when it is told, and never reports that.
    let of_lab = view.hosts.iter().filter(|(host, _)| view.lab.hosts.contains_key(*host));
    for (host, seen) in of_lab {
        let active = seen.report.faults.iter().filter(|(_, report)| report.active);
        for (name, report) in active.filter(|(name, _)| !is_wanted(name)) {
            // The proxy of a dead agent goes on, but not beyond the deadline.
            let is_over = report.remaining_ms.is_some_and(|left| left <= seen.age_ms);
            let sentence = match seen.connected {
                true => format!("fault {name} is still in force on {host}"),
                false if is_over => continue,
                false => format!(
                    "fault {name} is still in force on {host}, as far as is known: {host} is down"
                ),
            };
            found.push(Leftover { fault: name, host, sentence });
        }
    }
    found
}

/// Whether a host that is behind may be just beginning a fault that is over: it has not said
/// anything of it yet. What it says is active is told already.
fn may_begin(view: &View<'_>, seen: &HostSeen, name: &FaultName, fault: &Fault) -> bool {
    let known = seen.report.faults.get(name);
    let is_behind = seen.report.generation < view.lab.generation;
    is_behind && known.is_none_or(|known| known.revision < fault.revision && !known.active)
}
