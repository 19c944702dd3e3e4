//! `faultbed scale` and `faultbed remove`: more or fewer nodes, one at a time, each joining or leaving
//! as its database wants it. What would leave a cluster without its data is refused.

use std::collections::BTreeMap;

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    edit::{Edit, EditRequest, NodeVerb},
    name::NodeName,
    report::NodeState,
    status::{NodeStatus, Status},
};

use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    client::Client,
    completion,
    failure::{Exit, Failure, Outcome},
    node, output,
    wait::{self, list},
};

/// SIGKILL.
const SIGKILL: i32 = 9;

/// Arguments of `scale`.
#[derive(Debug, clap::Args)]
pub struct ScaleArgs {
    /// A cluster of one role, or `CLUSTER/ROLE`
    #[arg(value_name = "CLUSTER[/ROLE]", add = ArgValueCandidates::new(completion::targets))]
    target: String,
    /// How many nodes it is to have
    #[arg(value_name = "N")]
    count: u32,
    /// Take nodes away although others are not ready, and without their leave. One whose leave does not
    /// succeed is called back by `faultbed start NODE`
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments of `remove`.
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    verb: node::VerbArgs,
    /// Take them away although others are not ready, and without their leave; also those that are
    /// leaving and do not come to an end. `faultbed start NODE` calls such a node back
    #[arg(long)]
    force: bool,
}

/// Runs `scale`.
///
/// # Errors
/// There is no such role, data could be lost, the lab refuses, or a node did not come or go: then the
/// rest is left as it was.
pub async fn scale(session: &Session, args: &ScaleArgs) -> Outcome {
    let client = session.client().await?;
    let status = client.status().await?;
    let nodes =
        of_role(&status, &args.target).map_err(|f| f.next(client.context.typed("status")))?;
    let here = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let set = |count: u32| Edit::Set {
        targets: vec![args.target.clone()],
        field: "count".to_owned(),
        value: count.to_string(),
    };
    let request = |count| EditRequest {
        force: args.force,
        ..args.change.request(set(count), BTreeMap::new())
    };
    let kept = args.count.min(here) as usize;
    let going: Vec<NodeName> = nodes[kept..].iter().map(|node| node.name.clone()).collect();
    if !going.is_empty() && args.count > 0 {
        check(&client, &status, &going, args.force, &args.change).await?;
    }
    // One step is all there is to show, to refuse, or where nobody waits for the one before.
    if args.change.limit().is_none() || here.abs_diff(args.count) <= 1 || args.count == 0 {
        return change::perform(&client, request(args.count), &args.change).await;
    }
    let steps: Vec<u32> = if args.count > here {
        (here + 1..=args.count).collect()
    } else {
        (args.count..here).rev().collect()
    };
    for count in steps {
        let outcome = change::perform(&client, request(count), &args.change).await;
        if !node::is_done(&outcome) {
            return outcome.map_err(|failure| halted(failure, &args.target, count, args.count));
        }
    }
    Ok(Exit::DONE)
}

/// Runs `remove`.
///
/// # Errors
/// As [`scale`].
pub async fn remove(session: &Session, args: &RemoveArgs) -> Outcome {
    let client = session.client().await?;
    let targets = node::split(&args.verb.targets);
    let change = &args.verb.change;
    let dry = ChangeArgs { plan: true, ..change.clone() };
    let request = |change: &ChangeArgs, targets: Vec<String>| EditRequest {
        force: args.force,
        ..change.request(Edit::Remove { targets }, BTreeMap::new())
    };
    let whole = request(&dry, targets.clone());
    let (reply, status) = tokio::try_join!(client.edit(&whole), client.status())?;
    let going: Vec<NodeName> = reply.nodes.keys().cloned().collect();
    check(&client, &status, &going, args.force, change).await?;
    if change.limit().is_none() || going.len() <= 1 {
        return change::perform(&client, request(change, targets), change).await;
    }
    for node in &going {
        let one = request(change, vec![node.to_string()]);
        let outcome = change::perform(&client, one, change).await;
        if !node::is_done(&outcome) {
            return outcome;
        }
    }
    Ok(Exit::DONE)
}

