//! How exactly bytes are late, next to a bare timer, and what still flows meanwhile.

use std::{fs, io::Write as _, thread, time::Duration};

use faultbed_common::proxy_spec::{Delay, LinkEffect};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::{Rig, rig::link};
use crate::bench::{
    load::{
        Mode,
        client::{Flood, Route},
        monotonic_ns,
        server::Took,
        socket::Congestion,
    },
    table::{Bound, Row, at},
};

/// Injected delays, in microseconds.
const DELAYS_US: [u64; 6] = [500, 1_000, 5_000, 20_000, 100_000, 200_000];
/// Messages and timers under way at the same time: one for so much of the delay, within limits, so
/// that a 99th percentile of long delays is of as many samples as that of short ones.
const SLEEPER_EACH_US: u64 = 5_000;
const SLEEPERS_MIN: u64 = 4;
/// How often each of the two is sampled for one delay, in turn, and how long.
const TURNS: usize = 5;
const SAMPLED: Duration = Duration::from_millis(1_000);
/// At most so many samples of one sleeper in that time.
const SAMPLES_MAX: u64 = 200;
/// The required lateness: the median in microseconds, and the 99th percentile above a bare timer's.
const P50_US: f64 = 150.0;
const P99_US: f64 = 100.0;
/// The delay under which bulk is measured, and for how long.
const BULK_DELAY: Duration = Duration::from_millis(100);
const BULK_FIRST: Duration = Duration::from_secs(1);
const BULK_WINDOW: Duration = Duration::from_secs(2);

/// The lateness of messages, and of timers for the same time.
///
/// A message is late by what passes between the sender's write and its arrival in the receiver's
/// kernel, less the delay. A bare timer's line has one thread that must be woken, the one whose time it
/// is; so must ours have no other: that the receiver's thread is woken once more before it can read is
/// its own affair, and on a busy machine it is the largest part. What it reads is printed beside,
/// as "read", without a bound.
pub(crate) fn exactness() -> anyhow::Result<Vec<Row>> {
    let mut rig = Rig::start(1, 1, 1)?;
    let route = rig.route(1, 1);
    let mut rows = Vec::new();
    for delay_us in DELAYS_US {
        let effect = LinkEffect {
            delay: Some(Delay { base_us: delay_us, ..Delay::default() }),
            ..LinkEffect::default()
        };
        rig.set(Some(&effect), &[link(1, 1)?])?;
        let mut late = Lateness::default();
        for _ in 0..TURNS {
            let took = messages(&rig, &route, delay_us)?;
            let timers = bare_timers(delay_us)?;
            anyhow::ensure!(!took.is_empty() && !timers.is_empty(), "nothing came");
            late.add(delay_us, &took, timers);
        }
        rows.extend(late.rows(Duration::from_micros(delay_us).as_secs_f64() * 1e3));
    }
    Ok(rows)
}

/// Of each turn a median and a 99th percentile, in microseconds: a moment at which the machine stood
/// still is in one turn, of one of the two.
#[derive(Debug, Default)]
struct Lateness {
    arrived: [Vec<f64>; 2],
    read: [Vec<f64>; 2],
    timers: [Vec<f64>; 2],
}

impl Lateness {
    fn add(&mut self, delay_us: u64, took: &[Took], timers: Vec<f64>) {
        let late = |of: fn(&Took) -> u64| {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
            let us = |took: &Took| (of(took) as f64 - (delay_us * 1_000) as f64) / 1e3;
            took.iter().map(us).collect()
        };
        let both = |into: &mut [Vec<f64>; 2], mut late: Vec<f64>| {
            late.sort_by(f64::total_cmp);
            into[0].push(at(&late, 0.5));
            into[1].push(at(&late, 0.99));
        };
        both(&mut self.arrived, late(|took| took.arrived_ns));
        both(&mut self.read, late(|took| took.read_ns));
        both(&mut self.timers, timers);
    }

    /// The median of the turns is what is held to a bound.
    fn rows(self, delay_ms: f64) -> [Row; 5] {
        let row = |percent: u8, target: &str, turns: Vec<f64>| {
            Row::new(format!("lateness at {delay_ms} ms, p{percent}"), target, "us", turns)
        };
        let Self { arrived: [p50, p99], read: [_, read_p99], timers: [timer_p50, timer_p99] } =
            self;
        let bare = row(99, "timerfd", timer_p99);
        [
            row(50, "faultbed", p50).bound(Bound::AtMost(P50_US)),
            row(99, "faultbed", p99).bound(Bound::AtMost(bare.at(0.5) + P99_US)),
            row(99, "read", read_p99),
            row(50, "timerfd", timer_p50),
            bare,
        ]
    }
}

