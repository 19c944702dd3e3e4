//! `start`, `stop`, `restart`, `kill` and `wipe`: edits of what is wanted of nodes.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    edit::NodeVerb,
    generation::Incarnation,
    host_spec::{NodeEffect, StopBy, Wanted},
    lab::Placement,
    name::{NodeName, RoleName},
    report::{NodeReport, NodeState},
    shape, target,
};

use super::{Refusal, change::Change, cluster, invalid, lease, leaving};

/// The highest number of a signal on Linux.
const SIGNAL_MAX: i32 = 64;

/// Signals that end nothing: SIGCONT, SIGSTOP, SIGTSTP.
const SIGNALS_OF_PAUSE: [i32; 3] = [18, 19, 20];

/// Does `verb` to every node that `targets` name. Returns what was asked, in words.
pub(super) fn act(
    change: &mut Change<'_>,
    targets: &[String],
    verb: NodeVerb,
) -> Result<String, Refusal> {
    if let NodeVerb::Kill { signal, .. } = verb {
        check_signal(signal)?;
    }
    let nodes = named(change, targets, verb)?;
    change.own_nodes(&nodes)?;
    for name in &nodes {
        one(change, name, verb);
    }
    if matches!(verb, NodeVerb::Start | NodeVerb::Restart | NodeVerb::Kill { respawn: true, .. }) {
        lease::begin_again(change, &nodes);
    }
    if verb == NodeVerb::Wipe {
        forget_membership(change, &nodes);
    }
    let targets = targets.join(",");
    Ok(match verb {
        NodeVerb::Start => format!("start {targets}"),
        NodeVerb::Stop => format!("stop {targets}"),
        NodeVerb::Restart => format!("restart {targets}"),
        NodeVerb::Kill { signal, respawn: false } => format!("kill {targets} --signal {signal}"),
        NodeVerb::Kill { signal, respawn: true } => {
            format!("kill {targets} --signal {signal} --respawn")
        }
        NodeVerb::Wipe => format!("wipe {targets}"),
    })
}

/// The nodes that `targets` name. A start calls back those that are leaving.
fn named(
    change: &mut Change<'_>,
    targets: &[String],
    verb: NodeVerb,
) -> Result<Vec<NodeName>, Refusal> {
    let (back, rest) = match verb {
        NodeVerb::Start => leaving::split(change, targets),
        _ => (BTreeMap::new(), targets.to_vec()),
    };
    leaving::recall(change, &back)?;
    let mut nodes = match rest.is_empty() && !back.is_empty() {
        true => Vec::new(),
        false => target::nodes(&change.lab, change.reports, &rest).map_err(invalid)?,
    };
    nodes.extend(back.into_keys());
    nodes.sort();
    nodes.dedup();
    Ok(nodes)
}

fn check_signal(signal: i32) -> Result<(), Refusal> {
    if SIGNALS_OF_PAUSE.contains(&signal) {
        return Err(invalid(format!(
            "signal {signal} ends no process; use `faultbed pause TARGET`"
        )));
    }
    if !(1..=SIGNAL_MAX).contains(&signal) {
        return Err(invalid(format!("there is no signal {signal}; 1 to {SIGNAL_MAX} are")));
    }
    Ok(())
}

fn one(change: &mut Change<'_>, name: &NodeName, verb: NodeVerb) {
    let seen = change.seen(name);
    let incarnation = seen.map_or(Incarnation::default(), |seen| seen.incarnation);
    let wipes = seen.map_or(0, |seen| seen.wipes);
    let state = seen.map(|seen| seen.observed);
    let down = change.is_down(name);
    let held = held_down_by(change, name);
    let of_node = change.lab.clusters.values_mut().find(|c| c.nodes.contains_key(name));
    let Some(placement) = of_node.and_then(|cluster| cluster.nodes.get_mut(name)) else {
        return;
    };
    if !change.reports.contains_key(&placement.host) {
        let host = placement.host.clone();
        change.notes.push(format!("{host} is not connected: {name} waits for it"));
    }
    let note = match verb {
        NodeVerb::Start => start(placement, name, seen),
        NodeVerb::Stop => stop(placement, name),
        NodeVerb::Restart => {
            let was_down = down || placement.wanted == Wanted::Stopped;
            run_anew(placement, incarnation, StopBy::Grace);
            was_down.then(|| format!("{name} was down and starts"))
        }
        NodeVerb::Kill { signal, respawn } => {
            if down {
                Some(format!("{name} is down already: {}", state_word(state)))
            } else {
                kill(placement, incarnation, signal, respawn);
                None
            }
        }
        NodeVerb::Wipe => {
            placement.wipes = placement.wipes.max(wipes) + 1;
            match placement.wanted {
                Wanted::Running => run_anew(placement, incarnation, StopBy::Grace),
                Wanted::Stopped => {}
            }
            None
        }
    };
    if let Some(note) = note {
        change.note(note);
    }
    let is_run =
        matches!(verb, NodeVerb::Start | NodeVerb::Restart | NodeVerb::Kill { respawn: true, .. });
    if let Some(fault) = held.filter(|_| is_run) {
        change.note(format!("{name} is held down by fault {fault}; it starts when that ends"));
    }
}

