//! `faultbed restart`: nodes start anew one at a time, each ready before the next.

use std::collections::BTreeMap;

use faultbed_common::{
    duration::Span,
    edit::{Edit, NodeVerb},
    name::NodeName,
    report::NodeState,
    status::Status,
};

use super::VerbArgs;
use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    failure::{Exit, Outcome},
    output,
    wait::{self, list},
};

/// Which nodes come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// Leaders last: each restart of a leader costs an election
    #[default]
    FollowersFirst,
    /// Leaders first: every restart costs an election
    LeadersFirst,
    /// By name
    Name,
}

/// Arguments of `restart`.
#[derive(Debug, clap::Args)]
pub struct RestartArgs {
    #[command(flatten)]
    verb: VerbArgs,
    /// So many at a time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    parallel: u16,
    /// Wait this long between two
    #[arg(long, allow_hyphen_values = true, value_name = "DURATION")]
    pause: Option<Span>,
    /// Which come first
    #[arg(long, value_enum, default_value_t)]
    order: Order,
}

/// Runs `restart`. Where nobody waits, all start anew at once.
///
/// # Errors
/// The lab refuses, or a node did not come back: then the rest goes on as it was.
pub async fn restart(session: &Session, args: &RestartArgs) -> Outcome {
    let client = session.client().await?;
    let change = &args.verb.change;
    let edit = |targets: Vec<String>| Edit::Node { targets, verb: NodeVerb::Restart };
    let all = edit(super::split(&args.verb.targets));
    if change.limit().is_none() {
        return change::perform(&client, change.request(all, BTreeMap::new()), change).await;
    }
    // A dry run tells which nodes are meant, by the lab's own grammar of targets.
    let dry = ChangeArgs { plan: true, ..change.clone() };
    let whole = dry.request(all.clone(), BTreeMap::new());
    let (reply, status) = tokio::try_join!(client.edit(&whole), client.status())?;
    let nodes = in_order(&status, reply.nodes.into_keys().collect(), args.order);
    let at_once = usize::from(args.parallel);
    if nodes.len() <= at_once {
        return change::perform(&client, change.request(all, BTreeMap::new()), change).await;
    }
    let number = if at_once == 1 { "one".to_owned() } else { at_once.to_string() };
    output::say(format!("restarting {}, {number} at a time", list(&nodes)));
    for (number, part) in nodes.chunks(at_once).enumerate() {
        if let (Some(pause), true) = (args.pause, number > 0) {
            tokio::time::sleep(pause.0).await;
        }
        let targets = part.iter().map(ToString::to_string).collect();
        let request = change.request(edit(targets), BTreeMap::new());
        let outcome = change::perform(&client, request, change).await;
        if !super::is_done(&outcome) {
            let left = &nodes[((number + 1) * at_once).min(nodes.len())..];
            return outcome.map_err(|mut failure| {
                if let (Some(message), false) = (&mut failure.message, left.is_empty()) {
                    message.push_str(&format!("\nnot restarted: {}", list(left)));
                }
                failure
            });
        }
    }
    Ok(Exit::DONE)
}

/// The nodes in the order in which they are taken: first those that do not serve now, whose database has
/// nothing to lose of it and cannot spare another one meanwhile.
#[must_use]
pub fn in_order(status: &Status, mut nodes: Vec<NodeName>, order: Order) -> Vec<NodeName> {
    let leads =
        |name: &NodeName| wait::node(status, name).is_some_and(|node| node.leader == Some(true));
    let serves = |name: &NodeName| {
        wait::node(status, name).is_some_and(|node| node.observed == NodeState::Ready)
    };
    nodes.sort_by_key(|name| {
        let last = match order {
            Order::FollowersFirst => leads(name),
            Order::LeadersFirst => !leads(name),
            Order::Name => false,
        };
        (serves(name), last, name.clone())
    });
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_come_last_unless_told() {
        let mut status = crate::cli::testing::three_nodes();
        let nodes: Vec<NodeName> = status.nodes.iter().map(|node| node.name.clone()).collect();
        let names = |status: &Status, order| {
            in_order(status, nodes.clone(), order)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&status, Order::FollowersFirst), ["kv-2", "kv-3", "kv-1"]);
        assert_eq!(names(&status, Order::LeadersFirst), ["kv-1", "kv-2", "kv-3"]);
        assert_eq!(names(&status, Order::Name), ["kv-1", "kv-2", "kv-3"]);
        status.nodes[2].observed = NodeState::Crashed;
        let order = names(&status, Order::FollowersFirst);
        assert_eq!(order, ["kv-3", "kv-2", "kv-1"], "what is down comes first");
    }
}
