//! One direction of a connection: moves bytes from one socket to the other, and obeys its gate and delay.
//!
//! Older bytes always leave first: what could not be written (`tail`), then what is in the pipe,
//! then what waits for its time (`queue`). Only when all of these are empty is the source read
//! straight through, so that a rule may change at any moment and the stream stays whole.

use std::sync::Arc;

use faultbed_common::{proxy_spec::Delay, rules::LinkRule};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::proxy::{
    bucket::Bucket,
    carry::bytes,
    cut::{ALLOWANCE_CHUNKS, ALLOWANCE_NS, Gate},
    delay::{DelayQueue, Dice},
    evidence::Lateness,
    side::Side,
    splice::Pipe,
    sys,
    timers::Alarm,
    worker::Tools,
};

/// Chunks moved before other connections have their turn.
const ROUNDS_MAX: u32 = 16;
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
}

/// What the source has said about its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Live,
    /// From `release_ns` on, the end is passed on: as a FIN, or as a RST.
    Ended {
        reset: bool,
        release_ns: u64,
    },
}

/// One direction.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Flow {
    gate: Gate,
    delay: Option<Delay>,
    #[serde(with = "bytes")]
    tail: Vec<u8>,
    tail_start: usize,
    pipe: Option<Pipe>,
    queue: DelayQueue,
    dice: Dice,
    source: Source,
    done: bool,
    /// What has arrived is passed on, then the stream ends, whatever the source still wants.
    closing: bool,
    full_reads: u8,
    small_trips: u8,
    allowance: u32,
    alarm_ns: u64,
    /// Chunks delayed and not yet in the ledger.
    pub(crate) lateness: Lateness,
}

