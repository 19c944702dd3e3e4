//! Combines the effects of all faults in force on one link into exactly one rule, by fixed laws.

use crate::proxy_spec::{Cut, Delay, LinkEffect};

/// What a proxy does with the bytes of one link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkRule {
    /// Nothing passes.
    pub cut: Option<Cut>,
    /// Everything is late.
    pub delay: Option<Delay>,
}

impl LinkRule {
    /// Whether bytes pass as if there were no fault.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        let Self { cut, delay } = self;
        cut.is_none() && delay.is_none()
    }
}

/// A rule can be combined further: combining is associative.
impl From<LinkRule> for LinkEffect {
    fn from(rule: LinkRule) -> Self {
        let LinkRule { cut, delay } = rule;
        Self { cut, delay }
    }
}

/// One rule from many effects. Laws: order does not matter; nothing combined is the default;
/// the stronger cut wins; delays add up.
#[must_use]
pub fn combine<'a>(effects: impl IntoIterator<Item = &'a LinkEffect>) -> LinkRule {
    let mut rule = LinkRule::default();
    for LinkEffect { cut, delay } in effects {
        rule.cut = rule.cut.max(*cut);
        rule.delay = sum(rule.delay, *delay);
    }
    rule
}

/// Adds two delays. A delay of nothing is no delay, so that it never slows a link down.
fn sum(one: Option<Delay>, other: Option<Delay>) -> Option<Delay> {
    let (one, other) = (one.unwrap_or_default(), other.unwrap_or_default());
    let total = Delay {
        base_us: one.base_us.saturating_add(other.base_us),
        jitter_us: one.jitter_us.saturating_add(other.jitter_us),
    };
    (total != Delay::default()).then_some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn effects() -> impl Strategy<Value = Vec<LinkEffect>> {
        let cut = prop_oneof![Just(None), Just(Some(Cut::Bytes)), Just(Some(Cut::Packets))];
        let number = prop_oneof![0_u64..1_000_000, Just(u64::MAX)];
        let delay = proptest::option::of(
            (number.clone(), number).prop_map(|(base_us, jitter_us)| Delay { base_us, jitter_us }),
        );
        proptest::collection::vec(
            (cut, delay).prop_map(|(cut, delay)| LinkEffect { cut, delay }),
            0..6,
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
            let parts = [combine(left).into(), combine(right).into()];
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
        let one =
            LinkEffect { cut: Some(Cut::Bytes), delay: Some(Delay { base_us: 10, jitter_us: 1 }) };
        let other =
            LinkEffect { cut: Some(Cut::Packets), delay: Some(Delay { base_us: 5, jitter_us: 2 }) };
        let rule = combine([&one, &other]);
        assert_eq!(rule.cut, Some(Cut::Packets));
        assert_eq!(rule.delay, Some(Delay { base_us: 15, jitter_us: 3 }));
    }
}
