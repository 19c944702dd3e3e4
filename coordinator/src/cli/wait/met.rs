//! Says what is so once a goal is met: a wait that ends well has an answer. Pure.

use faultbed_common::{name::NodeName, status::Status};

use super::{Goal, fault, list, node};
use crate::cli::{status::words, table::tone};

/// What is so now, as a sentence.
#[must_use]
pub fn met(status: &Status, goal: &Goal) -> String {
    match goal {
        Goal::Ready(name, _)
        | Goal::Hashed(name, _)
        | Goal::Goes(name)
        | Goal::Down(name)
        | Goal::Is(name, _) => state(status, name),
        Goal::Removed(name, ..) => format!("{name} is gone"),
        Goal::InForce(name) | Goal::Ended(name) | Goal::Confirmed(name) | Goal::Judged(name) => {
            match fault(status, name) {
                Some(fault) => {
                    let (word, mood) = words::fault(fault);
                    let (evidence, verdict) = words::evidence(fault);
                    format!("{name} is {} · {}", tone(word, mood), tone(evidence, verdict))
                }
                None => format!("{name} is over"),
            }
        }
        Goal::ClusterReady(name) => {
            let nodes = status.nodes.iter().filter(|node| node.cluster == *name);
            let nodes: Vec<&NodeName> = nodes.map(|node| &node.name).collect();
            format!("{name} is ready: {}", list(&nodes))
        }
        Goal::Leader(name, _) => {
            let newest = super::leaders(status, name).max_by_key(|node| node.term);
            newest.map_or_else(
                || format!("{name} has a leader"),
                |node| format!("{} leads {name}", node.name),
            )
        }
        Goal::Hosts(count) => format!("{count} hosts are up"),
        Goal::Converged => format!("every host has applied generation {}", status.generation),
    }
}

fn state(status: &Status, name: &NodeName) -> String {
    match node(status, name) {
        Some(node) => {
            let state = words::state_and_exit(node);
            let run = node.incarnation;
            format!("{name} is {}, run {run}", tone(state, words::state_tone(node.observed)))
        }
        None => format!("{name} is gone"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing;

    #[test]
    fn each_answer_names_what_was_waited_for() {
        let mut status = testing::three_nodes();
        status.faults.push(testing::split());
        let say = |goal: &Goal| anstream::adapter::strip_str(&met(&status, goal)).to_string();
        let kv: faultbed_common::name::ClusterName = "kv".parse().unwrap();
        assert_eq!(say(&Goal::ClusterReady(kv.clone())), "kv is ready: kv-1, kv-2 and kv-3");
        assert_eq!(say(&Goal::Leader(kv, None)), "kv-1 leads kv");
        let split = "split".parse().unwrap();
        let text = say(&Goal::Confirmed(split));
        assert_eq!(text, "split is active · confirmed: 12 dropped, 3 dials stopped");
        let is = Goal::Is("kv-2".parse().unwrap(), status.nodes[1].observed);
        assert_eq!(say(&is), "kv-2 is ready, run 1");
    }
}
