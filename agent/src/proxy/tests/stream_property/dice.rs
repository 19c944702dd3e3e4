//! A random plan of faults and heals from a seed. Pure.

use std::time::Duration;

use faultbed_common::{
    effect::{Loss, Rate, Ratio, Slice},
    fault::HealPolicy,
    proxy_spec::{Cut, Delay, Dials, Endings, Hold, LinkEffect},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Steps of a plan.
const STEPS: usize = 16;
/// Faults that may be in force at once.
const FAULTS: [&str; 3] = ["f0", "f1", "f2"];
/// The longest rest between two steps; most are far shorter.
const REST_MS_MAX: u64 = 120;

/// What a round does.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
}

#[derive(Debug)]
pub(super) enum Step {
    /// Puts a fault in the place of the one that has the name.
    Inject {
        fault: &'static str,
        effect: Box<LinkEffect>,
        links: &'static [&'static str],
        heal: HealPolicy,
        probability: Option<Ratio>,
        /// Whether it, or its end, may end connections.
        ends: bool,
    },
    Heal {
        fault: &'static str,
    },
    Rest(Duration),
}

impl Plan {
    /// The plan of a seed; `ends` allows what ends connections.
    pub(super) fn draw(seed: u64, ends: bool) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut steps = Vec::new();
        for _ in 0..STEPS {
            let fault = FAULTS[dice.random_range(0..FAULTS.len())];
            if dice.random_ratio(1, 4) {
                steps.push(Step::Heal { fault });
            } else {
                steps.push(inject(&mut dice, fault, ends));
            }
            // Often several changes in a row, with hardly a byte between them.
            if dice.random_ratio(2, 3) {
                let rest = dice.random_range(0..=REST_MS_MAX);
                steps.push(Step::Rest(Duration::from_millis(rest)));
            }
        }
        Self { steps }
    }
}

fn inject(dice: &mut StdRng, fault: &'static str, ends: bool) -> Step {
    let mut effect = LinkEffect::default();
    // Mostly one thing at a time, sometimes several together.
    for _ in 0..[1, 1, 2, 3][dice.random_range(0..4)] {
        add(dice, &mut effect, ends);
    }
    let links: &[&str] = [&["x>y", "y>x"][..], &["x>y"][..], &["y>x"][..]][dice.random_range(0..3)];
    let heal = match dice.random_range(0..6) {
        0 if ends => HealPolicy::Reset,
        1 if ends => HealPolicy::Close,
        _ => HealPolicy::Resume,
    };
    let part = dice.random_ratio(1, 5);
    let probability = part.then(|| Ratio::from_ppm(dice.random_range(1..=1_000_000)));
    let promises = heal != HealPolicy::Resume || ends_connections(&effect);
    Step::Inject { fault, effect: Box::new(effect), links, heal, probability, ends: promises }
}

/// Whether an effect ends connections, or keeps new ones from being made.
fn ends_connections(effect: &LinkEffect) -> bool {
    let Endings { slow_close_us: _, reset, reset_after_us, close_after_us, limit_bytes } =
        effect.endings;
    let ended = reset_after_us.or(close_after_us).or(limit_bytes);
    reset || ended.is_some() || effect.dials.is_some()
}

fn add(dice: &mut StdRng, effect: &mut LinkEffect, ends: bool) {
    let kinds = if ends { 15 } else { 10 };
    match dice.random_range(0..kinds) {
        0 => effect.cut = Some(Cut::Packets),
        1 => effect.cut = Some(Cut::Bytes),
        2 => effect.delay = Some(delay(dice)),
        3 => {
            let bits_per_s = [1, 20, 200, 2_000][dice.random_range(0..4)] * 1_000_000;
            effect.bandwidth = Some(Rate { bits_per_s });
        }
        4 => effect.loss = vec![loss(dice)],
        5 => effect.slice = Some(slice(dice)),
        6 => effect.hold = Some(Hold::Stall),
        7 => effect.hold = Some(Hold::Jam),
        8 => effect.endings.slow_close_us = dice.random_range(0..200_000),
        9 => effect.accept_delay_us = dice.random_range(0..100_000),
        10 => effect.endings.reset = true,
        11 => effect.endings.reset_after_us = Some(dice.random_range(0..150_000)),
        12 => effect.endings.close_after_us = Some(dice.random_range(0..150_000)),
        13 => effect.endings.limit_bytes = Some(dice.random_range(0..1_000_000)),
        _ => {
            effect.dials = Some(if dice.random() { Dials::Refuse } else { Dials::TimeOut });
        }
    }
}

fn delay(dice: &mut StdRng) -> Delay {
    let mut us = |max: u64| dice.random_range(0..=max);
    match us(3) {
        0 => Delay { base_us: us(500), ..Delay::default() },
        1 => Delay { base_us: us(20_000), jitter_us: us(20_000), ..Delay::default() },
        2 => Delay { base_us: us(5_000), normal_us: us(3_000), ..Delay::default() },
        _ => Delay { base_us: us(2_000), pareto_us: us(5_000), ..Delay::default() },
    }
}

fn loss(dice: &mut StdRng) -> Loss {
    let mut share = |max: u32| Ratio::from_ppm(dice.random_range(0..=max));
    match share(2).ppm() {
        0 => Loss::Bernoulli(share(20_000)),
        1 => Loss::Gilbert {
            enter: share(10_000),
            leave: Ratio::from_ppm(100_000 + share(500_000).ppm()),
            good: Ratio::ZERO,
            bad: Ratio::ONE,
        },
        _ => Loss::Burst { lasts_us: 2_000, every_us: 50_000 },
    }
}

fn slice(dice: &mut StdRng) -> Slice {
    let bytes = [1, 64, 1_000, 100_000][dice.random_range(0..4)];
    let variation_bytes = dice.random_range(0..bytes);
    let delay_us = [0, 0, 10, 1_000][dice.random_range(0..4)];
    Slice { bytes, variation_bytes, delay_us }
}
