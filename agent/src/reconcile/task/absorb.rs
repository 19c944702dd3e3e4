//! Takes in why the loop woke: what was heard becomes what is observed.

mod proxy;
mod steps;

use std::time::Duration;

use faultbed_common::name::NodeName;
use tokio::task::{Id, JoinError};

use self::steps::{step_failed, step_succeeded};
use super::{Reconciler, Wake};
use crate::{
    binaries::Binary,
    ledger::{Told, Unknown},
    probe::{Fact, Found},
    reconcile::{
        Hands, NodeAct, ObservedNode, Readiness, Run, StepKind, Why,
        execute::Done,
        report::{self, NodeFacts},
    },
};

/// A living run may be in doubt for so long before it is called unknown.
const DOUBT_MAX: Duration = Duration::from_secs(2);

/// Lines of a crashed node's output that are kept in its report.
const LAST_LINES: usize = 20;

impl<H: Hands> Reconciler<H> {
    pub(super) fn absorb(&mut self, wake: Wake) {
        match wake {
            Wake::Startup => self.startup(),
            Wake::Orders(told) => self.take_orders(told),
            Wake::StepDone(done) => self.step_done(*done),
            Wake::NodeEnded(node) => self.inspect(&node),
            Wake::ProxyTold(told) => self.proxy_told(*told),
            Wake::ProxyEnded => self.proxy_ended(),
            Wake::ProxySeen(told_times, seen) => self.proxy_answered(told_times, *seen),
            Wake::Fact(fact) => self.take_fact(fact),
            Wake::AskedBefore(answers) => self.asked_before(&answers),
            Wake::Asked(key, found) => self.asked(&key, &found),
            Wake::Identified(node, result) => self.identified(&node, *result),
            Wake::Surveyed(survey) => {
                (self.is_surveying, self.has_surveyed) = (false, true);
                self.survey = survey;
                self.keep_bypasses();
            }
            Wake::Settled(result) => self.ledger_settled(result),
            Wake::Line => self.ledger.note_heard(self.hands.now()),
            Wake::Timer => self.inspect_unsettled(),
            Wake::Recheck => self.recheck(),
            Wake::Evidence => {
                self.save_evidence();
                self.ask_proxy();
            }
        }
    }

    fn ledger_settled(&mut self, result: std::io::Result<()>) {
        self.is_settling = false;
        match result {
            Ok(()) => {
                self.unsettled = None;
                self.settle();
            }
            Err(error) => {
                tracing::error!(%error, "settle the ledger");
                self.unsettled = Some(format!("settle the ledger: {error}"));
                // The next look at everything tries again.
                self.settled = None;
            }
        }
    }

    fn startup(&mut self) {
        match self.hands.nodes() {
            Ok(nodes) => nodes.iter().for_each(|node| self.meet(node)),
            Err(error) => tracing::error!(%error, "list nodes"),
        }
        self.observed.proxy.running = self.hands.find_proxy().is_some();
        self.load_evidence();
        self.look_for_programs();
        self.take_canaries();
        self.canaries.skip_before();
        self.survey();
        self.ask_proxy();
    }

    /// Looks at a node for the first time.
    fn meet(&mut self, node: &NodeName) {
        match self.hands.load_record(node) {
            Ok(record) => {
                self.observed
                    .nodes
                    .insert(node.clone(), ObservedNode { record, ..Default::default() });
                self.inspect(node);
            }
            Err(error) => {
                let run = Run::Unknown { why: format!("its record cannot be read: {error}") };
                let unknown = ObservedNode { run, ..Default::default() };
                self.observed.nodes.insert(node.clone(), unknown);
            }
        }
    }

    fn take_orders(&mut self, told: Told) {
        let (orders, unknown) = match told {
            Told::Orders(orders, unknown) => (*orders, unknown),
            Told::Unreadable(why) => {
                tracing::error!(why, "cannot follow orders");
                self.refused = Some(why);
                return;
            }
        };
        if unknown != Unknown::default() {
            tracing::warn!(
                ?unknown,
                "orders of a later release are followed as far as they are known"
            );
        }
        let before = self.ledger.accepted().cloned();
        match self.ledger.accept_partly(orders, unknown, self.hands.now()) {
            Ok(()) => self.refused = None,
            Err(refusal) => {
                tracing::warn!(error = %refusal, "refuse orders");
                self.refused = Some(refusal.to_string());
                return;
            }
        }
        let Some(accepted) = self.ledger.accepted() else { return };
        tracing::info!(generation = %accepted.spec.generation, "orders accepted");
        for (name, spec) in &accepted.spec.nodes {
            let held = before.as_ref().and_then(|before| before.spec.nodes.get(name));
            // What failed with other orders may succeed with these.
            if held != Some(spec)
                && let Some(node) = self.observed.nodes.get_mut(name)
            {
                node.failures.clear();
                node.checked = None;
            }
        }
        let new: Vec<NodeName> = accepted
            .spec
            .nodes
            .keys()
            .filter(|name| !self.observed.nodes.contains_key(*name))
            .cloned()
            .collect();
        if let Some(before) = &before {
            self.note_ended_faults(before);
        }
        self.take_canaries();
        new.iter().for_each(|node| self.meet(node));
        self.meet_kept();
        self.look_for_programs();
        self.settle();
    }