fn sleepers(delay_us: u64) -> u64 {
    (delay_us / SLEEPER_EACH_US).max(SLEEPERS_MIN)
}

fn samples(delay_us: u64) -> u64 {
    (u64::try_from(SAMPLED.as_micros()).unwrap_or(0) / delay_us).clamp(1, SAMPLES_MAX)
}

/// Microseconds that come on top of a delay, a little different each time, so that sleepers do not
/// fall into step.
fn unrest_us(sleeper: u64, turn: u64) -> u64 {
    (sleeper * 131 + turn * 197) % 499
}

/// How long messages took under a delay.
fn messages(rig: &Rig, route: &Route, delay_us: u64) -> anyhow::Result<Vec<Took>> {
    drop(rig.seen.take_took());
    let send = |sleeper: u64| -> anyhow::Result<()> {
        let mut stream = route.stream(Mode::Stamps, Congestion::Plain)?;
        thread::sleep(Duration::from_micros(delay_us * 2));
        for turn in 0..samples(delay_us) {
            stream.write_all(&monotonic_ns().to_ne_bytes())?;
            thread::sleep(Duration::from_micros(delay_us + 300 + unrest_us(sleeper, turn)));
        }
        // The last one is on its way.
        thread::sleep(Duration::from_micros(delay_us + 50_000));
        Ok(())
    };
    thread::scope(|scope| {
        let senders: Vec<_> =
            (0..sleepers(delay_us)).map(|at| scope.spawn(move || send(at))).collect();
        for sender in senders {
            sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(rig.seen.take_took())
}

/// How late timers of the kernel are, in microseconds.
fn bare_timers(delay_us: u64) -> anyhow::Result<Vec<f64>> {
    let sleep = |sleeper: u64| -> anyhow::Result<Vec<f64>> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let mut late = Vec::new();
        for turn in 0..samples(delay_us) {
            let due_ns = monotonic_ns() + delay_us * 1_000;
            timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &once(due_ns))?;
            rustix::io::read(&timer, &mut [0_u8; 8][..])?;
            #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
            late.push(monotonic_ns().saturating_sub(due_ns) as f64 / 1e3);
            thread::sleep(Duration::from_micros(300 + unrest_us(sleeper, turn)));
        }
        Ok(late)
    };
    thread::scope(|scope| {
        let sleepers: Vec<_> =
            (0..sleepers(delay_us)).map(|at| scope.spawn(move || sleep(at))).collect();
        let mut late = Vec::new();
        for sleeper in sleepers {
            late.extend(sleeper.join().map_err(|_| anyhow::anyhow!("a sleeper panicked"))??);
        }
        Ok(late)
    })
}

fn once(at_ns: u64) -> Itimerspec {
    let part = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec {
            tv_sec: part(at_ns / 1_000_000_000),
            tv_nsec: part(at_ns % 1_000_000_000),
        },
    }
}

/// Bulk under a delay: the peers' windows bound it, nothing else.
pub(crate) fn delayed_bulk() -> anyhow::Result<Vec<Row>> {
    let mut rig = Rig::start(1, 1, 1)?;
    let base_us = u64::try_from(BULK_DELAY.as_micros())?;
    let effect =
        LinkEffect { delay: Some(Delay { base_us, ..Delay::default() }), ..LinkEffect::default() };
    rig.set(Some(&effect), &[link(1, 1)?])?;
    let sunk = || rig.seen.sunk.load(std::sync::atomic::Ordering::Relaxed);
    let flood = Flood::start(&rig.route(1, 1), Mode::Sink, 1, Congestion::Plain)?;
    thread::sleep(BULK_FIRST);
    let before = sunk();
    thread::sleep(BULK_WINDOW);
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let per_s = (sunk() - before) as f64 / 1e6 / BULK_WINDOW.as_secs_f64();
    drop(flood);
    // A real link of this delay carries at most the sender's buffer for each round trip.
    let buffers = fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_default();
    let most: f64 = buffers.split_whitespace().nth(2).and_then(|n| n.parse().ok()).unwrap_or(0.0);
    let window = Bound::AtLeast(most / 1e6 / BULK_DELAY.as_secs_f64());
    let name = format!("bulk under {} ms", BULK_DELAY.as_millis());
    Ok(vec![Row::new(name, "faultbed", "MB/s", vec![per_s]).bound(window)])
}
