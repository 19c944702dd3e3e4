//! `faultbed endpoints`: where a cluster is reached, for people, scripts and the environment of commands.

use std::collections::BTreeMap;

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    name::ClusterName,
    status::{NodeStatus, Status},
};

use crate::cli::{
    Session, completion,
    failure::{Exit, Failure, Outcome},
    output::{self, Format},
    status,
};

/// Arguments of `endpoints`.
#[derive(Debug, clap::Args)]
pub struct EndpointsArgs {
    /// Which cluster; the only one where it is not said
    #[arg(value_name = "CLUSTER", add = ArgValueCandidates::new(completion::clusters))]
    cluster: Option<String>,
    /// Which port [default: the one that clients use]
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Which role [default: the one that clients use]
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    #[command(flatten)]
    output: output::OutputArgs,
}

/// Runs `endpoints`: one line, separated by commas.
///
/// # Errors
/// There is no such cluster, role or port.
pub async fn run(session: &Session, args: &EndpointsArgs) -> Outcome {
    let client = session.client().await?;
    let now = client.status().await?;
    let cluster = choose(&now, args.cluster.as_deref())?;
    let groups = groups(&now, &cluster);
    let usual = main_group(&groups);
    let wanted = |key: &&(String, String)| {
        let role = args.role.as_ref().or(match &args.port {
            Some(_) => None,
            None => usual.map(|key| &key.0),
        });
        let port = args.port.as_ref().or(match &args.role {
            Some(_) => None,
            None => usual.map(|key| &key.1),
        });
        role.is_none_or(|role| key.0 == *role) && port.is_none_or(|port| key.1 == *port)
    };
    let chosen: Vec<&(String, String)> = groups.keys().filter(wanted).collect();
    let key = match chosen.as_slice() {
        [] => {
            let known: Vec<String> =
                groups.keys().map(|(role, port)| format!("--role {role} --port {port}")).collect();
            return Err(Failure::refused(format!(
                "cluster {cluster} has no such endpoints; it has: {}",
                known.join(", ")
            ))
            .next(client.context.typed(&format!("endpoints {cluster}"))));
        }
        [one] => *one,
        // A role of several ports: the usual one first.
        many => many.iter().find(|key| Some(**key) == usual).copied().unwrap_or(many[0]),
    };
    match args.output.output {
        Format::Json => output::json(&groups[key])?,
        Format::Table => output::data(groups[key].join(","))?,
    }
    Ok(Exit::DONE)
}

/// The cluster meant: by name, or the only one.
fn choose(now: &Status, asked: Option<&str>) -> Result<ClusterName, Failure> {
    let known: Vec<&str> = now.clusters.iter().map(|c| c.name.as_str()).collect();
    match (asked, now.clusters.as_slice()) {
        (Some(text), clusters) => clusters
            .iter()
            .find(|cluster| cluster.name.as_str() == text)
            .map(|cluster| cluster.name.clone())
            .ok_or_else(|| status::unknown("cluster", text, &known)),
        (None, [one]) => Ok(one.name.clone()),
        (None, []) => {
            Err(Failure::no("there is no cluster yet")
                .next("faultbed start cluster --etcd.count 3"))
        }
        (None, _) => Err(Failure::refused(format!("say which cluster: {}", known.join(", ")))
            .next(format!("faultbed endpoints {}", known[0]))),
    }
}

/// Endpoints by role and port, in the order of nodes.
#[must_use]
pub fn groups(now: &Status, cluster: &ClusterName) -> BTreeMap<(String, String), Vec<String>> {
    let mut groups: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for node in now.nodes.iter().filter(|node| node.cluster == *cluster) {
        for (port, address) in &node.endpoints {
            let key = (node.role.to_string(), port.clone());
            groups.entry(key).or_default().push(address.clone());
        }
    }
    groups
}

/// Ports that clients use, the most usual first.
const CLIENT_PORTS: [&str; 6] = ["client", "mysql", "sql", "pg", "http", "api"];

