//! Cuts chunks into pieces, and says when the turn of each is. Pure.

use faultbed_common::effect::Slice;

use serde::{Deserialize, Serialize};

use crate::proxy::dice::Dice;

/// Pieces are cut this long before their turn; the rest is left with the source.
const AHEAD_NS: u64 = 50_000_000;

/// Pieces that are cut at once.
const PIECES_MAX: u64 = 1024;

/// What a direction remembers of its pieces.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Slicer {
    /// The turn of the next piece, in nanoseconds of CLOCK_MONOTONIC.
    turn_ns: u64,
}

impl Slicer {
    /// The length of the next piece of `left` bytes, and when its turn is; 0 is at once.
    pub(crate) fn cut(
        &mut self,
        slice: Slice,
        left: usize,
        now_ns: u64,
        dice: &mut Dice,
    ) -> (usize, u64) {
        let Slice { bytes, variation_bytes, delay_us } = slice;
        let least = bytes.saturating_sub(variation_bytes);
        let width = variation_bytes.saturating_mul(2).saturating_add(1);
        let drawn = least.saturating_add(dice.below(width)).max(1);
        let length = usize::try_from(drawn).unwrap_or(usize::MAX).min(left);
        if delay_us == 0 {
            return (length, 0);
        }
        let turn_ns = self.turn_ns.max(now_ns);
        self.turn_ns = turn_ns.saturating_add(delay_us.saturating_mul(1_000));
        (length, turn_ns)
    }

    /// When the source may be read again, and how many bytes at once: so many pieces as have their
    /// turn soon.
    pub(crate) fn may_read(&self, slice: Slice) -> (u64, usize) {
        let Slice { bytes, variation_bytes, delay_us } = slice;
        let pieces = match delay_us {
            0 => PIECES_MAX,
            _ => (AHEAD_NS / delay_us.saturating_mul(1_000) + 1).min(PIECES_MAX),
        };
        let longest = bytes.saturating_add(variation_bytes);
        let most = longest.saturating_mul(pieces);
        (self.turn_ns.saturating_sub(AHEAD_NS), usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// The pieces that wait have their turn at once.
    pub(crate) fn forget(&mut self) {
        self.turn_ns = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut_all(slice: Slice, mut left: usize, seed: u64) -> Vec<(usize, u64)> {
        let (mut slicer, mut dice, mut all) = (Slicer::default(), Dice::new(seed), Vec::new());
        while left > 0 {
            let (length, turn_ns) = slicer.cut(slice, left, 1_000, &mut dice);
            left -= length;
            all.push((length, turn_ns));
        }
        all
    }

    proptest! {
        #[test]
        fn pieces_make_up_the_whole_and_have_the_size_that_is_said(
            bytes in 1_u64..100, variation in 0_u64..100, left in 1_usize..5_000, seed: u64,
        ) {
            let slice = Slice { bytes, variation_bytes: variation % bytes, delay_us: 0 };
            let all = cut_all(slice, left, seed);
            prop_assert_eq!(all.iter().map(|(length, _)| length).sum::<usize>(), left);
            let sizes = bytes - slice.variation_bytes..=bytes + slice.variation_bytes;
            let (_, but_last) = all.split_last().unwrap();
            prop_assert!(but_last.iter().all(|(length, _)| sizes.contains(&(*length as u64))));
        }
    }

    #[test]
    fn pieces_take_turns() {
        let slice = Slice { bytes: 10, variation_bytes: 0, delay_us: 7 };
        let turns: Vec<u64> = cut_all(slice, 25, 1).into_iter().map(|(_, turn)| turn).collect();
        assert_eq!(turns, [1_000, 8_000, 15_000]);
    }
}
