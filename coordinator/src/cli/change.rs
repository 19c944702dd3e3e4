//! What every mutating verb shares: `--plan`, `--wait`, `--if-generation`, the answer and the wait for it.

use std::{collections::BTreeMap, time::Duration};

use faultbed_common::{
    blueprint::Blueprint,
    duration::Span,
    edit::{Edit, EditReply, EditRequest, NodeFate},
    generation::{Generation, Incarnation},
    name::{FaultName, NodeName},
    status::{NodeStatus, Status},
};
use serde::Serialize;

use crate::cli::{
    client::Client,
    diff,
    failure::{Exit, Failure, Outcome},
    output::{self, Format},
    status::words,
    table::{Tone, tone},
    wait::{self, Goal, condition::WAIT_DEFAULT, follow},
};

/// Options of every command that changes the lab.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Change options")]
pub struct ChangeArgs {
    /// Print what would change and change nothing
    #[arg(long)]
    pub plan: bool,
    /// How long to wait until it is true [default: 60s, or FAULTBED_WAIT]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true)]
    pub wait: Option<Option<Span>>,
    /// What it is where `--wait` does not say: a variable that a slow machine sets once
    #[arg(long, hide = true, env = "FAULTBED_WAIT", value_name = "DURATION")]
    pub wait_default: Option<Span>,
    /// Return as soon as the change is accepted
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
    /// Refuse unless the lab is at this generation
    #[arg(long, value_name = "N")]
    pub if_generation: Option<u64>,
    /// May touch what others own
    #[arg(long)]
    pub everyone: bool,
    /// How to print the answer
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        hide_default_value = true,
        value_name = "table|json"
    )]
    pub output: Format,
}

impl ChangeArgs {
    /// The request for an edit.
    #[must_use]
    pub fn request(&self, edit: Edit, blueprints: BTreeMap<String, Blueprint>) -> EditRequest {
        EditRequest {
            edit,
            plan: self.plan,
            if_generation: self.if_generation.map(Generation),
            blueprints,
            everyone: self.everyone,
            force: false,
            files: faultbed_common::program::Files::default(),
        }
    }

    /// How long to wait; `None` is not at all.
    #[must_use]
    pub fn limit(&self) -> Option<Duration> {
        if self.no_wait || self.plan {
            return None;
        }
        let asked = self.wait.flatten().or(self.wait_default);
        Some(asked.map_or(WAIT_DEFAULT, |span| span.0))
    }
}

/// What a change was and how it ended.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    reply: &'a EditReply,
    /// Whether what was asked for is true now; `None` where nobody waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<bool>,
    /// The programs of nodes that started again, before and after.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    binaries: BTreeMap<NodeName, Binaries>,
}

/// The SHA-256 of a node's program before and after a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Binaries {
    before: Option<String>,
    after: Option<String>,
}

/// Asks for a change, prints what it is, and waits for it as asked.
///
/// # Errors
/// The lab refuses or cannot be reached; or it did not come true, or not in time.
pub async fn perform(client: &Client, request: EditRequest, args: &ChangeArgs) -> Outcome {
    let limit = args.limit();
    // Faults need no look at what was before: this keeps them at one round trip.
    let before = if limit.is_some() && touches_nodes(&request.edit) {
        Some(client.status().await?)
    } else {
        None
    };
    let reply = client.edit(&request).await?;
    if args.output == Format::Table {
        output::data(told(&request, &reply, &|command: &str| client.context.typed(command)))?;
    }
    let Some(limit) = limit else {
        if args.output == Format::Json {
            output::json(&Answer { reply: &reply, reached: None, binaries: BTreeMap::new() })?;
        }
        return Ok(Exit::DONE);
    };
    let goals = goals(&request.edit, &reply, before.as_ref());
    if goals.is_empty() {
        if args.output == Format::Json {
            output::json(&Answer {
                reply: &reply,
                reached: Some(true),
                binaries: BTreeMap::new(),
            })?;
        }
        return Ok(Exit::DONE);
    }
    let waited = follow::until(client, goals, limit).await;
    report(&reply, before.as_ref(), &waited, args.output)?;
    waited.map(|_| Exit::DONE)
}

