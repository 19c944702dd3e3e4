//! The loop's side of canaries: their tasks, and what they told.

use std::sync::Arc;

use faultbed_common::proxy_spec::ProxyFile;
use tokio::time::Instant;

use super::{AskerTask, Reconciler, Wake};
use crate::{
    canary::{Answer, Asking, BEFORE_MAX, EVERY, Key, Question, TRY_MAX, Try},
    reconcile::{Hands, Run},
};

impl<H: Hands> Reconciler<H> {
    /// Learns from the orders which links are asked over.
    pub(super) fn take_canaries(&mut self) {
        if let Some(accepted) = self.ledger.accepted() {
            let kept = &self.kept;
            self.canaries.take_orders(accepted, |name, of, link| kept.canary(name, of, link));
        }
    }

    /// Asks over links that nothing disturbs yet, and applies the rules then: a fault that wants a
    /// canary begins that much later, and nobody waits longer than the bound.
    pub(super) fn begin_proxy_after(&self, first: Vec<(Key, Question)>, file: ProxyFile) {
        let (hands, notes) = (Arc::clone(&self.hands), self.notes.clone());
        tokio::spawn(async move {
            let asking = first.into_iter().map(|(key, question)| {
                let answer = hands.ask_as_peer(question, BEFORE_MAX);
                async move { (key, answer.await) }
            });
            let answers = futures::future::join_all(asking).await;
            // The loop is gone only when the agent stops.
            notes.send(Wake::AskedBefore(answers)).await.ok();
            let applying = tokio::task::spawn_blocking(move || hands.apply_proxy(&file));
            let told = applying.await.unwrap_or_else(|error| Err(format!("apply: {error}")));
            notes.send(Wake::ProxyTold(Box::new(told))).await.ok();
        });
    }

    pub(super) fn asked_before(&mut self, answers: &[(Key, Answer)]) {
        for (key, answer) in answers {
            self.canaries.was_before(key, answer);
        }
    }

    pub(super) fn asked(&mut self, key: &Key, found: &Try) {
        let node = key.1.to.node().and_then(|node| self.observed.nodes.get(node));
        let node_runs = node.is_some_and(|node| matches!(node.run, Run::Running(_)));
        self.canaries.tried(key, found, node_runs);
    }

    /// Gives every canary that must be asked its task, and takes them from the others.
    pub(super) fn attach_askers(&mut self) {
        let asking = self.canaries.asking();
        self.askers.retain(|key, (held, _)| asking.get(key) == Some(held));
        for (key, asking) in asking {
            if self.askers.contains_key(&key) {
                continue;
            }
            let (hands, notes) = (Arc::clone(&self.hands), self.notes.clone());
            let (of, what) = (key.clone(), asking.clone());
            let task = tokio::spawn(async move {
                loop {
                    let next = Instant::now() + EVERY;
                    if let Some(found) = ask(&*hands, &what).await
                        && notes.send(Wake::Asked(of.clone(), found)).await.is_err()
                    {
                        return;
                    }
                    tokio::select! {
                        () = tokio::time::sleep_until(next) => {}
                        () = deadline(&*hands, &what) => {}
                    }
                }
            });
            self.askers.insert(key, (asking, AskerTask(task.abort_handle())));
        }
    }
}

/// One question; `None` where the fault's deadline came in between, for the answer says nothing.
async fn ask<H: Hands>(hands: &H, asking: &Asking) -> Option<Try> {
    let began = hands.now();
    let answer = tokio::select! {
        answer = hands.ask_as_peer(asking.question.clone(), TRY_MAX) => answer,
        () = deadline(hands, asking) => return None,
    };
    Some(Try { began, over: hands.now(), answer })
}

/// Is over when the deadline comes; never where it has passed, or there is none.
async fn deadline<H: Hands>(hands: &H, asking: &Asking) {
    let now = hands.now();
    match asking.until.filter(|until| *until > now) {
        Some(until) => tokio::time::sleep(now.until(until)).await,
        None => std::future::pending().await,
    }
}
