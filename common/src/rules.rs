//! Combines the effects of all faults in force on one link into exactly one rule, by fixed laws.

use crate::proxy_spec::{Delay, Endings, LinkEffect};

/// What a proxy does with one link: the effects of all its faults, combined.
pub type LinkRule = LinkEffect;

impl LinkRule {
    /// Whether bytes and connections pass as if there were no fault.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        *self == Self::default()
    }
}

/// One rule from many effects. Laws: order and grouping do not matter; nothing combined is the
/// default; the stronger cut, hold and refusal win; delays add up; the least bandwidth, piece, limit
/// and time win; losses are drawn one after the other; probabilities of corruption add up.
#[must_use]
pub fn combine<'a>(effects: impl IntoIterator<Item = &'a LinkEffect>) -> LinkRule {
    let mut rule = LinkRule::default();
    for effect in effects {
        let LinkEffect {
            cut,
            hold,
            delay,
            bandwidth,
            loss,
            corrupt,
            slice,
            dials,
            accept_delay_us,
            endings,
        } = effect;
        rule.cut = rule.cut.max(*cut);
        rule.hold = rule.hold.max(*hold);
        rule.delay = sum(rule.delay, *delay);
        rule.bandwidth = least(rule.bandwidth, *bandwidth);
        rule.loss.extend(loss);
        rule.corrupt = match (rule.corrupt, *corrupt) {
            (Some(one), Some(other)) => Some(one.plus(other)),
            (one, other) => one.or(other),
        };
        rule.slice = least(rule.slice, *slice);
        rule.dials = rule.dials.max(*dials);
        rule.accept_delay_us = rule.accept_delay_us.saturating_add(*accept_delay_us);
        rule.endings = both(rule.endings, *endings);
    }
    rule.loss.sort_unstable();
    rule
}

/// The lesser of two bounds, where there are two.
fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Adds two delays. A delay of nothing is no delay, so that it never slows a link down.
fn sum(one: Option<Delay>, other: Option<Delay>) -> Option<Delay> {
    let (one, other) = (one.unwrap_or_default(), other.unwrap_or_default());
    let total = Delay {
        base_us: one.base_us.saturating_add(other.base_us),
        jitter_us: one.jitter_us.saturating_add(other.jitter_us),
        normal_us: one.normal_us.saturating_add(other.normal_us),
        pareto_us: one.pareto_us.saturating_add(other.pareto_us),
    };
    (total != Delay::default()).then_some(total)
}

