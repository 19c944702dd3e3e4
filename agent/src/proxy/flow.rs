//! One direction of a connection: moves bytes from one socket to the other, and obeys its gate.
//!
//! Older bytes always leave first: what could not be written (`tail`), then what is in the pipe,
//! then what the shaper holds. Only when all of these are empty is the source read straight through,
//! so that a rule may change at any moment and the stream stays whole. Where a rule does something
//! to bytes there is a shaper, and they go its way (`shaped`); else it costs one look at an option.

use std::sync::Arc;

use faultbed_common::{proxy_spec::SEGMENT_BYTES, rules::LinkRule};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::proxy::{
    bucket::Bucket,
    carry::bytes,
    cut::{ALLOWANCE_CHUNKS, ALLOWANCE_NS, Gate},
    evidence::Tally,
    shaper::{Closing, Shaper, shapes},
    side::Side,
    splice::Pipe,
    sys,
    timers::Alarm,
    worker::Tools,
};

mod shaped;

/// Chunks moved before other connections have their turn.
const ROUNDS_MAX: u32 = 4;
/// Full reads in a row after which bytes are worth a pipe.
const FULL_READS: u8 = 2;
/// Bytes below which a trip through a pipe was not worth it.
const SMALL_BYTES: usize = 16 * 1024;
/// Small trips in a row after which bytes are read and written again.
const SMALL_TRIPS_MAX: u8 = 8;

/// What a direction needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// An event, an alarm or another rule.
    Idle,
    /// Another turn.
    Again,
    /// Nothing any more: the end of the stream was passed on.
    Done,
    /// The source was reset and all it had sent was passed on.
    SourceReset,
    /// The destination is gone.
    DestinationLost,
    /// The allowance of a one-way cut is used up.
    Spent,
    /// As many bytes have passed as a rule allows, and the end of the stream was passed on: now the
    /// other direction must end too.
    LimitReached,
}

/// What the source has said about its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Live,
    Ended,
    Reset,
}

/// One direction.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Flow {
    gate: Gate,
    #[serde(with = "bytes")]
    tail: Vec<u8>,
    tail_start: usize,
    pipe: Option<Pipe>,
    shaper: Option<Box<Shaper>>,
    source: Source,
    done: bool,
    full_reads: u8,
    small_trips: u8,
    allowance: u32,
}

enum Flushed {
    Empty,
    /// The destination takes nothing now.
    Blocked,
    /// The next chunk is not due.
    Early,
    /// There is more to write, when the others had their turn.
    More,
    Lost,
}

enum Filled {
    Some,
    /// Nothing has arrived.
    Dry,
    /// The source has ended.
    Ended,
}

impl Flow {
    pub(crate) fn new() -> Self {
        Self {
            gate: Gate::Open,
            tail: Vec::new(),
            tail_start: 0,
            pipe: None,
            shaper: None,
            source: Source::Live,
            done: false,
            full_reads: 0,
            small_trips: 0,
            allowance: ALLOWANCE_CHUNKS,
        }
    }

    /// Sets whether bytes pass.
    pub(crate) fn set_gate(&mut self, gate: Gate) {
        if gate != self.gate {
            self.allowance = ALLOWANCE_CHUNKS;
            if let Some(shaper) = &mut self.shaper {
                shaper.alarm_ns = 0;
            }
        }
        self.gate = gate;
    }

    pub(crate) fn gate(&self) -> Gate {
        self.gate
    }

    /// Takes another rule for its bytes; `bucket` is the link's. What waits because of an effect that
    /// the rule no longer has is due at once, in its order.
    pub(crate) fn set_rule(&mut self, rule: &LinkRule, seed: u64, bucket: Option<Arc<Bucket>>) {
        if self.shaper.is_none() && !shapes(rule) {
            return;
        }
        let shaper = self.shaper.get_or_insert_with(|| Box::new(Shaper::new()));
        shaper.set_rule(rule, seed, bucket, sys::monotonic_ns());
    }

