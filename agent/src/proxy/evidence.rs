//! Counts what each fault did to each link: on the connection first, then in the worker's ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use faultbed_common::{link::Link, proxy_spec::LinkEffect, report::LinkEvidence};

use serde::{Deserialize, Serialize};

use crate::proxy::{carry::entries, table::Life};

/// Upper ends of the histogram's buckets of lateness, in microseconds; the last bucket is open.
const LATENESS_US: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// What was done to the bytes of one direction of one connection and is not in the ledger yet.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Delayed chunks, by lateness.
    late: [u64; 5],
    /// Segments that were lost, each time.
    pub(crate) lost: u64,
    /// Bytes with a flipped bit.
    pub(crate) corrupted: u64,
    /// Bytes that took the line.
    pub(crate) paced: u64,
    /// Pieces of longer chunks.
    pub(crate) slices: u64,
    /// Ends of streams that were passed on late.
    pub(crate) slow_closes: u64,
    /// Connections whose bytes reached their limit.
    pub(crate) limits: u64,
    first_ms: Option<u64>,
    last_ms: Option<u64>,
}

impl Tally {
    /// Counts one chunk that is `late_us` late.
    pub(crate) fn count_late(&mut self, late_us: u64) {
        let bucket = LATENESS_US.iter().position(|end| late_us < *end);
        self.late[bucket.unwrap_or(LATENESS_US.len())] += 1;
    }

    /// Something was or will be counted at `now_ms` of CLOCK_BOOTTIME.
    pub(crate) fn note(&mut self, now_ms: u64) {
        self.first_ms.get_or_insert(now_ms);
        self.last_ms = Some(now_ms);
    }

    /// What of it a fault with this effect did.
    pub(crate) fn share(&self, effect: &LinkEffect) -> LinkEvidence {
        let of = |has: bool, count: u64| if has { count } else { 0 };
        let delay_histogram = self.late.map(|count| of(effect.delay.is_some(), count));
        let evidence = LinkEvidence {
            delayed_chunks: delay_histogram.iter().sum(),
            delay_histogram,
            lost_chunks: of(!effect.loss.is_empty(), self.lost),
            corrupted_bytes: of(effect.corrupt.is_some(), self.corrupted),
            paced_bytes: of(effect.bandwidth.is_some(), self.paced),
            slices: of(effect.slice.is_some(), self.slices),
            closes: of(effect.endings.slow_close_us > 0, self.slow_closes)
                + of(effect.endings.limit_bytes.is_some(), self.limits),
            ..LinkEvidence::default()
        };
        if evidence == LinkEvidence::default() {
            return evidence;
        }
        LinkEvidence { first_hit_ms: self.first_ms, last_hit_ms: self.last_ms, ..evidence }
    }
}

/// Evidence by fault and link.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Ledger {
    #[serde(with = "entries")]
    entries: BTreeMap<(Life, Arc<Link>), LinkEvidence>,
}

impl Ledger {
    /// Adds to what is known.
    pub(crate) fn add(&mut self, life: Life, link: &Arc<Link>, more: &LinkEvidence) {
        self.entries.entry((life, Arc::clone(link))).or_default().add(more);
    }

    /// Adds another ledger.
    pub(crate) fn absorb(&mut self, other: &Self) {
        for ((life, link), more) in &other.entries {
            self.add(*life, link, more);
        }
    }

    /// Forgets all lives but these.
    pub(crate) fn keep(&mut self, lives: &BTreeSet<Life>) {
        self.entries.retain(|(life, _), _| lives.contains(life));
    }

    /// What one life of a fault did, by link.
    pub(crate) fn links(&self, life: Life) -> BTreeMap<Link, LinkEvidence> {
        let own = self.entries.iter().filter(|((of, _), _)| *of == life);
        own.map(|((_, link), evidence)| (Link::clone(link), evidence.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use faultbed_common::{effect::Ratio, proxy_spec::Delay};

    use super::*;

    #[test]
    fn evidence_of_two_workers_adds_up_and_keeps_the_first_and_last_hit() {
        let link: Arc<Link> = Arc::new("kv-1>kv-2".parse().unwrap());
        let hit = |first, last, held| LinkEvidence {
            held_bytes: held,
            first_hit_ms: first,
            last_hit_ms: last,
            ..LinkEvidence::default()
        };
        let (mut one, mut other) = (Ledger::default(), Ledger::default());
        one.add(Life(1), &link, &hit(Some(20), Some(30), 7));
        other.add(Life(1), &link, &hit(Some(10), Some(15), 5));
        other.add(Life(2), &link, &hit(None, None, 1));
        one.absorb(&other);
        assert_eq!(one.links(Life(1))[&*link], hit(Some(10), Some(30), 12));
        one.keep(&BTreeSet::from([Life(2)]));
        assert!(one.links(Life(1)).is_empty());
        assert_eq!(one.links(Life(2))[&*link].held_bytes, 1);
    }

    #[test]
    fn lateness_falls_into_its_bucket() {
        let mut tally = Tally::default();
        for late_us in [0, 999, 1_000, 99_999, 100_000, 5_000_000] {
            tally.count_late(late_us);
        }
        let delay = LinkEffect { delay: Some(Delay::default()), ..LinkEffect::default() };
        let evidence = tally.share(&delay);
        assert_eq!(evidence.delay_histogram, [2, 1, 1, 1, 1]);
        assert_eq!(evidence.delayed_chunks, 6);
    }

    #[test]
    fn a_fault_is_charged_with_what_its_own_effect_did() {
        let mut tally = Tally { corrupted: 3, paced: 100, ..Tally::default() };
        tally.note(5);
        let corrupts = LinkEffect { corrupt: Some(Ratio::ONE), ..LinkEffect::default() };
        let evidence = tally.share(&corrupts);
        assert_eq!((evidence.corrupted_bytes, evidence.paced_bytes), (3, 0));
        assert_eq!((evidence.first_hit_ms, evidence.last_hit_ms), (Some(5), Some(5)));
        let slices = LinkEffect { slice: Some("64B".parse().unwrap()), ..LinkEffect::default() };
        assert_eq!(tally.share(&slices), LinkEvidence::default(), "it was not hit at all");
    }
}
