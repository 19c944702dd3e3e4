//! Programs that nodes are to run next: here, and found to be right, before the one that runs is ended.

use std::path::Path;

use faultbed_common::{
    host_spec::{NodeSpec, StopBy},
    report::REFUSED,
};

use super::{Goal, Part, Standing, View, step_or_wait};
use crate::reconcile::{
    NodeAct, Running, StepKind,
    plan::{Try, may_step},
};

impl View<'_> {
    /// How far its program is, in words. Others' programs may come before it.
    pub(super) fn fetching(&self) -> String {
        let spec = self.wanted.spec.nodes.get(self.name);
        let Some(pushed) = spec.and_then(|spec| spec.launch.pushed.as_ref()) else {
            return "fetching its program".to_owned();
        };
        let bytes = self.fetched();
        let path = pushed.web().map_or_else(|| pushed.path.clone(), |web| web.url());
        // A server says the size only when it is asked.
        let Some(all) = pushed.bytes() else {
            return format!("fetching {path}: {} MB came", bytes / 1_000_000);
        };
        let percent = bytes.saturating_mul(100) / all;
        let megabytes = all.div_ceil(1_000_000);
        format!("fetching {path}: {percent}% of {megabytes} MB")
    }

    /// Bytes of its program that the fetch of now has brought.
    pub(super) fn fetched(&self) -> u64 {
        let spec = self.wanted.spec.nodes.get(self.name);
        let pushed = spec.and_then(|spec| spec.launch.pushed.as_ref());
        match (self.fetching, pushed) {
            (Some(fetching), Some(pushed)) if fetching.sha256 == pushed.content.sha256 => {
                fetching.bytes
            }
            _ => 0,
        }
    }

    /// Fetches the program that was pushed for it, where it is not here.
    pub(super) fn fetch(&self, spec: &NodeSpec) -> Option<Part<NodeAct>> {
        let pushed = spec.launch.pushed.as_ref()?;
        if self.programs.contains(Path::new(&spec.launch.program)) {
            return None;
        }
        let act = NodeAct::Fetch { pushed: pushed.clone() };
        Some(step_or_wait(self.observed, act, self.fetching(), self.now))
    }

    /// A node that is to run another program goes on until that is here and can be run. One that is
    /// to die as by a failure dies at once.
    pub(super) fn programs_first(
        &self,
        goal: &Goal<'_>,
        running: &Running,
    ) -> Option<Part<NodeAct>> {
        let Goal::Up(spec) = goal else { return None };
        if spec.stop_by != StopBy::Grace || running.asked.is_some() {
            return None;
        }
        let Some(fetch) = self.fetch(spec) else { return self.check_first(goal, spec, running) };
        let orders = self.orders(goal);
        if self.observed.orders.as_ref() != Some(&orders) {
            return Some(self.tell(running, orders));
        }
        Some(if self.observed.busy.is_empty() { fetch } else { self.wait_for_busy() })
    }

    /// Only a commanded start takes the program that is at its path now; others run what ran.
    fn check_first(
        &self,
        goal: &Goal<'_>,
        spec: &NodeSpec,
        running: &Running,
    ) -> Option<Part<NodeAct>> {
        let next = spec.incarnation;
        let observed = self.observed;
        if next <= running.incarnation || observed.checked == Some(next) {
            return None;
        }
        let verb = format!("{}: ", StepKind::Check.verb());
        let failure = observed.failures.get(&StepKind::Check);
        let why = failure.map(|failure| failure.why.strip_prefix(&verb).unwrap_or(&failure.why));
        let standing = match why.map(|why| (why, why.strip_prefix(REFUSED))) {
            None => Standing::Pending("checking its next program".to_owned()),
            Some((_, Some(why))) => {
                Standing::Stuck(format!("runs on; its restart is {REFUSED}{why}"))
            }
            // It may be otherwise when it is looked at again.
            Some((why, None)) => Standing::Pending(format!("runs on; {why}")),
        };
        // It may run on for long, and faults hold it as any other.
        let wait = |at| {
            Part { standing: standing.clone(), ..self.keep_running(goal, running) }.wake_at(at)
        };
        if observed.busy.contains(&StepKind::Check) {
            return Some(wait(None));
        }
        Some(match may_step(observed, &StepKind::Check, self.now) {
            Try::Now if observed.busy.is_empty() => {
                Part::step(NodeAct::Check { incarnation: next }, standing)
            }
            Try::Now => self.wait_for_busy(),
            Try::Later { at, .. } => wait(at),
        })
    }
}
