//! What a connection tells the ledger: what the kernel dropped for it, and attempts that got through.

use faultbed_common::{proxy_spec::LinkEffect, report::LinkEvidence};

use crate::{
    clock,
    proxy::{pair::Pair, sys, worker::Tools},
};

impl Pair {
    /// Settles the accounts of both directions.
    pub(crate) fn sample(&mut self, tools: &mut Tools) {
        let now_ms = clock::boottime_ms();
        let ledger = &mut tools.ledger;
        self.forward.settle(&self.near, self.far.as_ref(), now_ms, ledger);
        if let Some(far) = &self.far {
            self.backward.settle(far, Some(&self.near), now_ms, ledger);
        }
        // Where a one-way cut made its other side deaf too, that is the cut's doing.
        let lanes = [&self.forward, &self.backward];
        let own = |at: usize| if lanes[at].cut().is_some() { lanes[at] } else { lanes[1 - at] };
        let sides =
            [(Some(&self.near), &mut self.near_drops), (self.far.as_ref(), &mut self.far_drops)];
        for (at, (side, counted)) in sides.into_iter().enumerate() {
            let loses = self.losses.as_ref().is_some_and(|losses| losses.is_on(at));
            let Some(side) = side.filter(|side| side.is_deaf() || loses) else { continue };
            let drops = sys::drops(&side.fd);
            let dropped_segments = u64::from(drops.wrapping_sub(*counted));
            *counted = drops;
            let more = LinkEvidence { dropped_segments, ..LinkEvidence::default() };
            if side.is_deaf() {
                own(at).charge(|effect| effect.cut.is_some(), &more, now_ms, ledger);
            } else if let (Some(link), 1..) = (lanes[at].link(), dropped_segments) {
                let hit = hit_at(now_ms, more);
                let acting = lanes[at].acting().iter();
                for one in acting.filter(|one| !one.kernel.loss.is_empty()) {
                    ledger.add(one.life, link, &hit);
                }
            }
        }
    }

    /// A connection attempt that a fault forbids came through to here.
    pub(crate) fn count_refused(&self, tools: &mut Tools) {
        let stops = |effect: &LinkEffect| effect.cut.is_some() || effect.dials.is_some();
        let own = self.forward.acting().iter().any(|one| stops(&one.effect));
        let lane = if own { &self.forward } else { &self.backward };
        let more = LinkEvidence { attempts_refused: 1, ..LinkEvidence::default() };
        lane.charge(stops, &more, clock::boottime_ms(), &mut tools.ledger);
    }
}

/// Evidence with the moment of its hit.
pub(super) fn hit_at(now_ms: u64, more: LinkEvidence) -> LinkEvidence {
    LinkEvidence { first_hit_ms: Some(now_ms), last_hit_ms: Some(now_ms), ..more }
}
