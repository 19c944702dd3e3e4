//! What the rule of a link does to the bytes of one direction: when which of them leave, and how.
//!
//! Bytes come in from the source or from the jam, meet the effects in the order of a real link
//! (sliced, corrupted, lost, paced, late) and wait in the queue until they are due. Nothing here
//! touches a socket or a clock. A flow without effects on its bytes has no shaper.

use std::{collections::VecDeque, sync::Arc};

use faultbed_common::{
    effect::Ratio,
    proxy_spec::{Endings, Hold, LinkEffect, SEGMENT_BYTES},
    rules::LinkRule,
};

use serde::{Deserialize, Serialize};

use crate::proxy::{
    bucket::{self, Bucket, Share},
    carry::{bytes, maybe_shared},
    delay::{DelayQueue, QUEUE_BYTES_MAX, Times},
    dice::Dice,
    evidence::Tally,
    lossy::{FAST_SEGMENTS, Losses, Sending},
    slicer::Slicer,
};

mod retime;

use retime::{Redelay, Reline, Retime};

/// A round trip of a link without a delay, where one is needed.
const ROUND_TRIP_NS_MIN: u64 = 1_000_000;

/// Chunks that a change of rules meets before it is said to be in force: all that mostly wait. A queue
/// of small pieces holds a hundred thousand, and a worker hundreds of queues.
const RETIMED_AT_ONCE: usize = 256;

/// How much may be read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// At most this many bytes.
    Bytes(usize),
    /// Nothing before this moment of CLOCK_MONOTONIC.
    From(u64),
    /// Nothing before something has left.
    None,
    /// Nothing any more: the limit of bytes is reached.
    Never,
}

/// How far the end of a stream that is closed from here has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Closing {
    #[default]
    No,
    /// What has arrived is still passed on.
    Asked,
    /// So many bytes of it are left.
    Bytes(u64),
}

/// The effects on the bytes of one direction, and the bytes that they hold.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shaper {
    /// Only the parts that are about bytes.
    rule: LinkRule,
    #[serde(with = "maybe_shared")]
    bucket: Option<Arc<Bucket>>,
    dice: Dice,
    losses: Losses,
    slicer: Slicer,
    /// What was read while it may not go on; no effect has met it.
    #[serde(with = "bytes")]
    jam: VecDeque<u8>,
    /// What has met the effects.
    pub(crate) queue: DelayQueue,
    /// What changes of rules have still to do to it.
    #[serde(skip)]
    retime: Option<Retime>,
    #[serde(flatten)]
    share: Share,
    /// Bytes counted against the limit.
    passed: u64,
    /// When the end of the stream is due, once it has come.
    end_ns: u64,
    /// Until when the end is kept back although it was due.
    slow_ns: Option<u64>,
    pub(crate) closing: Closing,
    /// The stream ends here because of its limit.
    pub(crate) is_limited: bool,
    /// When the next alarm rings.
    pub(crate) alarm_ns: u64,
    pub(crate) tally: Tally,
}

/// The parts of a rule that are about the bytes of a connection.
fn of_bytes(rule: &LinkRule) -> LinkRule {
    let Endings { limit_bytes, slow_close_us, .. } = rule.endings;
    LinkEffect {
        cut: None,
        dials: None,
        accept_delay_us: 0,
        endings: Endings { limit_bytes, slow_close_us, ..Endings::default() },
        ..rule.clone()
    }
}

/// Whether a rule does anything to bytes.
pub(crate) fn shapes(rule: &LinkRule) -> bool {
    !of_bytes(rule).is_clear()
}

impl Shaper {
    pub(crate) fn new() -> Self {
        Self {
            rule: LinkRule::default(),
            bucket: None,
            dice: Dice::new(0),
            losses: Losses::default(),
            slicer: Slicer::default(),
            jam: VecDeque::new(),
            queue: DelayQueue::default(),
            retime: None,
            share: Share::default(),
            passed: 0,
            end_ns: 0,
            slow_ns: None,
            closing: Closing::No,
            is_limited: false,
            alarm_ns: 0,
            tally: Tally::default(),
        }
    }

