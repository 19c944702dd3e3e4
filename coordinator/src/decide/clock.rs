//! Where the clock of a host began, as the wall clock of a coordinator tells: settled, so that what is shown of
//! one moment stays what it was.

/// A report that was this much faster on its way than the ones before tells more of the truth. Less is
/// not worth that every moment already shown moves.
const FASTER_MS: u64 = 100;

/// No report is so long on its way: the coordinator's clock was set.
const SET_MS: u64 = 10_000;

/// The wall time, in milliseconds since the epoch, at which the CLOCK_BOOTTIME of a host was 0. `known`
/// is what earlier reports of the same boot have told; this one was written at `host_now_ms` of that clock,
/// and came at `now_unix_ms`.
///
/// A report is late by its way, so it tells too late a time; the earliest is nearest to the truth
/// (as in NTP's clock filter, RFC 5905 section 10, which takes the sample of the least delay).
#[must_use]
pub fn boot_unix_ms(known: Option<u64>, host_now_ms: u64, now_unix_ms: u64) -> u64 {
    let told = now_unix_ms.saturating_sub(host_now_ms);
    match known {
        Some(known)
            if told.saturating_add(FASTER_MS) > known && told <= known.saturating_add(SET_MS) =>
        {
            known
        }
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTED: u64 = 1_700_000_000_000;

    #[test]
    fn reports_that_differ_in_their_ways_tell_one_time() {
        let mut known = None;
        // Milliseconds on the way.
        for (way, shown) in [(40, 40), (0, 40), (900, 40), (3, 40), (9_000, 40), (0, 40)] {
            let host = 5_000;
            known = Some(boot_unix_ms(known, host, BOOTED + host + way));
            assert_eq!(known, Some(BOOTED + shown), "{way} ms on its way");
        }
    }

    #[test]
    fn a_first_report_that_was_slow_is_made_up_for() {
        let slow = boot_unix_ms(None, 5_000, BOOTED + 5_000 + 4_000);
        assert_eq!(slow, BOOTED + 4_000);
        assert_eq!(boot_unix_ms(Some(slow), 8_000, BOOTED + 8_000 + 2), BOOTED + 2);
    }

    #[test]
    fn a_wall_clock_that_was_set_is_followed_both_ways() {
        for set in [BOOTED - 3_600_000, BOOTED + 3_600_000] {
            assert_eq!(boot_unix_ms(Some(BOOTED), 5_000, set + 5_000), set);
        }
        // A wall clock before the epoch of a host's boot is no reason to fail.
        assert_eq!(boot_unix_ms(None, 5_000, 1_000), 0);
    }
}
