//! Keeps what faults did: over the death of the proxy that counted it and of the agent that was told,
//! and after the end of the fault. Pure; the hands keep it on disk.

use std::collections::BTreeMap;

use faultbed_common::{
    generation::FaultRevision,
    link::{Link, Party},
    name::FaultName,
    proxy_spec::LinkFault,
    report::{Bypass, CanaryReport, FaultReport, LinkEvidence},
};
use serde::{Deserialize, Serialize};

/// Faults whose evidence is kept; the oldest are forgotten.
const FAULTS_MAX: usize = 100;

/// Connections around the proxies that are kept for one fault.
const BYPASSES_MAX: usize = 16;

/// What faults did on this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// The boot whose clock the hits are of.
    boot_id: String,
    faults: BTreeMap<FaultName, KeptFault>,
    /// Faults on nodes that ended here.
    pub ended: BTreeMap<FaultName, FaultReport>,
    /// Grows with each fault, so that the oldest is known.
    count: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct KeptFault {
    revision: FaultRevision,
    number: u64,
    /// Whether it was in force, where it is on nodes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    acted: bool,
    links: BTreeMap<Link, Counted>,
    canary: BTreeMap<Link, CanaryReport>,
    bypasses: Vec<Bypass>,
}

/// What was counted on one link.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Counted {
    /// By proxy processes that are no more.
    before: LinkEvidence,
    /// By the one that lives, as it last said.
    now: LinkEvidence,
}

impl Counted {
    /// A count that fell was begun anew: what it was is added to what it is.
    fn take(&mut self, now: &LinkEvidence) {
        if counts(&self.now).iter().zip(counts(now)).any(|(old, new)| *old > new) {
            self.before.add(&self.now);
        }
        self.now = now.clone();
    }

    fn sum(&self) -> LinkEvidence {
        let mut sum = self.before.clone();
        sum.add(&self.now);
        sum
    }
}

fn counts(of: &LinkEvidence) -> [u64; 13] {
    [
        of.connections,
        of.held_bytes,
        of.dropped_segments,
        of.delayed_chunks,
        of.attempts_refused,
        of.delayed_accepts,
        of.lost_chunks,
        of.corrupted_bytes,
        of.paced_bytes,
        of.slices,
        of.resets,
        of.closes,
        of.leaked_bytes,
    ]
}

impl Kept {
    /// What an earlier agent kept, read in this boot.
    #[must_use]
    pub fn read_in(mut self, boot_id: &str) -> Self {
        let is_other_boot = self.boot_id != boot_id;
        boot_id.clone_into(&mut self.boot_id);
        for fault in self.faults.values_mut() {
            for canary in fault.canary.values_mut() {
                // Who asked is gone. One that is asked on says so itself.
                canary.is_over = true;
            }
            for counted in fault.links.values_mut().filter(|_| is_other_boot) {
                for evidence in [&mut counted.before, &mut counted.now] {
                    // Points of another boot's clock mean nothing now.
                    (evidence.first_hit_ms, evidence.last_hit_ms) = (None, None);
                }
            }
        }
        self
    }

    /// Takes in what the proxy says of its faults.
    pub fn proxy_says(&mut self, faults: &BTreeMap<FaultName, FaultReport>) {
        for (name, told) in faults {
            let kept = self.fault(name, told.revision);
            for (link, counted) in &mut kept.links {
                if !told.links.contains_key(link) {
                    counted.take(&LinkEvidence::default());
                }
            }
            for (link, evidence) in &told.links {
                kept.links.entry(link.clone()).or_default().take(evidence);
            }
        }
        self.forget();
    }

    /// Keeps that faults on nodes are in force, which nothing else will tell of once they are over.
    pub fn nodes_say(&mut self, faults: &BTreeMap<FaultName, FaultReport>) {
        // Only faults on nodes have no grade.
        for (name, told) in faults.iter().filter(|(_, told)| told.active && told.grade.is_none()) {
            self.fault(name, told.revision).acted = true;
        }
        self.forget();
    }

    /// Keeps what a canary said.
    pub fn canary_says(
        &mut self,
        name: &FaultName,
        of: FaultRevision,
        link: &Link,
        says: &CanaryReport,
    ) {
        self.fault(name, of).canary.insert(link.clone(), says.clone());
    }

    /// What a canary said to an earlier agent.
    #[must_use]
    pub fn canary(&self, name: &FaultName, of: FaultRevision, link: &Link) -> Option<CanaryReport> {
        let fault = self.faults.get(name).filter(|fault| fault.revision == of)?;
        fault.canary.get(link).cloned()
    }

    /// Keeps connections around the proxies that join parties of a fault in force.
    pub fn saw(&mut self, bypasses: &[Bypass], name: &FaultName, fault: &LinkFault) {
        for bypass in bypasses.iter().filter(|bypass| joins(fault, bypass)) {
            let kept = self.fault(name, fault.revision);
            if kept.bypasses.len() < BYPASSES_MAX && !kept.bypasses.contains(bypass) {
                kept.bypasses.push(bypass.clone());
            }
        }
    }

    /// Puts what is kept into the reports of faults, also of those that nobody else speaks of.
    pub fn fill(&self, faults: &mut BTreeMap<FaultName, FaultReport>) {
        for (name, kept) in &self.faults {
            let revision = kept.revision;
            let fault = faults
                .entry(name.clone())
                .or_insert_with(|| FaultReport { revision, ..FaultReport::default() });
            if fault.revision == revision {
                let sums = kept.links.iter().map(|(link, counted)| (link.clone(), counted.sum()));
                fault.links = sums.collect();
                fault.acted = kept.acted;
                fault.canary.clone_from(&kept.canary);
                fault.bypasses.clone_from(&kept.bypasses);
            }
        }
    }

