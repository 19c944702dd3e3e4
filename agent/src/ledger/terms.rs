//! Until when a host keeps to what it was told, by its own clock: the ends of leases, and of faults
//! that nobody could heal because no coordinator was heard. Pure.

use std::collections::BTreeMap;

use faultbed_common::{
    generation::FaultRevision,
    host_spec::{HostSpec, LeaseTerm},
    name::{ClusterName, FaultName},
    proxy_spec::Deadline,
    report::{FaultReport, HostReport, LeaseReport},
    session::LeaseAges,
};
use serde::{Deserialize, Serialize};

use super::Accepted;
use crate::clock::BootTime;

/// What a host keeps of leases beside its spec.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// When the lab's lease ends.
    pub lab: Option<Deadline>,
    /// When those of clusters end.
    pub clusters: BTreeMap<ClusterName, Deadline>,
    /// When a coordinator was last heard, in nanoseconds of CLOCK_BOOTTIME; below zero where that was
    /// before this boot. Kept only where it matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_ns: Option<i64>,
    /// Faults that this host healed by itself; they stay healed until they are another revision.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub healed: BTreeMap<FaultName, Healed>,
}

/// A fault that a host healed by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healed {
    /// Which revision of it.
    pub revision: FaultRevision,
    /// When, in nanoseconds of CLOCK_BOOTTIME; 0 is before this boot.
    pub at_ns: u64,
    /// Why, such as `heard no coordinator for 5m`.
    pub why: String,
}

impl Kept {
    /// When nodes of a cluster must be down: by its own lease or that of the lab.
    #[must_use]
    pub fn lease_end(&self, cluster: &ClusterName) -> Option<BootTime> {
        let of_both = self.lab.iter().chain(self.clusters.get(cluster));
        of_both.filter_map(|deadline| deadline.boottime_ns).min().map(BootTime::from_ns)
    }

    /// Every deadline.
    pub fn deadlines(&self) -> impl Iterator<Item = &Deadline> {
        self.lab.iter().chain(self.clusters.values())
    }

    /// The same at another boot: as far away as when it was written.
    pub(super) fn rebase(&mut self, written_ns: u64, now: BootTime) {
        for deadline in self.lab.iter_mut().chain(self.clusters.values_mut()) {
            deadline.boottime_ns = deadline
                .boottime_ns
                .map(|ns| now.ns().saturating_add(ns.saturating_sub(written_ns)));
        }
        let since = signed(now.ns()).saturating_sub(signed(written_ns));
        self.heard_ns = self.heard_ns.map(|heard| heard.saturating_add(since));
        for healed in self.healed.values_mut() {
            healed.at_ns = 0;
        }
    }

    /// Says in a report what is left.
    pub fn fill(&self, report: &mut HostReport, now: BootTime) {
        let said = |deadline: &Deadline| LeaseReport {
            revision: deadline.revision,
            remaining_ms: deadline.boottime_ns.map_or(0, |ns| {
                // Rounded up: 0 is over, and nothing else is.
                ns.saturating_sub(now.ns()).div_ceil(1_000_000)
            }),
        };
        report.lab_lease = self.lab.as_ref().map(said);
        for (name, healed) in &self.healed {
            let fault = report.faults.entry(name.clone()).or_default();
            *fault = FaultReport {
                revision: healed.revision,
                active: false,
                expired: false,
                remaining_ms: None,
                why: None,
                healed: Some(healed.why.clone()),
                ..std::mem::take(fault)
            };
        }
        report.leases =
            self.clusters.iter().map(|(name, deadline)| (name.clone(), said(deadline))).collect();
    }
}

/// When every lease of a spec ends: what is known stays, only a newer revision is reckoned anew.
pub(super) fn merge(held: Option<&Kept>, spec: &HostSpec, ages: &LeaseAges, now: BootTime) -> Kept {
    let deadline = |known: Option<&Deadline>, term: &LeaseTerm, age_ms: u64| match known {
        Some(known) if known.revision >= term.revision => known.clone(),
        _ => {
            let age = age_ms.saturating_mul(1_000_000);
            let end = (now + term.lasts.0).ns().saturating_sub(age).max(now.ns());
            Deadline { revision: term.revision, boottime_ns: Some(end) }
        }
    };
    let clusters = spec.terms.clusters.iter().map(|(name, term)| {
        let known = held.and_then(|held| held.clusters.get(name));
        let age = ages.clusters_ms.get(name).copied().unwrap_or(0);
        (name.clone(), deadline(known, term, age))
    });
    let revisions: BTreeMap<FaultName, FaultRevision> = faults(spec).collect();
    let mut healed = held.map(|held| held.healed.clone()).unwrap_or_default();
    healed.retain(|name, healed| revisions.get(name) == Some(&healed.revision));
    Kept {
        heard_ns: spec.terms.dead_man.map(|_| signed(now.ns())),
        healed,
        lab: spec
            .terms
            .lab
            .as_ref()
            .map(|term| deadline(held.and_then(|held| held.lab.as_ref()), term, ages.lab_ms)),
        clusters: clusters.collect(),
    }
}

/// Every fault of a spec, once, with its revision.
pub(super) fn faults(spec: &HostSpec) -> impl Iterator<Item = (FaultName, FaultRevision)> + '_ {
    let of_links = spec.proxy.faults.iter().map(|(name, fault)| (name.clone(), fault.revision));
    let of_nodes = spec.nodes.values().flat_map(|node| &node.faults);
    of_links.chain(of_nodes.map(|(name, fault)| (name.clone(), fault.revision)))
}

/// 292 years of nanoseconds fit.
fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// When a host that hears no coordinator heals its faults by itself; `None` where it never does, or
/// has none in force.
#[must_use]
pub fn dead_man_at(accepted: &Accepted, now: BootTime) -> Option<BootTime> {
    let limit = accepted.spec.terms.dead_man?;
    let is_in_force = |(name, _): (FaultName, _)| !accepted.is_over(&name, now);
    faults(&accepted.spec).any(is_in_force).then(|| {
        let heard = accepted.terms.heard_ns.unwrap_or_else(|| signed(now.ns()));
        let limit = i64::try_from(limit.0.as_nanos()).unwrap_or(i64::MAX);
        BootTime::from_ns(u64::try_from(heard.saturating_add(limit)).unwrap_or(0))
    })
}

/// Heals every fault in force, since nobody was heard for too long. Says which.
pub fn dead_man_heals(accepted: &mut Accepted, now: BootTime) -> Vec<FaultName> {
    let Some(limit) = accepted.spec.terms.dead_man else { return Vec::new() };
    let mut named = Vec::new();
    for (name, revision) in faults(&accepted.spec).collect::<BTreeMap<_, _>>() {
        if accepted.is_over(&name, now) {
            continue;
        }
        let why = format!("heard no coordinator for {limit}");
        accepted.terms.healed.insert(name.clone(), Healed { revision, at_ns: now.ns(), why });
        named.push(name);
    }
    named
}
