//! `faultbed status`: the lab at a glance, once or again and again.

pub mod proof;
pub mod tables;
pub mod words;

use std::{collections::BTreeMap, io::IsTerminal};

use faultbed_common::{
    edit::WatchQuery,
    name::NodeName,
    nearest::nearest,
    report::NodeState,
    status::{ClusterState, ClusterStatus, NodeStatus, Status},
};
use futures::StreamExt;

use crate::cli::{
    Session,
    failure::{Exit, Failure, Outcome},
    output::{self, Format, OutputArgs},
    table::{self, Tone, tone},
};

/// Clears the screen and goes to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Most lines of a crashed node's output that are shown in a status.
const LAST_LINES_MAX: usize = 20;

/// Characters of each of them; `logs` has the rest.
const LINE_CHARS_MAX: usize = 400;

/// Clusters that the first line names; of more it says how many are in which state.
const CLUSTERS_TOLD: usize = 12;

/// Names that a mistyped one is answered with, where none is near.
const KNOWN_NAMED_MAX: usize = 12;

/// Sentences of one kind that are told; hundreds of hosts may have the same trouble.
const PROBLEMS_TOLD: usize = 20;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Show it again after every change, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `status`.
///
/// # Errors
/// The lab cannot be reached.
pub async fn run(session: &Session, args: &StatusArgs) -> Outcome {
    let client = session.client().await?;
    if !args.watch {
        let status = client.status().await?;
        match args.output.output {
            Format::Json => output::json(&status)?,
            Format::Table => {
                output::data(overview_in(&status, table::columns(std::io::stdout())))?;
            }
        }
        return Ok(Exit::DONE);
    }
    let moves = std::io::stdout().is_terminal();
    let mut statuses = client.watch(WatchQuery::default()).await?;
    while let Some(status) = statuses.next().await {
        let status = status?;
        match args.output.output {
            Format::Json => output::json_line(&status)?,
            Format::Table if moves => {
                // The terminal may have changed its size since the last.
                let width = table::columns(std::io::stdout()).unwrap_or(usize::MAX);
                let text = overview_in(&status, Some(width));
                output::data(format!("{CLEAR}{}", table::fit(&text, width)))?;
            }
            Format::Table => output::data(format!("{}\n", overview(&status)))?,
        }
    }
    Err(Failure::unreachable(format!("lab `{}` has gone away", client.context.name))
        .next(client.context.typed("up -d")))
}

/// Everything a person wants to see at once.
#[must_use]
pub fn overview(status: &Status) -> String {
    overview_in(status, None)
}

/// As [`overview`]; rows that a terminal of `width` columns would wrap are cut, sentences are not.
fn overview_in(status: &Status, width: Option<usize>) -> String {
    let fit = |rows: String| match width {
        Some(width) => table::fit(&rows, width),
        None => rows,
    };
    let mut parts = vec![headline(status)];
    if status.clusters.is_empty() && status.nodes.is_empty() {
        parts
            .push(tone("no clusters yet; try: faultbed start cluster --etcd.count 3", Tone::Faint));
    } else {
        parts.push(fit(tables::nodes_in(status, width)));
    }
    if !status.faults.is_empty() {
        parts.push(fit(tables::faults(&status.faults, tables::has_several_owners(status))));
    }
    let problems = problems(status);
    if !problems.is_empty() {
        parts.push(problems.join("\n"));
    }
    let crashes = crashes(status);
    if !crashes.is_empty() {
        parts.push(crashes);
    }
    parts.join("\n\n")
}

fn headline(status: &Status) -> String {
    let up = status
        .hosts
        .iter()
        .filter(|host| host.state == faultbed_common::status::HostState::Up)
        .count();
    let state = if !status.stuck.is_empty() {
        tone("stuck", Tone::Bad)
    } else if status.converged {
        tone("converged", Tone::Good)
    } else {
        tone("pending", Tone::Calm)
    };
    let mut line = format!(
        "lab {} · generation {} · {}/{} hosts up · {state}",
        tone(&status.lab, Tone::Strong),
        status.generation,
        up,
        status.hosts.len(),
    );
    line.push_str(&words::lab_lease(status.lease.as_ref()));
    if status.clusters.len() > CLUSTERS_TOLD {
        line.push_str(&format!(" · {} clusters", status.clusters.len()));
        let mut states = BTreeMap::<_, usize>::new();
        for cluster in &status.clusters {
            *states.entry(words::cluster(cluster.state).0).or_default() += 1;
        }
        for (word, count) in states {
            line.push_str(&format!(", {count} {word}"));
        }
        return line;
    }
    let several = tables::has_several_owners(status);
    for cluster in &status.clusters {
        let (word, mood) = words::cluster(cluster.state);
        let of = if several { format!(" of {}", cluster.owner) } else { String::new() };
        line.push_str(&format!(" · {}{of} {}", cluster.name, tone(word, mood)));
        line.push_str(&crashed_in(status, cluster));
        line.push_str(&words::lease(cluster.lease.as_ref()));
    }
    line
}