    /// The evidence of this revision of a fault; another revision is another fault.
    fn fault(&mut self, name: &FaultName, revision: FaultRevision) -> &mut KeptFault {
        let kept = self.faults.entry(name.clone()).or_default();
        if kept.revision != revision || kept.number == 0 {
            self.count += 1;
            *kept = KeptFault { revision, number: self.count, ..KeptFault::default() };
        }
        kept
    }

    fn forget(&mut self) {
        while self.faults.len() > FAULTS_MAX {
            let oldest = self.faults.iter().min_by_key(|(_, fault)| fault.number);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { return };
            self.faults.remove(&name);
        }
    }
}

/// Whether a connection joins the two parties of a link of the fault.
fn joins(fault: &LinkFault, bypass: &Bypass) -> bool {
    // A holder that is no node's name is a program outside the lab.
    let from = bypass.from.parse().unwrap_or(Party::Clients);
    let link = Link { from, to: Party::Node(bypass.to.clone()) };
    fault.links.contains(&link) || fault.links.contains(&link.reversed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::{link_fault, node};

    fn link() -> Link {
        "kv-1>kv-2".parse().unwrap()
    }

    fn says(revision: u64, held: u64, hit: u64) -> BTreeMap<FaultName, FaultReport> {
        let evidence = LinkEvidence {
            held_bytes: held,
            first_hit_ms: Some(hit),
            last_hit_ms: Some(hit),
            ..LinkEvidence::default()
        };
        let report = FaultReport {
            revision: FaultRevision(revision),
            links: [(link(), evidence)].into(),
            ..FaultReport::default()
        };
        [("cut".parse().unwrap(), report)].into()
    }

    fn held(kept: &Kept) -> Option<u64> {
        let mut faults = BTreeMap::new();
        kept.fill(&mut faults);
        Some(faults.get(&"cut".parse().unwrap())?.links.get(&link())?.held_bytes)
    }

    #[test]
    fn what_a_dead_proxy_counted_is_added_to_what_the_next_one_counts() {
        let mut kept = Kept::default();
        kept.proxy_says(&says(1, 5, 10));
        kept.proxy_says(&says(1, 7, 10));
        assert_eq!(held(&kept), Some(7), "the same process goes on counting");
        kept.proxy_says(&says(1, 2, 30));
        assert_eq!(held(&kept), Some(9));
        let none = BTreeMap::from([(
            "cut".parse().unwrap(),
            FaultReport { revision: FaultRevision(1), ..FaultReport::default() },
        )]);
        kept.proxy_says(&none);
        assert_eq!(held(&kept), Some(9), "one that has counted nothing yet takes nothing away");
        kept.proxy_says(&BTreeMap::new());
        assert_eq!(held(&kept), Some(9), "nor does one that does not know the fault");
    }

    #[test]
    fn a_fault_that_begins_anew_begins_with_nothing() {
        let mut kept = Kept::default();
        kept.proxy_says(&says(1, 5, 10));
        kept.proxy_says(&says(2, 1, 20));
        assert_eq!(held(&kept), Some(1));
    }

    #[test]
    fn hits_of_another_boot_are_forgotten_and_counts_are_not() {
        let mut kept = Kept::default().read_in("one");
        kept.proxy_says(&says(1, 5, 10));
        let text = serde_json::to_string(&kept).unwrap();
        let read = |boot: &str| serde_json::from_str::<Kept>(&text).unwrap().read_in(boot);
        assert_eq!(read("one"), kept);
        let mut faults = BTreeMap::new();
        read("two").fill(&mut faults);
        let evidence = &faults.values().next().unwrap().links[&link()];
        assert_eq!((evidence.held_bytes, evidence.first_hit_ms), (5, None));
    }

    #[test]
    fn a_bypass_is_kept_for_the_faults_of_its_link() {
        let mut kept = Kept::default();
        let address = "127.128.0.2:1".parse().unwrap();
        let bypass = Bypass { from: "kv-2".to_owned(), to: node("kv-1"), address };
        let fault = LinkFault { links: [link()].into(), ..link_fault() };
        let other = LinkFault { links: ["kv-1>kv-3".parse().unwrap()].into(), ..link_fault() };
        kept.saw(std::slice::from_ref(&bypass), &"cut".parse().unwrap(), &fault);
        kept.saw(std::slice::from_ref(&bypass), &"other".parse().unwrap(), &other);
        kept.saw(std::slice::from_ref(&bypass), &"cut".parse().unwrap(), &fault);
        let mut faults = BTreeMap::new();
        kept.fill(&mut faults);
        assert_eq!(faults.len(), 1);
        assert_eq!(faults.values().next().unwrap().bypasses, [bypass]);
    }

    #[test]
    fn a_fault_on_nodes_that_is_over_acted_only_where_it_was_in_force() {
        let mut kept = Kept::default();
        let report = |active| FaultReport { active, ..FaultReport::default() };
        let names: [FaultName; 2] = ["held".parse().unwrap(), "refused".parse().unwrap()];
        let told = [(names[0].clone(), report(true)), (names[1].clone(), report(false))];
        kept.nodes_say(&told.into());
        let mut over = names.clone().map(|name| (name, report(false))).into();
        kept.fill(&mut over);
        assert_eq!(names.map(|name| over[&name].acted), [true, false]);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut kept = Kept::default();
        for number in 0..=FAULTS_MAX {
            let mut one = says(1, 1, 1);
            let report = one.pop_first().unwrap().1;
            kept.proxy_says(&[(format!("f{number}").parse().unwrap(), report)].into());
        }
        let mut faults = BTreeMap::new();
        kept.fill(&mut faults);
        assert_eq!(faults.len(), FAULTS_MAX);
        assert!(!faults.contains_key(&"f0".parse().unwrap()));
    }
}
