//! The way of bytes through a shaper: read when it has room, written when they are due.

use faultbed_common::proxy_spec::Hold;
use rustix::io::Errno;

use super::{Filled, Flow, Flushed, Progress, ROUNDS_MAX, Source};
use crate::clock;
use crate::proxy::{
    cut::Gate,
    shaper::{Closing, Room, Shaper},
    side::Side,
    sys,
    timers::Alarm,
    worker::Tools,
};

/// Reads of what a source sends beyond its limit, so that it meets an orderly end and no reset.
const DISCARDS_MAX: u32 = 64;
/// Chunks written before other connections, and newer rules, have their turn: a queue of small pieces
/// holds a hundred thousand, each with a write of its own.
const WRITES_MAX: u32 = 64;
/// Chunks that a change of rules meets before other connections, and newer rules, have their turn.
const RETIMED_MAX: usize = 4096;

impl Flow {
    /// Moves what can be moved now, as the rule says.
    pub(super) fn pump_shaped(
        &mut self,
        from: &mut Side,
        to: &mut Side,
        tools: &mut Tools,
    ) -> Progress {
        if self.shaper.as_mut().is_some_and(|shaper| !shaper.settle(RETIMED_MAX)) {
            return self.pump_settling(to, tools);
        }
        for _ in 0..ROUNDS_MAX {
            if self.done || self.gate == Gate::Shut {
                return Progress::Idle;
            }
            let now_ns = sys::monotonic_ns();
            let flushed = match self.shaper.as_ref().and_then(|shaper| shaper.hold()) {
                Some(Hold::Stall) => return Progress::Idle,
                Some(Hold::Jam) => Flushed::Early,
                None => self.flush_shaped(to, tools, now_ns),
            };
            let Some(shaper) = self.shaper.as_mut() else { return Progress::Again };
            let more = matches!(flushed, Flushed::More);
            match flushed {
                Flushed::Lost => return Progress::DestinationLost,
                Flushed::Empty if shaper.has_jam() => {}
                Flushed::Empty if self.source != Source::Live => {
                    return self.end_shaped(from, to, tools, now_ns);
                }
                Flushed::Empty if shaper.is_idle() => {
                    self.shaper = None;
                    return Progress::Again;
                }
                Flushed::Blocked if !shaper.reads_ahead() => return Progress::Idle,
                // Else the queue would grow faster than it is written.
                Flushed::More if !shaper.reads_ahead() => return Progress::Again,
                Flushed::Empty | Flushed::Blocked | Flushed::Early | Flushed::More => {}
            }
            match self.fill_shaped(from, tools, now_ns) {
                Filled::Dry if !more => return Progress::Idle,
                Filled::Dry => {}
                Filled::Ended => {}
                Filled::Some => {
                    if self.gate == Gate::Ajar && self.spend(tools) {
                        return Progress::Spent;
                    }
                }
            }
            if more {
                break;
            }
        }
        Progress::Again
    }

    /// Lets out what has met a change of rules already while the rest has not: rules that change all
    /// the time must not stop a stream.
    fn pump_settling(&mut self, to: &mut Side, tools: &mut Tools) -> Progress {
        let is_held = self.shaper.as_ref().is_some_and(|shaper| shaper.hold().is_some());
        if self.done || is_held || self.gate == Gate::Shut {
            return Progress::Again;
        }
        match self.flush_shaped(to, tools, sys::monotonic_ns()) {
            Flushed::Lost => Progress::DestinationLost,
            Flushed::Empty | Flushed::Blocked | Flushed::Early | Flushed::More => Progress::Again,
        }
    }

    /// Writes what was read before there was a shaper, then what is due.
    fn flush_shaped(&mut self, to: &mut Side, tools: &mut Tools, now_ns: u64) -> Flushed {
        let flushed = self.flush(to, tools);
        let Some(shaper) = self.shaper.as_mut().filter(|_| matches!(flushed, Flushed::Empty))
        else {
            return flushed;
        };
        let mut writes = 0;
        while let Some(due_ns) = shaper.queue.next_ns() {
            if due_ns > now_ns {
                wake_at(shaper, due_ns, now_ns, tools);
                return Flushed::Early;
            }
            if !to.writable {
                return Flushed::Blocked;
            }
            if writes == WRITES_MAX {
                return Flushed::More;
            }
            writes += 1;
            // Each chunk has a write of its own, so that pieces can arrive as pieces.
            match to.write(shaper.queue.head()) {
                Ok(count) => shaper.queue.advance(count),
                Err(_) => return Flushed::Lost,
            }
        }
        Flushed::Empty
    }

