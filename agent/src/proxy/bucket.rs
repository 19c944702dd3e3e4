//! The bandwidth of one link, shared by all connections that carry it, on whichever worker they are.

use std::sync::atomic::{AtomicU64, Ordering};

use faultbed_common::{effect::Rate, proxy_spec::SEGMENT_BYTES};
use serde::{Deserialize, Serialize};

/// The most that takes the line at once.
const QUANTUM_BYTES_MAX: usize = 64 * 1024;
/// How long a quantum takes, where that is neither less than a segment nor more than the most.
const QUANTUM_NS: u64 = 1_000_000;
/// A connection takes the line for so long ahead at most: enough that a late wake-up leaves no gap,
/// and little enough that a connection that comes later need not wait long. The source is not read
/// any further.
pub(crate) const AHEAD_NS: u64 = 50_000_000;

/// A line that sends one byte after the other: it has a moment from which on it is free. No burst is
/// ever saved up, so nothing leaves faster than the rate at the start either (the generic cell rate
/// algorithm, ITU-T I.371, with a tolerance of nothing).
///
/// Connections share it fairly: each takes it for one quantum at a time, and again when its own last
/// quantum is less than [`AHEAD_NS`] away. Of two that send all they can, each has its last one as
/// far ahead as the other, so they take turns.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Bucket {
    /// Nanoseconds of CLOCK_MONOTONIC.
    free_ns: AtomicU64,
}

/// Bytes that take a line of this rate at once.
pub(crate) fn quantum(rate: Rate) -> usize {
    let bits = u128::from(rate.bits_per_s) * u128::from(QUANTUM_NS) / 1_000_000_000;
    usize::try_from(bits / 8).unwrap_or(usize::MAX).clamp(SEGMENT_BYTES, QUANTUM_BYTES_MAX)
}

impl Bucket {
    /// Takes the line for `bytes`; answers when the last of them has left. `now_ns` is of
    /// CLOCK_MONOTONIC.
    pub(crate) fn take(&self, bytes: u64, rate: Rate, now_ns: u64) -> u64 {
        let bits = u128::from(bytes) * 8 * 1_000_000_000;
        let needs_ns = u64::try_from(bits / u128::from(rate.bits_per_s.max(1))).unwrap_or(u64::MAX);
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

    #[test]
    fn a_quantum_is_a_millisecond_within_bounds() {
        let of = |text: &str| quantum(text.parse().unwrap());
        assert_eq!(of("1kbit"), SEGMENT_BYTES);
        assert_eq!(of("100Mbit"), 12_500);
        assert_eq!(of("10Gbit"), QUANTUM_BYTES_MAX);
    }
}
