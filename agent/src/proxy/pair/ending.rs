//! How a connection begins and ends under a fault: refused, let stand still, reset, closed in order.

use faultbed_common::{
    proxy_spec::{Dials, Endings, LinkEffect},
    report::LinkEvidence,
};
use rustix::io::Errno;

use super::{Fate, Pair, Stage, tally::hit_at};
use crate::clock;
use crate::proxy::{side::Side, sys, table::Acting, timers::Alarm, worker::Tools};

/// A peer has this long to end its own stream after ours was ended; then it is told nobody listens.
const CLOSING_NS_MAX: u64 = 1_000_000_000;
/// Reads of bytes that nobody gets, before other connections have their turn.
const DISCARDS_MAX: u32 = 16;

/// How a fault ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// A RST to both ends.
    Reset,
    /// A FIN to both ends after what was already written.
    Close,
}

/// The endings that a fault has for a connection, with their moments, in nanoseconds of
/// CLOCK_BOOTTIME. Times run from when the two met.
fn endings_of(one: &Acting, arrived_ns: u64) -> impl Iterator<Item = (u64, End)> {
    let Endings { reset, reset_after_us, close_after_us, limit_bytes: _, slow_close_us: _ } =
        one.effect.endings;
    let met_ns = arrived_ns.max(one.began_ns);
    let after = move |us: u64| met_ns.saturating_add(us.saturating_mul(1_000));
    // Those that came later than the fault live.
    let at_once = (reset && arrived_ns < one.began_ns).then_some((one.began_ns, End::Reset));
    let later = reset_after_us.map(|us| (after(us), End::Reset));
    let closed = close_after_us.map(|us| (after(us), End::Close));
    [at_once, later, closed].into_iter().flatten()
}

impl Pair {
    /// What becomes of the dial that made this connection.
    pub(super) fn dials(&self) -> Option<Dials> {
        self.forward.acting().iter().filter_map(|one| one.effect.dials).max()
    }

    /// Resets a connection whose dial is to be refused and that came through to here: its `connect`
    /// has succeeded, and the next thing its dialler does fails. No byte was read or written.
    pub(super) fn refuse(&mut self, tools: &mut Tools) -> Option<Fate> {
        if self.stage != Stage::Waiting || self.dials() != Some(Dials::Refuse) {
            return None;
        }
        self.count_refused(tools);
        self.stage = Stage::Closing;
        Some(self.reset())
    }

    /// Dials the node, or later where the connection has to stand still first.
    pub(super) fn dial_in_time(&mut self, tools: &mut Tools) -> Fate {
        let delays = self.forward.acting().iter().map(|one| one.effect.accept_delay_us);
        let delay_us = delays.fold(0, u64::saturating_add);
        let at_ns = self.arrived_ns.saturating_add(delay_us.saturating_mul(1_000));
        let left_ns = at_ns.saturating_sub(clock::boottime_ns());
        if delay_us == 0 || left_ns == 0 {
            return Fate::Dial;
        }
        if !std::mem::replace(&mut self.was_delayed, true) {
            let more = LinkEvidence { delayed_accepts: 1, ..LinkEvidence::default() };
            let now_ms = clock::boottime_ms();
            let delays = |effect: &LinkEffect| effect.accept_delay_us > 0;
            self.forward.charge(delays, &more, now_ms, &mut tools.ledger);
        }
        tools.wake_at(sys::monotonic_ns().saturating_add(left_ns), Alarm::Accept);
        Fate::Live
    }