/// Refuses to take nodes away from those that are not well, since only the ones that stay have the
/// data then. By force, the nodes that go are killed first: what is down is not asked to leave.
async fn check(
    client: &Client,
    status: &Status,
    going: &[NodeName],
    force: bool,
    args: &ChangeArgs,
) -> Result<(), Failure> {
    if !force {
        return match unwell(status, going) {
            Some(why) => Err(Failure::refused(why).next(client.context.typed("status"))),
            None => Ok(()),
        };
    }
    // One that is leaving already is asked no more, and stops as any other.
    let going: Vec<NodeName> =
        going.iter().filter(|name| wait::node(status, name).is_some()).cloned().collect();
    if args.plan || going.is_empty() {
        return Ok(());
    }
    output::say(format!("killing {} first: what is down is not asked to leave", list(&going)));
    let verb = NodeVerb::Kill { signal: SIGKILL, respawn: false };
    let targets = going.iter().map(ToString::to_string).collect();
    let request = args.request(Edit::Node { targets, verb }, BTreeMap::new());
    change::perform(client, request, args).await.map(drop)
}

/// Why taking these nodes away could lose data.
fn unwell(status: &Status, going: &[NodeName]) -> Option<String> {
    let is_going = |node: &&NodeStatus| going.contains(&node.name);
    let touched: Vec<(&str, &str)> = status
        .nodes
        .iter()
        .filter(is_going)
        .map(|node| (node.cluster.as_str(), node.role.as_str()))
        .collect();
    let mut stays = status.nodes.iter().filter(|node| {
        touched.contains(&(node.cluster.as_str(), node.role.as_str())) && !is_going(node)
    });
    let ill = stays.find(|node| node.observed != NodeState::Ready)?;
    Some(format!(
        "{} stays and is not ready, so taking {} away could lose data; start it first, or use --force",
        ill.name,
        list(going)
    ))
}

/// The nodes of a role, those that would go last first.
fn of_role<'a>(status: &'a Status, target: &str) -> Result<Vec<&'a NodeStatus>, Failure> {
    let (cluster, role) = match target.split_once('/') {
        Some((cluster, role)) => (cluster, Some(role)),
        None => (target, None),
    };
    let nodes: Vec<&NodeStatus> = status
        .nodes
        .iter()
        .filter(|node| node.cluster.as_str() == cluster)
        .filter(|node| role.is_none_or(|role| node.role.as_str() == role))
        .collect();
    let Some(first) = nodes.first() else {
        return Err(Failure::refused(format!("{target} names no cluster or role of the lab")));
    };
    if let Some(other) = nodes.iter().find(|node| node.role != first.role) {
        return Err(Failure::refused(format!(
            "cluster {cluster} has several roles; say {cluster}/{} or {cluster}/{}",
            first.role, other.role
        )));
    }
    Ok(nodes)
}

fn halted(mut failure: Failure, target: &str, at: u32, wanted: u32) -> Failure {
    if let Some(message) = &mut failure.message {
        message.push_str(&format!(
            "\n{target} was to have {wanted} nodes; it stays at {at}, and the rest was not begun"
        ));
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_go_only_from_those_that_are_well() {
        let mut status = crate::cli::testing::three_nodes();
        let going = [status.nodes[2].name.clone()];
        assert_eq!(unwell(&status, &going), None);
        status.nodes[2].observed = NodeState::Crashed;
        assert_eq!(unwell(&status, &going), None, "the one that goes may be ill");
        status.nodes[1].observed = NodeState::Stopped;
        let why = unwell(&status, &going).unwrap();
        assert!(why.contains("kv-2 stays and is not ready") && why.contains("--force"), "{why}");
    }

    #[test]
    fn a_role_is_named_by_its_cluster_alone_only_where_that_has_one() {
        let mut status = crate::cli::testing::three_nodes();
        assert_eq!(of_role(&status, "kv").unwrap().len(), 3);
        assert_eq!(of_role(&status, "kv/etcd").unwrap().len(), 3);
        status.nodes[0].role = "other".parse().unwrap();
        assert_eq!(of_role(&status, "kv/other").unwrap().len(), 1);
        for (target, part) in [("kv", "say kv/other or kv/etcd"), ("vk", "names no cluster")] {
            let failure = of_role(&status, target).unwrap_err().to_string();
            assert!(failure.contains(part), "{failure}");
        }
    }
}
