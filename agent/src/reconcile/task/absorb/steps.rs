//! What a step that ended means for what is observed of its node.

use crate::{
    binaries::Binary,
    reconcile::{Failure, NodeAct, ObservedNode, StepKind, step::Cause},
};

pub(super) fn step_succeeded(
    observed: &mut ObservedNode,
    act: &NodeAct,
    binary: Option<Binary>,
    now: crate::clock::BootTime,
) {
    let record = &mut observed.record;
    match act {
        NodeAct::Start { cause, orders, .. } => {
            record.restarts = if *cause == Cause::Crash { record.restarts + 1 } else { 0 };
            // The same file is the same program: what it hashed to need not be found out again.
            let known = record.binary.take().filter(|known| known.sha256.is_some());
            record.binary = match (binary, known) {
                (Some(new), Some(known)) if known.is_same_file(&new) => {
                    Some(Binary { version: known.version.clone().or(new.version), ..known })
                }
                (new, _) => new,
            };
            record.left = false;
            observed.orders = Some(orders.clone());
            observed.told_at = now;
        }
        NodeAct::Orders { orders, .. } => {
            observed.orders = Some(orders.clone());
            observed.told_at = now;
        }
        NodeAct::Init { index } => record.init_done = index + 1,
        NodeAct::Join => record.joined = true,
        NodeAct::Leave => record.left = true,
        NodeAct::Check { incarnation } => observed.checked = Some(*incarnation),
        NodeAct::Bootstrap => record.bootstrapped = true,
        NodeAct::Wipe { wipes } => *record = record.wiped(*wipes),
        NodeAct::EffectOn { fault, incarnation, .. } => {
            if let Some(mark) = record.effects.get_mut(fault) {
                mark.on_in = Some(*incarnation);
            }
        }
        NodeAct::EffectOff { fault, .. } => {
            record.effects.remove(fault);
        }
        // It was asked; until it is gone, asking again waits as a retry would.
        NodeAct::KillTree { .. } | NodeAct::Signal { .. } => {
            let why = "its processes do not end".to_owned();
            note_failure(observed, &act.kind(), why, now);
        }
        NodeAct::Interrupt | NodeAct::Fetch { .. } | NodeAct::Retire { .. } => {}
    }
}

pub(super) fn step_failed(
    observed: &mut ObservedNode,
    act: &NodeAct,
    kind: &StepKind,
    why: String,
    now: crate::clock::BootTime,
) {
    if let NodeAct::EffectOff { fault, .. } = act {
        let mark = observed.record.effects.get(fault);
        // A new process may never have heard of the effect: then there is nothing to undo.
        if mark.is_some_and(|mark| mark.on_in != Some(observed.run.incarnation())) {
            observed.record.effects.remove(fault);
            return;
        }
    }
    note_failure(observed, kind, format!("{}: {why}", kind.verb()), now);
}

fn note_failure(
    observed: &mut ObservedNode,
    kind: &StepKind,
    why: String,
    now: crate::clock::BootTime,
) {
    let attempts = observed.failures.get(kind).map_or(1, |failure| failure.attempts + 1);
    observed.failures.insert(kind.clone(), Failure { why, attempts, at: now });
}
