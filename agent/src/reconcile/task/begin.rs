//! Begins what a plan says, each step in a task of its own, and what goes with a living node.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use faultbed_common::{host_spec::NodeSpec, link::Party, name::NodeName, proxy_spec::ProxyFile};
use tokio::task::AbortHandle;

use super::{Attached, Reconciler, Wake, absorb::save};
use crate::{
    clock::BootTime,
    probe::Prober,
    reconcile::{
        Hands, NodeAct, Run, Running, Step,
        execute::{Job, execute},
        hands::SurveyOrder,
        node_record::EffectMark,
    },
};

impl<H: Hands> Reconciler<H> {
    pub(super) fn begin(&mut self, step: &Step) {
        match step {
            Step::Proxy(file) => self.begin_proxy(file),
            Step::Node { node, act: NodeAct::Interrupt } => self.interrupt(node),
            Step::Node { node, act } => self.begin_node(node, act),
        }
    }

    fn begin_proxy(&mut self, file: &ProxyFile) {
        self.observed.proxy.busy = true;
        self.observed.proxy.telling = Some(Box::new(file.clone()));
        let file = file.clone();
        let first = self.canaries.to_ask_before();
        if first.is_empty() {
            self.block(move |hands| Wake::ProxyTold(Box::new(hands.apply_proxy(&file))));
        } else {
            self.begin_proxy_after(first, file);
        }
    }

    /// Runs something that may block for a moment, beside the loop.
    pub(super) fn block(&self, work: impl FnOnce(&H) -> Wake + Send + 'static) {
        let (hands, notes) = (Arc::clone(&self.hands), self.notes.clone());
        tokio::task::spawn_blocking(move || {
            // The loop is gone only when the agent stops.
            notes.blocking_send(work(&hands)).ok();
        });
    }

    /// Runs something that may block for a moment and that nobody waits for.
    pub(super) fn block_quietly(&self, work: impl FnOnce(&H) + Send + 'static) {
        let hands = Arc::clone(&self.hands);
        tokio::task::spawn_blocking(move || work(&hands));
    }

    /// Runs something asynchronous, beside the loop.
    fn watch(&self, wait: impl Future<Output = ()> + Send + 'static, wake: Wake) -> AbortHandle {
        let notes = self.notes.clone();
        let task = tokio::spawn(async move {
            wait.await;
            notes.send(wake).await.ok();
        });
        task.abort_handle()
    }

    fn begin_node(&mut self, node: &NodeName, act: &NodeAct) {
        let observed = self.observed.nodes.entry(node.clone()).or_default();
        if let NodeAct::EffectOn { fault, revision, incarnation, off, .. } = act {
            // Before it acts: whatever happens to us, it will be undone.
            let mark = EffectMark {
                revision: *revision,
                tried_in: Some(*incarnation),
                on_in: None,
                off: off.as_deref().cloned(),
            };
            observed.record.effects.insert(fault.clone(), mark);
            save(&*self.hands, node, observed);
        }
        tracing::debug!(%node, step = %act.kind().verb(), "step");
        observed.busy.insert(act.kind());
        let job = Job {
            node: node.clone(),
            act: act.clone(),
            record: observed.record.clone(),
            spec: self.spec(node),
        };
        let task = self.steps.spawn(execute(Arc::clone(&self.hands), job));
        self.begun.insert(task.id(), (node.clone(), act.clone(), task));
    }

    fn spec(&self, node: &NodeName) -> Option<Arc<NodeSpec>> {
        let accepted = self.ledger.accepted()?;
        let leaving = accepted.retiring.get(node).map(|leaving| &leaving.spec);
        leaving.or_else(|| accepted.spec.nodes.get(node)).cloned().map(Arc::new)
    }

    fn interrupt(&self, node: &NodeName) {
        for (of, act, task) in self.begun.values() {
            if of == node && act.kind().is_interruptible() {
                task.abort();
            }
        }
    }

    /// Makes the last orders survive a power cut; one at a time.
    pub(super) fn settle(&mut self) {
        let sequence = self.ledger.accepted().map(|accepted| accepted.sequence);
        if self.is_settling || sequence == self.settled {
            return;
        }
        self.is_settling = true;
        self.settled = sequence;
        let settle = self.ledger.settle();
        self.block(move |_| Wake::Settled(settle()));
    }

    pub(super) fn survey(&mut self) {
        if self.is_surveying {
            return;
        }
        self.is_surveying = true;
        let order = self.survey_order();
        self.block(move |hands| Wake::Surveyed(hands.survey(&order)));
    }

