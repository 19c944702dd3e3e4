//! What a change did or would do, for people: a coloured diff of objects, then what becomes of nodes. Pure.

use std::collections::BTreeMap;

use faultbed_common::{
    edit::{EditReply, NodeFate, ObjectChange},
    lab::Resolved,
    name::{FaultName, NodeName},
};
use similar::{ChangeTag, TextDiff};

use crate::cli::table::{Tone, tone};

/// Unchanged lines shown around each change.
const CONTEXT_LINES: usize = 2;

/// The whole plan: cluster and faults alike, node fates, notes.
#[must_use]
pub fn plan(reply: &EditReply) -> String {
    let mut parts: Vec<String> = reply.objects.iter().map(object).collect();
    let fates = fates(&reply.nodes);
    if !fates.is_empty() {
        parts.push(fates.join("\n"));
    }
    let resolved: Vec<String> =
        reply.resolved.iter().map(|(name, to)| fault_on(name, to)).collect();
    if !resolved.is_empty() {
        parts.push(resolved.join("\n"));
    }
    if !reply.changed {
        parts.push("no changes".to_owned());
    }
    if !reply.notes.is_empty() {
        let notes: Vec<String> = reply.notes.iter().map(|note| format!("note: {note}")).collect();
        parts.push(notes.join("\n"));
    }
    parts.join("\n\n")
}

/// One object: a line with a sign, then its lines as a diff.
fn object(change: &ObjectChange) -> String {
    let ObjectChange { kind, name, before, after } = change;
    let (sign, mood) = match (before, after) {
        (None, _) => ("+", Tone::Good),
        (Some(_), None) => ("-", Tone::Bad),
        (Some(_), Some(_)) => ("~", Tone::Warn),
    };
    let mut lines = vec![tone(format!("{sign} {kind} {name}"), mood)];
    let header = if kind == "lab" { "[lab]".to_owned() } else { format!("[{kind}.{name}]") };
    let body = |text: &Option<String>| {
        let text = text.as_deref().unwrap_or_default().trim();
        // The line above says this already.
        let text = text.strip_prefix(&header).unwrap_or(text).trim();
        // A last line without its end would differ from the same line with one.
        if text.is_empty() { String::new() } else { format!("{text}\n") }
    };
    lines.extend(diff(&body(before), &body(after)));
    lines.join("\n")
}

fn diff(before: &str, after: &str) -> Vec<String> {
    let diff = TextDiff::from_lines(before, after);
    let mut lines = Vec::new();
    for (number, group) in diff.grouped_ops(CONTEXT_LINES).iter().enumerate() {
        if number > 0 {
            lines.push(tone("    …", Tone::Faint));
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let text = change.value().trim_end();
            if text.is_empty() {
                continue;
            }
            lines.push(match change.tag() {
                ChangeTag::Delete => tone(format!("  - {text}"), Tone::Bad),
                ChangeTag::Insert => tone(format!("  + {text}"), Tone::Good),
                ChangeTag::Equal => format!("    {text}"),
            });
        }
    }
    lines
}

/// One line for each kind of fate: `restart  kv-1, kv-2`.
#[must_use]
pub fn fates(nodes: &BTreeMap<NodeName, NodeFate>) -> Vec<String> {
    let mut by_fate: BTreeMap<usize, (NodeFate, Vec<&str>)> = BTreeMap::new();
    for (name, fate) in nodes {
        let slot = by_fate.entry(order(*fate)).or_insert_with(|| (*fate, Vec::new()));
        slot.1.push(name.as_str());
    }
    by_fate
        .into_values()
        .map(|(fate, names)| {
            let (word, mood) = fate_word(fate);
            format!("{} {}", tone(format!("{word:8}"), mood), names.join(", "))
        })
        .collect()
}

fn order(fate: NodeFate) -> usize {
    match fate {
        NodeFate::Start => 0,
        NodeFate::Restart => 1,
        NodeFate::Stop => 2,
        NodeFate::Kill => 3,
        NodeFate::Wipe => 4,
        NodeFate::Remove => 5,
    }
}

/// A fate as a word.
fn fate_word(fate: NodeFate) -> (&'static str, Tone) {
    match fate {
        NodeFate::Start => ("start", Tone::Good),
        NodeFate::Restart => ("restart", Tone::Warn),
        NodeFate::Stop => ("stop", Tone::Calm),
        NodeFate::Kill => ("kill", Tone::Warn),
        NodeFate::Wipe => ("wipe", Tone::Bad),
        NodeFate::Remove => ("remove", Tone::Bad),
    }
}

/// What a fault's targets resolved to: `split: kv-1 | kv-2, kv-3 (4 links)`.
#[must_use]
pub fn fault_on(name: &FaultName, to: &Resolved) -> String {
    format!("{}: {}", tone(name, Tone::Strong), acts_on(to))
}

/// What a fault's targets resolved to, without its name.
#[must_use]
pub fn acts_on(to: &Resolved) -> String {
    if to.is_empty() && to.groups.is_empty() {
        return "resolved when it begins".to_owned();
    }
    let mut text = to.sides(", ");
    match to.links.len() {
        0 => {}
        1 => text.push_str(" (1 link)"),
        many => text.push_str(&format!(" ({many} links)")),
    }
    text
}

#[cfg(test)]
mod tests;
