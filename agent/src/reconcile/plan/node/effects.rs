//! A blueprint's own effects on one node: when each is switched on, and how it is undone.

use faultbed_common::{
    host_spec::{NodeEffect, NodeSpec},
    name::FaultName,
};

use super::View;
use crate::reconcile::{
    NodeAct, Readiness, Running,
    node_record::EffectMark,
    plan::{Part, Standing, step_or_wait},
};

impl View<'_> {
    /// What was switched on and is not wanted any more, and what an older version of a fault did.
    fn stale<'s>(
        &'s self,
        spec: &'s NodeSpec,
    ) -> impl Iterator<Item = (&'s FaultName, &'s EffectMark)> {
        self.observed.record.effects.iter().filter(|(name, mark)| {
            let wanted = spec.faults.get(*name).filter(|fault| {
                matches!(fault.effect, NodeEffect::Custom { .. })
                    && fault.revision == mark.revision
                    && !self.wanted.is_over(name, self.now)
            });
            wanted.is_none()
        })
    }

    /// Whether something was done to this incarnation that only its end undoes.
    pub(super) fn needs_restart(&self, spec: &NodeSpec, running: &Running) -> bool {
        self.stale(spec).any(|(_, mark)| {
            mark.off.is_none() && mark.tried_in.is_some_and(|at| at >= running.incarnation)
        })
    }

    /// Switches one off. A process that came later may have to be told too, since some databases keep
    /// what an effect did in their data: once it can hear it.
    pub(super) fn effect_off(&self, spec: &NodeSpec, running: &Running) -> Option<Part<NodeAct>> {
        let is_deaf = spec.ready.is_some() && self.observed.ready == Readiness::NotYet;
        let can_be = |mark: &EffectMark| {
            !is_deaf || mark.off.is_none() || mark.tried_in == Some(running.incarnation)
        };
        let (fault, mark) = self.stale(spec).find(|(_, mark)| can_be(mark))?;
        let probe = mark.off.clone().map(Box::new);
        let act = NodeAct::EffectOff { fault: fault.clone(), probe };
        Some(step_or_wait(self.observed, act, format!("switching off {fault}"), self.now))
    }

    /// Switches one on that this incarnation does not have yet.
    pub(super) fn effect_on(&self, spec: &NodeSpec, running: &Running) -> Option<Part<NodeAct>> {
        for (name, fault) in &spec.faults {
            let NodeEffect::Custom { on, off, .. } = &fault.effect else { continue };
            let mark = self.observed.record.effects.get(name);
            let is_on = mark.is_some_and(|mark| mark.on_in == Some(running.incarnation));
            if is_on || self.wanted.is_over(name, self.now) {
                continue;
            }
            if spec.ready.is_some() && self.observed.ready == Readiness::NotYet {
                let why = format!("{name} waits until it is ready");
                return Some(Part::standing(Standing::Pending(why)));
            }
            let act = NodeAct::EffectOn {
                fault: name.clone(),
                revision: fault.revision,
                incarnation: running.incarnation,
                on: on.clone(),
                off: off.clone(),
            };
            let doing = format!("switching on {name}");
            return Some(step_or_wait(self.observed, act, doing, self.now));
        }
        None
    }
}
