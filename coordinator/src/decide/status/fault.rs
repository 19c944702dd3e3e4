//! What people see of faults: where they stand, how true they are and what they did.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    duration::millis,
    fault::{Grade, Lasts},
    lab::{Ended, Fault, Phase, Resolved},
    name::{FaultName, HostName},
    proxy_spec::Cut,
    report::{FaultReport, HostReport},
    shape,
    status::{FaultGrade, FaultState, FaultStatus},
};

use super::{Detail, HostSeen, View, evidence::evidence, leftover::Leftover};

/// All faults, the newest last.
pub(super) fn faults(view: &View<'_>, leftovers: &[Leftover<'_>]) -> Vec<FaultStatus> {
    let mut ordered: Vec<_> = view.lab.faults.iter().collect();
    ordered.sort_by_key(|(name, fault)| (fault.revision, *name));
    ordered.into_iter().map(|(name, fault)| status(view, name, fault, leftovers)).collect()
}

/// How one host has a fault that it must have.
pub(super) enum Standing<'a> {
    /// In force, at this revision.
    InForce,
    /// Its deadline ended it there.
    Expired,
    /// The host healed it by itself, for this reason.
    Healed(&'a str),
    /// Not, for this reason; `None` where the host has only not applied it yet.
    Not(Option<&'a str>),
    /// Nobody hears from the host.
    Down,
}

pub(super) fn standing<'a>(
    view: &View<'a>,
    host: &HostName,
    name: &FaultName,
    fault: &Fault,
) -> Standing<'a> {
    let Some(seen) = view.up(host) else { return Standing::Down };
    match report(&seen.report, name, fault) {
        Some(report) if report.active => Standing::InForce,
        Some(report) if report.expired => Standing::Expired,
        Some(FaultReport { healed: Some(why), .. }) => Standing::Healed(why),
        Some(report) => Standing::Not(report.why.as_deref()),
        None => Standing::Not(None),
    }
}

/// What a host says of this revision of a fault.
fn report<'a>(host: &'a HostReport, name: &FaultName, fault: &Fault) -> Option<&'a FaultReport> {
    host.faults.get(name).filter(|report| report.revision == fault.revision)
}

