//! The tables of a status: nodes, faults, hosts, clusters. Pure.

use std::{collections::BTreeSet, time::Duration};

use comfy_table::Cell;
use faultbed_common::{
    duration::Span,
    host_spec::Wanted,
    name::NodeName,
    report::NodeState,
    status::{
        ClusterStatus, FaultGrade, FaultState, FaultStatus, HostState, HostStatus, LeaseStatus,
        NodeStatus, Status,
    },
};

use super::words;
use crate::cli::table::{Tone, cell, none, plain, render};

/// Nodes that a table shows at most. Of a larger lab it shows those that are not ready as they should be.
const NODES_SHOWN: usize = 100;

/// Columns that a reason needs to say anything.
const WHY_COLUMNS: usize = 30;

/// What goes so that a terminal has room for reasons: the next only where the first is not enough.
const LEFT_OUT: [&[&str]; 3] = [&[], &["PID", "BINARY"], &["PID", "BINARY", "ADDRESS"]];

/// The nodes of a lab, or of a large one those that are not ready, and those that are leaving it. The leader is
/// marked; columns that hold nothing are left out.
#[must_use]
pub fn nodes(status: &Status) -> String {
    nodes_in(status, None)
}

/// As [`nodes`]. Where `width` columns have no room for why a node is as it is, less is said of all others.
#[must_use]
pub fn nodes_in(status: &Status, width: Option<usize>) -> String {
    let is_large = status.nodes.len() > NODES_SHOWN;
    let is_shown = |node: &&NodeStatus| !is_large || !is_well(node);
    let mut nodes: Vec<&NodeStatus> =
        status.nodes.iter().filter(is_shown).take(NODES_SHOWN).collect();
    let hidden = status.nodes.len() - nodes.len();
    let leaving: BTreeSet<&NodeName> = status.leaving.iter().map(|node| &node.name).collect();
    nodes.extend(status.leaving.iter().take(NODES_SHOWN));
    // A large lab is told cluster by cluster too, and each in natural order.
    nodes.sort_by_key(|node| (&node.cluster, &node.name));
    let is_leaving = |node: &NodeStatus| leaving.contains(&node.name);
    let rows = |nodes: &[&NodeStatus]| {
        let tables = LEFT_OUT.iter().map(|left_out| node_rows(nodes, left_out, &is_leaving));
        let mut narrower = tables.take(if width.is_some() { LEFT_OUT.len() } else { 1 });
        let mut table = narrower.next().unwrap_or_default();
        for next in narrower {
            if width.is_none_or(|width| has_room(&table, width)) {
                break;
            }
            table = next;
        }
        table
    };
    if hidden == 0 {
        return rows(&nodes);
    }
    let well = status.nodes.iter().filter(|node| is_well(node)).count();
    let more =
        format!("{well} of {} nodes are ready; all: faultbed status -o json", status.nodes.len());
    let more = crate::cli::table::tone(more, Tone::Faint);
    if nodes.is_empty() { more } else { format!("{}\n{more}", rows(&nodes)) }
}

/// Whether a node runs as it should, and there is nothing to say about it.
fn is_well(node: &NodeStatus) -> bool {
    node.wanted == Wanted::Running && node.observed == NodeState::Ready && node.why.is_none()
}

/// Whether reasons, where there are any, are not cut to nothing.
fn has_room(table: &str, width: usize) -> bool {
    let header = anstream::adapter::strip_str(table.lines().next().unwrap_or_default()).to_string();
    header.find("WHY").is_none_or(|at| at + WHY_COLUMNS <= width)
}

fn node_rows(
    nodes: &[&NodeStatus],
    left_out: &[&str],
    is_leaving: &dyn Fn(&NodeStatus) -> bool,
) -> String {
    let leads = nodes.iter().any(|node| node.role_state.is_some() || node.leader.is_some());
    let faults = nodes.iter().any(|node| !node.faults.is_empty());
    let whys = nodes.iter().any(|node| node.why.is_some());
    let mut header = vec!["NODE", "ROLE", "HOST", "STATE"];
    if leads {
        header.push("LEADER");
    }
    header.extend(["ADDRESS", "RUN", "PID", "BINARY", "AGE"]);
    if faults {
        header.push("FAULTS");
    }
    if whys {
        header.push("WHY");
    }
    let rows = nodes
        .iter()
        .map(|node| {
            let mut row = vec![
                cell(&node.name, Tone::Strong),
                plain(&node.role),
                plain(&node.host),
                if is_leaving(node) { leaving(node) } else { state(node) },
            ];
            if leads {
                row.push(leader(node));
            }
            row.extend([
                address(node),
                plain(node.incarnation),
                node.pid.map_or_else(none, plain),
                binary(node),
                node.state_age_ms.map_or_else(none, |ms| plain(words::age(ms))),
            ]);
            if faults {
                row.push(names(&node.faults));
            }
            if whys {
                row.push(node.why.as_ref().map_or_else(|| plain(""), plain));
            }
            let titled = header.iter().zip(row).filter(|(title, _)| !left_out.contains(*title));
            titled.map(|(_, cell)| cell).collect()
        })
        .collect();
    let header: Vec<&str> = header.iter().copied().filter(|t| !left_out.contains(t)).collect();
    render(&header, rows)
}

