//! Decides the changes nobody asks for: faults begin and end, roles' gates open, followed targets move.

mod relist;

use std::collections::BTreeMap;

use faultbed_common::{
    compile::check_after,
    duration::millis,
    fault::Lasts,
    host_spec::Wanted,
    lab::{Cluster, Ended, Fault, Lab, Phase, Resolved},
    name::{FaultName, RoleName},
    shape,
    target::{self, Reports},
};

use super::edit::{
    Asked, Decision,
    change::Change,
    fault::{check_grade, waits_for},
    lease,
};

/// How long ago each fault in force began, in milliseconds, by a clock that nobody steps.
pub type Ages = BTreeMap<FaultName, u64>;

/// The next automatic change, if one is due. Called after every change of lab or reports and
/// when [`next_at_unix_ms`] has come.
#[must_use]
pub fn due(lab: &Lab, reports: &Reports, ages: &Ages, asked: &Asked) -> Option<Decision> {
    let mut change = Change::new(lab, reports, asked);
    let mut done = Vec::new();
    open_gates(&mut change, &mut done);
    relist::restart_next(&mut change, &mut done);
    lease::end_those_over(&mut change, &mut done);
    let names: Vec<FaultName> = change.lab.faults.keys().cloned().collect();
    for name in names {
        let Some(mut fault) = change.lab.faults.get(&name).cloned() else { continue };
        if let Some(what) = tend(&change, ages, &name, &mut fault) {
            done.push(what);
            change.lab.faults.insert(name, fault);
        }
    }
    if done.is_empty() {
        return None;
    }
    // An accepted lab compiles, and what a chore adds to it was tried before.
    change.finish(done.join(", ")).ok().filter(|decision| decision.reply.changed)
}

/// When a change becomes due by time alone.
#[must_use]
pub fn next_at_unix_ms(lab: &Lab) -> Option<u64> {
    lab.faults.values().filter_map(|fault| ends_at(fault)).chain(lease::next_end(lab)).min()
}

/// When a fault in force is over.
fn ends_at(fault: &Fault) -> Option<u64> {
    match (&fault.phase, fault.spec.lasts) {
        (Phase::Active { since_unix_ms }, Some(Lasts::For(span))) => {
            Some(since_unix_ms.saturating_add(millis(span.0)))
        }
        _ => None,
    }
}

/// Opens the gate of each role whose nodes have all been ready once.
fn open_gates(change: &mut Change<'_>, done: &mut Vec<String>) {
    let reports = change.reports;
    for (name, cluster) in &mut change.lab.clusters {
        let roles: Vec<RoleName> = cluster.blueprint.roles.keys().cloned().collect();
        for role in roles {
            if !cluster.been_ready.contains(&role) && all_have_been_ready(reports, cluster, &role) {
                done.push(format!("{role} of {name} has been ready"));
                cluster.been_ready.insert(role);
            }
        }
    }
}

/// Whether every node of a role that should run has been ready in the incarnation it should have.
/// A role of which no node should run has not, unless it has no nodes at all.
fn all_have_been_ready(reports: &Reports, cluster: &Cluster, role: &RoleName) -> bool {
    let mut nodes = cluster.of_role(role).peekable();
    if nodes.peek().is_none() {
        return true;
    }
    let mut running = nodes.filter(|(_, placement)| placement.wanted == Wanted::Running).peekable();
    running.peek().is_some()
        && running.all(|(name, placement)| {
            let report = reports.get(&placement.host).and_then(|report| report.nodes.get(name));
            report.is_some_and(|seen| seen.been_ready && seen.incarnation >= placement.incarnation)
        })
}

/// What time and reports do to one fault, in words; `None` where nothing is due.
fn tend(change: &Change<'_>, ages: &Ages, name: &FaultName, fault: &mut Fault) -> Option<String> {
    match fault.phase.clone() {
        Phase::Ended { .. } => None,
        Phase::Pending { why } => match begin(change, name, fault) {
            Ok(()) => Some(format!("begin {name}")),
            Err(now) if now != why => {
                fault.phase = Phase::Pending { why: now.clone() };
                Some(format!("{name} waits: {now}"))
            }
            Err(_) => None,
        },
        Phase::Active { .. } => {
            if let Some(why) = healed_by_a_host(change, name, fault) {
                fault.phase = change.ended(Ended::Healed);
                let what = format!("{name} healed: {why}");
                fault.ended_because = Some(why);
                return Some(what);
            }
            if is_over(change, ages.get(name).copied(), name, fault) {
                fault.phase = change.ended(Ended::Expired);
                return Some(format!("{name} expired"));
            }
            follow(change, name, fault)
        }
    }
}

