//! Derives events from two statuses: every coordinator that sees the same changes tells the same story.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    edit::HistoryEntry,
    event::EventKind,
    name::LabName,
    report::NodeState,
    status::{FaultGrade, FaultState, FaultStatus, HostState, NodeStatus, Status, Verdict},
};

use super::status::exit_words;

/// Kind, subject, sentence.
pub type Found = (EventKind, String, String);

/// What happened between two statuses: kind, subject, sentence. In a fixed order.
#[must_use]
pub fn events(before: &Status, after: &Status) -> Vec<Found> {
    let mut found = Vec::new();
    hosts(before, after, &mut found);
    nodes(before, after, &mut found);
    faults(before, after, &mut found);
    stuck(before, after, &mut found);
    found
}

/// Objects that a change names, at most.
const OBJECTS_NAMED: usize = 5;

/// The story of one accepted change: who asked for what, and what it changed where that is not said.
#[must_use]
pub fn change(lab: &LabName, entry: &HistoryEntry) -> Found {
    let HistoryEntry { generation, by, what, objects, .. } = entry;
    let unsaid: Vec<String> = objects
        .iter()
        .filter(|object| !what.contains(&object.name))
        .map(|object| format!("{} {}", object.kind, object.name))
        .collect();
    let mut text = format!("generation {generation} by {by}: {what}");
    if !unsaid.is_empty() {
        let named = unsaid.iter().take(OBJECTS_NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = unsaid.len().saturating_sub(OBJECTS_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text.push_str(&format!(" ({named}{more})"));
    }
    (EventKind::Change, lab.to_string(), text)
}

/// The lab's CA, as far as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaSeen {
    /// The certificate of the one that signs.
    pub signs: String,
    /// The one that it replaced and that is still believed.
    pub ends: Option<String>,
    /// Who made it so; `None` where nobody did.
    pub by: Option<String>,
}

/// What became of the lab's CA. It is in the store, so every coordinator tells it, whoever was asked.
#[must_use]
pub fn authority(before: Option<&CaSeen>, after: Option<&CaSeen>) -> Option<Found> {
    let (before, after) = (before?, after?);
    let text = if before.signs != after.signs {
        let by = after.by.as_deref().unwrap_or("somebody");
        format!("{by} lets another CA take over")
    } else if before.ends.is_some() && after.ends.is_none() {
        match &after.by {
            Some(by) => format!("{by} ends the CA that was replaced"),
            None => "the CA that was replaced has ended: its time was over".to_owned(),
        }
    } else {
        return None;
    };
    Some((EventKind::Change, "ca".to_owned(), text))
}

fn hosts(before: &Status, after: &Status, found: &mut Vec<Found>) {
    let old: BTreeMap<_, _> = before.hosts.iter().map(|host| (&host.name, host)).collect();
    for host in &after.hosts {
        let was = old.get(&host.name).copied();
        let booted = was.map(|was| was.boot_id.as_str()).filter(|boot_id| !boot_id.is_empty());
        let is_known = !host.boot_id.is_empty();
        if is_known && booted.is_some_and(|booted| booted != host.boot_id) {
            let text = format!("{} rebooted; its nodes start again, which is no crash", host.name);
            found.push((EventKind::Host, host.name.to_string(), text));
        }
        let was = was.map_or(HostState::Down, |was| was.state);
        let text = match (was, host.state) {
            (HostState::Down, HostState::Up) => format!("{} is up", host.name),
            (HostState::Up, HostState::Down) => format!("{} is down", host.name),
            (HostState::Up, HostState::Up) | (HostState::Down, HostState::Down) => continue,
        };
        found.push((EventKind::Host, host.name.to_string(), text));
    }
}

fn nodes(before: &Status, after: &Status, found: &mut Vec<Found>) {
    let old: BTreeMap<_, _> = before.nodes.iter().map(|node| (&node.name, node)).collect();
    let new: BTreeSet<_> = after.nodes.iter().map(|node| &node.name).collect();
    for name in old.keys().filter(|name| !new.contains(*name)) {
        found.push((EventKind::Node, name.to_string(), format!("{name} is gone")));
    }
    for node in &after.nodes {
        let was = old.get(&node.name).copied();
        if let Some(text) = state_text(was, node) {
            found.push((EventKind::Node, node.name.to_string(), text));
        }
        if let Some(text) = role_text(was, node) {
            found.push((EventKind::Role, node.name.to_string(), text));
        }
    }
}

fn state_text(was: Option<&NodeStatus>, node: &NodeStatus) -> Option<String> {
    let old = was.map_or(NodeState::Absent, |was| was.observed);
    let is_new_run = was.is_some_and(|was| was.incarnation != node.incarnation);
    if old == node.observed && !is_new_run {
        return None;
    }
    let name = &node.name;
    let why = node.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    Some(match node.observed {
        NodeState::Crashed => {
            let exit = node.exit.as_ref();
            let how = exit.map(exit_words).unwrap_or_default();
            let faults = exit.map(|exit| exit.faults.as_slice()).unwrap_or_default();
            let faults: Vec<&str> = faults.iter().map(|fault| fault.as_str()).collect();
            let with = if faults.is_empty() {
                String::new()
            } else {
                format!(", with {} in force", faults.join(", "))
            };
            format!("{name} crashed{how}{with}")
        }
        NodeState::Killed => {
            let how = node.exit.as_ref().map(exit_words).unwrap_or_default();
            format!("{name} is killed{how}")
        }
        NodeState::Starting => format!("{name} starts, run {}", node.incarnation),
        NodeState::Ready if is_new_run => {
            format!("{name} is ready, run {}", node.incarnation)
        }
        NodeState::Ready => format!("{name} is ready"),
        NodeState::Unready => format!("{name} is not ready{why}"),
        NodeState::Stopped if node.exit.as_ref().is_some_and(|exit| exit.rebooted) => {
            format!("{name} went down with its host")
        }
        NodeState::Stopped => format!("{name} is stopped"),
        // What it waits for is told; that a step is being done is what preparing means.
        NodeState::Preparing if node.why.as_deref().is_none_or(is_step) => {
            format!("{name} is being prepared")
        }
        NodeState::Absent
        | NodeState::Preparing
        | NodeState::Paused
        | NodeState::Stopping
        | NodeState::Unknown => format!("{name} is {}{why}", node.observed.word()),
    })
}

/// Whether a reason only names the step that is being done.
fn is_step(why: &str) -> bool {
    why.starts_with("busy") || why == "starting"
}

fn role_text(was: Option<&NodeStatus>, node: &NodeStatus) -> Option<String> {
    let old = was.and_then(|was| was.leader);
    let in_term = node.term.map(|term| format!(" in term {term}")).unwrap_or_default();
    match (old, node.leader) {
        (Some(true), Some(true)) => {
            let moved = was.is_some_and(|was| was.term != node.term);
            moved.then(|| format!("{} leads{in_term}", node.name))
        }
        (_, Some(true)) => Some(format!("{} leads{in_term}", node.name)),
        (Some(true), _) => Some(format!("{} leads no longer", node.name)),
        (_, Some(false) | None) => {
            let old = was.and_then(|was| was.role_state.as_ref());
            // The first word of a start is no change worth a line.
            let role = node.role_state.as_ref().filter(|role| old.is_some_and(|old| old != *role));
            role.map(|role| format!("{} is {role} now", node.name))
        }
    }
}

fn faults(before: &Status, after: &Status, found: &mut Vec<Found>) {
    let old: BTreeMap<_, _> = before.faults.iter().map(|fault| (&fault.name, fault)).collect();
    let new: BTreeSet<_> = after.faults.iter().map(|fault| &fault.name).collect();
    for (name, was) in &old {
        let was_there = matches!(was.state, FaultState::Pending | FaultState::Active);
        if was_there && !new.contains(*name) {
            found.push((
                EventKind::Fault,
                name.to_string(),
                format!("{name} is healed and forgotten"),
            ));
        }
    }
    for fault in &after.faults {
        for text in fault_texts(old.get(&fault.name).copied(), fault) {
            found.push((EventKind::Fault, fault.name.to_string(), text));
        }
    }
}

fn fault_texts(was: Option<&FaultStatus>, fault: &FaultStatus) -> Vec<String> {
    let name = &fault.name;
    let mut texts = Vec::new();
    if was.map(|was| was.state) != Some(fault.state) {
        let why = fault.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        match fault.state {
            FaultState::Pending => texts.push(format!("{name} waits{why}")),
            FaultState::Active => texts.push(format!("{name} begins: {}", words(fault))),
            // One that is over when it is first seen is no news.
            FaultState::Expired if was.is_some() => {
                texts.push(format!("{name} ended: its time was over; {}", verdict(fault)));
            }
            FaultState::Healed if was.is_some() => {
                texts.push(format!("{name} is healed{why}; {}", verdict(fault)));
            }
            FaultState::Expired | FaultState::Healed => {}
        }
    }
    if fault.in_force && !was.is_some_and(|was| was.in_force) {
        let grade = match fault.grade {
            FaultGrade::Stream => ", grade stream",
            FaultGrade::Packet => ", grade packet",
            FaultGrade::Node => "",
        };
        texts.push(format!("{name} is in force{grade}"));
    }
    let old = was.map_or(Verdict::Quiet, |was| was.evidence.verdict);
    if fault.state == FaultState::Active && old != fault.evidence.verdict {
        texts.push(format!("{name}: {}", verdict(fault)));
    }
    texts
}

/// `cut, kv-1 | kv-2,kv-3`.
fn words(fault: &FaultStatus) -> String {
    format!("{}, {}", fault.summary, fault.resolved.sides(","))
}

fn verdict(fault: &FaultStatus) -> &'static str {
    match fault.evidence.verdict {
        Verdict::Confirmed => "it acted (confirmed)",
        Verdict::Quiet => "it has not been seen to act (quiet)",
        Verdict::Mismatch => "bytes went past it (mismatch)",
    }
}

fn stuck(before: &Status, after: &Status, found: &mut Vec<Found>) {
    let lab = after.lab.to_string();
    for sentence in after.stuck.iter().filter(|sentence| !before.stuck.contains(sentence)) {
        found.push((EventKind::Stuck, lab.clone(), format!("stuck: {sentence}")));
    }
    for sentence in before.stuck.iter().filter(|sentence| !after.stuck.contains(sentence)) {
        found.push((EventKind::Stuck, lab.clone(), format!("no longer stuck: {sentence}")));
    }
}

#[cfg(test)]
mod tests;
