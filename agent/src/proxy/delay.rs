//! Makes bytes late: a queue of chunks with the reasons why each is late, pipelined and in order.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

use crate::proxy::carry::bytes;

/// Bytes that one direction of one connection holds back at most; then its source is not read.
pub(crate) const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a chunk costs besides its bytes, so that many small ones are bounded too.
const CHUNK_OVERHEAD_BYTES: usize = 96;
/// An empty queue keeps no more room than this many chunks need.
const CHUNKS_KEPT_MAX: usize = 32;

/// Why a chunk is late. Moments are of CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Times {
    /// When it arrived.
    pub(crate) arrived_ns: u64,
    /// Slices: when its turn among the pieces is; 0 without.
    pub(crate) piece_ns: u64,
    /// Bandwidth: when its last bit has left the line; 0 without.
    pub(crate) line_ns: u64,
    /// Loss: how long it took to send it again.
    pub(crate) lost_ns: u64,
    /// Delay: how long it travels.
    pub(crate) delay_ns: u64,
}

impl Times {
    fn due_ns(&self) -> u64 {
        let leaves_ns = self.arrived_ns.max(self.piece_ns).max(self.line_ns);
        leaves_ns.saturating_add(self.lost_ns).saturating_add(self.delay_ns)
    }
}

/// Chunks that wait for their moment.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct DelayQueue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    weight: usize,
    /// Of the last chunk; while a change is under way, of the last one that has met it.
    last_due_ns: u64,
    /// How many chunks a change that is under way has met.
    #[serde(skip)]
    met: Option<usize>,
}

/// Bytes that leave in one write, if the socket takes them.
#[derive(Debug, Serialize, Deserialize)]
struct Chunk {
    due_ns: u64,
    times: Times,
    #[serde(with = "bytes")]
    bytes: Box<[u8]>,
    start: usize,
}

impl DelayQueue {
    /// Bytes waiting.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What they cost.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    /// When something that has these times is due: never before what came before it, since a stream
    /// has an order.
    pub(crate) fn due_ns(&self, times: &Times) -> u64 {
        self.last_due_ns.max(times.due_ns())
    }

    /// Adds a chunk.
    pub(crate) fn push(&mut self, bytes: &[u8], times: Times) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        self.weight += bytes.len() + CHUNK_OVERHEAD_BYTES;
        self.last_due_ns = self.due_ns(&times);
        let due_ns = self.last_due_ns;
        self.chunks.push_back(Chunk { due_ns, times, bytes: bytes.into(), start: 0 });
    }

    /// When the first chunk is due.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.chunks.front().map(|chunk| chunk.due_ns)
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
        if chunk.start < chunk.bytes.len() {
            return;
        }
        self.weight -= chunk.bytes.len() + CHUNK_OVERHEAD_BYTES;
        self.chunks.pop_front();
        self.met = self.met.map(|met| met.saturating_sub(1));
        if self.chunks.is_empty() && self.chunks.capacity() > CHUNKS_KEPT_MAX {
            // An idle connection keeps no memory.
            self.chunks = VecDeque::new();
        }
    }

    /// Begins, from the first chunk, to change why chunks are late; [`Self::retime`] does it. Until it
    /// is done nothing may be pushed, and nothing may be taken that has not met the change.
    pub(crate) fn begin_change(&mut self) {
        self.met = Some(0);
        self.last_due_ns = 0;
    }

    /// Goes on with the change, over at most `most` chunks: `change` gets the times of each and how
    /// many bytes of it are left. Says whether it is done.
    pub(crate) fn retime(
        &mut self,
        most: usize,
        mut change: impl FnMut(&mut Times, usize),
    ) -> bool {
        let Some(first) = self.met else { return true };
        let end = self.chunks.len().min(first.saturating_add(most));
        for chunk in self.chunks.range_mut(first..end) {
            change(&mut chunk.times, chunk.bytes.len() - chunk.start);
            self.last_due_ns = self.last_due_ns.max(chunk.times.due_ns());
            chunk.due_ns = self.last_due_ns;
        }
        self.met = Some(end).filter(|met| *met < self.chunks.len());
        self.met.is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times() -> impl Strategy<Value = Times> {
        let ns = 0_u64..10_000;
        (ns.clone(), ns.clone(), ns.clone(), ns.clone(), ns).prop_map(
            |(arrived_ns, piece_ns, line_ns, lost_ns, delay_ns)| Times {
                arrived_ns,
                piece_ns,
                line_ns,
                lost_ns,
                delay_ns,
            },
        )
    }

    fn moments(queue: &mut DelayQueue) -> Vec<u64> {
        let mut all = Vec::new();
        while let Some(ns) = queue.next_ns() {
            all.push(ns);
            queue.advance(queue.head().len());
        }
        all
    }

    proptest! {
        #[test]
        fn chunks_leave_in_order_and_never_before_their_time(all in proptest::collection::vec(times(), 1..30)) {
            let mut queue = DelayQueue::default();
            all.iter().for_each(|times| queue.push(b"x", *times));
            let due = moments(&mut queue);
            prop_assert!(due.windows(2).all(|pair| pair[0] <= pair[1]));
            for (times, due_ns) in all.iter().zip(due) {
                prop_assert!(due_ns >= times.arrived_ns + times.delay_ns + times.lost_ns);
                prop_assert!(due_ns >= times.line_ns.max(times.piece_ns) + times.delay_ns);
            }
        }

        #[test]
        fn an_effect_that_ends_leaves_no_trace(all in proptest::collection::vec(times(), 1..30)) {
            let (mut queue, mut never) = (DelayQueue::default(), DelayQueue::default());
            for times in all {
                queue.push(b"x", times);
                never.push(b"x", Times { delay_ns: 0, lost_ns: 0, ..times });
            }
            queue.begin_change();
            queue.retime(usize::MAX, |times, _| (times.delay_ns, times.lost_ns) = (0, 0));
            prop_assert_eq!(moments(&mut queue), moments(&mut never));
        }

        #[test]
        fn a_change_in_steps_is_as_one_at_once(
            all in proptest::collection::vec(times(), 1..30),
            steps in proptest::collection::vec((1_usize..9, 0_usize..3), 0..12),
        ) {
            let (mut at_once, mut in_steps) = (DelayQueue::default(), DelayQueue::default());
            for times in all {
                at_once.push(b"x", times);
                in_steps.push(b"x", times);
            }
            let change = |times: &mut Times, _| times.delay_ns = times.delay_ns * 3 % 9_973;
            at_once.begin_change();
            prop_assert!(at_once.retime(usize::MAX, change));
            in_steps.begin_change();
            let mut left = Vec::new();
            for (most, take) in steps {
                if in_steps.retime(most, change) {
                    break;
                }
                // What has met the change may leave meanwhile.
                for _ in 0..take.min(in_steps.met.unwrap_or(0)) {
                    left.extend(in_steps.next_ns());
                    in_steps.advance(1);
                }
            }
            prop_assert!(in_steps.retime(usize::MAX, change));
            prop_assert_eq!(at_once.last_due_ns, in_steps.last_due_ns);
            left.extend(moments(&mut in_steps));
            prop_assert_eq!(moments(&mut at_once), left);
        }

        #[test]
        fn what_goes_in_comes_out_whole(parts in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..40), 0..20), step in 1_usize..30) {
            let mut queue = DelayQueue::default();
            for part in &parts {
                queue.push(part, Times::default());
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
}