/// Whether the time of a fault in force is up. Its hosts keep the deadline, by clocks that nobody
/// sets; where none of them says anything, its age counts. A wall clock may have been stepped, and may
/// be another one than that by which the fault began.
fn is_over(change: &Change<'_>, age_ms: Option<u64>, name: &FaultName, fault: &Fault) -> bool {
    let reports = change.reports.values().filter_map(|report| report.faults.get(name));
    let mut said = reports.filter(|report| report.revision == fault.revision).peekable();
    if said.peek().is_some() {
        let (mut any_active, mut all_expired) = (false, true);
        for report in said {
            any_active |= report.active && report.remaining_ms.is_some();
            all_expired &= report.expired;
        }
        if any_active || all_expired {
            return all_expired;
        }
    }
    match (age_ms, fault.spec.lasts) {
        (Some(age_ms), Some(Lasts::For(span))) => age_ms >= millis(span.0),
        _ => false,
    }
}

/// That a host healed a fault by itself, and why. A fault that is over at one end of a link is half
/// of what it was, so it ends everywhere.
fn healed_by_a_host(change: &Change<'_>, name: &FaultName, fault: &Fault) -> Option<String> {
    change.reports.iter().find_map(|(host, report)| {
        let said = report.faults.get(name).filter(|said| said.revision == fault.revision)?;
        Some(format!("host {host} {}", said.healed.as_ref()?))
    })
}

/// Begins a fault that has not begun, or says why it cannot yet.
fn begin(change: &Change<'_>, name: &FaultName, fault: &mut Fault) -> Result<(), String> {
    let clusters = target::clusters(&change.lab, &shape::targets(&fault.spec))
        .map_err(|error| error.to_string())?;
    if let Some(why) = waits_for(change, &clusters) {
        return Err(why);
    }
    let seed = fault.spec.seed_for(name);
    let resolved = shape::resolve(&change.lab, change.reports, &fault.spec, seed)
        .map_err(|error| error.to_string())?;
    if let Some(why) = is_not_allowed(change, fault, &resolved) {
        return Err(why);
    }
    check_grade(change, &fault.spec, &resolved)?;
    let phase = Phase::Active { since_unix_ms: change.asked.now_unix_ms };
    let begun = Fault { phase, resolved, ..fault.clone() };
    if begun.spec.effect.is_some() {
        // A blueprint's own effect is rendered when it begins. One that cannot be must not keep
        // every other chore from being done.
        let mut trial = change.lab.clone();
        trial.faults.insert(name.clone(), begun.clone().into());
        check_after(change.before, &trial).map_err(|error| error.to_string())?;
    }
    *fault = begun;
    Ok(())
}

/// Why a fault must not meet what its targets have come to name: `host:h1` may hold nodes of somebody
/// else by now, whom nobody was asked about.
fn is_not_allowed(change: &Change<'_>, fault: &Fault, resolved: &Resolved) -> Option<String> {
    let others = change.others(&fault.origin.owner, &change.met(resolved));
    (!fault.everyone && !others.is_empty())
        .then(|| format!("{}; --everyone touches that too", others.join(", ")))
}

/// Moves the targets of a fault that follows roles. Its revision stays, so its deadline does too.
fn follow(change: &Change<'_>, name: &FaultName, fault: &mut Fault) -> Option<String> {
    if !fault.spec.follow {
        return None;
    }
    // While nobody is known to lead, it stays where it is.
    let seed = fault.spec.seed_for(name);
    let resolved = shape::resolve(&change.lab, change.reports, &fault.spec, seed).ok()?;
    if resolved == fault.resolved || is_not_allowed(change, fault, &resolved).is_some() {
        return None;
    }
    let sides = resolved.sides(",");
    fault.resolved = resolved;
    Some(format!("{name} moves to {sides}"))
}

#[cfg(test)]
mod tests;
