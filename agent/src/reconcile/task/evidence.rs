//! The loop's side of what is kept of faults, and of programs.

use std::collections::BTreeSet;

use faultbed_common::report::FaultReport;

use super::Reconciler;
use crate::reconcile::{Hands, Run, report::ENDED_FAULTS_MAX};

impl<H: Hands> Reconciler<H> {
    pub(super) fn load_evidence(&mut self) {
        match self.hands.load_evidence() {
            Ok(kept) => self.kept = kept.read_in(&self.identity.boot_id),
            Err(error) => tracing::error!(%error, "read what faults did"),
        }
    }

    /// Puts what faults did on disk, where it is news.
    pub(super) fn save_evidence(&mut self) {
        for (name, revision, link, report) in self.canaries.reports() {
            self.kept.canary_says(name, revision, link, report);
        }
        if self.kept == self.kept_on_disk {
            return;
        }
        match self.hands.save_evidence(&self.kept) {
            Ok(()) => self.kept_on_disk = self.kept.clone(),
            Err(error) => tracing::warn!(%error, "keep what faults did"),
        }
    }

    /// Remembers connections around the proxies for the faults they belie.
    pub(super) fn keep_bypasses(&mut self) {
        if self.survey.bypasses.is_empty() {
            return;
        }
        let Some(accepted) = self.ledger.accepted() else { return };
        let Some(seen) = &self.proxy_seen else { return };
        for (name, fault) in &accepted.spec.proxy.faults {
            if seen.faults.get(name).is_some_and(|told| told.active) {
                self.kept.saw(&self.survey.bypasses, name, fault);
            }
        }
    }

    /// Faults on nodes that left the orders stay visible as ended.
    pub(super) fn note_ended_faults(&mut self, before: &crate::ledger::Accepted) {
        let Some(accepted) = self.ledger.accepted() else { return };
        let now = self.hands.now();
        let faults_of = |of: &crate::ledger::Accepted| -> Vec<_> {
            let nodes = of.spec.nodes.values();
            nodes.flat_map(|n| n.faults.iter().map(|(k, f)| (k.clone(), f.revision))).collect()
        };
        let wanted = faults_of(accepted);
        for (name, _) in &wanted {
            self.kept.ended.remove(name);
        }
        for (name, revision) in faults_of(before) {
            if !wanted.iter().any(|(held, _)| *held == name) {
                let expired = before.is_over(&name, now);
                let ended = FaultReport { revision, expired, ..FaultReport::default() };
                self.kept.ended.insert(name, ended);
            }
        }
        while self.kept.ended.len() > ENDED_FAULTS_MAX {
            self.kept.ended.pop_first();
        }
    }

    /// Lets go of pinned programs that no node runs. A node that cannot be told may run any.
    pub(super) fn prune_binaries(&self) {
        let nodes = self.observed.nodes.values();
        if nodes.clone().any(|node| matches!(node.run, Run::Unknown { .. })) {
            return;
        }
        let run = nodes.filter_map(|node| node.record.binary.as_ref()?.sha256.clone());
        let specs = self.ledger.accepted().into_iter().flat_map(|a| a.spec.nodes.values());
        let wanted =
            specs.filter_map(|spec| Some(spec.launch.pushed.as_ref()?.content.sha256.to_string()));
        let used: BTreeSet<String> = run.chain(wanted).collect();
        self.block_quietly(move |hands| hands.prune_binaries(&used));
    }
}
