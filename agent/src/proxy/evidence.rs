//! Counts what each fault did to each link: on the connection first, then in the worker's ledger.

use std::{collections::BTreeMap, sync::Arc};

use faultbed_common::{link::Link, report::LinkEvidence};

use serde::{Deserialize, Serialize};

use crate::proxy::{carry::entries, table::Life};

/// Upper ends of the histogram's buckets of lateness, in microseconds; the last bucket is open.
const LATENESS_US: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// What was delayed on one direction of one connection and is not in the ledger yet.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Lateness {
    chunks: u64,
    histogram: [u64; 5],
    first_ms: Option<u64>,
    last_ms: Option<u64>,
}

impl Lateness {
    /// Counts one chunk that is `late_us` late, at `now_ms` of CLOCK_BOOTTIME.
    pub(crate) fn count(&mut self, late_us: u64, now_ms: u64) {
        self.chunks += 1;
        let bucket = LATENESS_US.iter().position(|end| late_us < *end);
        self.histogram[bucket.unwrap_or(LATENESS_US.len())] += 1;
        self.first_ms.get_or_insert(now_ms);
        self.last_ms = Some(now_ms);
    }

    /// Takes what was counted.
    pub(crate) fn take(&mut self) -> LinkEvidence {
        let Self { chunks, histogram, first_ms, last_ms } = std::mem::take(self);
        LinkEvidence {
            delayed_chunks: chunks,
            delay_histogram: histogram,
            first_hit_ms: first_ms,
            last_hit_ms: last_ms,
            ..LinkEvidence::default()
        }
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

    /// Forgets the lives before `oldest`.
    pub(crate) fn forget_before(&mut self, oldest: Life) {
        self.entries.retain(|(life, _), _| *life >= oldest);
    }

    /// What one life of a fault did, by link.
    pub(crate) fn links(&self, life: Life) -> BTreeMap<Link, LinkEvidence> {
        let own = self.entries.iter().filter(|((of, _), _)| *of == life);
        own.map(|((_, link), evidence)| (Link::clone(link), evidence.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
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
        one.forget_before(Life(2));
        assert!(one.links(Life(1)).is_empty());
        assert_eq!(one.links(Life(2))[&*link].held_bytes, 1);
    }

    #[test]
    fn lateness_falls_into_its_bucket() {
        let mut lateness = Lateness::default();
        for late_us in [0, 999, 1_000, 99_999, 100_000, 5_000_000] {
            lateness.count(late_us, 1);
        }
        let evidence = lateness.take();
        assert_eq!(evidence.delay_histogram, [2, 1, 1, 1, 1]);
        assert_eq!(evidence.delayed_chunks, 6);
        assert_eq!(lateness.take(), LinkEvidence::default(), "taken once");
    }
}