    /// Ends the connection if a fault on either of its links wants that by now.
    pub(super) fn meet_end(&mut self, tools: &mut Tools) -> Option<Fate> {
        let lanes = [&self.forward, &self.backward];
        let acting = lanes.into_iter().flat_map(|lane| lane.acting());
        let arrived_ns = self.arrived_ns;
        let open = self.stage != Stage::Closing;
        let ends = acting.flat_map(|one| endings_of(one, arrived_ns));
        let (at_ns, end) = ends.filter(|(_, end)| open || *end == End::Reset).min()?;
        let now_ns = clock::boottime_ns();
        if let Some(left_ns) = at_ns.checked_sub(now_ns).filter(|left_ns| *left_ns > 0) {
            if std::mem::replace(&mut self.end_ns, at_ns) != at_ns {
                tools.wake_at(sys::monotonic_ns().saturating_add(left_ns), Alarm::End);
            }
            return None;
        }
        // Neither a RST nor a FIN crosses a cut: it comes when that has healed.
        if self.near.is_deaf() || self.far.as_ref().is_some_and(Side::is_deaf) {
            return None;
        }
        self.charge_end(now_ns, end, tools);
        match end {
            End::Reset => Some(self.reset()),
            End::Close => Some(self.close_in_order(tools)),
        }
    }

    fn charge_end(&self, now_ns: u64, end: End, tools: &mut Tools) {
        let more = match end {
            End::Reset => LinkEvidence { resets: 1, ..LinkEvidence::default() },
            End::Close => LinkEvidence { closes: 1, ..LinkEvidence::default() },
        };
        let hit = hit_at(clock::boottime_ms(), more);
        for lane in [&self.forward, &self.backward] {
            let Some(link) = lane.link() else { continue };
            for one in lane.acting() {
                let mut ends = endings_of(one, self.arrived_ns);
                if ends.any(|(at_ns, kind)| at_ns <= now_ns && kind == end) {
                    tools.ledger.add(one.life, link, &hit);
                }
            }
        }
    }

    /// Ends both streams after what was already written to them; what is held is not sent.
    pub(super) fn close_in_order(&mut self, tools: &mut Tools) -> Fate {
        if self.stage != Stage::Carrying {
            // There is nobody behind it yet, or not quite.
            self.far = None;
        }
        self.stage = Stage::Closing;
        self.near.finish();
        if let Some(far) = &self.far {
            far.finish();
        }
        tools.wake_at(sys::monotonic_ns() + CLOSING_NS_MAX, Alarm::Closing);
        self.discard(tools)
    }

    /// Reads what peers still send, so that they get our FIN and not a RST, until they end too.
    pub(super) fn discard(&mut self, tools: &mut Tools) -> Fate {
        let near = is_drained(&mut self.near, tools);
        let far = self.far.as_mut().is_none_or(|far| is_drained(far, tools));
        match (near, far) {
            (true, true) => Fate::Over,
            (false, _) if self.near.readable => Fate::Again,
            (_, false) if self.far.as_ref().is_some_and(|far| far.readable) => Fate::Again,
            (_, _) => Fate::Live,
        }
    }
}

/// Reads and forgets; says whether the peer's stream has ended.
fn is_drained(side: &mut Side, tools: &mut Tools) -> bool {
    for _ in 0..DISCARDS_MAX {
        if !side.readable {
            return side.failed;
        }
        match side.read(&mut tools.scratch) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(Errno::AGAIN) => return side.failed,
            Err(_) => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::proxy::table::tests::acting;

    fn ends(endings: Endings, began_ns: u64, arrived_ns: u64) -> Vec<(u64, End)> {
        let mut one = Arc::unwrap_or_clone(acting(1));
        one.began_ns = began_ns;
        one.effect.endings = endings;
        endings_of(&one, arrived_ns).collect()
    }

    #[test]
    fn only_connections_older_than_the_fault_are_reset_at_once() {
        let reset = Endings { reset: true, ..Endings::default() };
        assert_eq!(ends(reset, 100, 99), [(100, End::Reset)]);
        assert_eq!(ends(reset, 100, 100), []);
    }

    #[test]
    fn times_run_from_when_connection_and_fault_met() {
        let timed =
            Endings { reset_after_us: Some(7), close_after_us: Some(5), ..Endings::default() };
        let after = |met_ns: u64| vec![(met_ns + 7_000, End::Reset), (met_ns + 5_000, End::Close)];
        assert_eq!(ends(timed, 100, 40), after(100));
        assert_eq!(ends(timed, 100, 400), after(400));
    }
}