/// The state; where it differs from what is wanted, both.
fn state(node: &NodeStatus) -> Cell {
    let text = words::state_and_exit(node);
    let mood = words::state_tone(node.observed);
    let down = crate::cli::wait::is_down(node.observed);
    match node.wanted {
        Wanted::Stopped if !down => cell(format!("{text}, to stop"), mood),
        Wanted::Stopped | Wanted::Running => cell(text, mood),
    }
}

/// A node that was taken out of its cluster: what matters of it is whether it still runs.
fn leaving(node: &NodeStatus) -> Cell {
    match node.observed {
        NodeState::Unknown => cell("leaving, unknown", Tone::Warn),
        NodeState::Stopping => cell("leaving, stopping", Tone::Calm),
        _ => cell("leaving", Tone::Calm),
    }
}

fn leader(node: &NodeStatus) -> Cell {
    // What a node that is down last said of itself is history.
    if crate::cli::wait::is_down(node.observed) {
        return plain("");
    }
    match (node.leader, &node.role_state, node.leads) {
        (Some(true), _, Some(parts)) => cell(format!("* {parts}"), Tone::Good),
        (Some(true), _, None) => cell("*", Tone::Good),
        (_, Some(role), _) if role != "follower" => plain(role),
        _ => plain(""),
    }
}

fn address(node: &NodeStatus) -> Cell {
    main_endpoint(node).map_or_else(none, plain)
}

/// The endpoint people connect to: the port `client`, else the first that has a scheme, else the first.
#[must_use]
pub fn main_endpoint(node: &NodeStatus) -> Option<&str> {
    let main = node
        .endpoints
        .iter()
        .find(|(port, _)| port.as_str() == "client")
        .or_else(|| node.endpoints.iter().find(|(_, address)| address.contains("://")))
        .or_else(|| node.endpoints.iter().next());
    main.map(|(_, address)| address.as_str())
}

fn binary(node: &NodeStatus) -> Cell {
    let Some(binary) = &node.binary else { return none() };
    match &binary.version {
        Some(version) => plain(format!("{} {}", words::hash(binary), short_version(version))),
        None => plain(words::hash(binary)),
    }
}

/// `3.4.23` of `etcd Version: 3.4.23`, `7.0.15` of `Redis server v=7.0.15 sha=…`: the first word that
/// begins with a digit, perhaps after `v` or `v=`.
fn short_version(line: &str) -> &str {
    let begins = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    line.split_whitespace()
        .map(|word| word.strip_prefix("v=").unwrap_or(word).trim_end_matches([',', ';']))
        .find(|word| begins(word.trim_start_matches('v')))
        .unwrap_or(line)
}

/// Names in a cell; where there are many, the first and how many more.
fn names<T: std::fmt::Display>(names: &[T]) -> Cell {
    let more = names.len().saturating_sub(NAMES_SHOWN);
    let mut shown: Vec<String> = names.iter().take(NAMES_SHOWN).map(ToString::to_string).collect();
    if more > 0 {
        shown.push(format!("+{more}"));
    }
    cell(shown.join(" "), Tone::Warn)
}

/// Names that one cell holds; the faults themselves have a table of their own.
const NAMES_SHOWN: usize = 3;

/// Whether more than one person has something in the lab: then everything says whose it is.
#[must_use]
pub fn has_several_owners(status: &Status) -> bool {
    let faults = status.faults.iter().filter(|fault| !is_over(fault)).map(|fault| &fault.owner);
    let owners: BTreeSet<&String> =
        status.clusters.iter().map(|cluster| &cluster.owner).chain(faults).collect();
    owners.len() > 1
}

