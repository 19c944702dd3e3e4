//! Loses segments where the kernel does not: what is lost is late by the time it takes to send it again.
//!
//! At stream grade nothing is ever missing, so a loss is what a receiver sees of one: the segment
//! comes late, and everything after it waits for it. How late follows Linux: where at least three
//! more segments follow, their acknowledgements tell the sender after a round trip (RFC 5681, fast
//! retransmit); else it finds out by itself, after 200 ms and a round trip, twice that the next time
//! (RFC 6298 with Linux's lower bound). The sender's rate is not reduced: its own kernel sees no loss.

use std::collections::VecDeque;

use faultbed_common::effect::{Loss, Ratio};

use serde::{Deserialize, Serialize};

use crate::proxy::dice::Dice;

/// What Linux adds to the round trip before it sends again (`TCP_RTO_MIN`).
const RESEND_NS_MIN: u64 = 200_000_000;
/// The longest pause between two attempts (`TCP_RTO_MAX`).
const RESEND_NS_MAX: u64 = 120_000_000_000;
/// Attempts after which a segment arrives in any case; a kernel would give the connection up
/// (`tcp_retries2`).
const ATTEMPTS_MAX: u32 = 15;
/// Bursts that are drawn one after the other to get to a moment.
const BURSTS_MAX: u64 = 4096;
/// Bursts that are drawn where that would be too many.
const BURSTS_FRESH: u64 = 16;
/// Segments after a lost one whose acknowledgements tell the sender.
pub(crate) const FAST_SEGMENTS: usize = 3;

/// The losses of one direction of one connection, each with its memory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Losses {
    models: Vec<Model>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Model {
    Single(Ratio),
    Gilbert {
        enter: Ratio,
        leave: Ratio,
        good: Ratio,
        bad: Ratio,
        is_bad: bool,
    },
    Burst {
        lasts_ns: u64,
        pause_ns: u64,
        /// Beginnings and ends, as far as they have been asked for and are not over.
        times: VecDeque<(u64, u64)>,
    },
}

/// What becomes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    Lost,
    /// With all that follows it.
    LostInBurst,
}

/// How one segment is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sending {
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub(crate) at_ns: u64,
    /// How long an acknowledgement takes.
    pub(crate) round_trip_ns: u64,
    /// Whether [`FAST_SEGMENTS`] follow it at once.
    pub(crate) is_followed: bool,
}

