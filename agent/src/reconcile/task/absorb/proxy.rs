//! Takes in what the proxy process says, and that it ended.

use std::collections::BTreeMap;

use faultbed_common::report::FaultReport;

use super::super::Reconciler;
use crate::reconcile::{
    Failure, Hands,
    hands::{ProxyApplied, ProxySeen},
};

impl<H: Hands> Reconciler<H> {
    pub(super) fn proxy_told(&mut self, told: Result<ProxyApplied, String>) {
        let now = self.hands.now();
        self.proxy_told_times += 1;
        let proxy = &mut self.observed.proxy;
        proxy.busy = false;
        let file = proxy.telling.take();
        match told {
            Ok(ProxyApplied { failed, faults, outdated }) => {
                proxy.running = true;
                proxy.applied = file.map(|file| *file);
                proxy.applied_at = now;
                proxy.failed = failed;
                proxy.outdated = outdated;
                proxy.failure = None;
                let seen = self.proxy_seen.get_or_insert_default();
                // It enforces what it named and nothing else.
                for fault in seen.faults.values_mut() {
                    fault.active = false;
                }
                for (name, fault) in faults {
                    // Counters come with the next report; being in force is told at once.
                    let known = seen.faults.remove(&name).unwrap_or_default();
                    let is_same = known.revision == fault.revision;
                    let fault = FaultReport {
                        // What another revision met says nothing of this one.
                        links: if is_same { known.links } else { BTreeMap::new() },
                        expired: is_same && known.expired && !fault.active,
                        remaining_ms: known.remaining_ms.filter(|_| is_same),
                        ..fault
                    };
                    seen.faults.insert(name, fault);
                }
                let now = self.hands.now();
                self.canaries.proxy_says(&seen.faults, now);
                if self.proxy_watch.is_none() {
                    self.watch_proxy();
                }
                self.ask_proxy();
            }
            Err(why) => {
                tracing::warn!(%why, "apply the proxy's rules");
                let attempts = proxy.failure.as_ref().map_or(1, |failure| failure.attempts + 1);
                proxy.failure = Some(Failure { why, attempts, at: now });
                proxy.running = self.hands.find_proxy().is_some();
            }
        }
    }

    pub(super) fn proxy_ended(&mut self) {
        self.proxy_watch = None;
        // Another one has taken over from it, with all that it had.
        if self.hands.find_proxy().is_some() {
            self.watch_proxy();
            return;
        }
        tracing::error!("the proxy process ended");
        let proxy = &mut self.observed.proxy;
        proxy.running = false;
        proxy.applied = None;
        proxy.failed.clear();
        // What it counted is still true; what it held is not held by anybody now.
        for fault in self.proxy_seen.iter_mut().flat_map(|seen| seen.faults.values_mut()) {
            if fault.active {
                fault.active = false;
                fault.why = Some("the proxy process does not run".to_owned());
            }
        }
    }

    pub(super) fn proxy_answered(&mut self, told_times: u64, seen: Result<ProxySeen, String>) {
        self.is_asking_proxy = false;
        if told_times != self.proxy_told_times {
            // It may have answered before it was told: by such an answer a fault that was just
            // confirmed would seem to be gone, or one that was healed to be back.
            self.ask_proxy();
            return;
        }
        match seen {
            Ok(_) if !self.observed.proxy.running => {}
            Ok(seen) => {
                self.canaries.proxy_says(&seen.faults, self.hands.now());
                self.kept.proxy_says(&seen.faults);
                self.proxy_seen = Some(seen);
            }
            Err(why) => tracing::debug!(%why, "ask the proxy"),
        }
    }
}