    /// Ends the stream in order once what has arrived by now is passed on, whatever the source still
    /// wants.
    pub(crate) fn close(&mut self) {
        let shaper = self.shaper.get_or_insert_with(|| Box::new(Shaper::new()));
        if shaper.closing == Closing::No {
            shaper.closing = Closing::Asked;
        }
    }

    /// Takes what was counted since it was last asked; `None` where nothing counts.
    pub(crate) fn take_tally(&mut self) -> Option<Tally> {
        self.shaper.as_mut().map(|shaper| std::mem::take(&mut shaper.tally))
    }

    /// Whether it will pass on the end of its source by itself, later: until then nobody on the other
    /// side may know of it.
    pub(crate) fn keeps_end(&self) -> bool {
        let is_held = |shaper: &Shaper| shaper.hold().is_some() || self.source != Source::Live;
        self.shaper.as_ref().is_some_and(|shaper| is_held(shaper)) && !self.done
    }

    /// Whether the end of the stream was passed on.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes read and not written.
    pub(crate) fn held_bytes(&self) -> u64 {
        let piped = self.pipe.as_ref().map_or(0, Pipe::bytes);
        let shaped = self.shaper.as_ref().map_or(0, |shaper| shaper.bytes());
        (self.tail.len() - self.tail_start + piped + shaped) as u64
    }

    /// Does at once what changes of rules have still to do.
    pub(crate) fn settle(&mut self) {
        if let Some(shaper) = &mut self.shaper {
            shaper.settle(usize::MAX);
        }
    }

    pub(crate) fn has_pipe(&self) -> bool {
        self.pipe.is_some()
    }

    /// Gives back what it has borrowed, before it is dropped.
    pub(crate) fn release(&mut self, tools: &mut Tools) {
        if let Some(pipe) = self.pipe.take() {
            tools.pipes.give(pipe);
        }
    }

    /// Moves what can be moved now.
    pub(crate) fn pump(&mut self, from: &mut Side, to: &mut Side, tools: &mut Tools) -> Progress {
        if self.shaper.is_some() {
            return self.pump_shaped(from, to, tools);
        }
        for _ in 0..ROUNDS_MAX {
            if self.done || self.gate == Gate::Shut {
                return Progress::Idle;
            }
            match self.flush(to, tools) {
                Flushed::Lost => return Progress::DestinationLost,
                Flushed::Blocked | Flushed::Early => return Progress::Idle,
                Flushed::More => return Progress::Again,
                Flushed::Empty if self.source == Source::Live => {}
                Flushed::Empty => return self.end(to, tools),
            }
            match self.fill(from, to, tools) {
                Err(_) => return Progress::DestinationLost,
                Ok(Filled::Dry) => return Progress::Idle,
                Ok(Filled::Ended) => {}
                Ok(Filled::Some) => {
                    if self.gate == Gate::Ajar && self.spend(tools) {
                        return Progress::Spent;
                    }
                }
            }
        }
        Progress::Again
    }

    /// Counts a chunk against the allowance; says whether it was the last.
    fn spend(&mut self, tools: &mut Tools) -> bool {
        if self.allowance == ALLOWANCE_CHUNKS {
            tools.wake_at(sys::monotonic_ns() + ALLOWANCE_NS, Alarm::Allowance);
        }
        self.allowance = self.allowance.saturating_sub(1);
        self.allowance == 0
    }

    /// How much of `most` bytes is read at once: the allowance counts segments.
    fn bite(&self, most: usize) -> usize {
        if self.gate == Gate::Ajar { most.min(SEGMENT_BYTES) } else { most }
    }

    /// Whether a part of the allowance is used.
    pub(crate) fn has_spent(&self) -> bool {
        self.gate == Gate::Ajar && self.allowance < ALLOWANCE_CHUNKS
    }

    /// Writes what was read before and not by way of a shaper.
    fn flush(&mut self, to: &mut Side, tools: &mut Tools) -> Flushed {
        while self.tail_start < self.tail.len() {
            if !to.writable {
                return Flushed::Blocked;
            }
            match to.write(&self.tail[self.tail_start..]) {
                Ok(count) => self.tail_start += count,
                Err(_) => return Flushed::Lost,
            }
        }
        if self.tail_start > 0 {
            // An idle connection keeps no memory.
            self.tail = Vec::new();
            self.tail_start = 0;
        }
        if let Some(flushed) = self.flush_pipe(to, tools) {
            return flushed;
        }
        Flushed::Empty
    }

