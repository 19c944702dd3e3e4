//! Decides whether a worker that has nothing to do looks again for a moment before it sleeps.
//!
//! To sleep and be woken takes longer than to carry a small message. Where one connection is busy,
//! the next bytes mostly come within some microseconds, so the worker offers the processor to others
//! and looks again. It does so only while that pays: with many busy connections there is always
//! something to do, and on a quiet link every look would be in vain.

/// Looks in vain before the worker sleeps: some 20 µs on an idle processor.
const LOOKS_MAX: u8 = 40;
/// More events at once than this come from many connections.
const FEW_EVENTS: usize = 2;
/// Turns in a row with few events, after which it looks at all.
const FEW_TURNS: u8 = 4;
/// Vain attempts in a row after which it hardly tries any more.
const VAIN_MAX: u8 = 8;
/// Then it tries once in so many turns.
const TRY_EVERY: u8 = 16;

/// What has paid so far.
#[derive(Debug, Default)]
pub(crate) struct Lookout {
    /// Looks left before the worker sleeps.
    left: u8,
    few_turns: u8,
    vain: u8,
    turn: u8,
}

impl Lookout {
    /// Whether to look again instead of sleeping.
    pub(crate) fn is_awake(&self) -> bool {
        self.left > 0
    }

    /// A look, or a sleep, ended with so many events.
    pub(crate) fn saw(&mut self, events: usize) {
        if events == 0 {
            if self.left == 1 {
                self.vain = self.vain.saturating_add(1).min(VAIN_MAX);
            }
            self.left = self.left.saturating_sub(1);
            return;
        }
        if self.left > 0 {
            self.vain = 0;
        }
        self.few_turns = if events <= FEW_EVENTS { self.few_turns.saturating_add(1) } else { 0 };
        self.turn = (self.turn + 1) % TRY_EVERY;
        let pays = self.vain < VAIN_MAX || self.turn == 0;
        self.left = if pays && self.few_turns >= FEW_TURNS { LOOKS_MAX } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns of one event each; `follows` says whether another follows while it looks. Counts looks.
    fn looks(turns: u32, follows: bool) -> u32 {
        let (mut lookout, mut count) = (Lookout::default(), 0);
        for _ in 0..turns {
            lookout.saw(1);
            while lookout.is_awake() {
                count += 1;
                if follows {
                    break;
                }
                lookout.saw(0);
            }
        }
        count
    }

    #[test]
    fn a_busy_connection_is_looked_for_and_a_quiet_one_hardly_ever() {
        assert!(looks(1_000, true) > 950);
        assert!(looks(1_600, false) < 120 * u32::from(LOOKS_MAX), "once in sixteen turns");
    }

    #[test]
    fn many_busy_connections_need_no_looks() {
        let mut lookout = Lookout::default();
        for _ in 0..100 {
            lookout.saw(FEW_EVENTS + 1);
            assert!(!lookout.is_awake());
        }
    }
}