/// The nodes that keep a cluster from being ready by crashing: ` (kv-2 crashed 3 times, last: exit 2)`.
fn crashed_in(status: &Status, cluster: &ClusterStatus) -> String {
    if matches!(cluster.state, ClusterState::Ready | ClusterState::Stopped) {
        return String::new();
    }
    let crashed = status.nodes.iter().filter(|node| {
        let comes_back = matches!(node.observed, NodeState::Preparing | NodeState::Starting);
        let has_crashed = node.observed == NodeState::Crashed || comes_back && node.restarts > 0;
        node.cluster == cluster.name && has_crashed
    });
    let told: Vec<String> = crashed
        .map(|node| {
            // One that is down crashed once more than it was started again.
            let is_down = node.observed == NodeState::Crashed;
            let count = node.restarts.saturating_add(u32::from(is_down));
            format!("{} {}", node.name, words::crashed(node, count))
        })
        .collect();
    match told.as_slice() {
        [] => String::new(),
        [one] => format!(" ({})", tone(one, Tone::Bad)),
        [one, more @ ..] => format!(" ({}, and {} more)", tone(one, Tone::Bad), more.len()),
    }
}

/// What needs attention, a block for each kind.
fn problems(status: &Status) -> Vec<String> {
    let down: Vec<String> = status
        .hosts
        .iter()
        .filter(|host| words::host(host.state).0 == "down")
        .map(|host| match host.seen_age_ms {
            Some(ms) => format!("host {} is down, last seen {} ago", host.name, words::age(ms)),
            None => format!("host {} has never been seen", host.name),
        })
        .collect();
    let bypasses: Vec<String> = status
        .bypasses
        .iter()
        .map(|b| format!("{} reaches {} at {} around its proxy", b.from, b.to, b.address))
        .collect();
    let warnings: Vec<String> = status
        .hosts
        .iter()
        .flat_map(|host| {
            host.warnings.iter().map(move |what| format!("host {}: {what}", host.name))
        })
        .collect();
    let leaving: Vec<String> = status.leaving.iter().filter_map(words::stays).collect();
    let unnamed: Vec<String> = status.nodes.iter().filter_map(unnamed).collect();
    [
        ("pending", &status.pending, Tone::Calm),
        ("stuck", &status.stuck, Tone::Bad),
        ("leaving", &leaving, Tone::Calm),
        ("down", &down, Tone::Bad),
        ("bypass", &bypasses, Tone::Bad),
        ("warning", &warnings, Tone::Bad),
        ("lookup", &unnamed, Tone::Faint),
    ]
    .into_iter()
    .filter(|(_, lines, _)| !lines.is_empty())
    .map(|(title, lines, mood)| {
        let told = lines.iter().take(PROBLEMS_TOLD);
        let more = lines.len().saturating_sub(PROBLEMS_TOLD);
        let more = (more > 0).then(|| format!("and {more} more: faultbed status -o json"));
        let told = told.chain(&more).map(|line| format!("{}  {line}", tone(title, mood)));
        told.collect::<Vec<_>>().join("\n")
    })
    .collect()
}

fn unnamed(node: &NodeStatus) -> Option<String> {
    match &node.identity {
        faultbed_common::report::Identity::Lookup(why) => {
            Some(format!("{}'s connections are named by asking the kernel: {why}", node.name))
        }
        faultbed_common::report::Identity::Unknown | faultbed_common::report::Identity::Address => {
            None
        }
    }
}

/// The last words of every crashed node; empty where none crashed.
#[must_use]
pub fn crashes(status: &Status) -> String {
    let blocks: Vec<String> =
        status.nodes.iter().filter(|node| node.observed == NodeState::Crashed).map(crash).collect();
    blocks.join("\n\n")
}

/// How one node crashed: its exit, the faults at that moment, the failed probe, its last lines.
fn crash(node: &NodeStatus) -> String {
    let mut lines = vec![tone(format!("{} {}", node.name, words::exit(node)), Tone::Bad)];
    if let Some(exit) = &node.exit {
        if !exit.faults.is_empty() {
            lines.push(format!("  faults in force then: {}", crate::cli::wait::list(&exit.faults)));
        }
        if let Some(probe) = &exit.probe {
            lines.push(format!("  last failed probe: {probe}"));
        }
        let skipped = exit.last_lines.len().saturating_sub(LAST_LINES_MAX);
        lines.extend(exit.last_lines[skipped..].iter().map(|line| format!("  | {}", cut(line))));
    }
    lines.join("\n")
}

/// A line of a log, short enough that twenty fit on a screen.
fn cut(line: &str) -> String {
    match line.char_indices().nth(LINE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// A node that exists.
///
/// # Errors
/// Names the nearest one.
pub fn known_node(text: &str, status: &Status) -> Result<NodeName, Failure> {
    if let Some(node) = status.nodes.iter().find(|node| node.name.as_str() == text) {
        return Ok(node.name.clone());
    }
    let known: Vec<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
    Err(unknown("node", text, &known))
}

/// The refusal of a name that nothing has, with the nearest one.
#[must_use]
pub fn unknown(word: &str, text: &str, known: &[&str]) -> Failure {
    let message = match (nearest(text, known.iter().copied()), known) {
        (Some(nearest), _) => format!("there is no {word} {text:?}; the nearest is {nearest}"),
        (None, []) => format!("there is no {word} {text:?}; there are none yet"),
        (None, known) => {
            let (named, more) = known.split_at(known.len().min(KNOWN_NAMED_MAX));
            let more = match more.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("there is no {word} {text:?}; there are: {}{more}", named.join(", "))
        }
    };
    Failure::refused(message).next("faultbed status")
}

#[cfg(test)]
mod tests;
