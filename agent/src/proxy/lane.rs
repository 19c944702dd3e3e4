//! One direction of a connection with its link's order, and the account of what the order did to it.

use std::sync::Arc;

use faultbed_common::{
    fault::HealPolicy, link::Link, proxy_spec::Cut, report::LinkEvidence, rules::LinkRule,
};

use crate::proxy::{
    evidence::Ledger,
    flow::Flow,
    side::Side,
    table::{Acting, Order},
};

/// One direction and its account.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) flow: Flow,
    /// `None` until it is known who dialled.
    link: Option<Arc<Link>>,
    order: Option<Arc<Order>>,
    stopped: Option<Stopped>,
}

/// What has been counted since a cut came into force.
#[derive(Debug)]
struct Stopped {
    /// Of the destination when it came into force, and as far as counted.
    written: u64,
    unsent: u64,
    /// Held bytes counted.
    held: u64,
}

impl Lane {
    pub(crate) fn new() -> Self {
        Self { flow: Flow::new(), link: None, order: None, stopped: None }
    }

    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    pub(crate) fn set_link(&mut self, link: Link) {
        self.link = Some(Arc::new(link));
    }

    /// What stops this direction.
    pub(crate) fn cut(&self) -> Option<Cut> {
        self.order.as_ref().and_then(|order| order.rule.cut)
    }

    /// Takes another order. Returns what the end of faults that acted before wants done with the
    /// connection; the account must have been settled before.
    pub(crate) fn take_order(
        &mut self,
        order: Option<Arc<Order>>,
        salt: u64,
        ledger: &mut Ledger,
    ) -> HealPolicy {
        let before = self.order.take();
        let acting = |order: &Option<Arc<Order>>| {
            order.as_ref().map_or(Vec::new(), |order| order.acting.clone())
        };
        let (old, new) = (acting(&before), acting(&order));
        let has = |all: &[Acting], one: &Acting| all.iter().any(|other| other.life == one.life);
        if let Some(link) = &self.link {
            for one in new.iter().filter(|one| !has(&old, one)) {
                ledger.add(
                    one.life,
                    link,
                    &LinkEvidence { connections: 1, ..LinkEvidence::default() },
                );
            }
        }
        let clear = LinkRule::default();
        let (rule, seed, bucket) = match &order {
            Some(order) => (&order.rule, order.seed ^ salt, Some(Arc::clone(&order.bucket))),
            None => (&clear, 0, None),
        };
        self.flow.set_rule(rule, seed, bucket);
        self.order = order;
        let ended = old.iter().filter(|one| !has(&new, one)).map(|one| one.heal);
        ended.fold(HealPolicy::Resume, stronger)
    }

    /// Notes that the direction stands still from now on, or moves again.
    pub(crate) fn note_stop(&mut self, to: Option<&Side>) {
        match (self.cut(), &self.stopped) {
            (None, _) => self.stopped = None,
            (Some(_), Some(_)) => {}
            (Some(_), None) => {
                self.stopped = Some(Stopped {
                    written: to.map_or(0, |side| side.written),
                    unsent: to.map_or(0, Side::unsent_bytes),
                    held: 0,
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
        let (Some(order), Some(link)) = (&self.order, &self.link) else { return };
        let late = self.flow.lateness.take();
        if late.delayed_chunks > 0 {
            for one in order.acting.iter().filter(|one| one.delays) {
                ledger.add(one.life, link, &late);
            }
        }
        let Some(stopped) = &mut self.stopped else { return };
        let held = from.unread_bytes() + self.flow.held_bytes();
        let written = to.map_or(0, |side| side.written);
        let mut leaked = written.saturating_sub(stopped.written);
        // A cut of bytes lets those be that the kernel had taken before: they are on their way.
        if order.rule.cut == Some(Cut::Packets) {
            let unsent = to.map_or(0, Side::unsent_bytes);
            // What a mute socket sends, its peer's kernel drops.
            if to.is_some_and(|side| !side.is_mute()) {
                leaked += stopped.unsent.saturating_sub(unsent);
            }
            stopped.unsent = unsent;
        }
        let more = LinkEvidence {
            held_bytes: held.saturating_sub(stopped.held),
            leaked_bytes: leaked,
            ..LinkEvidence::default()
        };
        stopped.held = stopped.held.max(held);
        stopped.written = written;
        self.charge(&more, now_ms, ledger);
    }

    /// Charges the cuts of this direction with `more`, if there is anything to charge.
    pub(crate) fn charge(&self, more: &LinkEvidence, now_ms: u64, ledger: &mut Ledger) {
        let (Some(order), Some(link)) = (&self.order, &self.link) else { return };
        if *more == LinkEvidence::default() {
            return;
        }
        let hit =
            LinkEvidence { first_hit_ms: Some(now_ms), last_hit_ms: Some(now_ms), ..more.clone() };
        for one in order.acting.iter().filter(|one| one.cuts.is_some()) {
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
