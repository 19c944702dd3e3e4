//! `faultbed upgrade`: another program for some nodes, one at a time, each ready before the next.

use std::collections::BTreeMap;

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    duration::Span,
    edit::{Edit, NodeFate},
    name::NodeName,
};

use super::rolling::{Order, in_order};
use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    client::Client,
    completion,
    failure::{Exit, Failure, Outcome},
    output, paths,
    wait::list,
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
    let (reply, status) = tokio::try_join!(client.edit(&whole), client.status())?;
    let restarting =
        reply.nodes.iter().filter(|(_, fate)| **fate == NodeFate::Restart).map(|(name, _)| name);
    let nodes = in_order(&status, restarting.cloned().collect(), args.order);
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
            return outcome.map_err(|failure| halted(&client, failure, &nodes, number));
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

fn halted(client: &Client, mut failure: Failure, nodes: &[NodeName], at: usize) -> Failure {
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
    failure.next(client.context.typed(&format!("logs {}", nodes[at])))
}
