//! Makes bytes late: a queue of chunks with release times, pipelined and in order.

use std::collections::VecDeque;

use faultbed_common::proxy_spec::Delay;
use serde::{Deserialize, Serialize};

use crate::proxy::carry::bytes;

/// Bytes that one direction of one connection holds back at most; then its source is not read.
pub(crate) const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a chunk costs besides its bytes, so that many small ones are bounded too.
const CHUNK_OVERHEAD_BYTES: usize = 64;

/// Chunks that wait for their moment.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct DelayQueue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    weight: usize,
    last_release_ns: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Chunk {
    release_ns: u64,
    #[serde(with = "bytes")]
    bytes: Vec<u8>,
    start: usize,
}

impl DelayQueue {
    /// Bytes waiting.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the source must not be read now.
    pub(crate) fn is_full(&self) -> bool {
        self.weight >= QUEUE_BYTES_MAX
    }

    /// The release time of something that comes now and is `late_us` late: never before what came
    /// before it, since a stream has an order.
    pub(crate) fn release_ns(&mut self, now_ns: u64, late_us: u64) -> u64 {
        let wished = now_ns.saturating_add(late_us.saturating_mul(1_000));
        self.last_release_ns = self.last_release_ns.max(wished);
        self.last_release_ns
    }

    /// Adds a chunk; `release_ns` is of [`Self::release_ns`].
    pub(crate) fn push(&mut self, bytes: &[u8], release_ns: u64) {
        self.bytes += bytes.len();
        self.weight += bytes.len() + CHUNK_OVERHEAD_BYTES;
        self.chunks.push_back(Chunk { release_ns, bytes: bytes.to_vec(), start: 0 });
    }

    /// When the first chunk is due.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.chunks.front().map(|chunk| chunk.release_ns)
    }

    /// The bytes of the first chunk.
    pub(crate) fn head(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |chunk| &chunk.bytes[chunk.start..])
    }

    /// Takes `count` bytes off the first chunk.
    pub(crate) fn advance(&mut self, count: usize) {
        let Some(chunk) = self.chunks.front_mut() else { return };
        chunk.start += count;
        self.bytes -= count;
        if chunk.start == chunk.bytes.len() {
            self.weight -= chunk.bytes.len() + CHUNK_OVERHEAD_BYTES;
            self.chunks.pop_front();
        }
    }

    /// The delay is over: everything is due, in its order.
    pub(crate) fn release_all(&mut self) {
        for chunk in &mut self.chunks {
            chunk.release_ns = 0;
        }
        self.last_release_ns = 0;
    }
}

/// A sequence of throws that depends on nothing but its seed (splitmix64).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Dice {
    state: u64,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn throw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// How late the next chunk is, in microseconds: the base, and uniformly up to the jitter more or
    /// less, but never early.
    pub(crate) fn late_us(&mut self, delay: Delay) -> u64 {
        let Delay { base_us, jitter_us, .. } = delay;
        if jitter_us == 0 {
            return base_us;
        }
        let width = u128::from(jitter_us) * 2 + 1;
        let drawn = (u128::from(self.throw()) * width) >> 64;
        let late = (u128::from(base_us) + drawn).saturating_sub(u128::from(jitter_us));
        u64::try_from(late).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_leave_in_order_whatever_the_dice_say(
            seed: u64,
            base_us in 0_u64..100_000,
            jitter_us in 0_u64..100_000,
            gaps in proptest::collection::vec(0_u64..1_000_000, 1..50),
        ) {
            let (mut queue, mut dice, mut now_ns) = (DelayQueue::default(), Dice::new(seed), 0);
            let mut last_ns = 0;
            for gap in gaps {
                now_ns += gap;
                let late_us = dice.late_us(Delay { base_us, jitter_us, ..Delay::default() });
                prop_assert!(late_us <= base_us + jitter_us);
                prop_assert!(late_us >= base_us.saturating_sub(jitter_us));
                let release_ns = queue.release_ns(now_ns, late_us);
                prop_assert!(release_ns >= last_ns && release_ns >= now_ns);
                last_ns = release_ns;
            }
        }

        #[test]
        fn what_goes_in_comes_out_whole(parts in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 1..40), 0..20), step in 1_usize..30) {
            let mut queue = DelayQueue::default();
            for part in &parts {
                queue.push(part, 7);
            }
            let mut out = Vec::new();
            while queue.next_ns().is_some() {
                let count = queue.head().len().min(step);
                out.extend_from_slice(&queue.head()[..count]);
                queue.advance(count);
            }
            prop_assert_eq!(out, parts.concat());
            prop_assert_eq!((queue.bytes, queue.weight), (0, 0));
        }
    }

    #[test]
    fn the_same_seed_throws_the_same_dice() {
        let delay = Delay { base_us: 1_000, jitter_us: 500, ..Delay::default() };
        let draw = |seed| -> Vec<u64> {
            let mut dice = Dice::new(seed);
            (0..20).map(|_| dice.late_us(delay)).collect()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(3).windows(2).any(|pair| pair[0] != pair[1]), "redrawn for each chunk");
    }
}