/// The faults of a lab, the newest last.
#[must_use]
pub fn faults(faults: &[FaultStatus], owners: bool) -> String {
    let (ended, mut shown): (Vec<&FaultStatus>, Vec<&FaultStatus>) =
        faults.iter().partition(|fault| is_over(fault));
    let hidden = ended.len().saturating_sub(ENDED_SHOWN);
    shown.splice(0..0, ended.into_iter().skip(hidden));
    let mut text = fault_rows(&shown, owners);
    if hidden > 0 {
        let more = format!("\nand {hidden} that ended before: faultbed status -o json");
        text.push_str(&crate::cli::table::tone(more, Tone::Faint));
    }
    text
}

/// Ended faults that a status shows beside those that are not.
const ENDED_SHOWN: usize = 3;

fn is_over(fault: &FaultStatus) -> bool {
    matches!(fault.state, FaultState::Expired | FaultState::Healed)
}

fn fault_rows(faults: &[&FaultStatus], owners: bool) -> String {
    let whys = faults.iter().any(|fault| fault.why.is_some());
    let mut header = vec!["FAULT", "STATE", "EFFECT", "ON", "GRADE", "LEFT", "EVIDENCE"];
    if owners {
        header.push("OWNER");
    }
    if whys {
        header.push("WHY");
    }
    let rows = faults
        .iter()
        .map(|fault| {
            let (word, mood) = words::fault(fault);
            let (evidence, verdict) = words::evidence(fault);
            let mut row = vec![
                cell(&fault.name, Tone::Strong),
                cell(word, mood),
                plain(&fault.summary),
                plain(acts_on(fault)),
                plain(grade(fault.grade)),
                fault.remaining_ms.map_or_else(none, |ms| plain(words::age(ms))),
                cell(evidence, verdict),
            ];
            if owners {
                row.push(plain(&fault.owner));
            }
            if whys {
                row.push(plain(fault.why.as_deref().unwrap_or_default()));
            }
            row
        })
        .collect();
    render(&header, rows)
}

/// The groups or nodes of a fault: `kv-1 | kv-2,kv-3`.
#[must_use]
pub fn acts_on(fault: &FaultStatus) -> String {
    fault.resolved.sides(",")
}

/// A grade as a word.
#[must_use]
pub fn grade(grade: FaultGrade) -> &'static str {
    match grade {
        FaultGrade::Stream => "stream",
        FaultGrade::Packet => "packet",
        FaultGrade::Node => "node",
    }
}

/// Whether a host is up, and whether new nodes may come to it.
#[must_use]
pub fn host_state(host: &HostStatus) -> Cell {
    let (word, mood) = words::host(host.state);
    match (host.drained, host.state) {
        (false, _) => cell(word, mood),
        (true, HostState::Up) => cell("drained", Tone::Calm),
        (true, HostState::Down) => cell(format!("{word}, drained"), mood),
    }
}

/// The hosts of a lab.
#[must_use]
pub fn hosts(hosts: &[HostStatus]) -> String {
    let rows = hosts
        .iter()
        .map(|host| {
            let labels: Vec<String> =
                host.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            vec![
                cell(&host.name, Tone::Strong),
                host_state(host),
                plain(&host.address),
                plain(host.generation),
                plain(&host.version),
                host.seen_age_ms.map_or_else(none, |ms| plain(words::age(ms))),
                plain(labels.join(",")),
            ]
        })
        .collect();
    render(&["HOST", "STATE", "ADDRESS", "GENERATION", "VERSION", "SEEN", "LABELS"], rows)
}

/// The clusters of a lab.
#[must_use]
pub fn clusters(clusters: &[ClusterStatus]) -> String {
    let rows = clusters
        .iter()
        .map(|cluster| {
            let (word, mood) = words::cluster(cluster.state);
            vec![
                cell(&cluster.name, Tone::Strong),
                cell(word, mood),
                plain(&cluster.blueprint),
                plain(&cluster.owner),
                cluster.lease.as_ref().map_or_else(|| plain("none"), lease),
            ]
        })
        .collect();
    render(&["CLUSTER", "STATE", "BLUEPRINT", "OWNER", "LEASE"], rows)
}

fn lease(lease: &LeaseStatus) -> Cell {
    let lasts = Span(Duration::from_millis(lease.lasts_ms));
    match lease.ended {
        true => cell(format!("{lasts}, ended"), Tone::Warn),
        false => plain(format!("{} left of {lasts}", words::age(lease.remaining_ms))),
    }
}
