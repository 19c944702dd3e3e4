//! The bandwidth of one link, shared by all connections that carry it, on whichever worker they are.

use std::sync::atomic::{AtomicU64, Ordering};

use faultbed_common::{effect::Rate, proxy_spec::SEGMENT_BYTES};
use serde::{Deserialize, Serialize};

/// The most that takes the line at once.
const QUANTUM_BYTES_MAX: usize = 64 * 1024;
/// How long a quantum takes, where that is neither less than a segment nor more than the most.
const QUANTUM_NS: u64 = 1_000_000;
/// A connection takes the line for so long ahead at most, and twice that to make up for turns it missed:
/// enough that a late wake-up leaves no gap, and little enough that a connection that comes later need not
/// wait long. The source is not read any further.
const AHEAD_NS: u64 = 50_000_000;
/// Who was given so much less than the connection that was given the most, and two quanta at least, was woken
/// late, as on a busy machine.
const BEHIND_NS: u64 = 2_000_000;

/// A line that sends one byte after the other: it has a moment from which on it is free. No burst is
/// ever saved up, so nothing leaves faster than the rate at the start either (the generic cell rate
/// algorithm, ITU-T I.371, with a tolerance of nothing).
///
/// Connections share it fairly, each by its [`Share`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Bucket {
    /// Nanoseconds of CLOCK_MONOTONIC.
    free_ns: AtomicU64,
    /// Bytes that the connection was given which was given the most.
    #[serde(default)]
    most: AtomicU64,
}

/// What one connection has of a line. It takes it for one quantum at a time, and again when its own last
/// quantum is less than [`AHEAD_NS`] away: of two that send all they can, each has its last one as far
/// ahead as the other, so they take turns. Who misses its turn makes up for it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Share {
    /// When the last byte that took the line has left it, in nanoseconds of CLOCK_MONOTONIC.
    line_ns: u64,
    /// Bytes it was given, in the line's own count.
    #[serde(default)]
    given: u64,
}

impl Share {
    /// From when on it may take the line for another quantum.
    pub(crate) fn turn_ns(&self, line: &Bucket, rate: Rate) -> u64 {
        let own_ns = self.line_ns.saturating_sub(AHEAD_NS);
        let behind = line.most.load(Ordering::Relaxed).saturating_sub(self.given);
        if behind <= bytes_in(BEHIND_NS, rate).max(2 * quantum(rate) as u64) {
            return own_ns;
        }
        // Of several the one that is furthest behind goes first.
        let ahead_ns = AHEAD_NS + needs_ns(behind, rate).min(AHEAD_NS);
        own_ns.min(line.free_ns.load(Ordering::Relaxed).saturating_sub(ahead_ns))
    }

    /// Takes the line for `bytes`; answers when the last of them has left.
    pub(crate) fn take(&mut self, line: &Bucket, bytes: u64, rate: Rate, now_ns: u64) -> u64 {
        let most = line.most.load(Ordering::Relaxed);
        // Who had nothing to send has missed no turn, and nobody makes up for more than it can have ahead.
        let is_sending = self.line_ns > now_ns;
        let missed_most = if is_sending { bytes_in(AHEAD_NS, rate).max(bytes) } else { bytes };
        self.given = self.given.max(most.saturating_sub(missed_most)) + bytes;
        line.most.fetch_max(self.given, Ordering::Relaxed);
        self.line_ns = line.take(bytes, rate, now_ns);
        self.line_ns
    }
}

/// Bytes that take a line of this rate at once.
pub(crate) fn quantum(rate: Rate) -> usize {
    let bytes = usize::try_from(bytes_in(QUANTUM_NS, rate)).unwrap_or(usize::MAX);
    bytes.clamp(SEGMENT_BYTES, QUANTUM_BYTES_MAX)
}

/// How long so many bytes take a line of this rate.
fn needs_ns(bytes: u64, rate: Rate) -> u64 {
    let bits = u128::from(bytes) * 8 * 1_000_000_000;
    u64::try_from(bits / u128::from(rate.bits_per_s.max(1))).unwrap_or(u64::MAX)
}

/// Bytes that leave a line of this rate in so many nanoseconds.
fn bytes_in(ns: u64, rate: Rate) -> u64 {
    let bits = u128::from(rate.bits_per_s) * u128::from(ns) / 1_000_000_000;
    u64::try_from(bits / 8).unwrap_or(u64::MAX)
}

