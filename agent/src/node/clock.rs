//! The clock that faults and exits are timed by, and the boot it belongs to.

use rustix::time::{ClockId, clock_gettime};

/// Where the kernel tells which boot this is.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Nanoseconds of CLOCK_BOOTTIME: it goes on while the machine sleeps, and nobody can set it.
#[must_use]
pub fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Milliseconds of CLOCK_BOOTTIME.
#[must_use]
pub fn boottime_ms() -> u64 {
    boottime_ns() / 1_000_000
}

/// Which boot of this machine it is: pids, start times and CLOCK_BOOTTIME mean nothing in another.
///
/// # Errors
/// Where `/proc` is not mounted.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string(BOOT_ID_FILE)?.trim().to_owned())
}