/// The group that clients use.
#[must_use]
pub fn main_group(groups: &BTreeMap<(String, String), Vec<String>>) -> Option<&(String, String)> {
    CLIENT_PORTS
        .iter()
        .find_map(|port| groups.keys().find(|key| key.1 == *port))
        .or_else(|| groups.keys().next())
}

/// The environment of a command: `FAULTBED_LAB`, `FAULTBED_ENDPOINTS_KV`,
/// `FAULTBED_ENDPOINTS_KV_ETCD_CLIENT`.
#[must_use]
pub fn environment(now: &Status) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([("FAULTBED_LAB".to_owned(), now.lab.to_string())]);
    for cluster in &now.clusters {
        let groups = groups(now, &cluster.name);
        let prefix = format!("FAULTBED_ENDPOINTS_{}", shout(cluster.name.as_str()));
        if let Some(key) = main_group(&groups) {
            env.insert(prefix.clone(), groups[key].join(","));
        }
        for ((role, port), addresses) in &groups {
            let name = format!("{prefix}_{}_{}", shout(role), shout(port));
            env.insert(name, addresses.join(","));
        }
    }
    env
}

fn shout(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// Ports by which nodes speak with each other, or that only watch them.
const INNER_PORTS: [&str; 13] = [
    "peer",
    "cluster",
    "bus",
    "dist",
    "election",
    "raft",
    "rpc",
    "build",
    "dcf",
    "failpoint",
    "monitor",
    "metrics",
    "status",
];

/// Lines to copy and paste: how clients reach each cluster. `show CLUSTER` has the other ports too.
#[must_use]
pub fn connect_lines(now: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    for cluster in &now.clusters {
        let groups = groups(now, &cluster.name);
        let Some(key) = main_group(&groups) else { continue };
        let addresses = groups[key].join(",");
        if cluster.blueprint == "etcd" {
            lines.push(format!("etcdctl --endpoints={addresses} put hello world"));
            continue;
        }
        let is_inner = |port: &str| INNER_PORTS.contains(&port);
        let all_inner = groups.keys().all(|key| is_inner(&key.1));
        let shown = groups.iter().filter(|(key, _)| all_inner || !is_inner(&key.1));
        for ((role, port), addresses) in shown {
            lines.push(format!("{} {role} {port}: {}", cluster.name, addresses.join(",")));
        }
    }
    lines
}

/// A node's endpoints as `port address`.
#[must_use]
pub fn of_node(node: &NodeStatus) -> Vec<String> {
    node.endpoints.iter().map(|(port, address)| format!("{port} {address}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing;

    #[test]
    fn commands_find_their_cluster_in_the_environment() {
        let env = environment(&testing::three_nodes());
        let clients = "http://127.77.1.1:2379,http://127.77.1.2:2379,http://127.77.1.3:2379";
        assert_eq!(env["FAULTBED_LAB"], "lab");
        assert_eq!(env["FAULTBED_ENDPOINTS_KV"], clients);
        assert_eq!(env["FAULTBED_ENDPOINTS_KV_ETCD_CLIENT"], clients);
        assert!(env["FAULTBED_ENDPOINTS_KV_ETCD_PEER"].contains(":2380"));
    }

    #[test]
    fn ports_between_nodes_are_no_way_to_connect() {
        let mut status = testing::three_nodes();
        status.clusters[0].blueprint = "kvs".into();
        let clients = "http://127.77.1.1:2379,http://127.77.1.2:2379,http://127.77.1.3:2379";
        assert_eq!(connect_lines(&status), [format!("kv etcd client: {clients}")]);
        // Where there is no other, it is better than nothing.
        for node in &mut status.nodes {
            node.endpoints.remove("client");
        }
        assert!(connect_lines(&status)[0].starts_with("kv etcd peer: "));
    }

    #[test]
    fn etcd_is_reached_by_a_line_to_paste() {
        let lines = connect_lines(&testing::three_nodes());
        assert_eq!(
            lines,
            [
                "etcdctl --endpoints=http://127.77.1.1:2379,http://127.77.1.2:2379,http://127.77.1.3:2379 put hello world"
            ]
        );
    }
}
