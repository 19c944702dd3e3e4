//! Tells when a link loses all of its segments: bursts, for all of its connections at once. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    sync::Arc,
};

use faultbed_common::effect::Loss;

use serde::{Deserialize, Serialize};

use crate::proxy::{
    carry::{entries, shared_descriptors},
    dice::Dice,
    sys::bpf,
    table::Life,
};

/// Pauses after which a burst that nobody looked at is not worth being caught up with: the time to
/// the next one does not depend on the past.
const MISSED_MAX: u64 = 1_000;

/// Which loss of which fault.
pub(crate) type Which = (Life, usize);

/// What the losses of one link remember.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Storms {
    #[serde(with = "entries")]
    bursts: BTreeMap<Which, Storm>,
    /// Filters with memory, by what they lose; the kernel keeps their state.
    #[serde(with = "shared_descriptors")]
    filters: BTreeMap<Vec<Loss>, Arc<OwnedFd>>,
}

/// The bursts of one loss.
#[derive(Debug, Serialize, Deserialize)]
struct Storm {
    dice: Dice,
    /// The present or next burst, in nanoseconds of CLOCK_MONOTONIC.
    begins_ns: u64,
    ends_ns: u64,
}

impl Storms {
    /// Forgets what is not of these lives.
    pub(crate) fn keep(&mut self, lives: &BTreeSet<Life>) {
        self.bursts.retain(|(life, _), _| lives.contains(life));
        self.filters.clear();
    }

    /// Whether all is lost at a moment, and until when that stays so. Moments never go back by much.
    pub(crate) fn at(
        &mut self,
        which: Which,
        (lasts_us, every_us): (u64, u64),
        seed: u64,
        now_ns: u64,
    ) -> (bool, u64) {
        let lasts_ns = lasts_us.saturating_mul(1_000);
        let pause_ns = every_us.saturating_sub(lasts_us).saturating_mul(1_000);
        let storm = self.bursts.entry(which).or_insert_with(|| {
            let mut dice = Dice::new(seed);
            let begins_ns = now_ns.saturating_add(dice.exponential(pause_ns));
            Storm { dice, begins_ns, ends_ns: begins_ns.saturating_add(lasts_ns) }
        });
        let missed_ns = MISSED_MAX.saturating_mul(pause_ns.saturating_add(lasts_ns));
        if now_ns > storm.ends_ns.saturating_add(missed_ns) {
            storm.ends_ns = now_ns;
        }
        while storm.ends_ns <= now_ns {
            storm.begins_ns = storm.ends_ns.saturating_add(storm.dice.exponential(pause_ns)).max(1);
            // A burst of no time would never let the loop end.
            storm.ends_ns = storm.begins_ns.saturating_add(lasts_ns.max(1));
        }
        let storms = storm.begins_ns <= now_ns;
        (storms, if storms { storm.ends_ns } else { storm.begins_ns })
    }

    /// The filter that loses as these losses say, all of which draw for each segment.
    ///
    /// # Errors
    /// Where the kernel takes no such programs.
    pub(crate) fn filter(&mut self, losses: &[Loss]) -> io::Result<Arc<OwnedFd>> {
        if let Some(known) = self.filters.get(losses) {
            return Ok(Arc::clone(known));
        }
        let filter = Arc::new(bpf::load_loss(losses)?);
        self.filters.insert(losses.to_vec(), Arc::clone(&filter));
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const HOUR_NS: u64 = 3_600_000 * MS;

    #[test]
    fn bursts_last_as_long_as_they_should_and_come_as_often() {
        let (mut storms, which) = (Storms::default(), (Life(1), 0));
        let (mut now_ns, mut bad_ns, mut count) = (5 * MS, 0, 0_u64);
        while count < 5_000 {
            let (bad, until_ns) = storms.at(which, (20_000, 200_000), 7, now_ns);
            assert!(until_ns > now_ns, "the next change is ahead");
            if bad {
                bad_ns += until_ns - now_ns;
                count += 1;
            }
            now_ns = until_ns;
        }
        assert_eq!(bad_ns, count * 20 * MS, "each lasts 20 ms");
        let every_ms = now_ns / count / MS;
        assert!((190..=210).contains(&every_ms), "every {every_ms} ms with seed 7");
    }

    #[test]
    fn all_connections_of_a_link_see_the_same_weather() {
        let (mut one, mut other, which) = (Storms::default(), Storms::default(), (Life(1), 0));
        let burst = (1_000, 10_000);
        let look = |storms: &mut Storms, at| storms.at(which, burst, 3, at);
        assert_eq!(look(&mut one, 0), look(&mut other, 0));
        // The other looks more often: what it sees at the same moments is the same.
        for step in 1..1_000_u64 {
            look(&mut other, step * MS - MS / 2);
            assert_eq!(look(&mut one, step * MS), look(&mut other, step * MS));
        }
    }

    #[test]
    fn hours_without_a_connection_are_not_caught_up_with() {
        let (mut storms, which) = (Storms::default(), (Life(1), 0));
        storms.at(which, (1, 2), 7, 0);
        let (_, until_ns) = storms.at(which, (1, 2), 7, 1_000 * HOUR_NS);
        assert!(until_ns > 1_000 * HOUR_NS);
    }
}