    /// Takes another rule at `now_ns` of CLOCK_MONOTONIC. What waits because of an effect that ends
    /// is due at once, in its order; what waits for a line whose rate changes takes the new one.
    pub(crate) fn set_rule(
        &mut self,
        rule: &LinkRule,
        seed: u64,
        bucket: Option<Arc<Bucket>>,
        now_ns: u64,
    ) {
        let rule = of_bytes(rule);
        let same_line = match (&self.bucket, &bucket) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        if rule == self.rule && (same_line || rule.bandwidth.is_none()) {
            return;
        }
        let old = std::mem::replace(&mut self.rule, rule);
        self.bucket = bucket;
        self.dice = Dice::new(seed);
        self.alarm_ns = 0;
        if old.loss != self.rule.loss {
            self.losses = Losses::new(&self.rule.loss);
        }
        if self.rule.slice != old.slice {
            self.slicer.forget();
        }
        if self.rule.endings.limit_bytes.is_none() {
            self.passed = 0;
        }
        if self.rule.endings.slow_close_us == 0 {
            self.slow_ns = None;
        }
        self.retime(&old, same_line, now_ns);
    }

    /// Begins to go through what waits after a change of rules.
    fn retime(&mut self, old: &LinkRule, same_line: bool, now_ns: u64) {
        let rule = &self.rule;
        let line = (rule.bandwidth != old.bandwidth || !same_line)
            .then(|| Reline { at_ns: now_ns, line: rule.bandwidth.zip(self.bucket.clone()) });
        if line.is_some() {
            self.share = Share::default();
        }
        let retime = Retime {
            has_slices: rule.slice.is_some(),
            has_losses: !rule.loss.is_empty(),
            delay: match rule.delay {
                None => Redelay::Never,
                Some(delay) if rule.delay != old.delay => Redelay::AtMost(delay),
                Some(_) => Redelay::Same,
            },
            line,
        };
        self.retime = Some(match self.retime.take() {
            Some(earlier) => retime.after(earlier),
            None => retime,
        });
        self.queue.begin_change();
        self.settle(RETIMED_AT_ONCE);
        self.end_ns = match self.rule.delay {
            None => 0,
            Some(delay) if self.rule.delay != old.delay => {
                let late_ns = nanoseconds(self.dice.late_us(delay));
                self.end_ns.min(now_ns.saturating_add(late_ns))
            }
            Some(_) => self.end_ns,
        };
    }

    /// Goes on with what changes of rules do to what waits, over at most `most` chunks. Until it says
    /// that all is done, nothing may be read.
    pub(crate) fn settle(&mut self, most: usize) -> bool {
        let Self { queue, retime, dice, share, .. } = self;
        let Some(changes) = retime else { return true };
        let done =
            queue.retime(most, |times, bytes| changes.change(times, bytes as u64, dice, share));
        if done {
            *retime = None;
        }
        done
    }

    /// Whether bytes wait for the end of a fault.
    pub(crate) fn hold(&self) -> Option<Hold> {
        self.rule.hold
    }

    /// Whether the source is read although the destination takes nothing: the time of what comes
    /// runs from now.
    pub(crate) fn reads_ahead(&self) -> bool {
        self.rule.delay.is_some() || !self.rule.loss.is_empty() || self.rule.hold.is_some()
    }

    /// Whether the time of bytes runs from when they arrived, not from when they are read. Not where
    /// they may lie unread for another reason than that this thread was woken late.
    pub(crate) fn counts_from_arrival(&self) -> bool {
        let LinkEffect { delay, bandwidth, slice, hold, .. } = &self.rule;
        delay.is_some()
            && bandwidth.is_none()
            && slice.is_none()
            && hold.is_none()
            && self.jam.is_empty()
    }

