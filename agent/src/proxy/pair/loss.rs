//! Loss that the kernel makes: of what arrives at the two sockets of a connection, before TCP sees it.
//!
//! Packets of X on a connection to Y arrive at the socket that faces X: what the link X→Y loses is
//! lost there, acknowledgements as well as data. Losses that draw for each segment are filters; in a
//! burst the socket is deaf. Where a cut made it deaf as well, the cut wins.

use std::{
    io,
    sync::{Arc, Mutex},
};

use faultbed_common::effect::{Loss, Ratio};

use super::{Pair, Stage, Which};
use serde::{Deserialize, Serialize};

use crate::proxy::{
    carry::maybe_shared,
    lane::Share,
    rule_set::lock,
    side::Side,
    storm::{self, Storms},
    sys::{self, Instruction, bpf},
    timers::Alarm,
    worker::Tools,
};

/// `ld [SKF_AD_OFF + SKF_AD_RANDOM]`: 32 random bits of the kernel.
const LOAD_RANDOM: Instruction = Instruction { code: 0x20, jt: 0, jf: 0, k: 0xffff_f038 };
const JUMP_IF_AT_LEAST: u16 = 0x35;
const KEEP: Instruction = Instruction { code: 0x06, jt: 0, jf: 0, k: u32::MAX };
const DROP: Instruction = Instruction { code: 0x06, jt: 0, jf: 0, k: 0 };

/// What is lost at the two sockets.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Losses {
    /// Of the near one first.
    sides: [Losing; 2],
    /// The change of weather that there is an alarm for.
    armed_ns: u64,
}

/// What is lost at one socket.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Losing {
    /// Losses that draw for each segment, as wanted and as in force.
    drawn: Vec<Loss>,
    attached: Vec<Loss>,
    bursts: Vec<Burst>,
    #[serde(with = "maybe_shared")]
    storms: Option<Arc<Mutex<Storms>>>,
    counts: bool,
}

/// Times in which all is lost.
#[derive(Debug, Serialize, Deserialize)]
struct Burst {
    which: storm::Which,
    /// How long they last, and how far their beginnings are apart, in microseconds.
    times_us: (u64, u64),
    seed: u64,
}

impl Losses {
    /// Takes what the faults of a lane lose from now on.
    pub(super) fn take(place: &mut Option<Box<Self>>, which: Which, share: Option<Share<'_>>) {
        let mut wanted = Losing::default();
        for one in share.iter().flat_map(|share| share.acting) {
            for (index, loss) in one.kernel.loss.iter().enumerate() {
                match *loss {
                    Loss::Bernoulli(_) | Loss::Gilbert { .. } => wanted.drawn.push(*loss),
                    Loss::Burst { lasts_us, every_us } => wanted.bursts.push(Burst {
                        which: (one.life, index),
                        times_us: (lasts_us, every_us),
                        seed: one.seed,
                    }),
                }
            }
        }
        if place.is_none() && wanted.drawn.is_empty() && wanted.bursts.is_empty() {
            return;
        }
        wanted.storms = share.map(|share| Arc::clone(&share.order.storms));
        let own = &mut place.get_or_insert_default().sides[which as usize];
        wanted.attached = std::mem::take(&mut own.attached);
        wanted.counts = own.counts;
        *own = wanted;
    }

    /// Whether something is lost at a socket.
    pub(super) fn is_on(&self, at: usize) -> bool {
        self.sides[at].counts
    }

    fn is_nothing(&self) -> bool {
        let nothing = |losing: &Losing| {
            losing.drawn.is_empty() && losing.attached.is_empty() && losing.bursts.is_empty()
        };
        self.sides.iter().all(nothing)
    }
}

impl Losing {
    /// Makes a socket lose what it should at a moment of CLOCK_MONOTONIC. Says when that changes.
    fn enforce(
        &mut self,
        side: &mut Side,
        drops: &mut u32,
        now_ns: u64,
    ) -> io::Result<Option<u64>> {
        let loses = !self.drawn.is_empty() || !self.bursts.is_empty();
        if loses && !self.counts && !side.is_deaf() {
            *drops = sys::drops(&side.fd);
        }
        self.counts = loses;
        let mut change_ns = None;
        let mut storms = false;
        if let Some(all) = self.storms.as_ref().filter(|_| !self.bursts.is_empty()) {
            let mut all = lock(all);
            for Burst { which, times_us, seed } in &self.bursts {
                let (storm, until_ns) = all.at(*which, *times_us, *seed, now_ns);
                storms |= storm;
                change_ns = change_ns.into_iter().chain([until_ns]).min();
            }
        }
        side.set_storm(storms)?;
        if self.drawn != self.attached {
            self.attach(side)?;
            self.attached.clone_from(&self.drawn);
        }
        Ok(change_ns)
    }

