//! `faultbed upgrade`: another program for some nodes, one at a time, each ready before the next.

use std::collections::BTreeMap;

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    duration::Span,
    edit::{Edit, EditReply, NodeFate},
    lab::Lab,
    name::NodeName,
    status::Status,
};

use super::rolling::{Order, in_order};
use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    client::Client,
    completion,
    failure::{Exit, Failure, Outcome},
    output, paths,
    wait::{self, list},
};

/// Arguments of `upgrade`.
#[derive(Debug, clap::Args)]
pub struct UpgradeArgs {
    /// Nodes, a role or a cluster
    #[arg(required = true, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    targets: Vec<String>,
    /// The program to run from now on
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::ExecutablePath)]
    path: String,
    /// Wait this long between two nodes
    #[arg(long, allow_hyphen_values = true, value_name = "DURATION")]
    pause: Option<Span>,
    /// Which nodes come first
    #[arg(long, value_enum, default_value_t)]
    order: Order,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs `upgrade`.
///
/// # Errors
/// The path is no program, the lab refuses, or a node did not come back: then the rest is left as
/// it was, and the error says so.
pub async fn run(session: &Session, args: &UpgradeArgs) -> Outcome {
    let path = paths::program(&args.path, &paths::current_dir()?, session.hosts())
        .map_err(|e| e.failure())?;
    let client = session.client().await?;
    let set =
        |targets: Vec<String>| Edit::Set { targets, field: "path".to_owned(), value: path.clone() };
    // A dry run tells which nodes are meant, by the lab's own grammar of targets.
    let dry = ChangeArgs { plan: true, ..args.change.clone() };
    let whole = dry.request(set(super::split(&args.targets)), BTreeMap::new());
    if args.change.plan {
        return change::perform(&client, whole, &args.change).await;
    }
    let (reply, status, lab) =
        tokio::try_join!(client.edit(&whole), client.status(), client.lab())?;
    let nodes = in_order(&status, restarting(&reply), args.order);
    if nodes.is_empty() {
        output::data("nothing to upgrade: no running node of the targets changes")?;
        let request = args.change.request(set(super::split(&args.targets)), BTreeMap::new());
        return change::perform(&client, request, &args.change).await;
    }
    output::say(format!("upgrading {}, one at a time", list(&nodes)));
    for (number, node) in nodes.iter().enumerate() {
        if let (Some(pause), true) = (args.pause, number > 0) {
            tokio::time::sleep(pause.0).await;
        }
        let request = args.change.request(set(vec![node.to_string()]), BTreeMap::new());
        let outcome = change::perform(&client, request, &args.change).await;
        if !super::is_done(&outcome) {
            let back = way_back(&nodes[..=number], |node| program_of(&lab, &status, node));
            return outcome.map_err(|failure| halted(&client, failure, (&nodes, number), &back));
        }
    }
    settle(&client, args, set(super::split(&args.targets))).await?;
    Ok(Exit::DONE)
}

/// The targets that do not run get the path too, where that restarts nobody.
async fn settle(client: &Client, args: &UpgradeArgs, edit: Edit) -> Result<(), Failure> {
    let dry = ChangeArgs { plan: true, ..args.change.clone() };
    let reply = client.edit(&dry.request(edit.clone(), BTreeMap::new())).await?;
    let restarts = reply.nodes.values().any(|fate| *fate == NodeFate::Restart);
    if reply.changed && !restarts {
        client.edit(&args.change.request(edit, BTreeMap::new())).await?;
    }
    Ok(())
}

/// The nodes that come to run the program now: those that run, and those that should and crashed.
fn restarting(reply: &EditReply) -> Vec<NodeName> {
    let comes = |fate: &NodeFate| matches!(fate, NodeFate::Restart | NodeFate::Start);
    reply.nodes.iter().filter(|(_, fate)| comes(fate)).map(|(name, _)| name.clone()).collect()
}

/// What a node ran before: the path it was told, or what was found for it.
fn program_of(lab: &Lab, status: &Status, name: &NodeName) -> Option<String> {
    let node = lab.node(name)?;
    let role = node.cluster.spec.roles.get(&node.placement.role);
    let own = role.and_then(|role| role.node.get(&node.placement.index)?.path.clone());
    let told = own.or_else(|| role?.path.clone());
    told.or_else(|| Some(wait::node(status, name)?.binary.as_ref()?.path.clone()))
}

/// The commands that give these nodes back what they ran, the last of them first: it may be down.
fn way_back(nodes: &[NodeName], program: impl Fn(&NodeName) -> Option<String>) -> Vec<String> {
    let mut by_path: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut paths: Vec<String> = Vec::new();
    for node in nodes.iter().rev() {
        let Some(path) = program(node) else { continue };
        if !paths.contains(&path) {
            paths.push(path.clone());
        }
        by_path.entry(path).or_default().push(node.as_str());
    }
    let line = |path: String| {
        let nodes = by_path.get(&path)?.join(",");
        Some(format!("upgrade {nodes} --path {path}"))
    };
    paths.into_iter().filter_map(line).collect()
}

fn halted(
    client: &Client,
    mut failure: Failure,
    (nodes, at): (&[NodeName], usize),
    back: &[String],
) -> Failure {
    let left = &nodes[at + 1..];
    let done = &nodes[..at];
    if let Some(message) = &mut failure.message {
        message.push_str(&format!(
            "\nupgraded: {}; failed: {}; left as before: {}",
            list(done),
            nodes[at],
            list(left)
        ));
    }
    let logs = client.context.typed(&format!("logs {}", nodes[at]));
    if !failure.next.contains(&logs) {
        failure = failure.next(logs);
    }
    for line in back {
        failure =
            failure.next(format!("{}   # back to what ran before", client.context.typed(line)));
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_upgrade_names_the_way_back() {
        let nodes: Vec<NodeName> =
            ["kv-2", "kv-3", "kv-1"].map(|name| name.parse().unwrap()).into();
        let ran = |node: &NodeName| {
            Some(if node.as_str() == "kv-3" { "/old/b" } else { "/old/a" }.to_owned())
        };
        assert_eq!(
            way_back(&nodes, ran),
            ["upgrade kv-1,kv-2 --path /old/a", "upgrade kv-3 --path /old/b"]
        );
        assert_eq!(way_back(&nodes[..1], |_| None), Vec::<String>::new());
    }
}