impl Losses {
    pub(crate) fn new(losses: &[Loss]) -> Self {
        Self { models: losses.iter().map(|loss| Model::new(*loss)).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// Sends one segment until it arrives. Returns how often it was lost and how late it is, in
    /// nanoseconds. Segments must be sent in the order of their times.
    pub(crate) fn send(&mut self, sending: Sending, dice: &mut Dice) -> (u32, u64) {
        let Sending { at_ns, round_trip_ns, is_followed } = sending;
        for model in &mut self.models {
            model.forget_before(at_ns);
        }
        let (mut attempts, mut late_ns) = (0, 0_u64);
        let mut pause_ns = RESEND_NS_MIN.saturating_add(round_trip_ns);
        while attempts < ATTEMPTS_MAX {
            let fate = self.throw(at_ns.saturating_add(late_ns), attempts > 0, dice);
            if fate == Fate::Arrives {
                break;
            }
            attempts += 1;
            if attempts == 1 && is_followed && fate == Fate::Lost {
                late_ns = late_ns.saturating_add(round_trip_ns);
            } else {
                late_ns = late_ns.saturating_add(pause_ns);
                pause_ns = pause_ns.saturating_mul(2).min(RESEND_NS_MAX);
            }
        }
        (attempts, late_ns)
    }

    /// Every model is asked, so that each has its own course.
    fn throw(&mut self, at_ns: u64, again: bool, dice: &mut Dice) -> Fate {
        let mut fate = Fate::Arrives;
        for model in &mut self.models {
            match (model.throw(at_ns, again, dice), fate) {
                (Fate::Arrives, _) | (Fate::Lost, Fate::LostInBurst) => {}
                (worse, _) => fate = worse,
            }
        }
        fate
    }
}

impl Model {
    fn new(loss: Loss) -> Self {
        match loss {
            Loss::Bernoulli(ratio) => Self::Single(ratio),
            Loss::Gilbert { enter, leave, good, bad } => {
                Self::Gilbert { enter, leave, good, bad, is_bad: false }
            }
            Loss::Burst { lasts_us, every_us } => Self::Burst {
                lasts_ns: lasts_us.saturating_mul(1_000),
                pause_ns: every_us.saturating_sub(lasts_us).saturating_mul(1_000),
                times: VecDeque::new(),
            },
        }
    }

    fn throw(&mut self, at_ns: u64, again: bool, dice: &mut Dice) -> Fate {
        match self {
            Self::Single(ratio) if dice.meets(*ratio) => Fate::Lost,
            Self::Single(_) => Fate::Arrives,
            // When it is sent again, others have passed meanwhile: the state is any, as often as it
            // is on the whole, and what comes next finds it as the first attempt had left it.
            Self::Gilbert { enter, leave, good, bad, .. } if again => {
                let width = u64::from(enter.ppm()) + u64::from(leave.ppm());
                let is_bad = dice.below(width) < u64::from(enter.ppm());
                if dice.meets(if is_bad { *bad } else { *good }) {
                    Fate::Lost
                } else {
                    Fate::Arrives
                }
            }
            Self::Gilbert { enter, leave, good, bad, is_bad } => {
                // As netem does, the state that a segment finds decides about it.
                let (lost, turns) = if *is_bad { (*bad, *leave) } else { (*good, *enter) };
                if dice.meets(turns) {
                    *is_bad = !*is_bad;
                }
                if dice.meets(lost) { Fate::Lost } else { Fate::Arrives }
            }
            Self::Burst { lasts_ns, pause_ns, times } => {
                // The pause before the first is drawn like the others: they have no memory.
                let mut end_ns = times.back().map_or(at_ns, |(_, end_ns)| *end_ns);
                let every_ns = pause_ns.saturating_add(*lasts_ns).max(1);
                if at_ns.saturating_sub(end_ns) / every_ns > BURSTS_MAX {
                    // Nobody has asked for long. Some bursts later nothing reminds of the first.
                    end_ns = at_ns.saturating_sub(every_ns.saturating_mul(BURSTS_FRESH));
                }
                while end_ns <= at_ns {
                    let begin_ns = end_ns.saturating_add(dice.exponential(*pause_ns));
                    end_ns = begin_ns.saturating_add((*lasts_ns).max(1));
                    times.push_back((begin_ns, end_ns));
                }
                let is_lost = times.iter().any(|(begin, end)| (*begin..*end).contains(&at_ns));
                if is_lost { Fate::LostInBurst } else { Fate::Arrives }
            }
        }
    }

    /// Times before this moment will not be asked for again. The last burst stays, since the next
    /// one begins after it.
    fn forget_before(&mut self, at_ns: u64) {
        if let Self::Burst { times, .. } = self {
            while times.len() > 1 && times.front().is_some_and(|(_, end_ns)| *end_ns <= at_ns) {
                times.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn losses(text: &str) -> Losses {
        Losses::new(&[text.parse().unwrap()])
    }

    fn at(at_ns: u64) -> Sending {
        Sending { at_ns, round_trip_ns: MS, is_followed: false }
    }

    fn lost(losses: &mut Losses, dice: &mut Dice, at_ns: u64) -> bool {
        losses.throw(at_ns, false, dice) != Fate::Arrives
    }

    #[test]
    fn each_segment_is_lost_with_its_probability() {
        let (mut losses, mut dice) = (losses("1%"), Dice::new(11));
        let count = (0..1_000_000).filter(|_| lost(&mut losses, &mut dice, 0)).count();
        assert!((9_700..10_300).contains(&count), "{count}");
    }

    #[test]
    fn the_bad_state_comes_and_lasts_as_often_as_it_says() {
        let (mut losses, mut dice) = (losses("p=1% r=20%"), Dice::new(12));
        let fates: Vec<bool> = (0..1_000_000).map(|_| lost(&mut losses, &mut dice, 0)).collect();
        let count = fates.iter().filter(|lost| **lost).count();
        // p / (p + r) of the time is bad.
        assert!((45_000..50_300).contains(&count), "{count}");
        let runs = fates.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        let length = count * 100 / runs;
        assert!((480..520).contains(&length), "a stay lasts 1/r segments: {length}/100");
    }

    #[test]
    fn bursts_take_their_share_of_the_time() {
        let (mut losses, mut dice) = (losses("burst=20ms every=200ms"), Dice::new(13));
        let mut count = 0;
        for step in 0..2_000_000_u64 {
            losses.models[0].forget_before(step * MS / 10);
            count += usize::from(lost(&mut losses, &mut dice, step * MS / 10));
        }
        assert!((180_000..220_000).contains(&count), "a tenth: {count}");
        let Model::Burst { times, .. } = &losses.models[0] else { unreachable!() };
        assert!(times.len() <= 2, "what is over is forgotten");
    }

    #[test]
    fn bursts_are_few_to_keep_however_short_they_are_and_long_the_silence() {
        let (mut losses, mut dice) = (losses("burst=1us every=2us"), Dice::new(15));
        for second in [0, 1, 100_000] {
            losses.send(at(second * 1_000 * MS), &mut dice);
        }
        let Model::Burst { times, .. } = &losses.models[0] else { unreachable!() };
        assert!(times.len() < 10_000, "{}", times.len());
    }

    #[test]
    fn what_is_lost_in_a_burst_arrives_at_the_first_attempt_after_it() {
        let mut losses = losses("burst=1s every=10s");
        let Model::Burst { times, .. } = &mut losses.models[0] else { unreachable!() };
        times.extend([(100 * MS, 1_100 * MS), (90_000 * MS, 91_000 * MS)]);
        let mut dice = Dice::new(0);
        assert_eq!(losses.send(at(99 * MS), &mut dice), (0, 0));
        // Again after 201, 603 and 1407 ms, of which the last is after the end.
        assert_eq!(losses.send(at(100 * MS), &mut dice), (3, 1_407 * MS));
        // Nothing follows that would tell the sender earlier.
        let followed = Sending { is_followed: true, ..at(1_000 * MS) };
        assert_eq!(losses.send(followed, &mut dice), (1, 201 * MS));
        assert_eq!(losses.send(at(1_100 * MS), &mut dice), (0, 0));
    }

    #[test]
    fn a_loss_costs_a_round_trip_where_others_follow_and_else_a_time_out() {
        let (mut losses, mut dice) = (losses("30%"), Dice::new(14));
        let mut lates: Vec<(u32, u64)> = (0..1_000)
            .map(|_| losses.send(Sending { is_followed: true, ..at(0) }, &mut dice))
            .filter(|(times, _)| *times < 3)
            .collect();
        lates.sort_unstable();
        lates.dedup();
        assert_eq!(lates, [(0, 0), (1, MS), (2, 202 * MS)]);
        let (times, late_ns) = (0..100).map(|_| losses.send(at(0), &mut dice)).max().unwrap();
        assert_eq!(late_ns, 201 * MS * ((1 << times) - 1), "doubled each time");
    }

    #[test]
    fn a_link_that_loses_everything_is_late_but_not_for_ever() {
        let (times, late_ns) = losses("100%").send(at(0), &mut Dice::new(1));
        assert_eq!(times, ATTEMPTS_MAX);
        assert!(late_ns < 1_000_000 * MS, "{late_ns}");
    }
}
