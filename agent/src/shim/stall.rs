//! Calls of the node that wait for its disk, kept waiting for as long as its disk is to stand still.

use std::sync::{Mutex, PoisonError};

/// Calls that wait at a time, each in a thread of its own; more go on, as if the disk had woken up.
const HELD_MAX: usize = 4096;

/// Whether the disk stands still, and who waits for it: the numbers of their calls.
#[derive(Debug, Default)]
pub(super) struct Stall(Mutex<Option<Vec<u64>>>);

impl Stall {
    /// From now on calls wait. They are kept without any allocation, as the node stands meanwhile.
    pub(super) fn begin(&self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert_with(|| Vec::with_capacity(HELD_MAX));
    }

    /// From now on calls go on; gives those that waited.
    pub(super) fn end(&self) -> Vec<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }

    /// Keeps a call waiting; says whether it does.
    pub(super) fn hold(&self, call: u64) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            Some(calls) if calls.len() < HELD_MAX => {
                calls.push(call);
                true
            }
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_wait_from_the_beginning_to_the_end_and_never_without_bound() {
        let stall = Stall::default();
        assert!(!stall.hold(1));
        stall.begin();
        assert!(stall.hold(2));
        stall.begin();
        assert!(stall.hold(3), "a second word for the same changes nothing");
        assert_eq!(stall.end(), [2, 3]);
        assert!(!stall.hold(4));
        stall.begin();
        assert_eq!((0..=HELD_MAX as u64).filter(|call| stall.hold(*call)).count(), HELD_MAX);
    }
}