impl Bucket {
    /// Takes the line for `bytes`; answers when the last of them has left. `now_ns` is of
    /// CLOCK_MONOTONIC.
    fn take(&self, bytes: u64, rate: Rate, now_ns: u64) -> u64 {
        let needs_ns = needs_ns(bytes, rate);
        let end_ns = |free_ns: u64| free_ns.max(now_ns).saturating_add(needs_ns);
        // The value alone matters: it orders no other memory.
        let taken = self
            .free_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free_ns| Some(end_ns(free_ns)));
        end_ns(taken.unwrap_or_else(|free_ns| free_ns))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::dice::Dice;

    proptest! {
        #[test]
        fn whatever_is_taken_by_whom_leaves_at_the_rate(
            takes in proptest::collection::vec((1_u64..100_000, 0_u64..10_000_000), 1..50),
            bits_per_s in 1_000_u64..10_000_000_000,
        ) {
            let (bucket, rate, mut now_ns) = (Bucket::default(), Rate { bits_per_s }, 0);
            let (mut bytes, mut last_ns) = (0, 0);
            for (count, gap_ns) in takes {
                now_ns += gap_ns;
                let end_ns = bucket.take(count, rate, now_ns);
                bytes += count;
                // A nanosecond is lost to rounding for each take.
                prop_assert!(u128::from(end_ns + 50) * u128::from(bits_per_s) >= u128::from(bytes) * 8_000_000_000);
                prop_assert!(end_ns >= last_ns && end_ns >= now_ns);
                last_ns = end_ns;
            }
        }
    }

    /// A connection that sends, and what it was given after the first 100 ms.
    #[derive(Clone, Copy)]
    struct Sender {
        /// It is woken late by so much at most.
        late_ns: u64,
        /// So many bytes each time, and the pause between.
        part: (u64, u64),
        left: u64,
        wakes_ns: u64,
        share: Share,
        given: u64,
    }

    impl Sender {
        fn new(late_ns: u64, part: (u64, u64)) -> Self {
            let share = Share::default();
            Self { late_ns, part, left: part.0, wakes_ns: 0, share, given: 0 }
        }

        fn wake(&mut self, line: &Bucket, rate: Rate, dice: &mut Dice) {
            while self.left > 0 && self.share.turn_ns(line, rate) <= self.wakes_ns {
                let bytes = self.left.min(quantum(rate) as u64);
                self.share.take(line, bytes, rate, self.wakes_ns);
                self.left -= bytes;
                self.given += if self.wakes_ns < 100_000_000 { 0 } else { bytes };
            }
            if self.left == 0 {
                self.left = self.part.0;
                self.wakes_ns += self.part.1;
            } else {
                self.wakes_ns = self.share.turn_ns(line, rate);
            }
            self.wakes_ns += dice.below(self.late_ns + 1);
        }
    }

    /// What each sender is given of a line in the second after the first 100 ms.
    fn given(mut all: Vec<Sender>, rate: Rate, seed: u64) -> Vec<u64> {
        let (line, mut dice) = (Bucket::default(), Dice::new(seed));
        loop {
            let next = all.iter_mut().min_by_key(|sender| sender.wakes_ns);
            let next = next.expect("somebody sends");
            if next.wakes_ns >= 1_100_000_000 {
                return all.iter().map(|sender| sender.given).collect();
            }
            next.wake(&line, rate, &mut dice);
        }
    }

    proptest! {
        #[test]
        fn who_is_woken_late_has_its_share_all_the_same(
            late_ms in proptest::collection::vec(0_u64..30, 2..6),
            asks in 0_usize..4,
            mbits in prop_oneof![Just(40_u64), Just(400), Just(4_000)],
            seed: u64,
        ) {
            let rate = Rate { bits_per_s: mbits * 1_000_000 };
            let bulk = late_ms.iter().map(|ms| Sender::new(ms * 1_000_000, (u64::MAX, 0)));
            // Beside them answers now and then, of up to a quarter of the line each.
            let part = (bytes_in(20_000_000, rate), 80_000_000);
            let asks = (0..asks).map(|_| Sender::new(0, part));
            let given = given(bulk.chain(asks).collect(), rate, seed);
            let bulk = &given[..late_ms.len()];
            let fair = bulk.iter().sum::<u64>() / bulk.len() as u64;
            for bytes in bulk {
                prop_assert!(bytes.abs_diff(fair) < fair / 5, "{late_ms:?} ms late: {given:?}");
            }
        }
    }

    #[test]
    fn a_quantum_is_a_millisecond_within_bounds() {
        let of = |text: &str| quantum(text.parse().unwrap());
        assert_eq!(of("1kbit"), SEGMENT_BYTES);
        assert_eq!(of("100Mbit"), 12_500);
        assert_eq!(of("10Gbit"), QUANTUM_BYTES_MAX);
    }
}