    /// Looks at nodes that went some time ago and left their data, which shall go now.
    fn meet_kept(&mut self) {
        let Some(accepted) = self.ledger.accepted() else { return };
        let is_unmet = |node: &&NodeName| !self.observed.nodes.contains_key(*node);
        let unmet: Vec<NodeName> =
            accepted.spec.wipe_removed.iter().filter(is_unmet).cloned().collect();
        if unmet.is_empty() {
            return;
        }
        match self.hands.nodes() {
            Ok(here) => {
                unmet.iter().filter(|node| here.contains(node)).for_each(|node| self.meet(node));
            }
            Err(error) => tracing::error!(%error, "list nodes"),
        }
    }

    /// Which of the pushed programs that nodes are to run are here.
    fn look_for_programs(&mut self) {
        let specs = self.ledger.accepted().into_iter().flat_map(|a| a.spec.nodes.values());
        let here = specs.filter(|spec| {
            spec.launch.pushed.as_ref().is_some_and(|pushed| self.hands.has_program(pushed))
        });
        self.observed.programs = here.map(|spec| spec.launch.program.clone().into()).collect();
    }

    fn recheck(&mut self) {
        self.look_for_programs();
        let nodes: Vec<NodeName> = self.observed.nodes.keys().cloned().collect();
        for node in &nodes {
            self.inspect(node);
            // Only a program that was met while it ran tells how it can be named.
            if let Some(Run::Running(running)) = self.observed.nodes.get(node).map(|n| &n.run) {
                let identity = self.hands.identity(node, running.incarnation);
                self.facts.entry(node.clone()).or_default().identity = identity;
            }
        }
        let running = self.hands.find_proxy().is_some();
        if self.observed.proxy.running && !running {
            self.proxy_ended();
        }
        self.observed.proxy.running = running;
        if self.heard.now() {
            // Where we are killed, the time since then counts.
            self.ledger.note_heard(self.hands.now());
        }
        self.ledger.note_ages(self.hands.now());
        if self.ledger.retry() || self.unsettled.is_some() {
            self.settle();
        }
        self.save_evidence();
        self.survey();
        self.ask_proxy();
    }

    /// Looks again at nodes that are about to become something else.
    fn inspect_unsettled(&mut self) {
        let is_unsettled = |node: &ObservedNode| match &node.run {
            Run::Unknown { .. } => true,
            Run::Running(running) => {
                let holds = node.orders.as_ref().is_some_and(|orders| orders.pause.is_some());
                running.paused != holds || running.asked.is_some() || node.doubted_since.is_some()
            }
            Run::None | Run::Ended(_) => false,
        };
        let nodes = self.observed.nodes.iter();
        let unsettled: Vec<NodeName> =
            nodes.filter(|(_, node)| is_unsettled(node)).map(|(name, _)| name.clone()).collect();
        unsettled.iter().for_each(|node| self.inspect(node));
    }

    /// Looks at a node again, and takes note of what became of it.
    pub(super) fn inspect(&mut self, node: &NodeName) {
        let run = self.hands.inspect(node);
        let now = self.hands.now();
        let Some(observed) = self.observed.nodes.get_mut(node) else { return };
        if observed.run == run {
            observed.doubted_since = None;
            return;
        }
        if let (Run::Unknown { .. }, Run::Running(_)) = (&run, &observed.run) {
            // While a run ends its records contradict each other for a moment; its watch tells
            // when that is over.
            let since = *observed.doubted_since.get_or_insert(now);
            if now < since + DOUBT_MAX {
                return;
            }
        }
        observed.doubted_since = None;
        let facts = self.facts.entry(node.clone()).or_default();
        if observed.run.incarnation() != run.incarnation() {
            observed.ready = Readiness::NotYet;
            observed.orders = None;
            *facts = NodeFacts { state: facts.state, ..NodeFacts::default() };
        }
        match &run {
            Run::Running(running) => {
                facts.identity = self.hands.identity(node, running.incarnation);
                facts.been_ready = observed.record.ready_in == Some(running.incarnation);
                if observed.orders.is_none() {
                    observed.orders = self.hands.told(node, running.incarnation);
                }
            }
            Run::Ended(ended) => {
                observed.failures.remove(&StepKind::KillTree);
                observed.failures.remove(&StepKind::Signal);
                observed.orders = None;
                let is_reboot = ended.asked == Some(Why::Reboot);
                let known = observed.record.exit.as_ref();
                // Who saw its last moments before the machine went down took them for a crash.
                if known.map(|exit| (exit.incarnation, exit.rebooted))
                    != Some((ended.incarnation, is_reboot))
                {
                    let lines = match ended.asked {
                        Some(_) => Vec::new(),
                        None => self.hands.last_lines(node, ended.incarnation, LAST_LINES),
                    };
                    let exit =
                        report::exit(ended, self.ledger.accepted(), facts.probe.clone(), lines);
                    tracing::info!(%node, incarnation = %ended.incarnation, asked = exit.asked,
                        how = ended.describe(), "node ended");
                    observed.record.exit = Some(exit);
                    save(&*self.hands, node, observed);
                }
            }
            Run::None | Run::Unknown { .. } => {}
        }
        observed.run = run;
    }