    /// Whether nothing is left to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.rule.is_clear() && self.bytes() == 0 && self.closing == Closing::No && !self.is_limited
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.queue.bytes() + self.jam.len()
    }

    /// How much may be read, or taken from the jam.
    pub(crate) fn room(&self, now_ns: u64) -> Room {
        let is_jammed = self.rule.hold == Some(Hold::Jam);
        if self.queue.weight() + self.jam.len() >= QUEUE_BYTES_MAX
            && (is_jammed || self.jam.is_empty())
        {
            return Room::None;
        }
        if is_jammed {
            return Room::Bytes(usize::MAX);
        }
        let (mut from_ns, mut most) = (0, usize::MAX);
        if let Some(limit) = self.rule.endings.limit_bytes {
            let left = limit.saturating_sub(self.passed);
            if left == 0 {
                return Room::Never;
            }
            most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        if let (Some(rate), Some(bucket)) = (self.rule.bandwidth, &self.bucket) {
            from_ns = self.share.turn_ns(bucket, rate);
            most = most.min(bucket::quantum(rate));
        }
        if let Some(slice) = self.rule.slice {
            let (turn_ns, pieces) = self.slicer.may_read(slice);
            from_ns = from_ns.max(turn_ns);
            most = most.min(pieces);
        }
        if from_ns > now_ns { Room::From(from_ns) } else { Room::Bytes(most) }
    }

    /// Takes in bytes of the source. `is_followed` says that there is more where they come from.
    pub(crate) fn take_in(&mut self, bytes: &mut [u8], is_followed: bool, now_ns: u64) {
        if self.rule.hold == Some(Hold::Jam) || !self.jam.is_empty() {
            self.jam.extend(&*bytes);
        } else {
            self.shape(bytes, is_followed, now_ns);
        }
    }

    /// Lets at most `most` bytes out of the jam, by way of `scratch`. Says whether there were any.
    pub(crate) fn unjam(&mut self, most: usize, scratch: &mut [u8], now_ns: u64) -> bool {
        let count = self.jam.len().min(most).min(scratch.len());
        let (front, back) = self.jam.as_slices();
        let first = front.len().min(count);
        scratch[..first].copy_from_slice(&front[..first]);
        scratch[first..count].copy_from_slice(&back[..count - first]);
        self.jam.drain(..count);
        if self.jam.is_empty() {
            self.jam = VecDeque::new();
        }
        self.shape(&mut scratch[..count], !self.jam.is_empty(), now_ns);
        count > 0
    }

    /// Forgets what lies beyond the limit.
    pub(crate) fn end_at_limit(&mut self) {
        self.jam = VecDeque::new();
        self.is_limited = true;
        self.tally.limits += 1;
    }

    pub(crate) fn has_jam(&self) -> bool {
        !self.jam.is_empty()
    }

    fn shape(&mut self, bytes: &mut [u8], is_followed: bool, now_ns: u64) {
        if self.rule.endings.limit_bytes.is_some() {
            self.passed = self.passed.saturating_add(bytes.len() as u64);
        }
        if let Some(ratio) = self.rule.corrupt {
            self.corrupt(bytes, ratio);
        }
        let mut rest = &*bytes;
        while !rest.is_empty() {
            let (length, piece_ns) = match self.rule.slice {
                Some(slice) => self.slicer.cut(slice, rest.len(), now_ns, &mut self.dice),
                None => (rest.len(), 0),
            };
            self.tally.slices += u64::from(length < bytes.len());
            let (piece, after) = rest.split_at(length);
            let times = Times { arrived_ns: now_ns, piece_ns, ..Times::default() };
            self.send(piece, times, if is_followed { usize::MAX } else { after.len() });
            rest = after;
        }
    }

    /// Flips a bit in some of the segments.
    fn corrupt(&mut self, bytes: &mut [u8], ratio: Ratio) {
        for segment in bytes.chunks_mut(SEGMENT_BYTES) {
            if self.dice.meets(ratio) {
                let place = self.dice.place(segment.len());
                segment[place] ^= 1 << self.dice.below(8);
                self.tally.corrupted += 1;
            }
        }
    }

    /// Sends a piece, segment by segment where some may be lost. `after` bytes follow it.
    fn send(&mut self, piece: &[u8], times: Times, after: usize) {
        if self.losses.is_empty() {
            self.pace(piece, times);
            return;
        }
        let base_ns = self.rule.delay.map_or(0, |delay| nanoseconds(delay.base_us));
        let mut sending = Sending {
            at_ns: times.arrived_ns.max(times.piece_ns),
            round_trip_ns: base_ns.saturating_mul(2).max(ROUND_TRIP_NS_MIN),
            is_followed: false,
        };
        // Those that are lost go by themselves, the others together.
        let (mut whole, mut at) = (0, 0);
        for segment in piece.chunks(SEGMENT_BYTES) {
            let end = at + segment.len();
            let behind = (piece.len() - end).saturating_add(after);
            sending.is_followed = behind.div_ceil(SEGMENT_BYTES) >= FAST_SEGMENTS;
            let (lost, lost_ns) = self.losses.send(sending, &mut self.dice);
            if lost > 0 {
                self.tally.lost += u64::from(lost);
                self.pace(&piece[whole..at], times);
                self.pace(segment, Times { lost_ns, ..times });
                whole = end;
            }
            at = end;
        }
        self.pace(&piece[whole..], times);
    }

    /// Takes the line, if there is a bandwidth.
    fn pace(&mut self, bytes: &[u8], times: Times) {
        let line = self.rule.bandwidth.zip(self.bucket.clone());
        let Some((rate, bucket)) = line else {
            self.delay(bytes, times);
            return;
        };
        let length = bucket::quantum(rate);
        for quantum in bytes.chunks(length) {
            let bytes = quantum.len() as u64;
            let line_ns = self.share.take(&bucket, bytes, rate, times.arrived_ns);
            self.tally.paced += bytes;
            self.delay(quantum, Times { line_ns, ..times });
        }
    }

    fn delay(&mut self, bytes: &[u8], mut times: Times) {
        if bytes.is_empty() {
            return;
        }
        if let Some(delay) = self.rule.delay {
            let late_us = self.dice.late_us(delay);
            self.tally.count_late(late_us);
            times.delay_ns = nanoseconds(late_us);
        }
        self.queue.push(bytes, times);
    }

    /// The end of the stream has come.
    pub(crate) fn note_end(&mut self, now_ns: u64) {
        let late_us = self.rule.delay.map_or(0, |delay| self.dice.late_us(delay));
        let delay_ns = nanoseconds(late_us);
        let times = Times { arrived_ns: now_ns, delay_ns, ..Times::default() };
        self.end_ns = self.queue.due_ns(&times);
    }

    /// Until when the end of the stream is kept back, if it is; all bytes before it have left.
    pub(crate) fn keeps_end(&mut self, now_ns: u64) -> Option<u64> {
        if self.end_ns > now_ns {
            return Some(self.end_ns);
        }
        let Endings { slow_close_us, .. } = self.rule.endings;
        // Only what the source did itself is slow.
        if slow_close_us == 0 || self.is_limited || self.closing != Closing::No {
            return None;
        }
        let slow_ns =
            *self.slow_ns.get_or_insert_with(|| now_ns.saturating_add(nanoseconds(slow_close_us)));
        if slow_ns > now_ns {
            return Some(slow_ns);
        }
        self.tally.slow_closes += 1;
        None
    }
}

fn nanoseconds(us: u64) -> u64 {
    us.saturating_mul(1_000)
}

#[cfg(test)]
mod tests;
