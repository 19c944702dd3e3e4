//! What is done with one link, on whose account, and what of that is one connection's.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use faultbed_common::{
    effect::Ratio,
    fault::HealPolicy,
    proxy_spec::LinkEffect,
    rules::{LinkRule, combine},
};

use super::{Bucket, Kernel, Life};
use serde::{Deserialize, Serialize};

use crate::proxy::{carry::shared, dice::Dice, rule_set::lock, storm::Storms};

/// What is done with one link, and on whose account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) rule: LinkRule,
    pub(crate) acting: Vec<Arc<Acting>>,
    /// Where the link's dice come from.
    pub(crate) seed: u64,
    /// The line of all its connections; it stays the link's when faults change.
    #[serde(with = "shared")]
    pub(crate) bucket: Arc<Bucket>,
    /// When all of its segments are lost, for all of its connections alike.
    #[serde(with = "shared")]
    pub(crate) storms: Arc<Mutex<Storms>>,
    /// Whether some fault acts on a share of its connections only.
    shared: bool,
}

/// One fault's share in an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acting {
    pub(crate) life: Life,
    /// When it was first read, in nanoseconds of CLOCK_BOOTTIME.
    pub(crate) began_ns: u64,
    pub(crate) heal: HealPolicy,
    /// What it does by itself to bytes and connections, in the grade it has here. What the kernel
    /// does is not in it.
    pub(crate) effect: LinkEffect,
    pub(crate) kernel: Kernel,
    /// The share of connections that it acts on.
    pub(crate) probability: Option<Ratio>,
    pub(crate) seed: u64,
}

/// What of an order is one connection's.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub(crate) rule: Cow<'a, LinkRule>,
    pub(crate) acting: Cow<'a, [Arc<Acting>]>,
}

impl Acting {
    /// Whether it acts on the connection of a number: fixed by its seed for the connection's life.
    fn meets(&self, number: u64) -> bool {
        self.probability.is_none_or(|share| Dice::new(self.seed ^ number).meets(share))
    }
}

impl Order {
    /// The order of the faults that act on a link. What is the link's own goes on as in `before`.
    pub(crate) fn new(acting: Vec<Arc<Acting>>, before: Option<&Self>) -> Self {
        let lives: BTreeSet<Life> = acting.iter().map(|one| one.life).collect();
        let storms = before.map(|order| Arc::clone(&order.storms)).unwrap_or_default();
        lock(&storms).keep(&lives);
        let rule = combine(acting.iter().map(|one| &one.effect));
        // A line whose rate changes begins anew.
        let same_rate = before.filter(|order| order.rule.bandwidth == rule.bandwidth);
        Self {
            rule,
            seed: acting.iter().fold(0, |seed, one| seed ^ one.seed),
            bucket: same_rate.map(|order| Arc::clone(&order.bucket)).unwrap_or_default(),
            storms,
            shared: acting.iter().any(|one| one.probability.is_some()),
            acting,
        }
    }

    /// What of it is the part of the connection with this number. Costs nothing where all of it is.
    pub(crate) fn for_connection(&self, number: u64) -> Part<'_> {
        if !self.shared || self.acting.iter().all(|one| one.meets(number)) {
            return Part { rule: Cow::Borrowed(&self.rule), acting: Cow::Borrowed(&self.acting) };
        }
        let met: Vec<Arc<Acting>> =
            self.acting.iter().filter(|one| one.meets(number)).cloned().collect();
        Part {
            rule: Cow::Owned(combine(met.iter().map(|one| &one.effect))),
            acting: Cow::Owned(met),
        }
    }
}
