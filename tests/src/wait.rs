//! Waits for predicates, never for time.

use std::time::{Duration, Instant};

/// How often a predicate is looked at.
const EVERY: Duration = Duration::from_millis(25);

/// Waits until `look` gives a value.
///
/// # Panics
/// After `within`, saying what was waited for and what was last seen.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        let last = match look() {
            Ok(value) => return value,
            Err(last) => last,
        };
        assert!(Instant::now() < deadline, "not within {within:?}: {what}; last seen: {last}");
        std::thread::sleep(EVERY);
    }
}

/// Lets a chosen time pass, for tests that strike at a random moment. Never a way to wait for
/// something to have happened.
pub fn strike_after(moment: Duration) {
    std::thread::sleep(moment);
}
