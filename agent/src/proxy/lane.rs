//! One direction of a connection with its link's order, and the account of what the order did to it.

use std::sync::Arc;

use faultbed_common::{
    fault::HealPolicy,
    link::Link,
    proxy_spec::{Cut, LinkEffect},
    report::LinkEvidence,
    rules::LinkRule,
};

use serde::{Deserialize, Serialize};

use crate::proxy::{
    carry::maybe_shared,
    evidence::Ledger,
    flow::Flow,
    side::Side,
    table::{Acting, Order},
};

/// One direction and its account.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Lane {
    pub(crate) flow: Flow,
    /// `None` until it is known who dialled.
    #[serde(with = "maybe_shared")]
    link: Option<Arc<Link>>,
    /// The faults that act on this connection, and the cut that they come to.
    acting: Vec<Arc<Acting>>,
    cut: Option<Cut>,
    is_held: bool,
    stopped: Option<Stopped>,
}

/// What a link's order is to one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share<'a> {
    pub(crate) order: &'a Order,
    /// The effects of `acting`, combined.
    pub(crate) rule: &'a LinkRule,
    /// The faults of the order that act on this connection.
    pub(crate) acting: &'a [Arc<Acting>],
}

/// What has been counted since a cut or a hold came into force.
#[derive(Debug, Serialize, Deserialize)]
struct Stopped {
    /// What stopped it; a hold has no cut.
    cut: Option<Cut>,
    /// Of the destination when it came into force, and as far as counted.
    written: u64,
    unsent: u64,
    /// Held bytes counted.
    held: u64,
}

impl Lane {
    pub(crate) fn new() -> Self {
        Self {
            flow: Flow::new(),
            link: None,
            acting: Vec::new(),
            cut: None,
            is_held: false,
            stopped: None,
        }
    }

    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    pub(crate) fn set_link(&mut self, link: Link) {
        self.link = Some(Arc::new(link));
    }

    /// The faults that act on this connection.
    pub(crate) fn acting(&self) -> &[Arc<Acting>] {
        &self.acting
    }

    /// What stops this direction.
    pub(crate) fn cut(&self) -> Option<Cut> {
        self.cut
    }

    /// Takes another order, or `None` where there is none any more. Returns what the end of faults
    /// that acted before wants done with the connection; the account must have been settled before.
    pub(crate) fn take_order(
        &mut self,
        share: Option<Share<'_>>,
        salt: u64,
        ledger: &mut Ledger,
    ) -> HealPolicy {
        let new = share.map_or(Vec::new(), |share| share.acting.to_vec());
        let old = std::mem::replace(&mut self.acting, new);
        let has = |all: &[Arc<Acting>], one: &Acting| all.iter().any(|o| o.life == one.life);
        if let Some(link) = &self.link {
            for one in self.acting.iter().filter(|one| !has(&old, one)) {
                ledger.add(
                    one.life,
                    link,
                    &LinkEvidence { connections: 1, ..LinkEvidence::default() },
                );
            }
        }
        let clear = LinkRule::default();
        let (rule, seed, bucket) = match share {
            Some(Share { order, rule, .. }) => {
                (rule, order.seed ^ salt, Some(Arc::clone(&order.bucket)))
            }
            None => (&clear, 0, None),
        };
        self.flow.set_rule(rule, seed, bucket);
        self.cut = rule.cut;
        self.is_held = rule.hold.is_some();
        let ended = old.iter().filter(|one| !has(&self.acting, one)).map(|one| one.heal);
        ended.fold(HealPolicy::Resume, stronger)
    }

    /// Notes that the direction stands still from now on, or moves again.
    pub(crate) fn note_stop(&mut self, to: Option<&Side>) {
        match (self.cut.is_some() || self.is_held, &self.stopped) {
            (false, _) => self.stopped = None,
            (true, Some(stopped)) if stopped.cut == self.cut => {}
            // Another kind of stop has its own beginning: until now the kernel sent what it had.
            (true, stopped) => {
                self.stopped = Some(Stopped {
                    cut: self.cut,
                    written: to.map_or(0, |side| side.written),
                    unsent: to.map_or(0, Side::unsent_bytes),
                    held: stopped.as_ref().map_or(0, |stopped| stopped.held),
                });
            }
        }
    }

    /// Settles the account: what was held, delayed and leaked since it was last settled.
    pub(crate) fn settle(
        &mut self,
        from: &Side,
        to: Option<&Side>,
        now_ms: u64,
        ledger: &mut Ledger,
    ) {
        let Some(link) = self.link.as_ref().filter(|_| !self.acting.is_empty()) else { return };
        if let Some(tally) = self.flow.take_tally() {
            for one in &self.acting {
                let share = tally.share(&one.effect);
                if share != LinkEvidence::default() {
                    ledger.add(one.life, link, &share);
                }
            }
        }
        let Some(stopped) = &mut self.stopped else { return };
        let held = from.unread_bytes() + self.flow.held_bytes();
        let written = to.map_or(0, |side| side.written);
        let mut leaked = written.saturating_sub(stopped.written);
        // A cut of bytes lets those be that the kernel had taken before: they are on their way.
        if self.cut == Some(Cut::Packets) {
            let unsent = to.map_or(0, Side::unsent_bytes);
            // What a mute socket sends, its peer's kernel drops.
            if to.is_some_and(|side| !side.is_mute()) {
                leaked += stopped.unsent.saturating_sub(unsent);
            }
            stopped.unsent = unsent;
        }
        let held_bytes = held.saturating_sub(stopped.held);
        stopped.held = stopped.held.max(held);
        stopped.written = written;
        let held = LinkEvidence { held_bytes, ..LinkEvidence::default() };
        let stops = |effect: &LinkEffect| effect.cut.is_some() || effect.hold.is_some();
        self.charge(stops, &held, now_ms, ledger);
        let leaked = LinkEvidence { leaked_bytes: leaked, ..LinkEvidence::default() };
        self.charge(|effect| effect.cut.is_some(), &leaked, now_ms, ledger);
    }

    /// Charges `more`, if there is anything to charge, to the faults whose effect has the part that
    /// did it.
    pub(crate) fn charge(
        &self,
        has_part: impl Fn(&LinkEffect) -> bool,
        more: &LinkEvidence,
        now_ms: u64,
        ledger: &mut Ledger,
    ) {
        let Some(link) = &self.link else { return };
        if *more == LinkEvidence::default() {
            return;
        }
        let hit =
            LinkEvidence { first_hit_ms: Some(now_ms), last_hit_ms: Some(now_ms), ..more.clone() };
        for one in self.acting.iter().filter(|one| has_part(&one.effect)) {
            ledger.add(one.life, link, &hit);
        }
    }
}

/// Of two policies the one that changes more.
pub(crate) fn stronger(one: HealPolicy, other: HealPolicy) -> HealPolicy {
    match (one, other) {
        (HealPolicy::Reset, _) | (_, HealPolicy::Reset) => HealPolicy::Reset,
        (HealPolicy::Close, _) | (_, HealPolicy::Close) => HealPolicy::Close,
        (HealPolicy::Resume, HealPolicy::Resume) => HealPolicy::Resume,
    }
}
