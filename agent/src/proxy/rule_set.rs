//! The rules that workers obey, as one immutable set, and the place where the newest one is found.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use faultbed_common::{
    link::{Link, Party},
    name::NodeName,
};

use crate::proxy::{
    diallers::Diallers,
    table::{Life, Orders},
};

/// Everything that decides about a connection.
#[derive(Debug, Default)]
pub(crate) struct RuleSet {
    /// Grows with every set; not the lab's generation, since a deadline makes a new set too.
    pub(crate) epoch: u64,
    pub(crate) links: Arc<Orders>,
    /// Those whose order is not that of the set before: whoever comes from there need look at no
    /// connection of another.
    pub(crate) changed: BTreeSet<Link>,
    /// Nodes at either end of a link with an order.
    pub(crate) touched: BTreeSet<NodeName>,
    pub(crate) diallers: Arc<Diallers>,
    /// Evidence of other lives is not asked for any more.
    pub(crate) told: BTreeSet<Life>,
}

/// The nodes at either end of these links.
pub(crate) fn touched(links: &Orders) -> BTreeSet<NodeName> {
    let mut nodes = BTreeSet::new();
    for party in links.keys().flat_map(|link| [&link.from, &link.to]) {
        if let Party::Node(node) = party
            && !nodes.contains(node)
        {
            nodes.insert(node.clone());
        }
    }
    nodes
}

impl RuleSet {
    /// Whether some rule treats the diallers of `node` differently, so that who dials must be known.
    pub(crate) fn tells_sources_apart(&self, node: &NodeName) -> bool {
        self.touched.contains(node)
    }

    /// Who dials from there; `None` where that must be looked up.
    pub(crate) fn dialler(&self, from: SocketAddr) -> Option<Party> {
        self.diallers.node(from).cloned().map(Party::Node)
    }
}

/// The newest set of rules and how far the workers are with it.
#[derive(Debug)]
pub(crate) struct Board {
    epoch: AtomicU64,
    rules: Mutex<Arc<RuleSet>>,
    in_force: Mutex<Vec<u64>>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl Board {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            rules: Mutex::default(),
            in_force: Mutex::new(vec![0; workers]),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
        }
    }

    /// Puts up the next set. Workers see it at their next turn; wake them.
    pub(crate) fn publish(&self, mut rules: RuleSet) -> u64 {
        let mut place = lock(&self.rules);
        let epoch = place.epoch + 1;
        rules.epoch = epoch;
        *place = Arc::new(rules);
        self.epoch.store(epoch, Ordering::Release);
        epoch
    }

    /// The newest set's number: the one load that a worker pays for each turn.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn newest(&self) -> Arc<RuleSet> {
        Arc::clone(&lock(&self.rules))
    }

    /// A worker has put a set in force on all of its connections.
    pub(crate) fn acknowledge(&self, worker: usize, epoch: u64) {
        lock(&self.in_force)[worker] = epoch;
        self.changed.notify_all();
    }

    /// Waits until a set is in force everywhere; says whether it was in time.
    pub(crate) fn wait_in_force(&self, epoch: u64, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut in_force = lock(&self.in_force);
        while in_force.iter().any(|reached| *reached < epoch) {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            let woken = self.changed.wait_timeout(in_force, left);
            in_force = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// Locks; a thread that panicked has left data that is still whole, since nothing here is changed
/// in more than one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