/// Ends connections as either says.
fn both(one: Endings, other: Endings) -> Endings {
    Endings {
        reset: one.reset || other.reset,
        reset_after_us: least(one.reset_after_us, other.reset_after_us),
        close_after_us: least(one.close_after_us, other.close_after_us),
        limit_bytes: least(one.limit_bytes, other.limit_bytes),
        slow_close_us: one.slow_close_us.saturating_add(other.slow_close_us),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        effect::{Loss, Rate, Ratio, Slice},
        proxy_spec::{Cut, Dials, Hold},
    };

    fn effects() -> impl Strategy<Value = Vec<LinkEffect>> {
        proptest::collection::vec((of_bytes(), of_connections()).prop_map(merge), 0..6)
    }

    fn merge((bytes, connections): (LinkEffect, LinkEffect)) -> LinkEffect {
        combine([&bytes, &connections])
    }

    fn number() -> impl Strategy<Value = u64> + Clone {
        prop_oneof![0_u64..1_000_000, Just(u64::MAX)]
    }

    fn of_bytes() -> impl Strategy<Value = LinkEffect> {
        use proptest::option::of;
        let cut = prop_oneof![Just(Cut::Bytes), Just(Cut::Packets)];
        let delay = (number(), number()).prop_map(|(base_us, jitter_us)| Delay {
            base_us,
            jitter_us,
            normal_us: jitter_us / 2,
            pareto_us: base_us / 3,
        });
        let ratio = (0_u32..=1_000_000).prop_map(Ratio::from_ppm);
        let loss = ratio.clone().prop_map(|share| vec![Loss::Bernoulli(share)]);
        let slice =
            (1_u64..100).prop_map(|bytes| Slice { bytes, variation_bytes: 0, delay_us: bytes });
        let rate = (1_u64..1_000).prop_map(|bits_per_s| Rate { bits_per_s });
        (of(cut), of(delay), of(loss), of(ratio), of(slice), of(rate)).prop_map(
            |(cut, delay, loss, corrupt, slice, bandwidth)| LinkEffect {
                cut,
                delay,
                loss: loss.unwrap_or_default(),
                corrupt,
                slice,
                bandwidth,
                ..LinkEffect::default()
            },
        )
    }

    fn of_connections() -> impl Strategy<Value = LinkEffect> {
        use proptest::option::of;
        let hold = prop_oneof![Just(Hold::Jam), Just(Hold::Stall)];
        let dials = prop_oneof![Just(Dials::Refuse), Just(Dials::TimeOut)];
        (of(hold), of(dials), number(), any::<bool>(), of(number()), number()).prop_map(
            |(hold, dials, accept_delay_us, reset, limit_bytes, slow_close_us)| LinkEffect {
                hold,
                dials,
                accept_delay_us,
                endings: Endings {
                    reset,
                    limit_bytes,
                    reset_after_us: limit_bytes,
                    close_after_us: limit_bytes.map(|bytes| bytes / 2),
                    slow_close_us,
                },
                ..LinkEffect::default()
            },
        )
    }

    proptest! {
        #[test]
        fn the_order_of_faults_does_not_matter(mut all in effects(), turn in 0_usize..6) {
            let rule = combine(&all);
            all.reverse();
            prop_assert_eq!(&combine(&all), &rule);
            if !all.is_empty() {
                let middle = turn % all.len();
                all.rotate_left(middle);
            }
            prop_assert_eq!(combine(&all), rule);
        }

        #[test]
        fn combining_in_parts_is_combining_at_once(all in effects(), at in 0_usize..6) {
            let (left, right) = all.split_at(at.min(all.len()));
            let parts = [combine(left), combine(right)];
            prop_assert_eq!(combine(&parts), combine(&all));
        }

        #[test]
        fn an_effect_of_nothing_changes_nothing(mut all in effects()) {
            let rule = combine(&all);
            all.push(LinkEffect::default());
            prop_assert_eq!(combine(&all), rule);
        }

        #[test]
        fn one_more_fault_never_weakens_a_rule(mut all in effects(), more in effects()) {
            let before = combine(&all);
            all.extend(more);
            let after = combine(&all);
            prop_assert!(after.cut >= before.cut);
            prop_assert!(after.hold >= before.hold && after.dials >= before.dials);
            prop_assert!(after.corrupt >= before.corrupt && after.loss.len() >= before.loss.len());
            prop_assert!(before.bandwidth.is_none_or(|rate| after.bandwidth <= Some(rate)));
            prop_assert!(after.delay.unwrap_or_default().base_us
                >= before.delay.unwrap_or_default().base_us);
        }
    }

    #[test]
    fn no_fault_is_no_rule() {
        assert!(combine([]).is_clear());
        let late = LinkEffect { delay: Some(Delay::default()), ..LinkEffect::default() };
        assert!(combine([&late]).is_clear(), "a delay of zero is none");
    }

    #[test]
    fn a_cut_of_packets_wins_over_bytes_and_delays_add() {
        let late = |base_us, jitter_us| Some(Delay { base_us, jitter_us, ..Delay::default() });
        let effect = |cut, delay| LinkEffect { cut: Some(cut), delay, ..LinkEffect::default() };
        let rule = combine([&effect(Cut::Bytes, late(10, 1)), &effect(Cut::Packets, late(5, 2))]);
        assert_eq!(rule, effect(Cut::Packets, late(15, 3)));
    }
}
