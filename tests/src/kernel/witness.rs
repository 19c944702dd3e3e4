//! Watches whether the machine stands still: a time or a rate that was measured meanwhile says nothing about a link.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often each processor is asked for a sign of life.
const TICK: Duration = Duration::from_millis(5);
/// What a thread that wakes up waits for others of this machine, at most, where all goes well: the
/// scheduler's slice.
const SLICE: Duration = Duration::from_millis(4);
/// A processor that was away so long at once has spoilt what was timed meanwhile.
const GAP_MAX: Duration = Duration::from_millis(50);
/// And so has one that was away for this share of the time, in small pieces.
const LOST_MAX: f64 = 0.03;
/// More gaps than this are not kept: the machine is known to be restless by then.
const GAPS_MAX: usize = 100_000;

/// A time during which a processor did not come back to a thread that wanted it.
#[derive(Debug, Clone, Copy)]
struct Gap {
    end: Instant,
    length: Duration,
}

/// Threads that want each processor for a moment every five milliseconds.
#[derive(Debug)]
pub struct Witness {
    over: Arc<AtomicBool>,
    gaps: Arc<Mutex<Vec<Gap>>>,
    threads: Vec<JoinHandle<()>>,
}

/// How much of a time the machine was away.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stillness {
    /// The longest piece.
    pub longest: Duration,
    /// Of the time, from 0 to 1.
    pub lost: f64,
}

impl Stillness {
    /// Whether times and rates of that time mean nothing.
    #[must_use]
    pub fn is_restless(&self) -> bool {
        self.longest >= GAP_MAX || self.lost >= LOST_MAX
    }
}

impl Witness {
    /// Begins to watch all processors this process may use.
    #[must_use]
    pub fn begin() -> Self {
        let (over, gaps) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mine = rustix::thread::sched_getaffinity(None).unwrap_or_default();
        let processors = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&at| mine.is_set(at));
        let watch = |processor| {
            let (over, gaps) = (Arc::clone(&over), Arc::clone(&gaps));
            thread::spawn(move || watch(processor, &over, &gaps))
        };
        let threads = processors.map(watch).collect();
        Self { over, gaps, threads }
    }

    /// What was seen since `begun`.
    #[must_use]
    pub fn since(&self, begun: Instant) -> Stillness {
        let gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        stillness(&gaps, begun, Instant::now())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

fn watch(processor: usize, over: &AtomicBool, gaps: &Mutex<Vec<Gap>>) {
    let mut here = rustix::thread::CpuSet::new();
    here.set(processor);
    let _anywhere = rustix::thread::sched_setaffinity(None, &here);
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        thread::sleep(TICK);
        let length = begun.elapsed().saturating_sub(TICK + SLICE);
        let mut gaps = gaps.lock().unwrap_or_else(PoisonError::into_inner);
        if !length.is_zero() && gaps.len() < GAPS_MAX {
            gaps.push(Gap { end: Instant::now(), length });
        }
    }
}

fn stillness(gaps: &[Gap], begun: Instant, now: Instant) -> Stillness {
    let inside = |gap: &Gap| gap.length.min(gap.end.saturating_duration_since(begun));
    let pieces: Vec<_> = gaps.iter().map(inside).collect();
    let sum: Duration = pieces.iter().sum();
    let time = now.saturating_duration_since(begun).as_secs_f64();
    Stillness {
        longest: pieces.into_iter().max().unwrap_or_default(),
        lost: if time > 0.0 { sum.as_secs_f64() / time } else { 0.0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_gap_or_many_short_ones_spoil_a_time() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let gap = |end, ms| Gap { end: at(end), length: Duration::from_millis(ms) };
        assert!(!stillness(&[], begun, at(1000)).is_restless());
        assert!(!stillness(&[gap(500, 20)], begun, at(1000)).is_restless());
        assert!(stillness(&[gap(500, 50)], begun, at(10_000)).is_restless());
        let short: Vec<_> = (1..=10).map(|number| gap(100 * number, 4)).collect();
        assert!(stillness(&short, begun, at(1000)).is_restless());
        // What was over before is nobody's excuse, and of what began before only the rest counts.
        assert!(!stillness(&[gap(500, 400)], at(500), at(1500)).is_restless());
        assert_eq!(stillness(&[gap(510, 400)], at(500), at(1500)).longest.as_millis(), 10);
    }
}
