//! `faultbed logs`: lines of nodes, several merged and prefixed.

mod order;

use std::collections::BTreeMap;

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    generation::Incarnation,
    logs::{LogLine, LogQuery},
    name::NodeName,
};
use futures::{StreamExt, stream::select_all};
use owo_colors::{AnsiColors, OwoColorize};

use crate::cli::{
    Session,
    client::Client,
    completion,
    failure::{Exit, Failure, Outcome},
    node,
    output::{self, Format},
};

/// Lines shown of each node where nothing is said.
const TAIL_DEFAULT: u32 = 200;

/// Lines that are put in the order of time at most; more of them are shown log by log.
const SORTED_MAX: usize = 200_000;

/// Colours of prefixes, in turn.
const COLOURS: [AnsiColors; 6] = [
    AnsiColors::Cyan,
    AnsiColors::Yellow,
    AnsiColors::Green,
    AnsiColors::Magenta,
    AnsiColors::Blue,
    AnsiColors::Red,
];

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// Whose
    #[arg(required = true, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    targets: Vec<String>,
    /// Go on as lines are written
    #[arg(short, long)]
    follow: bool,
    /// Lines from the end of each to begin with, or `all`
    #[arg(short = 'n', long, value_name = "N", default_value_t = Tail(Some(TAIL_DEFAULT)))]
    tail: Tail,
    /// An earlier run than the newest
    #[arg(long, alias = "incarnation", value_name = "N")]
    run: Option<u64>,
    #[command(flatten)]
    output: output::OutputArgs,
}

/// How many lines; `None` is all.
#[derive(Debug, Clone, Copy)]
struct Tail(Option<u32>);

impl std::str::FromStr for Tail {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text == "all" { None } else { Some(text.parse()?) }))
    }
}

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(lines) => lines.fmt(f),
            None => f.pad("all"),
        }
    }
}

/// Runs `logs`.
///
/// # Errors
/// The lab refuses a target, or cannot be reached.
pub async fn run(session: &Session, args: &LogsArgs) -> Outcome {
    let client = session.client().await?;
    let targets = node::split(&args.targets);
    let now = client.status().await?;
    // One node, named as such, needs no prefix.
    let is_single =
        matches!(targets.as_slice(), [one] if now.nodes.iter().any(|n| n.name.as_str() == one));
    let width = now.nodes.iter().map(|node| node.name.as_str().len()).max().unwrap_or(0);
    let query = LogQuery {
        targets,
        follow: args.follow,
        tail: args.tail.0,
        incarnation: args.run.map(Incarnation),
    };
    let prefixes = Prefixes { width, given: BTreeMap::new() };
    let mut shown = Shown { format: args.output.output, is_single, prefixes };
    let mut held = Vec::new();
    let mut lines = select_all([client.logs(&query).await?]);
    // A host's agent is connected to but one of several coordinators: the others are asked in turn.
    let mut others = None;
    let mut asked: BTreeMap<NodeName, usize> = BTreeMap::new();
    while let Some(line) = lines.next().await {
        let line = line?;
        if line.absent {
            let others: &Vec<Client> = match &mut others {
                Some(others) => others,
                none => none.insert(client.others().await),
            };
            let tried = asked.entry(line.node.clone()).or_default();
            if let Some(other) = others.get(*tried) {
                *tried += 1;
                let targets = vec![line.node.to_string()];
                lines.push(other.logs(&LogQuery { targets, ..query.clone() }).await?);
                continue;
            }
        }
        // Who follows wants lines as they come; else they wait for those of the other nodes.
        if args.follow || held.len() >= SORTED_MAX {
            for held in order::sorted(std::mem::take(&mut held)) {
                shown.line(&held)?;
            }
            shown.line(&line)?;
        } else {
            held.push(line);
        }
    }
    for line in order::sorted(held) {
        shown.line(&line)?;
    }
    Ok(Exit::DONE)
}

/// How lines are shown.
struct Shown {
    format: Format,
    is_single: bool,
    prefixes: Prefixes,
}

impl Shown {
    fn line(&mut self, line: &LogLine) -> Result<(), Failure> {
        match self.format {
            Format::Json => output::json_line(line),
            Format::Table if self.is_single => output::data(single(line)),
            Format::Table => output::data(format!("{}{}", self.prefixes.of(line), line.text)),
        }
    }
}

/// A line of the only node: only other files than its output are named.
fn single(line: &LogLine) -> String {
    if line.source == OUTPUT {
        line.text.clone()
    } else {
        format!("{}: {}", line.source, line.text)
    }
}

/// The source of a node's standard output and error.
const OUTPUT: &str = "output";

/// Gives each node a colour in the order of appearance.
struct Prefixes {
    width: usize,
    given: BTreeMap<NodeName, AnsiColors>,
}

impl Prefixes {
    fn of(&mut self, line: &LogLine) -> String {
        let next = COLOURS[self.given.len() % COLOURS.len()];
        let colour = *self.given.entry(line.node.clone()).or_insert(next);
        let width = self.width;
        let source =
            if line.source == OUTPUT { String::new() } else { format!(" {}", line.source) };
        let name = format!("{:width$}{source} | ", line.node.as_str());
        name.color(colour).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_several_nodes_are_told_apart() {
        let mut prefixes = Prefixes { width: 5, given: BTreeMap::new() };
        let line = |node: &str, source: &str| LogLine {
            node: node.parse().unwrap(),
            source: source.into(),
            text: String::new(),
            absent: false,
        };
        let first = prefixes.of(&line("kv-1", "output"));
        let second = prefixes.of(&line("kv-2", "raft.log"));
        assert_eq!(anstream::adapter::strip_str(&first).to_string(), "kv-1  | ");
        assert_eq!(anstream::adapter::strip_str(&second).to_string(), "kv-2  raft.log | ");
        assert_ne!(first[..5], second[..5], "their colours differ");
        assert_eq!(prefixes.of(&line("kv-1", "output")), first);
    }
}