enum Flushed {
    Empty,
    /// The destination takes nothing now.
    Blocked,
    /// The next chunk is not due.
    Early,
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
            delay: None,
            tail: Vec::new(),
            tail_start: 0,
            pipe: None,
            queue: DelayQueue::default(),
            dice: Dice::new(0),
            source: Source::Live,
            done: false,
            closing: false,
            full_reads: 0,
            small_trips: 0,
            allowance: ALLOWANCE_CHUNKS,
            alarm_ns: 0,
            lateness: Lateness::default(),
        }
    }

    /// Sets whether bytes pass.
    pub(crate) fn set_gate(&mut self, gate: Gate) {
        if gate != self.gate {
            self.allowance = ALLOWANCE_CHUNKS;
            self.alarm_ns = 0;
        }
        self.gate = gate;
    }

    pub(crate) fn gate(&self) -> Gate {
        self.gate
    }

    /// Takes another rule for its bytes; `bucket` is the link's. Without a delay, those that wait are due.
    pub(crate) fn set_rule(&mut self, rule: &LinkRule, seed: u64, _bucket: Option<Arc<Bucket>>) {
        let delay = rule.delay;
        if delay == self.delay {
            return;
        }
        self.delay = delay;
        self.dice = Dice::new(seed);
        self.alarm_ns = 0;
        if delay.is_none() {
            self.queue.release_all();
            if let Source::Ended { release_ns, .. } = &mut self.source {
                *release_ns = 0;
            }
        }
    }

    /// Ends the stream in order once what has arrived is passed on.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Whether the end of the stream was passed on.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes read and not written.
    pub(crate) fn held_bytes(&self) -> u64 {
        let piped = self.pipe.as_ref().map_or(0, Pipe::bytes);
        (self.tail.len() - self.tail_start + piped + self.queue.bytes()) as u64
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
        for _ in 0..ROUNDS_MAX {
            if self.done || self.gate == Gate::Shut {
                return Progress::Idle;
            }
            match self.flush(to, tools) {
                Flushed::Lost => return Progress::DestinationLost,
                Flushed::Empty => {
                    if let Some(progress) = self.end(to, tools) {
                        return progress;
                    }
                }
                // Delayed bytes are taken in although others wait: their time runs from now.
                Flushed::Blocked | Flushed::Early => {
                    if self.delay.is_none() || self.queue.is_full() {
                        return Progress::Idle;
                    }
                }
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

    /// Whether a part of the allowance is used.
    pub(crate) fn has_spent(&self) -> bool {
        self.gate == Gate::Ajar && self.allowance < ALLOWANCE_CHUNKS
    }

    /// Writes what is due.
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
        while let Some(release_ns) = self.queue.next_ns() {
            if release_ns > 0 && release_ns > sys::monotonic_ns() {
                self.wake_at(release_ns, tools);
                return Flushed::Early;
            }
            if !to.writable {
                return Flushed::Blocked;
            }
            match to.write(self.queue.head()) {
                Ok(count) => self.queue.advance(count),
                Err(_) => return Flushed::Lost,
            }
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
        if self.small_trips > SMALL_TRIPS_MAX || self.delay.is_some() {
            self.full_reads = 0;
            self.release(tools);
        }
        None
    }

    fn wake_at(&mut self, at_ns: u64, tools: &mut Tools) {
        if self.alarm_ns != at_ns {
            self.alarm_ns = at_ns;
            tools.wake_at(at_ns, Alarm::Release);
        }
    }

    /// Passes on the end of the stream if it has come; everything before it has been written.
    fn end(&mut self, to: &Side, tools: &mut Tools) -> Option<Progress> {
        let Source::Ended { reset, release_ns } = self.source else { return None };
        if release_ns > 0 && release_ns > sys::monotonic_ns() {
            self.wake_at(release_ns, tools);
            return Some(Progress::Idle);
        }
        if reset {
            return Some(Progress::SourceReset);
        }
        to.finish();
        self.done = true;
        self.release(tools);
        Some(Progress::Done)
    }

    /// Reads once. The error is the destination's; one of the source is its end.
    fn fill(&mut self, from: &mut Side, to: &mut Side, tools: &mut Tools) -> Result<Filled, Errno> {
        if self.source != Source::Live {
            return Ok(Filled::Dry);
        }
        if !from.readable {
            return Ok(self.dry());
        }
        if self.wants_pipe(tools) {
            return Ok(self.fill_pipe(from, tools));
        }
        match from.read(&mut tools.scratch) {
            Ok(0) => Ok(self.ended(false)),
            Ok(count) => {
                let full = count == tools.scratch.len();
                self.full_reads = if full { self.full_reads.saturating_add(1) } else { 0 };
                self.pass(count, to, tools)?;
                Ok(Filled::Some)
            }
            Err(Errno::AGAIN) => Ok(self.dry()),
            Err(_) => Ok(self.ended(true)),
        }
    }

    /// Nothing has arrived: for a stream that is being closed that is its end.
    fn dry(&mut self) -> Filled {
        if self.closing { self.ended(false) } else { Filled::Dry }
    }

    fn ended(&mut self, reset: bool) -> Filled {
        let release_ns = match self.delay {
            Some(delay) => {
                let late_us = self.dice.late_us(delay);
                self.queue.release_ns(sys::monotonic_ns(), late_us)
            }
            None => 0,
        };
        self.source = Source::Ended { reset, release_ns };
        Filled::Ended
    }

    fn wants_pipe(&mut self, tools: &mut Tools) -> bool {
        if self.delay.is_some() || self.gate != Gate::Open {
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
            Ok(0) => self.ended(false),
            Ok(count) => {
                let small = count < SMALL_BYTES;
                self.small_trips = if small { self.small_trips.saturating_add(1) } else { 0 };
                Filled::Some
            }
            Err(Errno::AGAIN) => {
                from.readable = false;
                // Pipes are few: an idle connection has none, and takes one again when it needs it.
                self.release(tools);
                self.dry()
            }
            Err(Errno::INTR) => Filled::Some,
            Err(_) => self.ended(true),
        }
    }

    /// Writes, or queues, the first `count` bytes of the scratch.
    fn pass(&mut self, count: usize, to: &mut Side, tools: &mut Tools) -> Result<(), Errno> {
        let bytes = &tools.scratch[..count];
        if let Some(delay) = self.delay {
            let late_us = self.dice.late_us(delay);
            let now_ns = sys::monotonic_ns();
            let release_ns = self.queue.release_ns(now_ns, late_us);
            self.lateness.count((release_ns - now_ns) / 1_000, clock::boottime_ms());
            self.queue.push(bytes, release_ns);
            return Ok(());
        }
        let written = if to.writable { to.write(bytes)? } else { 0 };
        if written < count {
            self.tail = bytes[written..].to_vec();
            self.tail_start = 0;
        }
        Ok(())
    }
}