/// A database knows its members by their data. A node that lost its data must join anew; where every
/// node of a role lost it, nothing is left to join, and the cluster begins again under a new token.
fn forget_membership(change: &mut Change<'_>, wiped: &[NodeName]) {
    for (cluster_name, cluster) in &mut change.lab.clusters {
        let roles: BTreeSet<RoleName> = cluster.nodes.values().map(|p| p.role.clone()).collect();
        for role in roles {
            let of_role = || cluster.nodes.iter().filter(|(_, placement)| placement.role == role);
            let hit = of_role().filter(|(name, _)| wiped.contains(name)).count();
            let begins_again = hit == of_role().count();
            if hit == 0 {
                continue;
            }
            if begins_again {
                cluster.token = cluster::token(cluster_name, change.asked.dice);
            }
            for (name, placement) in &mut cluster.nodes {
                if placement.role == role && (begins_again || wiped.contains(name)) {
                    placement.joined = !begins_again;
                }
            }
        }
    }
}

/// It runs in an incarnation that has not been, and the one before it ends this way.
fn run_anew(placement: &mut Placement, seen: Incarnation, stop_by: StopBy) {
    placement.incarnation = placement.incarnation.max(seen).next();
    placement.wanted = Wanted::Running;
    placement.stop_by = stop_by;
}

fn start(placement: &mut Placement, name: &NodeName, seen: Option<&NodeReport>) -> Option<String> {
    let incarnation = seen.map_or(Incarnation::default(), |seen| seen.incarnation);
    let is_down = seen.is_some_and(|seen| seen.observed.is_down());
    // A start that was asked for and has not happened yet shows as down in the last incarnation.
    // One that cannot happen says why, and asking again is how people retry.
    let is_under_way =
        placement.incarnation > incarnation && seen.is_none_or(|seen| seen.why.is_none());
    match placement.wanted {
        Wanted::Running if seen.is_none() => Some(format!("{name} is to run already")),
        Wanted::Running if !is_down => Some(format!("{name} runs already")),
        Wanted::Running if is_under_way => Some(format!("{name} is starting already")),
        Wanted::Running | Wanted::Stopped => {
            run_anew(placement, incarnation, StopBy::Grace);
            None
        }
    }
}

fn stop(placement: &mut Placement, name: &NodeName) -> Option<String> {
    match placement.wanted {
        Wanted::Stopped => Some(format!("{name} is down on purpose already")),
        Wanted::Running => {
            placement.wanted = Wanted::Stopped;
            placement.stop_by = StopBy::Grace;
            None
        }
    }
}

fn kill(placement: &mut Placement, seen: Incarnation, signal: i32, respawn: bool) {
    if respawn {
        run_anew(placement, seen, StopBy::Signal(signal));
    } else {
        placement.wanted = Wanted::Stopped;
        placement.stop_by = StopBy::Signal(signal);
    }
}

/// The fault in force that keeps a node down.
fn held_down_by(change: &Change<'_>, name: &NodeName) -> Option<String> {
    let faults = change.lab.faults.iter().filter(|(_, fault)| fault.is_active());
    let mut holding = faults.filter(|(_, fault)| {
        fault.resolved.nodes.contains(name)
            && matches!(shape::node_effect(&fault.spec, name), Some(NodeEffect::Down(_)))
    });
    holding.next().map(|(fault, _)| fault.to_string())
}

fn state_word(state: Option<NodeState>) -> &'static str {
    state.unwrap_or_default().word()
}
