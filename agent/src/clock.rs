//! The one clock of a host: time since boot, which no one can set and which counts suspends.
//!
//! Nothing else of the agent reads a clock; pure code gets a [`BootTime`] as an argument.

use std::{fs, io, ops::Add, time::Duration};

use faultbed_common::duration::millis;

/// A point of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// From milliseconds, as reports and records have them.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// From nanoseconds, as deadlines have them.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self(Duration::from_nanos(ns))
    }

    /// In milliseconds, as reports and records want it.
    #[must_use]
    pub fn ms(self) -> u64 {
        millis(self.0)
    }

    /// In nanoseconds, as deadlines want it; 584 years fit.
    #[must_use]
    pub fn ns(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long from `self` until `later`; nothing where that has passed.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

/// What the clock says now.
#[must_use]
pub fn now() -> BootTime {
    BootTime::from_ns(boottime_ns())
}

/// Nanoseconds of CLOCK_BOOTTIME: it goes on while the machine sleeps, and nobody can set it.
#[must_use]
pub fn boottime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Milliseconds of CLOCK_BOOTTIME.
#[must_use]
pub fn boottime_ms() -> u64 {
    boottime_ns() / 1_000_000
}

/// Which boot the clock counts from.
///
/// # Errors
/// `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
