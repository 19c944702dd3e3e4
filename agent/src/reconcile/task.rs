//! The loop around passes: it hears why to wake, takes that in, plans, begins steps, and reports.
//!
//! It alone owns what is remembered, so nothing is locked; steps, probes and watches are tasks that
//! tell it what they found through one bounded queue.

mod absorb;
mod begin;
mod canaries;
mod evidence;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use faultbed_common::{
    generation::Incarnation,
    name::NodeName,
    report::{HostReport, NodeState},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Hands, NodeAct, Observed, Run,
    evidence::Kept,
    execute::Done,
    hands::{ProxyApplied, ProxySeen, Survey},
    plan::{self, Plan},
    report::{self, Findings, NodeFacts},
};
use crate::{
    binaries::Binary,
    canary::{Answer, Asking, Canaries, Key, Try},
    clock::BootTime,
    ledger::{Ledger, Told},
    line::Heard,
    probe::{Fact, Prober},
};

/// Everything is looked at again after this, heard of or not.
const RECHECK: Duration = Duration::from_secs(5);

/// While a fault is in force its evidence is asked for this often.
const EVIDENCE: Duration = Duration::from_secs(1);

/// While a program is fetched it is looked at this often how far it is.
const FETCHED: Duration = Duration::from_secs(1);

/// An agent that has just begun tries to hear a coordinator for so long before it holds that it does
/// not: when one was heard last is known to some seconds only.
const CONNECT_FIRST: Duration = Duration::from_secs(2);

/// Steps, probes and watches that wait to be heard.
const INBOX_MAX: usize = 256;

/// Orders that wait to be taken. The newest are complete, so a session may wait.
pub const ORDERS_MAX: usize = 4;

/// Why a pass is made.
#[derive(Debug)]
enum Wake {
    /// The agent began.
    Startup,
    /// A coordinator sent orders.
    Orders(Told),
    /// A step for a node is over, or was interrupted.
    StepDone(Box<Result<(Id, Done), JoinError>>),
    /// An incarnation is over.
    NodeEnded(NodeName),
    /// The proxy was told.
    ProxyTold(Box<Result<ProxyApplied, String>>),
    /// The proxy process is over.
    ProxyEnded,
    /// The proxy process said what it did, asked after it had been told so many times.
    ProxySeen(u64, Box<Result<ProxySeen, String>>),
    /// A probe found something new.
    Fact(Fact),
    /// Links were asked over before a fault on them began.
    AskedBefore(Vec<(Key, Answer)>),
    /// A link was asked over.
    Asked(Key, Try),
    /// A program was hashed.
    Identified(NodeName, Box<Result<Binary, String>>),
    /// Sockets were looked at.
    Surveyed(Survey),
    /// The ledger is on disk.
    Settled(std::io::Result<()>),
    /// A coordinator came on the line, or left it.
    Line,
    /// A step is due.
    Timer,
    /// Everything is looked at again.
    Recheck,
    /// Evidence is asked for.
    Evidence,
}

/// What this agent is, for its reports.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its version.
    pub version: String,
    /// The boot it runs in.
    pub boot_id: String,
}

/// A task that belongs to one incarnation of a node.
#[derive(Debug)]
struct Attached {
    incarnation: Incarnation,
    task: AbortHandle,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A task that asks over one link.
#[derive(Debug)]
struct AskerTask(AbortHandle);

impl Drop for AskerTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The loop and all that it remembers.
#[derive(Debug)]
pub struct Reconciler<H> {
    hands: Arc<H>,
    identity: Identity,
    ledger: Ledger,
    observed: Observed,
    facts: BTreeMap<NodeName, NodeFacts>,
    kept: Kept,
    /// As it was when it was last put on disk.
    kept_on_disk: Kept,
    proxy_seen: Option<ProxySeen>,
    proxy_told_times: u64,
    canaries: Canaries,
    askers: BTreeMap<Key, (Asking, AskerTask)>,
    survey: Survey,
    refused: Option<String>,
    steps: JoinSet<Done>,
    begun: HashMap<Id, (NodeName, NodeAct, AbortHandle)>,
    watches: BTreeMap<NodeName, Attached>,
    probes: BTreeMap<NodeName, (Prober, Attached)>,
    proxy_watch: Option<AbortHandle>,
    is_settling: bool,
    settled: Option<u64>,
    unsettled: Option<String>,
    is_surveying: bool,
    /// Nothing is reported before: who has which ports decides where nodes are placed.
    has_surveyed: bool,
    is_asking_proxy: bool,
    inbox: mpsc::Receiver<Wake>,
    notes: mpsc::Sender<Wake>,
    told: watch::Sender<report::Shared>,
    heard: Heard,
    began: BootTime,
}

impl<H: Hands> Reconciler<H> {
    /// A loop that has not looked at anything yet, and where its reports appear.
    #[must_use]
    pub fn new(
        hands: Arc<H>,
        ledger: Ledger,
        identity: Identity,
    ) -> (Self, watch::Receiver<report::Shared>) {
        let began = hands.now();
        let (notes, inbox) = mpsc::channel(INBOX_MAX);
        let nothing = HostReport { host: Some(ledger.host().clone()), ..HostReport::default() };
        let (told, reports) = watch::channel(Arc::new(nothing));
        let reconciler = Self {
            hands,
            identity,
            ledger,
            observed: Observed::default(),
            facts: BTreeMap::new(),
            kept: Kept::default(),
            kept_on_disk: Kept::default(),
            proxy_seen: None,
            proxy_told_times: 0,
            canaries: Canaries::default(),
            askers: BTreeMap::new(),
            survey: Survey::default(),
            refused: None,
            steps: JoinSet::new(),
            begun: HashMap::new(),
            watches: BTreeMap::new(),
            probes: BTreeMap::new(),
            proxy_watch: None,
            is_settling: false,
            settled: None,
            unsettled: None,
            is_surveying: false,
            has_surveyed: false,
            is_asking_proxy: false,
            inbox,
            notes,
            told,
            heard: Heard::default(),
            began,
        };
        (reconciler, reports)
    }

