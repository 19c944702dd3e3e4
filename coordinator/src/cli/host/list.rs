//! `host list`: every host with its state, its agent and what is placed there.

use faultbed_common::{
    name::NodeName,
    status::{HostStatus, Status},
};
use serde::Serialize;

use crate::cli::{
    Session,
    failure::{Exit, Outcome},
    output::{self, Format, OutputArgs},
    status::{tables, words},
    table::{self, Tone, cell, none, plain, tone},
};

/// Names of nodes that a row shows; the rest are counted.
const NODES_SHOWN: usize = 6;

/// One host, for programs.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    host: &'a HostStatus,
    /// The nodes that are placed there.
    nodes: Vec<&'a NodeName>,
}

/// Runs `host list`.
///
/// # Errors
/// The lab cannot be reached.
pub async fn run(session: &Session, args: OutputArgs) -> Outcome {
    let status = session.client().await?.status().await?;
    match args.output {
        Format::Json => output::json(&listed(&status))?,
        Format::Table => output::data(listing(&status))?,
    }
    Ok(Exit::DONE)
}

fn listed(status: &Status) -> Vec<Listed<'_>> {
    let nodes = |host: &HostStatus| {
        let here = status.nodes.iter().filter(|node| node.host == host.name);
        here.map(|node| &node.name).collect()
    };
    status.hosts.iter().map(|host| Listed { host, nodes: nodes(host) }).collect()
}

/// The table, and below it what is not as it should be.
fn listing(status: &Status) -> String {
    let hosts = listed(status);
    if hosts.is_empty() {
        return "no hosts yet; `faultbed host token` prints the line that lets one join".to_owned();
    }
    let rows = hosts
        .iter()
        .map(|Listed { host, nodes }| {
            let labels: Vec<String> =
                host.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            vec![
                cell(&host.name, Tone::Strong),
                tables::host_state(host),
                plain(&host.address),
                plain(placed(nodes)),
                plain(&host.version),
                host.seen_age_ms.map_or_else(none, |ms| plain(words::age(ms))),
                plain(labels.join(",")),
            ]
        })
        .collect();
    let header = ["HOST", "STATE", "ADDRESS", "NODES", "VERSION", "SEEN", "LABELS"];
    let mut text = table::render(&header, rows);
    let warnings = status.hosts.iter().flat_map(|host| {
        let line = |what| format!("{}  host {}: {what}", tone("warning", Tone::Bad), host.name);
        host.warnings.iter().map(line)
    });
    for (number, line) in warnings.enumerate() {
        text.push_str(if number == 0 { "\n\n" } else { "\n" });
        text.push_str(&line);
    }
    text
}

/// `kv-1,kv-2`, or `kv-1,… (12)` where they are too many.
fn placed(nodes: &[&NodeName]) -> String {
    let shown: Vec<&str> = nodes.iter().take(NODES_SHOWN).map(|node| node.as_str()).collect();
    let shown = shown.join(",");
    if nodes.is_empty() {
        "-".to_owned()
    } else if nodes.len() > NODES_SHOWN {
        format!("{shown},… ({})", nodes.len())
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use faultbed_common::status::HostState;

    use super::*;
    use crate::cli::testing;

    #[test]
    fn a_row_says_where_a_host_stands_and_what_is_placed_there() {
        let mut status = testing::three_nodes();
        status.hosts[0].drained = true;
        status.hosts[1].state = HostState::Down;
        status.hosts[1].warnings = vec!["its clock is off by 2 s".to_owned()];
        let text = anstream::adapter::strip_str(&listing(&status)).to_string();
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[1].contains("drained") && rows[1].contains("kv-1"), "{text}");
        assert!(rows[2].contains("down"), "{text}");
        assert!(text.ends_with("warning  host h2: its clock is off by 2 s"), "{text}");
    }

    #[test]
    fn programs_read_the_nodes_of_a_host() {
        let status = testing::three_nodes();
        let json = serde_json::to_value(listed(&status)).unwrap();
        assert_eq!(json[0]["name"], "h1");
        assert_eq!(json[0]["drained"], false);
        assert_eq!(json[0]["nodes"][0], "kv-1");
    }

    #[test]
    fn many_nodes_are_counted() {
        let names: Vec<NodeName> = (1..=9).map(|n| format!("kv-{n}").parse().unwrap()).collect();
        let all: Vec<&NodeName> = names.iter().collect();
        assert_eq!(placed(&all), "kv-1,kv-2,kv-3,kv-4,kv-5,kv-6,… (9)");
        assert_eq!(placed(&[]), "-");
    }
}
