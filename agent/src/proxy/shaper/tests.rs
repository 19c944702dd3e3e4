//! The shaper alone: what goes in comes out whole, in order and in time, whatever the rules.

use faultbed_common::{
    effect::{Loss, Rate, Slice},
    proxy_spec::Delay,
};
use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

/// A flow without sockets, at a time of its own.
struct Bench {
    shaper: Shaper,
    bucket: Arc<Bucket>,
    now_ns: u64,
    source: VecDeque<u8>,
    /// What left, and when.
    out: Vec<u8>,
    times: Vec<(u64, usize)>,
}

impl Bench {
    fn new() -> Self {
        Self {
            shaper: Shaper::new(),
            bucket: Arc::default(),
            now_ns: 1_000 * MS,
            source: VecDeque::new(),
            out: Vec::new(),
            times: Vec::new(),
        }
    }

    fn rule(&mut self, rule: &LinkRule, seed: u64) {
        if rule.bandwidth != self.shaper.rule.bandwidth {
            self.bucket = Arc::default();
        }
        self.shaper.set_rule(rule, seed, Some(Arc::clone(&self.bucket)), self.now_ns);
    }

    /// Moves what can be moved now. Returns when to look again.
    fn pump(&mut self) -> Option<u64> {
        self.shaper.settle(usize::MAX);
        let mut scratch = vec![0; 4_096];
        loop {
            let hold = self.shaper.hold();
            while let (None, Some(due_ns)) = (hold, self.shaper.queue.next_ns()) {
                if due_ns > self.now_ns {
                    break;
                }
                let head = self.shaper.queue.head();
                self.times.push((self.now_ns, head.len()));
                self.out.extend_from_slice(head);
                let count = head.len();
                self.shaper.queue.advance(count);
            }
            // Nothing leaves during a hold, so nothing is due.
            let due_ns = self.shaper.queue.next_ns().filter(|_| hold.is_none());
            if hold == Some(Hold::Stall) {
                return None;
            }
            let most = match self.shaper.room(self.now_ns) {
                Room::Bytes(most) => most.min(scratch.len()),
                Room::From(from_ns) => return Some(due_ns.map_or(from_ns, |due| due.min(from_ns))),
                Room::None | Room::Never => return due_ns,
            };
            if hold.is_none() && self.shaper.has_jam() {
                assert!(self.shaper.unjam(most, &mut scratch, self.now_ns));
                continue;
            }
            let count = self.source.len().min(most);
            if count == 0 {
                return due_ns;
            }
            let mut bytes: Vec<u8> = self.source.drain(..count).collect();
            self.shaper.take_in(&mut bytes, count == most, self.now_ns);
        }
    }

    /// Lets time pass.
    fn run_until(&mut self, end_ns: u64) {
        while let Some(at_ns) = self.pump().filter(|at_ns| *at_ns <= end_ns) {
            assert!(at_ns > self.now_ns, "an alarm for what is due already");
            self.now_ns = at_ns;
        }
        self.now_ns = end_ns;
        self.pump();
    }
}