fn report(
    reply: &EditReply,
    before: Option<&Status>,
    waited: &Result<follow::Waited, Failure>,
    format: Format,
) -> Result<(), Failure> {
    let after = waited.as_ref().ok().map(|waited| &waited.status);
    match format {
        Format::Json => output::json(&Answer {
            reply,
            reached: Some(after.is_some()),
            binaries: after.map(|after| binaries(reply, before, after)).unwrap_or_default(),
        }),
        Format::Table => {
            let Ok(waited) = waited else { return Ok(()) };
            for word in &waited.said {
                output::say(tone(format!("note: {word}"), Tone::Warn));
            }
            for line in reached(reply, before, &waited.status) {
                output::data(line)?;
            }
            Ok(())
        }
    }
}

/// The answer in words, before any wait. `typed` is a command as it is typed for this lab.
fn told(request: &EditRequest, reply: &EditReply, typed: &dyn Fn(&str) -> String) -> String {
    let whole = matches!(request.edit, Edit::Apply(_) | Edit::StartCluster { .. });
    if request.plan || whole {
        return diff::plan(reply);
    }
    let mut lines = Vec::new();
    if !reply.changed {
        lines.push("nothing to change: it is so already".to_owned());
    }
    lines.extend(diff::fates(&reply.nodes));
    for (name, resolved) in &reply.resolved {
        lines.push(format!(
            "{}{}",
            diff::fault_on(name, resolved),
            lasts(&request.edit, name, typed)
        ));
    }
    if let Edit::DeleteFault { name } = &request.edit {
        lines.push(format!("deleted  fault {name}"));
    }
    if matches!(request.edit, Edit::Heal { .. }) {
        lines.extend(reply.objects.iter().map(|o| format!("healed   {}", o.name)));
    }
    if let Edit::DeleteCluster { name, .. } = &request.edit {
        let is_gone = !reply.objects.iter().any(|object| object.kind == "cluster");
        let what = if is_gone { "what was kept of " } else { "" };
        lines.push(format!("deleted  {what}cluster {name}"));
    }
    if let (Edit::Set { field, .. }, true, true) =
        (&request.edit, reply.changed, reply.nodes.is_empty())
    {
        lines.push(format!("set      {field}; no node restarts"));
    }
    if reply.changed {
        lines.extend(host_told(&request.edit));
    }
    lines.extend(reply.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

/// What was done to a host.
fn host_told(edit: &Edit) -> Option<String> {
    match edit {
        Edit::DrainHost { name, drained: true } => Some(format!("drained  host {name}")),
        Edit::DrainHost { name, drained: false } => {
            Some(format!("open     host {name} takes nodes again"))
        }
        Edit::RemoveHost { name, .. } => Some(format!("removed  host {name}")),
        Edit::LabelHost { name, set, unset } => {
            let given = set.iter().map(|(key, value)| format!("{key}={value}"));
            let words: Vec<String> =
                given.chain(unset.iter().map(|key| format!("{key}-"))).collect();
            Some(format!("labelled host {name}: {}", words.join(" ")))
        }
        _ => None,
    }
}

/// `, for 10m; end it with: faultbed heal split`.
fn lasts(edit: &Edit, name: &FaultName, typed: &dyn Fn(&str) -> String) -> String {
    let Edit::Inject { spec, .. } = edit else { return String::new() };
    let heal = typed(&format!("heal {name}"));
    let summary = faultbed_common::shape::summary(spec);
    match &spec.lasts {
        Some(faultbed_common::fault::Lasts::For(span)) => {
            format!(" · {summary} · for {span}, or until: {heal}")
        }
        Some(faultbed_common::fault::Lasts::UntilHealed) => {
            format!(" · {summary} · until: {heal}")
        }
        // As long as what it replaces, which `status` tells.
        None => format!(" · {summary} · end it with: {heal}"),
    }
}

fn touches_nodes(edit: &Edit) -> bool {
    match edit {
        Edit::Apply(_)
        | Edit::StartCluster { .. }
        | Edit::DeleteCluster { .. }
        | Edit::Node { .. }
        | Edit::RemoveHost { .. }
        | Edit::Set { .. }
        | Edit::Remove { .. } => true,
        Edit::DrainHost { .. } | Edit::LabelHost { .. } | Edit::LabLease { .. } => false,
        Edit::Inject { .. } | Edit::Heal { .. } | Edit::DeleteFault { .. } => false,
    }
}

/// What must be true for a change to be done.
#[must_use]
pub fn goals(edit: &Edit, reply: &EditReply, before: Option<&Status>) -> Vec<Goal> {
    let was = |name: &NodeName| before.and_then(|status| wait::node(status, name));
    let mut goals: Vec<Goal> = reply
        .nodes
        .iter()
        .flat_map(|(name, fate)| node_goals(name, *fate, was(name), reply.generation, edit))
        .collect();
    goals.extend(fault_goals(edit, reply));
    goals
}

fn node_goals(
    name: &NodeName,
    fate: NodeFate,
    was: Option<&NodeStatus>,
    generation: Generation,
    edit: &Edit,
) -> Vec<Goal> {
    let over = was.map_or(Incarnation::default(), |node| node.incarnation);
    let respawns = matches!(
        edit,
        Edit::Node { verb: faultbed_common::edit::NodeVerb::Kill { respawn: true, .. }, .. }
    );
    match fate {
        NodeFate::Start | NodeFate::Restart => {
            vec![Goal::Ready(name.clone(), over), Goal::Hashed(name.clone(), over)]
        }
        NodeFate::Kill if respawns => vec![Goal::Ready(name.clone(), over)],
        NodeFate::Stop | NodeFate::Kill => vec![Goal::Down(name.clone())],
        // A cluster that is deleted with its data: the node goes, and its data with it.
        NodeFate::Wipe if matches!(edit, Edit::DeleteCluster { .. }) => {
            vec![Goal::Removed(name.clone(), was.map(|node| node.host.clone()), generation)]
        }
        // One that was down stays down; its data goes without anything to see here.
        NodeFate::Wipe if was.is_some_and(|node| wait::is_down(node.observed)) => Vec::new(),
        NodeFate::Wipe => vec![Goal::Ready(name.clone(), over)],
        NodeFate::Remove => {
            vec![Goal::Removed(name.clone(), was.map(|node| node.host.clone()), generation)]
        }
    }
}

fn fault_goals(edit: &Edit, reply: &EditReply) -> Vec<Goal> {
    let faults = || {
        reply.objects.iter().filter(|object| object.kind == "fault").filter_map(|object| {
            Some((object.name.parse::<FaultName>().ok()?, object.after.is_some()))
        })
    };
    match edit {
        Edit::Inject { .. } => reply.resolved.keys().cloned().map(Goal::InForce).collect(),
        Edit::Heal { .. } | Edit::DeleteFault { .. } => {
            faults().map(|(name, _)| Goal::Ended(name)).collect()
        }
        Edit::Apply(_) => faults()
            .map(|(name, stays)| if stays { Goal::InForce(name) } else { Goal::Ended(name) })
            .collect(),
        Edit::StartCluster { .. }
        | Edit::DeleteCluster { .. }
        | Edit::Node { .. }
        | Edit::LabLease { .. }
        | Edit::DrainHost { .. }
        | Edit::RemoveHost { .. }
        | Edit::LabelHost { .. }
        | Edit::Set { .. }
        | Edit::Remove { .. } => Vec::new(),
    }
}

fn binaries(
    reply: &EditReply,
    before: Option<&Status>,
    after: &Status,
) -> BTreeMap<NodeName, Binaries> {
    let sha = |status: Option<&Status>, name: &NodeName| {
        let node = wait::node(status?, name)?;
        node.binary.as_ref().map(|binary| binary.sha256.clone())
    };
    reply
        .nodes
        .iter()
        .filter(|(_, fate)| matches!(fate, NodeFate::Restart | NodeFate::Start))
        .map(|(name, _)| {
            let pair = Binaries { before: sha(before, name), after: sha(Some(after), name) };
            (name.clone(), pair)
        })
        .collect()
}

/// One line for each node that was changed, as it is now; restarts with both hashes.
fn reached(reply: &EditReply, before: Option<&Status>, after: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, fate) in &reply.nodes {
        let Some(node) = wait::node(after, name) else {
            lines.push(format!("{name} is gone"));
            continue;
        };
        let state = tone(words::state_and_exit(node), words::state_tone(node.observed));
        let mut line = format!("{} {state}, run {}", tone(name, Tone::Strong), node.incarnation);
        let runs_anew = !wait::is_down(node.observed) && *fate != NodeFate::Stop;
        if let Some(binary) = node.binary.as_ref().filter(|_| runs_anew) {
            let was = before
                .and_then(|status| wait::node(status, name))
                .and_then(|node| node.binary.as_ref());
            line.push_str(&match was {
                _ if binary.sha256.is_empty() => ", binary not hashed yet".to_owned(),
                Some(was) if was.sha256 != binary.sha256 => {
                    format!(", binary {} -> {} (changed)", words::hash(was), words::hash(binary))
                }
                Some(was) => {
                    format!(", binary {} -> {} (same)", words::hash(was), words::hash(binary))
                }
                None => format!(", binary {}", words::hash(binary)),
            });
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests;