    /// Empties the pipe; `None` where it is empty.
    fn flush_pipe(&mut self, to: &mut Side, tools: &mut Tools) -> Option<Flushed> {
        let pipe = self.pipe.as_mut()?;
        while pipe.bytes() > 0 {
            if !to.writable {
                return Some(Flushed::Blocked);
            }
            let wanted = pipe.bytes();
            let moved = pipe.drain(&to.fd);
            if to.count_written(moved, wanted).is_err() {
                return Some(Flushed::Lost);
            }
        }
        if self.small_trips > SMALL_TRIPS_MAX || self.shaper.is_some() {
            self.full_reads = 0;
            self.release(tools);
        }
        None
    }

    /// Passes on the end of the stream, which has come; everything before it has been written.
    fn end(&mut self, to: &Side, tools: &mut Tools) -> Progress {
        if self.source == Source::Reset {
            return Progress::SourceReset;
        }
        to.finish();
        self.done = true;
        self.release(tools);
        Progress::Done
    }

    /// Reads once. The error is the destination's; one of the source is its end.
    fn fill(&mut self, from: &mut Side, to: &mut Side, tools: &mut Tools) -> Result<Filled, Errno> {
        if !from.readable {
            return Ok(Filled::Dry);
        }
        if self.wants_pipe(tools) {
            return Ok(self.fill_pipe(from, tools));
        }
        let most = self.bite(tools.scratch.len());
        match from.read(&mut tools.scratch[..most]) {
            // A write to a socket that was reset may have taken the error before this read.
            Ok(0) => Ok(self.ended(from.failed)),
            Ok(count) => {
                let full = count == tools.scratch.len();
                self.full_reads = if full { self.full_reads.saturating_add(1) } else { 0 };
                self.pass(count, to, tools)?;
                Ok(Filled::Some)
            }
            Err(Errno::AGAIN) => Ok(Filled::Dry),
            Err(_) => Ok(self.ended(true)),
        }
    }

    fn ended(&mut self, reset: bool) -> Filled {
        self.source = if reset { Source::Reset } else { Source::Ended };
        Filled::Ended
    }

    fn wants_pipe(&mut self, tools: &mut Tools) -> bool {
        if self.gate != Gate::Open {
            return false;
        }
        if self.pipe.is_none() && self.full_reads >= FULL_READS {
            self.small_trips = 0;
            self.pipe = tools.pipes.take();
        }
        self.pipe.is_some()
    }

    /// Moves what has arrived into the pipe, which is empty: only then is EAGAIN about the source.
    fn fill_pipe(&mut self, from: &mut Side, tools: &mut Tools) -> Filled {
        let Some(pipe) = self.pipe.as_mut() else { return Filled::Dry };
        match pipe.fill(&from.fd) {
            Ok(0) => self.ended(from.failed),
            Ok(count) => {
                let small = count < SMALL_BYTES;
                self.small_trips = if small { self.small_trips.saturating_add(1) } else { 0 };
                Filled::Some
            }
            Err(Errno::AGAIN) => {
                from.readable = false;
                // Pipes are few: an idle connection has none, and takes one again when it needs it.
                self.release(tools);
                Filled::Dry
            }
            Err(Errno::INTR) => Filled::Some,
            Err(_) => self.ended(true),
        }
    }

    /// Writes, or keeps, the first `count` bytes of the scratch.
    fn pass(&mut self, count: usize, to: &mut Side, tools: &mut Tools) -> Result<(), Errno> {
        let bytes = &tools.scratch[..count];
        let written = if to.writable { to.write(bytes)? } else { 0 };
        if written < count {
            self.tail = bytes[written..].to_vec();
            self.tail_start = 0;
        }
        Ok(())
    }
}
