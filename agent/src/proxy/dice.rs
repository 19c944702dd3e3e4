//! Throws dice: a sequence that depends on nothing but its seed, and the distributions drawn from it.

use std::f64::consts::TAU;

use faultbed_common::{effect::Ratio, proxy_spec::Delay};
use serde::{Deserialize, Serialize};

/// A Pareto part is at most this many times its mean: the tail of the distribution has no end.
const PARETO_MEANS_MAX: f64 = 100.0;

/// A sequence of throws (splitmix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", OOPSLA 2014).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Dice {
    state: u64,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn throw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Evenly one of `0..width`; 0 where the width is.
    pub(crate) fn below(&mut self, width: u64) -> u64 {
        u64::try_from((u128::from(self.throw()) * u128::from(width)) >> 64).unwrap_or(0)
    }

    /// As [`Self::below`], for places in memory.
    pub(crate) fn place(&mut self, width: usize) -> usize {
        usize::try_from(self.below(width as u64)).unwrap_or(0)
    }

    /// Whether something of this probability happens.
    pub(crate) fn meets(&mut self, ratio: Ratio) -> bool {
        u32::try_from(self.throw() >> 32).is_ok_and(|throw| ratio.meets(throw))
    }

    /// Evenly between 0 and 1, never either of them.
    fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits are what an f64 holds")]
        let bits = (self.throw() >> 11) as f64;
        (bits + 0.5) / 9_007_199_254_740_992.0
    }

    /// Exponentially distributed: the time to the next of events that do not know of each other.
    pub(crate) fn exponential(&mut self, mean: u64) -> u64 {
        whole(-self.unit().ln() * real(mean))
    }

    /// Normally distributed around 0 (Box and Muller, 1958).
    fn normal(&mut self, deviation: u64) -> i128 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        let value = radius * (TAU * self.unit()).cos() * real(deviation);
        let size = i128::from(whole(value.abs()));
        if value < 0.0 { -size } else { size }
    }

    /// From nothing up with a long tail: Pareto's second distribution (Lomax) of shape 3, whose mean
    /// is half of its scale.
    fn pareto(&mut self, mean: u64) -> u64 {
        let means = 2.0 * (self.unit().powf(-1.0 / 3.0) - 1.0);
        whole(means.min(PARETO_MEANS_MAX) * real(mean))
    }

    /// How late the next chunk is, in microseconds: the sum of the parts, but never early.
    pub(crate) fn late_us(&mut self, delay: Delay) -> u64 {
        let Delay { base_us, jitter_us, normal_us, pareto_us } = delay;
        let mut late = i128::from(base_us);
        if jitter_us > 0 {
            let width = jitter_us.saturating_mul(2).saturating_add(1);
            late += i128::from(self.below(width)) - i128::from(jitter_us);
        }
        if normal_us > 0 {
            late += self.normal(normal_us);
        }
        if pareto_us > 0 {
            late += i128::from(self.pareto(pareto_us));
        }
        u64::try_from(late.max(0)).unwrap_or(u64::MAX)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a random number needs no more than 53 bits")]
fn real(number: u64) -> f64 {
    number as f64
}

/// The whole number next to one that is not negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the conversion saturates, and what comes in is not negative"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Mean and standard deviation of what a delay draws, in microseconds.
    fn moments(seed: u64, delay: Delay) -> (f64, f64) {
        let mut dice = Dice::new(seed);
        let count = 200_000;
        let drawn: Vec<f64> = (0..count).map(|_| real(dice.late_us(delay))).collect();
        let mean = drawn.iter().sum::<f64>() / f64::from(count);
        let square = drawn.iter().map(|late| (late - mean).powi(2)).sum::<f64>();
        (mean, (square / f64::from(count)).sqrt())
    }

    fn is_near(found: f64, wanted: f64, share: f64) -> bool {
        (found - wanted).abs() <= wanted * share
    }

    #[test]
    fn each_part_of_a_delay_has_the_moments_of_its_distribution() {
        let base = Delay { base_us: 100_000, ..Delay::default() };
        let uniform = moments(1, Delay { jitter_us: 30_000, ..base });
        assert!(is_near(uniform.0, 100_000.0, 0.01), "{uniform:?}");
        assert!(is_near(uniform.1, 30_000.0 / 3.0_f64.sqrt(), 0.02), "{uniform:?}");
        let normal = moments(2, Delay { normal_us: 10_000, ..base });
        assert!(is_near(normal.0, 100_000.0, 0.01), "{normal:?}");
        assert!(is_near(normal.1, 10_000.0, 0.02), "{normal:?}");
        let pareto = moments(3, Delay { pareto_us: 10_000, ..base });
        assert!(is_near(pareto.0, 110_000.0, 0.01), "{pareto:?}");
        // Its deviation is the root of 3 times its mean, of which the end of the tail is cut off.
        assert!(is_near(pareto.1, 17_320.0, 0.15), "{pareto:?}");
    }

    #[test]
    fn a_pareto_tail_is_long_and_bounded() {
        let (mut dice, delay) = (Dice::new(4), Delay { pareto_us: 1_000, ..Delay::default() });
        let drawn: Vec<u64> = (0..1_000_000).map(|_| dice.late_us(delay)).collect();
        let over = |means: u64| drawn.iter().filter(|late| **late > means * 1_000).count();
        // 1 / (1 + x/2)^3 of them are later than x means.
        assert!((4_000..5_500).contains(&over(10)), "{}", over(10));
        assert!(over(50) > 20, "{}", over(50));
        assert_eq!(over(100), 0);
    }

    #[test]
    fn pauses_are_exponential() {
        let mut dice = Dice::new(5);
        let drawn: Vec<u64> = (0..100_000).map(|_| dice.exponential(1_000)).collect();
        let mean = real(drawn.iter().sum()) / 100_000.0;
        assert!(is_near(mean, 1_000.0, 0.02), "{mean}");
        let longer = drawn.iter().filter(|pause| **pause > 1_000).count();
        assert!((36_000..37_600).contains(&longer), "1/e of them: {longer}");
    }

    #[test]
    fn the_same_seed_throws_the_same_dice() {
        let delay = Delay { base_us: 1_000, jitter_us: 500, normal_us: 20, pareto_us: 30 };
        let draw = |seed| -> Vec<u64> {
            let mut dice = Dice::new(seed);
            (0..20).map(|_| dice.late_us(delay)).collect()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(3).windows(2).any(|pair| pair[0] != pair[1]), "redrawn for each chunk");
    }

    proptest! {
        #[test]
        fn no_delay_is_early_or_a_panic(seed: u64, base_us: u64, jitter_us: u64, normal_us: u64, pareto_us: u64) {
            let mut dice = Dice::new(seed);
            let late_us = dice.late_us(Delay { base_us, jitter_us, ..Delay::default() });
            prop_assert!(late_us <= base_us.saturating_add(jitter_us));
            prop_assert!(late_us >= base_us.saturating_sub(jitter_us));
            let _any = dice.late_us(Delay { base_us, jitter_us, normal_us, pareto_us });
        }

        #[test]
        fn what_is_below_is_below(seed: u64, width in 1_u64..) {
            prop_assert!(Dice::new(seed).below(width) < width);
        }
    }
}