fn status(
    view: &View<'_>,
    name: &FaultName,
    fault: &Fault,
    leftovers: &[Leftover<'_>],
) -> FaultStatus {
    let hosts: BTreeSet<&HostName> = view.touched_hosts(name).collect();
    let seen: Vec<(&HostSeen, &FaultReport)> = hosts
        .iter()
        .filter_map(|host| view.host(host))
        .filter_map(|seen| Some((seen, report(&seen.report, name, fault)?)))
        .collect();
    let standings: Vec<(&HostName, Standing<'_>)> =
        hosts.iter().map(|host| (*host, standing(view, host, name, fault))).collect();
    let state = state(fault, &standings);
    let is_active = state == FaultState::Active;
    let in_force = is_active
        && !standings.is_empty()
        && standings.iter().all(|(_, standing)| matches!(standing, Standing::InForce));
    FaultStatus {
        name: name.clone(),
        owner: fault.origin.owner.clone(),
        state,
        why: why(fault, is_active, &standings),
        summary: shape::summary(&fault.spec),
        grade: grade(view, fault, &hosts, &seen),
        in_force,
        grades: grades(view, fault, name),
        lingers_on: leftovers
            .iter()
            .filter(|leftover| leftover.fault == name)
            .map(|leftover| leftover.host.clone())
            .collect(),
        links: fault.resolved.links.len(),
        remaining_ms: if is_active { remaining(view, fault, &seen) } else { None },
        resolved: resolved(view, fault),
        evidence: evidence(view, fault, &witnesses(view, name, fault, &hosts)),
    }
}

fn resolved(view: &View<'_>, fault: &Fault) -> Resolved {
    match view.detail {
        Detail::All | Detail::NoEvidenceOfLinks => fault.resolved.clone(),
        Detail::NoLinks | Detail::OnlyFaults => {
            let Resolved { links: _, nodes, groups, untouched } = &fault.resolved;
            Resolved {
                links: BTreeSet::new(),
                nodes: nodes.clone(),
                groups: groups.clone(),
                untouched: untouched.clone(),
            }
        }
    }
}

/// Those who can tell what a fault did: the hosts that must have it, and those that once had a node that
/// it met and counted there. What was seen stays true when a node is removed.
fn witnesses<'a>(
    view: &View<'a>,
    name: &FaultName,
    fault: &Fault,
    hosts: &BTreeSet<&HostName>,
) -> Vec<(&'a HostSeen, &'a FaultReport)> {
    let told = view.hosts.iter().filter_map(|(host, seen)| {
        let report = report(&seen.report, name, fault)?;
        let has_evidence = report.acted
            || !report.links.is_empty()
            || !report.canary.is_empty()
            || !report.bypasses.is_empty();
        (has_evidence || hosts.contains(host)).then_some((seen, report))
    });
    told.collect()
}

fn state(fault: &Fault, standings: &[(&HostName, Standing<'_>)]) -> FaultState {
    // The hosts enforce deadlines themselves, so they know of an end before the coordinator does.
    let is_over = |(_, standing): &(&HostName, Standing<'_>)| matches!(standing, Standing::Expired);
    match &fault.phase {
        Phase::Pending { .. } => FaultState::Pending,
        Phase::Active { .. } if !standings.is_empty() && standings.iter().all(is_over) => {
            FaultState::Expired
        }
        Phase::Active { .. } => FaultState::Active,
        Phase::Ended { how: Ended::Expired, .. } => FaultState::Expired,
        Phase::Ended { how: Ended::Healed, .. } => FaultState::Healed,
    }
}

fn why(fault: &Fault, is_active: bool, standings: &[(&HostName, Standing<'_>)]) -> Option<String> {
    if let Phase::Pending { why } = &fault.phase {
        return Some(why.clone());
    }
    if !is_active {
        return fault.ended_because.clone();
    }
    standings.iter().find_map(|(host, standing)| match standing {
        Standing::InForce => None,
        Standing::Expired => Some(format!("over on {host}")),
        Standing::Healed(why) => Some(format!("healed: host {host} {why}")),
        Standing::Not(Some(why)) => Some(format!("not in force on {host}: {why}")),
        Standing::Not(None) => Some(format!("not in force on {host} yet")),
        Standing::Down => Some(format!("{host} is down")),
    })
}

/// The weakest grade of all hosts; before they report, the one to expect.
fn grade(
    view: &View<'_>,
    fault: &Fault,
    hosts: &BTreeSet<&HostName>,
    seen: &[(&HostSeen, &FaultReport)],
) -> FaultGrade {
    if fault.spec.on.is_some() {
        return FaultGrade::Node;
    }
    let reported = seen.iter().filter_map(|(_, report)| report.grade).min();
    let expected = || {
        let needs = fault.resolved.links.first().and_then(|link| {
            shape::link_effect(&fault.spec, &fault.resolved, link).and_then(|effect| effect.cut)
        });
        if needs != Some(Cut::Packets) {
            return Grade::Stream;
        }
        let proxies = hosts.iter().filter_map(|host| view.host(host)?.report.proxy.as_ref());
        let best = proxies.filter_map(|proxy| proxy.best_grade).min();
        fault.spec.grade.or(best).unwrap_or(Grade::Packet)
    };
    for_people(reported.unwrap_or_else(expected))
}

/// The grade that each host says it has.
fn grades(view: &View<'_>, fault: &Fault, name: &FaultName) -> BTreeMap<HostName, FaultGrade> {
    let said = view.hosts.iter().filter_map(|(host, seen)| {
        let grade = report(&seen.report, name, fault)?.grade?;
        Some((host.clone(), for_people(grade)))
    });
    said.collect()
}

fn for_people(grade: Grade) -> FaultGrade {
    match grade {
        Grade::Stream => FaultGrade::Stream,
        Grade::Packet => FaultGrade::Packet,
    }
}

/// The least that any host has left; hosts count down by their own clock since their report.
fn remaining(view: &View<'_>, fault: &Fault, seen: &[(&HostSeen, &FaultReport)]) -> Option<u64> {
    let reported = seen
        .iter()
        .filter(|(_, report)| report.active)
        .filter_map(|(seen, report)| Some(report.remaining_ms?.saturating_sub(seen.age_ms)))
        .min();
    let by_our_clock = || match (&fault.phase, fault.spec.lasts) {
        (Phase::Active { since_unix_ms }, Some(Lasts::For(span))) => {
            Some(since_unix_ms.saturating_add(millis(span.0)).saturating_sub(view.now_unix_ms))
        }
        _ => None,
    };
    reported.or_else(by_our_clock)
}