fn rules() -> impl Strategy<Value = LinkRule> {
    use proptest::option::of;
    let ratio = |most: u32| (0..=most).prop_map(Ratio::from_ppm);
    let hold = prop_oneof![Just(Hold::Jam), Just(Hold::Stall)];
    let us = 0_u64..5_000;
    let delay = (us.clone(), us.clone(), us.clone(), us).prop_map(
        |(base_us, jitter_us, normal_us, pareto_us)| Delay {
            base_us,
            jitter_us,
            normal_us,
            pareto_us,
        },
    );
    let rate = (1_000_u64..100_000_000).prop_map(|bits_per_s| Rate { bits_per_s });
    let slice = (1_u64..500, 0_u64..500, 0_u64..50).prop_map(|(bytes, variation, delay_us)| {
        Slice { bytes, variation_bytes: variation % bytes, delay_us }
    });
    let loss = prop_oneof![
        ratio(300_000).prop_map(Loss::Bernoulli),
        (ratio(100_000), ratio(500_000)).prop_map(|(enter, leave)| Loss::Gilbert {
            enter,
            leave,
            good: Ratio::ZERO,
            bad: Ratio::ONE,
        }),
        (1_u64..5_000, 6_000_u64..50_000)
            .prop_map(|(lasts_us, every_us)| Loss::Burst { lasts_us, every_us }),
    ];
    let losses = proptest::collection::vec(loss, 0..3);
    (of(hold), of(delay), of(rate), of(slice), losses).prop_map(
        |(hold, delay, bandwidth, slice, loss)| LinkRule {
            hold,
            delay,
            bandwidth,
            slice,
            loss,
            ..LinkRule::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_stream_survives_any_sequence_of_rules_whole(
        steps in proptest::collection::vec((rules(), 0_usize..20_000, 0_u64..50), 1..10),
        seed: u64,
    ) {
        let (mut bench, mut sent) = (Bench::new(), Vec::new());
        for (rule, count, ms) in steps {
            bench.rule(&rule, seed);
            let bytes: Vec<u8> = (0..count).map(|at| (at % 251) as u8).collect();
            sent.extend_from_slice(&bytes);
            bench.source.extend(bytes);
            bench.run_until(bench.now_ns + ms * MS);
            prop_assert!(sent.starts_with(&bench.out));
        }
        bench.rule(&LinkRule::default(), 0);
        bench.pump();
        prop_assert_eq!(bench.out.len(), sent.len(), "all of it is due at once");
        prop_assert!(bench.out == sent);
        prop_assert!(bench.shaper.is_idle());
    }

    #[test]
    fn a_limit_is_exact_whatever_else_there_is(rule in rules(), limit_bytes in 0_u64..30_000, seed: u64) {
        let mut bench = Bench::new();
        bench.source.extend(vec![7; 40_000]);
        let endings = Endings { limit_bytes: Some(limit_bytes), ..Endings::default() };
        bench.rule(&LinkRule { endings, hold: None, ..rule }, seed);
        bench.run_until(u64::MAX - 1);
        prop_assert_eq!(bench.out.len() as u64, limit_bytes);
        prop_assert_eq!(bench.shaper.room(bench.now_ns), Room::Never);
    }

    #[test]
    fn every_window_has_its_rate(bits_per_s in 1_000_000_u64..100_000_000, window in 0_u64..10) {
        let mut bench = Bench::new();
        let begin_ns = bench.now_ns;
        bench.source.extend(vec![7; usize::try_from(bits_per_s / 40).unwrap()]);
        let rule = LinkRule { bandwidth: Some(Rate { bits_per_s }), ..LinkRule::default() };
        bench.rule(&rule, 0);
        bench.run_until(begin_ns + 200 * MS);
        let from_ns = begin_ns + window * 10 * MS;
        let is_in = |at: u64| (from_ns..from_ns + 100 * MS).contains(&at);
        let of_window = bench.times.iter().filter(|(at, _)| is_in(*at));
        let bits = of_window.map(|(_, count)| *count as u64 * 8).sum::<u64>();
        let (ideal, quantum) = (bits_per_s / 10, bucket::quantum(Rate { bits_per_s }) as u64 * 8);
        prop_assert!(bits <= ideal + quantum && bits + quantum >= ideal, "{bits} of {ideal}");
    }
}

#[test]
fn a_delay_holds_what_a_rate_lets_through() {
    let mut bench = Bench::new();
    bench.source.extend(vec![7; 2_000_000]);
    let delay = Some(Delay { base_us: 500_000, ..Delay::default() });
    let bandwidth = Some(Rate { bits_per_s: 8_000_000 });
    let begin_ns = bench.now_ns;
    bench.rule(&LinkRule { delay, bandwidth, ..LinkRule::default() }, 0);
    bench.run_until(begin_ns + 499 * MS);
    assert_eq!(bench.out.len(), 0);
    // What has passed the line, and what may take it ahead.
    let held = bench.shaper.bytes();
    assert!((540_000..560_000).contains(&held), "{held}");
    bench.run_until(begin_ns + 1_500 * MS);
    assert!((995_000..=1_000_000).contains(&bench.out.len()), "{}", bench.out.len());
}

#[test]
fn a_rate_that_rises_frees_what_waited_for_the_old_one() {
    let mut bench = Bench::new();
    bench.source.extend(vec![7; 3_000]);
    let rate =
        |bits_per_s| LinkRule { bandwidth: Some(Rate { bits_per_s }), ..LinkRule::default() };
    bench.rule(&rate(1_000), 0);
    bench.run_until(bench.now_ns + 1_000 * MS);
    assert_eq!(bench.out.len(), 0, "a segment takes more than ten seconds");
    bench.rule(&rate(1_000_000), 0);
    bench.run_until(bench.now_ns + 25 * MS);
    assert_eq!(bench.out.len(), 3_000);
}

#[test]
fn a_delay_that_shrinks_brings_what_is_on_its_way_sooner() {
    let mut bench = Bench::new();
    let late = |base_us| LinkRule {
        delay: Some(Delay { base_us, ..Delay::default() }),
        ..LinkRule::default()
    };
    bench.rule(&late(60_000_000), 0);
    bench.source.extend([1]);
    bench.run_until(bench.now_ns + 10 * MS);
    bench.rule(&late(50_000), 0);
    bench.source.extend([2]);
    bench.run_until(bench.now_ns + 45 * MS);
    assert_eq!(bench.out, [1]);
    bench.run_until(bench.now_ns + 5 * MS);
    assert_eq!(bench.out, [1, 2]);
}

#[test]
fn the_end_is_kept_back_by_what_keeps_back_bytes() {
    let mut bench = Bench::new();
    let endings = Endings { slow_close_us: 3_000, ..Endings::default() };
    let delay = Some(Delay { base_us: 5_000, ..Delay::default() });
    let rule = LinkRule { delay, endings, ..LinkRule::default() };
    bench.rule(&rule, 0);
    let now_ns = bench.now_ns;
    bench.shaper.note_end(now_ns);
    assert_eq!(bench.shaper.keeps_end(now_ns), Some(now_ns + 5 * MS));
    assert_eq!(bench.shaper.keeps_end(now_ns + 5 * MS), Some(now_ns + 8 * MS));
    assert_eq!(bench.shaper.keeps_end(now_ns + 8 * MS), None);
    bench.rule(&LinkRule::default(), 0);
    assert_eq!(bench.shaper.keeps_end(now_ns), None);
}

/// Lets time pass for flows of one link.
fn run_together(benches: &mut [Bench], end_ns: u64) {
    loop {
        let next = benches.iter_mut().filter_map(Bench::pump).min();
        let at_ns = next.filter(|at_ns| *at_ns < end_ns).unwrap_or(end_ns);
        for bench in &mut *benches {
            bench.now_ns = at_ns;
        }
        if at_ns == end_ns {
            return;
        }
    }
}

#[test]
fn who_comes_later_has_an_equal_share_soon_and_waits_little_for_a_single_byte() {
    let mut benches = [Bench::new(), Bench::new(), Bench::new()];
    let bucket = Arc::clone(&benches[0].bucket);
    let rule = LinkRule { bandwidth: Some(Rate { bits_per_s: 80_000_000 }), ..LinkRule::default() };
    for bench in &mut benches {
        bench.shaper.set_rule(&rule, 0, Some(Arc::clone(&bucket)), bench.now_ns);
    }
    let begin_ns = benches[0].now_ns;
    benches[0].source.extend(vec![7; 30_000_000]);
    run_together(&mut benches, begin_ns + 500 * MS);
    assert!((4_980_000..=5_000_000).contains(&benches[0].out.len()), "alone it has all");
    benches[1].source.extend(vec![7; 30_000_000]);
    run_together(&mut benches, begin_ns + 600 * MS);
    let before = [benches[0].out.len(), benches[1].out.len()];
    run_together(&mut benches, begin_ns + 1_600 * MS);
    for (bench, before) in benches.iter().zip(before) {
        let share = bench.out.len() - before;
        assert!((4_900_000..5_100_000).contains(&share), "{share} of 10 MB in a second");
    }
    benches[2].source.extend([7]);
    run_together(&mut benches, begin_ns + 1_660 * MS);
    assert_eq!(benches[2].out.len(), 1, "not behind all that the others have to send");
}

#[test]
fn a_jam_is_bounded_and_empties_into_a_delay_whole() {
    let mut shaper = Shaper::new();
    shaper.set_rule(&LinkRule { hold: Some(Hold::Jam), ..LinkRule::default() }, 0, None, MS);
    let mut part = vec![7; 1 << 16];
    let mut taken = 0;
    while shaper.room(MS) != Room::None {
        shaper.take_in(&mut part, true, MS);
        taken += part.len();
    }
    assert_eq!(taken, QUEUE_BYTES_MAX);
    let delay = Some(Delay { base_us: 5, ..Delay::default() });
    shaper.set_rule(&LinkRule { delay, ..LinkRule::default() }, 0, None, MS);
    while shaper.has_jam() {
        assert!(matches!(shaper.room(MS), Room::Bytes(_)), "it gets out although much waits");
        shaper.unjam(usize::MAX, &mut part, MS);
    }
    assert_eq!(shaper.bytes(), taken);
    assert_eq!(shaper.room(MS), Room::None, "but nothing new gets in");
}
