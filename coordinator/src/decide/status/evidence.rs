//! What faults did, over all hosts, and whether that is what they say.

use std::collections::BTreeMap;

use faultbed_common::{
    lab::Fault,
    link::{Link, Party},
    proxy_spec::LinkEffect,
    report::{Bypass, CanaryReport, CanaryVerdict, FaultReport, LinkEvidence},
    shape,
    status::{Evidence, Verdict},
};

use super::{Detail, HostSeen, View};

/// What the hosts that have or had a fault counted, and the verdict.
pub(super) fn evidence(
    view: &View<'_>,
    fault: &Fault,
    seen: &[(&HostSeen, &FaultReport)],
) -> Evidence {
    let mut evidence = Evidence::default();
    let nothing = LinkEvidence::default();
    for (host, report) in seen {
        for (link, counted) in &report.links {
            // Most links of a large fault have met nothing.
            let counted = (*counted != nothing).then(|| on_our_clock(view, host, counted));
            evidence.total.add(counted.as_ref().unwrap_or(&nothing));
            if view.detail == Detail::All {
                let link = evidence.links.entry(link.clone()).or_default();
                link.add(counted.as_ref().unwrap_or(&nothing));
            }
        }
        // A link is asked over by the host of its receiver alone, so nothing is overwritten.
        evidence.canary.extend(report.canary.clone());
        evidence.canary_skipped += report.canary_skipped;
    }
    evidence.why = contradiction(view, fault, seen, &evidence);
    evidence.verdict = match &evidence.why {
        Some(_) => Verdict::Mismatch,
        None if acted(fault, seen, &evidence) => Verdict::Confirmed,
        None => Verdict::Quiet,
    };
    evidence
}

/// Points of several hosts' clocks cannot be compared: they become points of the coordinator's, in
/// milliseconds since the epoch. What is shown of a moment does not depend on when it is asked for, nor on
/// how long the last report was on its way.
fn on_our_clock(view: &View<'_>, host: &HostSeen, counted: &LinkEvidence) -> LinkEvidence {
    let since_report = || view.now_unix_ms.saturating_sub(host.age_ms);
    let booted = host.boot_unix_ms;
    let booted = booted.unwrap_or_else(|| since_report().saturating_sub(host.report.now_ms));
    let point = |at_ms: Option<u64>| Some(booted.saturating_add(at_ms?));
    LinkEvidence {
        first_hit_ms: point(counted.first_hit_ms),
        last_hit_ms: point(counted.last_hit_ms),
        ..counted.clone()
    }
}

/// Whether there is a sign that the fault acted.
fn acted(fault: &Fault, seen: &[(&HostSeen, &FaultReport)], evidence: &Evidence) -> bool {
    if fault.spec.on.is_some() {
        // Effects on nodes are not counted: a host that had it in force did what it says.
        let had_it = |report: &FaultReport| report.why.is_none() && (report.active || report.acted);
        return !seen.is_empty() && seen.iter().all(|(_, report)| had_it(report));
    }
    // A link of a node that is gone is none of the fault's any more, and was.
    let effect = shape::effect(&fault.spec);
    let mut counted = seen.iter().flat_map(|(_, report)| report.links.values());
    counted.any(|counted| counted.shows(&effect))
        || evidence.canary.values().any(|canary| canary.verdict == CanaryVerdict::Agrees)
}

fn effect(fault: &Fault, link: &Link) -> Option<LinkEffect> {
    shape::link_effect(&fault.spec, &fault.resolved, link)
}

/// What was seen that cannot be, if the fault does what it says: in words for people.
fn contradiction(
    view: &View<'_>,
    fault: &Fault,
    seen: &[(&HostSeen, &FaultReport)],
    evidence: &Evidence,
) -> Option<String> {
    leak(seen)
        .or_else(|| canary(&evidence.canary))
        .or_else(|| bypass(view, fault, seen).map(around))
}

fn leak(seen: &[(&HostSeen, &FaultReport)]) -> Option<String> {
    let mut leaks: BTreeMap<&Link, u64> = BTreeMap::new();
    let counted = seen.iter().flat_map(|(_, report)| &report.links);
    for (link, counted) in counted.filter(|(_, counted)| counted.leaked_bytes > 0) {
        let sum = leaks.entry(link).or_default();
        *sum = sum.saturating_add(counted.leaked_bytes);
    }
    let (link, bytes) = leaks.pop_first()?;
    Some(format!("{bytes} bytes crossed {link} while it was cut"))
}

fn canary(canaries: &BTreeMap<Link, CanaryReport>) -> Option<String> {
    let mut bad = canaries.iter().filter(|(_, one)| one.verdict == CanaryVerdict::Contradicts);
    let (link, one) = bad.next()?;
    Some(format!("canary {link}: {}", one.why.as_deref().unwrap_or("it contradicts the fault")))
}

fn around(bypass: &Bypass) -> String {
    format!("{} reached {} at {} around its proxy", bypass.from, bypass.to, bypass.address)
}

/// A connection around the proxies that joins two parties of a link of the fault: one that is there
/// now, or one that a host remembers.
fn bypass<'a>(
    view: &View<'a>,
    fault: &Fault,
    seen: &[(&HostSeen, &'a FaultReport)],
) -> Option<&'a Bypass> {
    if fault.spec.on.is_some() {
        return None;
    }
    let up = view.hosts.values().filter(|host| host.connected && fault.is_active());
    let now = up.flat_map(|host| &host.report.bypasses).filter(|bypass| joins(fault, bypass));
    let then = seen.iter().flat_map(|(_, report)| &report.bypasses);
    now.chain(then).next()
}

fn joins(fault: &Fault, bypass: &Bypass) -> bool {
    // A holder that is no node's name is a program outside the lab.
    let from = bypass.from.parse().unwrap_or(Party::Clients);
    let link = Link { from, to: Party::Node(bypass.to.clone()) };
    effect(fault, &link).is_some() || effect(fault, &link.reversed()).is_some()
}