    fn step_done(&mut self, done: Result<(Id, Done), JoinError>) {
        let is_cancelled = done.as_ref().is_err_and(JoinError::is_cancelled);
        let (id, result) = match done {
            Ok((id, done)) => (id, done.result),
            Err(error) if error.is_cancelled() => (error.id(), Err("interrupted".to_owned())),
            Err(error) => (error.id(), Err(format!("step failed: {error}"))),
        };
        let Some((node, act, _)) = self.begun.remove(&id) else { return };
        let now = self.hands.now();
        if let NodeAct::Retire { .. } = act
            && result.is_ok()
        {
            tracing::info!(%node, "node is gone");
            self.ledger.retired(&node);
            self.observed.nodes.remove(&node);
            self.facts.remove(&node);
            // It may be wanted again already, as a new node of the same name.
            if self.ledger.accepted().is_some_and(|a| a.spec.nodes.contains_key(&node)) {
                self.meet(&node);
            }
            self.meet_kept();
            return;
        }
        let Some(observed) = self.observed.nodes.get_mut(&node) else { return };
        let kind = act.kind();
        observed.busy.remove(&kind);
        match result {
            Ok(binary) => {
                observed.failures.remove(&kind);
                step_succeeded(observed, &act, binary, now);
                save(&*self.hands, &node, observed);
                match act {
                    NodeAct::Start { .. } => self.identify(&node),
                    NodeAct::Fetch { .. } => self.look_for_programs(),
                    _ => {}
                }
            }
            // Nobody wants it any more: a later leave is another one.
            Err(_) if is_cancelled && act == NodeAct::Leave => {
                observed.failures.remove(&kind);
            }
            Err(why) => {
                tracing::warn!(%node, step = %kind.verb(), %why, "step failed");
                step_failed(observed, &act, &kind, why, now);
                save(&*self.hands, &node, observed);
            }
        }
        self.inspect(&node);
    }

    fn identified(&mut self, node: &NodeName, result: Result<Binary, String>) {
        let Some(observed) = self.observed.nodes.get_mut(node) else { return };
        match result {
            Ok(binary) => {
                if observed.record.binary.as_ref().is_some_and(|held| held.is_same_file(&binary)) {
                    observed.record.binary = Some(binary);
                    save(&*self.hands, node, observed);
                    self.prune_binaries();
                }
            }
            Err(why) => tracing::warn!(%node, %why, "hash its program"),
        }
    }

    fn take_fact(&mut self, fact: Fact) {
        let Fact { node, incarnation, found } = fact;
        let Some(observed) = self.observed.nodes.get_mut(&node) else { return };
        // A fact of an earlier incarnation says nothing of this one.
        if observed.run.incarnation() != incarnation {
            return;
        }
        let facts = self.facts.entry(node.clone()).or_default();
        match found {
            Found::Ready(role) => {
                if let Some(role) = role {
                    facts.role = role;
                }
                observed.ready = Readiness::Ready;
                facts.probe = None;
                // A node that serves has dialled, so it is known by now how it can be named.
                facts.identity = self.hands.identity(&node, incarnation);
                if observed.record.ready_in != Some(incarnation) {
                    observed.record.ready_in = Some(incarnation);
                    save(&*self.hands, &node, observed);
                }
            }
            Found::NotReady { why, was_ready } => {
                observed.ready = if was_ready { Readiness::Unready } else { Readiness::NotYet };
                facts.probe = Some(why);
            }
            Found::Role(role) => facts.role = role,
        }
    }
}

/// Keeps a node's marks. A disk that does not take them is logged: the node must go on.
pub(super) fn save<H: Hands>(hands: &H, node: &NodeName, observed: &ObservedNode) {
    if let Err(error) = hands.save_record(node, &observed.record) {
        tracing::error!(%node, %error, "keep the node's record");
    }
}
