//! Random changes of rules: faults of every kind come, are replaced, heal, and end by themselves.

use std::time::Duration;

use faultbed_common::{
    effect::{Loss, Rate, Ratio, Slice},
    fault::HealPolicy,
    proxy_spec::{Cut, Delay, Dials, Hold, LinkEffect},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::process::{Proxy, link_fault};

/// Faults in force at once, at most.
const FAULTS: u32 = 4;
const PAUSE_MS_MAX: u64 = 150;
/// Most are replaced or healed long before.
const LASTS_MS_MAX: u64 = 2_000;
const LINKS: [&[&str]; 6] =
    [&["x>y", "y>x"], &["x>y"], &["y>x"], &["z>y", "y>z"], &["z>y"], &["x>y", "y>x", "z>y", "y>z"]];

/// The dice, and how often they fell.
#[derive(Debug)]
pub(crate) struct Churn {
    dice: StdRng,
    pub(crate) changes: u64,
}

impl Churn {
    pub(crate) fn new(seed: u64) -> Self {
        Self { dice: StdRng::seed_from_u64(seed), changes: 0 }
    }

    /// Changes the file once; says how long to wait before that is made true.
    ///
    /// # Errors
    /// Where a name cannot be understood.
    pub(crate) fn change(&mut self, proxy: &mut Proxy) -> anyhow::Result<Duration> {
        self.changes += 1;
        let dice = &mut self.dice;
        let name = format!("f{}", dice.random_range(0..FAULTS));
        // As often healed as injected: links are to be free at times.
        if dice.random() {
            proxy.heal(&name)?;
        } else {
            let heal = [HealPolicy::Resume, HealPolicy::Reset, HealPolicy::Close];
            let heal = heal[dice.random_range(0..heal.len())];
            let links = LINKS[dice.random_range(0..LINKS.len())];
            let mut fault = link_fault(effect(dice), links, heal)?;
            let ppm = dice.random_range(1..=1_000_000);
            fault.probability = dice.random_ratio(1, 4).then(|| Ratio::from_ppm(ppm));
            let ms = dice.random_range(1..=LASTS_MS_MAX);
            let ends_itself: bool = dice.random();
            proxy.inject(&name, fault, ends_itself.then(|| Duration::from_millis(ms)))?;
        }
        Ok(Duration::from_millis(dice.random_range(0..=PAUSE_MS_MAX)))
    }
}

fn effect(dice: &mut StdRng) -> LinkEffect {
    let mut effect = LinkEffect::default();
    for _ in 0..dice.random_range(1..=2) {
        add(dice, &mut effect);
    }
    effect
}

fn add(dice: &mut StdRng, effect: &mut LinkEffect) {
    match dice.random_range(0..16) {
        0 => effect.cut = Some(Cut::Packets),
        1 => effect.cut = Some(Cut::Bytes),
        2 => effect.hold = Some(Hold::Jam),
        3 => effect.hold = Some(Hold::Stall),
        4 => effect.delay = Some(Delay { base_us: 5_000, jitter_us: 5_000, ..Delay::default() }),
        5 => effect.delay = Some(Delay { normal_us: 2_000, pareto_us: 500, ..Delay::default() }),
        6 => effect.bandwidth = Some(Rate { bits_per_s: dice.random_range(1..=500) * 1_000_000 }),
        7 => effect.loss = vec![Loss::Bernoulli(Ratio::from_ppm(10_000))],
        8 => effect.loss = vec![Loss::Burst { lasts_us: 2_000, every_us: 100_000 }],
        9 => effect.slice = Some(Slice { bytes: 64, variation_bytes: 32, delay_us: 10 }),
        10 => effect.dials = Some(if dice.random() { Dials::Refuse } else { Dials::TimeOut }),
        11 => effect.accept_delay_us = dice.random_range(0..50_000),
        12 => effect.endings.reset = true,
        13 => effect.endings.reset_after_us = Some(dice.random_range(0..100_000)),
        14 => effect.endings.close_after_us = Some(dice.random_range(0..100_000)),
        _ => {
            effect.endings.limit_bytes = Some(dice.random_range(0..500_000));
            effect.endings.slow_close_us = dice.random_range(0..50_000);
        }
    }
}
