//! Until when a host keeps to what it was told: the ends of leases, by its own clock. Pure.

use std::collections::BTreeMap;

use faultbed_common::{
    host_spec::{HostSpec, LeaseTerm},
    name::ClusterName,
    proxy_spec::Deadline,
    report::{HostReport, LeaseReport},
    session::LeaseAges,
};
use serde::{Deserialize, Serialize};

use crate::clock::BootTime;

/// What a host keeps of leases beside its spec.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// When the lab's lease ends.
    pub lab: Option<Deadline>,
    /// When those of clusters end.
    pub clusters: BTreeMap<ClusterName, Deadline>,
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
    Kept {
        lab: spec
            .terms
            .lab
            .as_ref()
            .map(|term| deadline(held.and_then(|held| held.lab.as_ref()), term, ages.lab_ms)),
        clusters: clusters.collect(),
    }
}