    /// Reads once, or lets something out of the jam.
    fn fill_shaped(&mut self, from: &mut Side, tools: &mut Tools, now_ns: u64) -> Filled {
        let scratch = self.bite(tools.scratch.len());
        let Some(shaper) = self.shaper.as_mut() else { return Filled::Dry };
        let mut most = match shaper.room(now_ns) {
            Room::Bytes(most) => most.min(scratch),
            Room::None => return Filled::Dry,
            Room::From(from_ns) => {
                wake_at(shaper, from_ns, now_ns, tools);
                return Filled::Dry;
            }
            Room::Never if self.source != Source::Live && !shaper.has_jam() => return Filled::Dry,
            Room::Never => {
                shaper.end_at_limit();
                shaper.tally.note(clock::boottime_ms());
                return self.ended_shaped(Source::Ended, now_ns);
            }
        };
        if shaper.has_jam() && shaper.hold().is_none() {
            shaper.unjam(most, &mut tools.scratch, now_ns);
            shaper.tally.note(clock::boottime_ms());
            return Filled::Some;
        }
        if self.source != Source::Live {
            return Filled::Dry;
        }
        if shaper.closing == Closing::Asked {
            shaper.closing = Closing::Bytes(from.unread_bytes());
        }
        match shaper.closing {
            Closing::No | Closing::Asked => {}
            Closing::Bytes(0) => return self.ended_shaped(Source::Ended, now_ns),
            Closing::Bytes(left) => most = most.min(usize::try_from(left).unwrap_or(usize::MAX)),
        }
        if !from.readable {
            return self.dry_shaped(now_ns);
        }
        let into = &mut tools.scratch[..most];
        let read = if shaper.counts_from_arrival() {
            from.read_aged(into)
        } else {
            from.read(into).map(|count| (count, None))
        };
        match read {
            // A write to a socket that was reset may have taken the error before this read.
            Ok((0, _)) if from.failed => self.ended_shaped(Source::Reset, now_ns),
            Ok((0, _)) => self.ended_shaped(Source::Ended, now_ns),
            Ok((count, age)) => {
                let arrived = |age_ns| sys::monotonic_ns().saturating_sub(age_ns);
                let bytes = &mut tools.scratch[..count];
                shaper.take_in(bytes, count == most, age.map_or(now_ns, arrived));
                shaper.tally.note(clock::boottime_ms());
                if let Closing::Bytes(left) = &mut shaper.closing {
                    *left = left.saturating_sub(count as u64);
                }
                Filled::Some
            }
            Err(Errno::AGAIN) => self.dry_shaped(now_ns),
            Err(_) => self.ended_shaped(Source::Reset, now_ns),
        }
    }

    /// Nothing has arrived: for a stream that is being closed that is its end.
    fn dry_shaped(&mut self, now_ns: u64) -> Filled {
        let closing = self.shaper.as_ref().is_some_and(|s| s.closing != Closing::No);
        if closing { self.ended_shaped(Source::Ended, now_ns) } else { Filled::Dry }
    }

    fn ended_shaped(&mut self, source: Source, now_ns: u64) -> Filled {
        if let Some(shaper) = self.shaper.as_mut() {
            shaper.note_end(now_ns);
        }
        self.source = source;
        Filled::Ended
    }

    /// Passes on the end of the stream when its time has come; everything before it has been written.
    fn end_shaped(
        &mut self,
        from: &mut Side,
        to: &Side,
        tools: &mut Tools,
        now_ns: u64,
    ) -> Progress {
        let Some(shaper) = self.shaper.as_mut() else { return Progress::Again };
        if let Some(end_ns) = shaper.keeps_end(now_ns) {
            wake_at(shaper, end_ns, now_ns, tools);
            return Progress::Idle;
        }
        shaper.tally.note(clock::boottime_ms());
        let is_limited = shaper.is_limited;
        let progress = self.end(to, tools);
        if !is_limited {
            return progress;
        }
        // The kernel answers with a reset where a socket is closed that was not read to its end.
        let mut discards = 0;
        while discards < DISCARDS_MAX && from.read(&mut tools.scratch).is_ok_and(|count| count > 0)
        {
            discards += 1;
        }
        Progress::LimitReached
    }
}

/// Looks at the connection again at a moment, unless it will be looked at before.
fn wake_at(shaper: &mut Shaper, at_ns: u64, now_ns: u64, tools: &mut Tools) {
    if shaper.alarm_ns <= now_ns || at_ns < shaper.alarm_ns {
        shaper.alarm_ns = at_ns;
        tools.wake_at(at_ns, Alarm::Release);
    }
}