    fn survey_order(&self) -> SurveyOrder {
        let mut private: BTreeMap<SocketAddr, NodeName> = BTreeMap::new();
        let nodes = self.ledger.accepted().iter().flat_map(|a| &a.spec.nodes).collect::<Vec<_>>();
        for (name, spec) in &nodes {
            for port in spec.ports.values() {
                private.insert(SocketAddr::new(spec.private, port.port), (*name).clone());
            }
        }
        let shims = self.observed.nodes.iter().filter_map(|(name, node)| match &node.run {
            Run::Running(running) => Some((running.shim, name.clone())),
            Run::None | Run::Ended(_) | Run::Unknown { .. } => None,
        });
        let address = nodes.first().map(|(_, spec)| spec.address);
        let faults = self.ledger.accepted().into_iter().flat_map(|a| a.spec.proxy.faults.values());
        let links = faults.filter(|fault| fault.fast_heal).flat_map(|fault| &fault.links);
        let parties = links.flat_map(|link| [&link.from, &link.to]);
        let eager = parties.filter_map(Party::node).cloned().collect();
        let lab = self.ledger.accepted().map(|accepted| accepted.spec.lab.clone());
        SurveyOrder { private, shims: shims.collect(), lab, eager, address }
    }

    pub(super) fn ask_proxy(&mut self) {
        if self.is_asking_proxy || !self.observed.proxy.running {
            return;
        }
        self.is_asking_proxy = true;
        let told_times = self.proxy_told_times;
        self.block(move |hands| Wake::ProxySeen(told_times, Box::new(hands.ask_proxy())));
    }

    pub(super) fn watch_proxy(&mut self) {
        let ended = self.hands.proxy_ended();
        self.proxy_watch = Some(self.watch(ended, Wake::ProxyEnded));
    }

    /// Hashes and pins what a node runs, beside its start: hashing must not delay it.
    pub(super) fn identify(&self, node: &NodeName) {
        let Some(binary) = self.observed.nodes.get(node).and_then(|n| n.record.binary.clone())
        else {
            return;
        };
        if binary.sha256.is_some() {
            return;
        }
        let version = self.spec(node).map(|spec| spec.launch.version.clone()).unwrap_or_default();
        let node = node.clone();
        self.block(move |hands| {
            Wake::Identified(node, Box::new(hands.identify(&binary, &version)))
        });
    }

    /// Gives every living node its watch and its probes, and takes them from the others.
    pub(super) fn attach(&mut self, _now: BootTime) {
        let living: Vec<(NodeName, Running)> = self
            .observed
            .nodes
            .iter()
            .filter_map(|(name, node)| match &node.run {
                Run::Running(running) => Some((name.clone(), running.clone())),
                Run::None | Run::Ended(_) | Run::Unknown { .. } => None,
            })
            .collect();
        self.watches.retain(|name, held| {
            living.iter().any(|(n, r)| n == name && r.incarnation == held.incarnation)
        });
        self.probes.retain(|name, (_, held)| {
            living.iter().any(|(n, r)| n == name && r.incarnation == held.incarnation)
        });
        for (name, running) in living {
            let incarnation = running.incarnation;
            if !self.watches.contains_key(&name) {
                let ended = self.hands.ended(&name, &running);
                let task = self.watch(ended, Wake::NodeEnded(name.clone()));
                self.watches.insert(name.clone(), Attached { incarnation, task });
            }
            self.attach_probe(&name, &running);
        }
    }

    fn attach_probe(&mut self, name: &NodeName, running: &Running) {
        let spec = self.ledger.accepted().and_then(|accepted| accepted.spec.nodes.get(name));
        let Some(spec) = spec else {
            self.probes.remove(name);
            return;
        };
        let prober = Prober {
            node: name.clone(),
            incarnation: running.incarnation,
            ready: spec.ready.clone(),
            role: spec.role_state.clone(),
            dir: self.hands.node_dir(name),
            env: spec.launch.env.clone(),
            search: spec.launch.search.clone(),
            was_ready: self.facts.get(name).is_some_and(|facts| facts.been_ready),
        };
        if self.probes.get(name).is_some_and(|(held, _)| held.asks_as(&prober)) {
            return;
        }
        let (facts, mut found) = tokio::sync::mpsc::channel(1);
        let notes = self.notes.clone();
        let clone = prober.clone();
        let task = tokio::spawn(async move {
            let probing = clone.run(facts);
            let telling = async {
                while let Some(fact) = found.recv().await {
                    notes.send(Wake::Fact(fact)).await.ok();
                }
            };
            tokio::join!(probing, telling);
        });
        let attached = Attached { incarnation: running.incarnation, task: task.abort_handle() };
        self.probes.insert(name.clone(), (prober, attached));
    }
}
