//! Decides whose host a command or a copy goes to, and whether it may.

use faultbed_common::{
    exec::{Request, Work},
    lab::Lab,
    name::{HostName, NodeName},
    target::{self, Reports},
};

/// Most bytes of a command with its arguments.
const COMMAND_BYTES_MAX: usize = 128 * 1024;

/// The node that is meant, and its host.
///
/// # Errors
/// The target names no node or several, the node is another's, or there is nothing to run.
pub fn choose(
    lab: &Lab,
    reports: &Reports,
    request: &Request,
    by: &str,
) -> Result<(NodeName, HostName), String> {
    let Request { target, work, everyone } = request;
    check(work)?;
    let nodes = target::nodes(lab, reports, std::slice::from_ref(target))
        .map_err(|error| error.to_string())?;
    let [name] = nodes.as_slice() else {
        let names: Vec<&str> = nodes.iter().map(|name| name.as_str()).collect();
        return Err(format!("{target} is {} nodes; name one of {}", nodes.len(), names.join(", ")));
    };
    let node = lab.node(name).ok_or_else(|| format!("there is no node {name}"))?;
    let owner = &node.cluster.origin.owner;
    if !everyone && owner != by {
        let cluster = node.cluster_name;
        return Err(format!("cluster {cluster} belongs to {owner}; --everyone touches it too"));
    }
    Ok((name.clone(), node.placement.host.clone()))
}

fn check(work: &Work) -> Result<(), String> {
    match work {
        Work::Run { command } if command.is_empty() => {
            Err("there is nothing to run; write `faultbed exec NODE -- PROGRAM ARGUMENTS`".into())
        }
        Work::Run { command }
            if command.iter().map(String::len).sum::<usize>() > COMMAND_BYTES_MAX =>
        {
            Err(format!("the command has more than {COMMAND_BYTES_MAX} bytes; put it into a file"))
        }
        Work::Run { .. } => Ok(()),
        Work::Read { path } | Work::Write { path, .. } if path.is_empty() => {
            Err("no file is named; write NODE:data/FILE".to_owned())
        }
        Work::Read { .. } | Work::Write { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::fixtures::ready;

    fn run(target: &str, everyone: bool) -> Request {
        let work = Work::Run { command: vec!["true".to_owned()] };
        Request { target: target.to_owned(), work, everyone }
    }

    #[test]
    fn one_node_of_ones_own_is_found_with_its_host() {
        let world = ready();
        let choose = |request: &Request, by| choose(&world.lab, &world.reports, request, by);
        let (node, host) = choose(&run("leader:kv", false), "ada").unwrap();
        assert_eq!((node.as_str(), host.as_str()), ("kv-1", "h1"));
        let error = choose(&run("kv", false), "ada").unwrap_err();
        assert_eq!(error, "kv is 3 nodes; name one of kv-1, kv-2, kv-3");
        let error = choose(&run("kw-1", false), "ada").unwrap_err();
        assert!(error.contains("did you mean \"kv-1\""), "{error}");
        let error = choose(&run("kv-1", false), "bob").unwrap_err();
        assert_eq!(error, "cluster kv belongs to ada; --everyone touches it too");
        assert!(choose(&run("kv-1", true), "bob").is_ok());
        let nothing = Request { work: Work::Run { command: Vec::new() }, ..run("kv-1", false) };
        assert!(choose(&nothing, "ada").unwrap_err().contains("nothing to run"));
        let long = Work::Run { command: vec!["x".repeat(COMMAND_BYTES_MAX + 1)] };
        assert!(choose(&Request { work: long, ..run("kv-1", false) }, "ada").is_err());
    }
}
