//! One worker's alarms: a heap of moments and one timerfd that is armed for the earliest.

use std::{cmp::Reverse, collections::BinaryHeap, io, os::fd::OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use serde::{Deserialize, Serialize};

use crate::proxy::worker::Key;

/// Alarms that keep their place when most of a burst of them has rung.
const PLACES_KEPT: usize = 256;

/// Why a connection is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Alarm {
    /// The node behind the listener has not answered.
    Dial,
    /// Nobody could say who dialled.
    Origin,
    /// A delayed chunk is due.
    Release,
    /// The allowance of a one-way cut is over.
    Allowance,
    /// Some time has passed since a heal.
    Settle,
    /// A fault ends the connection.
    End,
    /// It has been asked to end in order for long enough.
    Closing,
    /// An accepted connection has stood still for long enough.
    Accept,
    /// A burst of loss begins or ends.
    Burst,
}

/// The alarms of one worker, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug)]
pub(crate) struct Timers {
    fd: OwnedFd,
    heap: BinaryHeap<Reverse<(u64, Key, Alarm)>>,
    armed_ns: u64,
}

impl Timers {
    /// # Errors
    /// Where there is no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { fd, heap: BinaryHeap::new(), armed_ns: u64::MAX })
    }

    /// The descriptor that becomes readable when an alarm is due.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Sets an alarm. Alarms are never taken back: the one who is woken looks whether it matters.
    pub(crate) fn set(&mut self, at_ns: u64, key: Key, alarm: Alarm) {
        self.heap.push(Reverse((at_ns, key, alarm)));
        self.arm();
    }

    /// Every alarm that is set, in no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u64, Key, Alarm)> {
        self.heap.iter().map(|Reverse(alarm)| *alarm)
    }

    /// The next alarm that is due, if one is.
    pub(crate) fn next_due(&mut self, now_ns: u64) -> Option<(Key, Alarm)> {
        let Reverse((at_ns, _, _)) = self.heap.peek()?;
        if *at_ns > now_ns {
            return None;
        }
        let rings = self.heap.pop().map(|Reverse((_, key, alarm))| (key, alarm));
        // Each heal sets alarms for some seconds: what a thousand of them took is given back.
        if self.heap.capacity() > PLACES_KEPT && self.heap.len() < self.heap.capacity() / 4 {
            self.heap.shrink_to(self.heap.len() * 2);
        }
        rings
    }

    /// Arms the timer for the earliest alarm; needed after it has fired.
    pub(crate) fn rearm(&mut self) {
        self.armed_ns = u64::MAX;
        self.arm();
    }

    fn arm(&mut self) {
        let Some(Reverse((at_ns, _, _))) = self.heap.peek() else { return };
        if *at_ns >= self.armed_ns {
            return;
        }
        self.armed_ns = *at_ns;
        let result = timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &moment(self.armed_ns));
        debug_assert!(result.is_ok(), "arm a timer for a moment that is representable");
    }
}

/// A single shot at a moment of the timer's clock. Moment 0 would disarm it, so it is 1 instead.
pub(crate) fn moment(at_ns: u64) -> Itimerspec {
    let at_ns = at_ns.max(1);
    let seconds = i64::try_from(at_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let nanoseconds = i64::try_from(at_ns % 1_000_000_000).unwrap_or(0);
    Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    }
}