    fn attach(&self, side: &Side) -> io::Result<()> {
        if self.drawn.is_empty() {
            sys::detach_filter(&side.fd);
            return Ok(());
        }
        let remembers = self.drawn.iter().any(|loss| matches!(loss, Loss::Gilbert { .. }));
        if let Some(storms) = self.storms.as_ref().filter(|_| remembers) {
            let filter = lock(storms).filter(&self.drawn)?;
            return bpf::attach_filter(&side.fd, &filter);
        }
        let shares = self.drawn.iter().filter_map(|loss| match loss {
            Loss::Bernoulli(share) => Some(*share),
            Loss::Gilbert { .. } | Loss::Burst { .. } => None,
        });
        sys::attach_filter(&side.fd, &losing(lost_below(shares)))
    }
}

impl Pair {
    /// Makes the kernel lose what it should, now and when that changes.
    pub(super) fn enforce_losses(&mut self, tools: &mut Tools) {
        let Some(losses) = &mut self.losses else { return };
        let now_ns = sys::monotonic_ns();
        let [near, far] = &mut losses.sides;
        // The answer to a connect of our own must not be lost.
        let connected = matches!(self.stage, Stage::Carrying | Stage::Closing);
        let far_side = self.far.as_mut().filter(|_| connected);
        let mut change_ns = None;
        let sides = [
            Some((near, &mut self.near, &mut self.near_drops)),
            far_side.map(|side| (far, side, &mut self.far_drops)),
        ];
        for (losing, side, drops) in sides.into_iter().flatten() {
            match losing.enforce(side, drops, now_ns) {
                Ok(next_ns) => change_ns = change_ns.into_iter().chain(next_ns).min(),
                Err(error) => tracing::error!(%error, "make the kernel lose segments"),
            }
        }
        if let Some(at_ns) = change_ns.filter(|at_ns| *at_ns != losses.armed_ns) {
            losses.armed_ns = at_ns;
            tools.wake_at(at_ns, Alarm::Burst);
        }
        if losses.is_nothing() {
            self.losses = None;
        }
    }

    /// Lets both sockets hear everything from now on. A socket that is closed while it loses cannot be
    /// healed any more: what it has still to pass on might be lost for ever.
    pub(super) fn end_losses(&mut self) {
        let Some(losses) = self.losses.take() else { return };
        let sides = [Some(&mut self.near), self.far.as_mut()];
        for (losing, side) in losses.sides.iter().zip(sides) {
            let Some(side) = side else { continue };
            if !losing.attached.is_empty() {
                sys::detach_filter(&side.fd);
            }
            if let Err(error) = side.set_storm(false) {
                tracing::error!(%error, "let a socket hear before it is closed");
            }
        }
    }
}

/// Of 2^32 even throws, how many fall on a segment that is lost, where each of these losses is drawn
/// by itself.
fn lost_below(shares: impl Iterator<Item = Ratio>) -> u64 {
    const MILLION: u128 = 1_000_000;
    let one = 1_u128 << 64;
    let kept = shares.fold(one, |kept, share| kept * (MILLION - u128::from(share.ppm())) / MILLION);
    // Rounded: the least difference from what is wanted.
    u64::try_from((one - kept + (1 << 31)) >> 32).unwrap_or(1 << 32)
}

/// The filter that loses a segment when a throw of 32 bits is below this.
pub(crate) fn losing(below: u64) -> Vec<Instruction> {
    match u32::try_from(below) {
        Ok(below) => {
            let jump = Instruction { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: below };
            vec![LOAD_RANDOM, jump, KEEP, DROP]
        }
        Err(_) => vec![DROP],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(shares: &[&str]) -> u64 {
        lost_below(shares.iter().map(|share| share.parse().unwrap()))
    }

    #[test]
    fn losses_are_drawn_one_after_the_other() {
        assert_eq!(below(&[]), 0);
        assert_eq!(below(&["0%"]), 0);
        assert_eq!(below(&["50%"]), 1 << 31);
        assert_eq!(below(&["50%", "50%"]), 3 << 30);
        assert_eq!(below(&["100%", "1%"]), 1 << 32);
        assert_eq!(below(&["1%", "2%"]), below(&["2%", "1%"]));
        let all = losing(1 << 32);
        assert_eq!((all.len(), all[0].code, all[0].k), (1, DROP.code, 0), "without a throw");
    }
}