    /// Knows from now on whether a coordinator is on the line.
    #[must_use]
    pub fn hearing(mut self, heard: Heard) -> Self {
        self.heard = heard;
        self
    }

    /// Passes, until `stop`. Nodes and the proxy process go on without us.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Told>, stop: CancellationToken) {
        let mut due = self.pass(Wake::Startup);
        let mut recheck = tokio::time::interval_at(Instant::now() + RECHECK, RECHECK);
        let mut evidence = tokio::time::interval_at(Instant::now() + EVIDENCE, EVIDENCE);
        let mut fetched = tokio::time::interval_at(Instant::now() + FETCHED, FETCHED);
        fetched.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        recheck.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        evidence.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let has_faults = self.has_link_faults();
            // Every arm is cancel-safe: queues, timers and join_next lose nothing when dropped.
            let wake = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(orders) = orders.recv() => Wake::Orders(orders),
                Some(done) = self.steps.join_next_with_id() => Wake::StepDone(Box::new(done)),
                Some(wake) = self.inbox.recv() => wake,
                () = self.heard.changed() => Wake::Line,
                () = sleep_until(due) => Wake::Timer,
                _ = recheck.tick() => Wake::Recheck,
                _ = evidence.tick(), if has_faults => Wake::Evidence,
                _ = fetched.tick(), if self.observed.fetching.is_some() => Wake::Timer,
            };
            due = self.pass(wake);
        }
        // A start that was begun is finished, so that the next agent finds a whole record.
        while self.steps.join_next().await.is_some() {}
    }

    fn has_link_faults(&self) -> bool {
        self.ledger.accepted().is_some_and(|accepted| !accepted.spec.proxy.faults.is_empty())
    }

    /// One pass. Says when the next is due by itself.
    fn pass(&mut self, wake: Wake) -> Option<Instant> {
        tracing::trace!(?wake, "pass");
        self.absorb(wake);
        self.observed.fetching = self.hands.fetching();
        let now = self.hands.now();
        self.mind_the_line(now);
        let plan = match self.ledger.accepted() {
            // Before the first orders nothing is known to be wanted, so nothing is touched.
            None => Plan::default(),
            Some(wanted) => plan::plan(wanted, &self.observed, now),
        };
        for step in &plan.steps {
            self.begin(step);
        }
        self.attach(now);
        self.attach_askers();
        self.tell(&plan, now);
        let unheard = self.ledger.dead_man_at(now).filter(|_| !self.heard.now());
        let unheard = unheard.map(|at| now.until(at.max(self.began + CONNECT_FIRST)));
        let after = [plan.wake_after, unheard].into_iter().flatten().min();
        after.map(|after| Instant::now() + after)
    }

    fn tell(&mut self, plan: &Plan, now: BootTime) {
        self.note_states(now);
        if !self.has_surveyed {
            return;
        }
        let findings = Findings {
            host: self.ledger.host(),
            accepted: self.ledger.accepted(),
            observed: &self.observed,
            plan,
            refused: self.refused.as_deref(),
            disk: self.ledger.trouble().or(self.unsettled.as_deref()),
            facts: &self.facts,
            proxy: self.proxy_seen.as_ref(),
            canaries: &self.canaries,
            survey: &self.survey,
            kept: &self.kept,
            now,
        };
        let next = report::report(&findings, &self.identity.version, &self.identity.boot_id);
        self.kept.nodes_say(&next.faults);
        self.told.send_replace(Arc::new(next));
    }

    /// Heals by itself what nobody could heal for too long.
    fn mind_the_line(&mut self, now: BootTime) {
        if self.heard.now() || now < self.began + CONNECT_FIRST {
            return;
        }
        let healed = self.ledger.dead_man(now);
        if !healed.is_empty() {
            let names: Vec<&str> = healed.iter().map(AsRef::as_ref).collect();
            tracing::warn!(faults = names.join(", "), "heard no coordinator for too long: healed");
            self.settle();
        }
    }

    fn is_leaving(&self, node: &NodeName) -> bool {
        self.ledger.accepted().is_some_and(|accepted| accepted.retiring.contains_key(node))
    }

    fn note_states(&mut self, now: BootTime) {
        for (name, observed) in &self.observed.nodes {
            let has_probe = self
                .ledger
                .accepted()
                .and_then(|accepted| accepted.spec.nodes.get(name))
                .is_some_and(|spec| spec.ready.is_some());
            let state = match report::state(observed, has_probe) {
                // A node that leaves may end by itself once its cluster is told.
                NodeState::Crashed if self.is_leaving(name) => NodeState::Stopped,
                state => state,
            };
            let facts = self.facts.entry(name.clone()).or_default();
            facts.been_ready |= state == NodeState::Ready;
            if facts.state.is_none_or(|(held, _)| held != state) {
                let since = match (&observed.run, facts.state) {
                    (Run::Ended(ended), _) if observed.busy.is_empty() => ended.at,
                    (Run::Running(running), None) => running.started,
                    _ => now,
                };
                facts.state = Some((state, since));
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
