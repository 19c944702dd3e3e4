//! What a change of rules does to bytes that wait already.

use std::sync::Arc;

use faultbed_common::{effect::Rate, proxy_spec::Delay};

use super::nanoseconds;
use crate::proxy::{
    bucket::{Bucket, Share},
    delay::Times,
    dice::Dice,
};

/// What changes of rules do to the times of what waits. Done twice it is as done once, but for another
/// fall of the dice, so a chunk may meet it again where the next change comes before it is through.
#[derive(Debug)]
pub(super) struct Retime {
    pub(super) has_slices: bool,
    pub(super) has_losses: bool,
    pub(super) delay: Redelay,
    pub(super) line: Option<Reline>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Redelay {
    Same,
    Never,
    /// Drawn anew: less from now on, but what is on its way does not become later.
    AtMost(Delay),
}

/// Another line, or none, for what has not left the old one at a moment of CLOCK_MONOTONIC.
#[derive(Debug)]
pub(super) struct Reline {
    pub(super) at_ns: u64,
    pub(super) line: Option<(Rate, Arc<Bucket>)>,
}

impl Retime {
    /// This change after an earlier one that is not through.
    pub(super) fn after(self, earlier: Self) -> Self {
        let delay = match (earlier.delay, self.delay) {
            (Redelay::Never, _) | (_, Redelay::Never) => Redelay::Never,
            (Redelay::AtMost(first), Redelay::AtMost(second)) if first.base_us < second.base_us => {
                Redelay::AtMost(first)
            }
            (first, Redelay::Same) => first,
            (_, second) => second,
        };
        Self {
            has_slices: self.has_slices && earlier.has_slices,
            has_losses: self.has_losses && earlier.has_losses,
            delay,
            line: self.line.or(earlier.line),
        }
    }

    pub(super) fn change(&self, times: &mut Times, bytes: u64, dice: &mut Dice, share: &mut Share) {
        if !self.has_slices {
            times.piece_ns = 0;
        }
        if !self.has_losses {
            times.lost_ns = 0;
        }
        match self.delay {
            Redelay::Same => {}
            Redelay::Never => times.delay_ns = 0,
            Redelay::AtMost(delay) => {
                times.delay_ns = times.delay_ns.min(nanoseconds(dice.late_us(delay)));
            }
        }
        if let Some(Reline { at_ns, line }) = &self.line
            && times.line_ns > *at_ns
        {
            times.line_ns =
                line.as_ref().map_or(0, |(rate, bucket)| share.take(bucket, bytes, *rate, *at_ns));
        }
    }
}
