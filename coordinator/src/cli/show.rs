//! `faultbed show NAME`: everything about one node, fault, host or cluster.

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    host_spec::Wanted,
    report::Identity,
    status::{ClusterStatus, FaultState, FaultStatus, HostStatus, NodeStatus, Status},
};

use crate::cli::{
    Session, completion, diff, endpoints, events,
    failure::{Exit, Outcome},
    output::{self, Format},
    status::{self, proof, tables, words},
    table::{Tone, tone},
};

/// Arguments of `show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// A node, fault, host or cluster
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(completion::anything))]
    name: String,
    #[command(flatten)]
    output: output::OutputArgs,
}

/// Runs `show`. A node goes before a fault, a fault before a host, a host before a cluster.
///
/// # Errors
/// Nothing has this name, or the lab cannot be reached.
pub async fn run(session: &Session, args: &ShowArgs) -> Outcome {
    let client = session.client().await?;
    let now = client.status().await?;
    let json = args.output.output == Format::Json;
    let name = args.name.as_str();
    let mut nodes = now.nodes.iter().chain(&now.leaving);
    if let Some(node) = nodes.find(|node| node.name.as_str() == name) {
        if json { output::json(node)? } else { output::data(show_node(node, &now))? }
    } else if let Some(fault) = now.faults.iter().find(|fault| fault.name.as_str() == name) {
        if json { output::json(fault)? } else { output::data(show_fault(fault))? }
    } else if let Some(host) = now.hosts.iter().find(|host| host.name.as_str() == name) {
        if json { output::json(host)? } else { output::data(show_host(host, &now))? }
    } else if let Some(cluster) = now.clusters.iter().find(|c| c.name.as_str() == name) {
        if json { output::json(cluster)? } else { output::data(show_cluster(cluster, &now))? }
    } else {
        let known = names(&now);
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        return Err(status::unknown("node, fault, host or cluster", name, &known));
    }
    Ok(Exit::DONE)
}

/// Every name that can be shown.
#[must_use]
pub fn names(now: &Status) -> Vec<String> {
    let mut names: Vec<String> = now.nodes.iter().map(|n| n.name.to_string()).collect();
    names.extend(now.leaving.iter().map(|n| n.name.to_string()));
    names.extend(now.faults.iter().map(|n| n.name.to_string()));
    names.extend(now.hosts.iter().map(|n| n.name.to_string()));
    names.extend(now.clusters.iter().map(|n| n.name.to_string()));
    names
}

/// Aligned `key  value` lines; empty values are left out.
#[derive(Default)]
struct Sheet(Vec<String>);

impl Sheet {
    fn row(&mut self, key: &str, value: impl ToString) {
        let value = value.to_string();
        if !value.is_empty() {
            self.0.push(format!("{} {value}", tone(format!("{key:12}"), Tone::Faint)));
        }
    }

    fn done(self) -> String {
        self.0.join("\n")
    }
}

fn show_node(node: &NodeStatus, now: &Status) -> String {
    let mut sheet = Sheet::default();
    sheet.row("node", tone(&node.name, Tone::Strong));
    let mut state = tone(words::state_and_exit(node), words::state_tone(node.observed));
    if let Some(ms) = node.state_age_ms {
        state.push_str(&format!(" for {}", words::age(ms)));
    }
    sheet.row("state", state);
    let is_leaving = now.leaving.iter().any(|leaving| leaving.name == node.name);
    let wanted = match node.wanted {
        _ if is_leaving => "gone: it is leaving its cluster",
        Wanted::Running => "running",
        Wanted::Stopped => "stopped",
    };
    sheet.row("wanted", wanted);
    sheet.row("why", node.why.as_deref().unwrap_or_default());
    if let Some(what) = words::stays(node).filter(|_| is_leaving) {
        sheet.row("leaving", what);
    }
    sheet.row("cluster", format!("{} (role {})", node.cluster, node.role));
    sheet.row("host", &node.host);
    let restarts = proof::counted(u64::from(node.restarts), "crash restart");
    sheet.row("run", format!("{} ({restarts})", node.incarnation));
    sheet.row("pid", node.pid.map_or_else(String::new, |pid| pid.to_string()));
    sheet.row("role state", role_state(node));
    for (port, address) in &node.endpoints {
        let private = node.private.get(port).map_or_else(String::new, |at| format!(" -> {at}"));
        sheet.row("endpoint", format!("{port} {address}{private}"));
    }
    if let Some(binary) = &node.binary {
        sheet.row("binary", &binary.path);
        sheet.row("sha256", &binary.sha256);
        sheet.row("version", binary.version.as_deref().unwrap_or_default());
    }
    sheet.row(
        "connections",
        match &node.identity {
            Identity::Unknown => "not known yet how they are named".to_owned(),
            Identity::Address => match node.dial_ports {
                None => "named by source address".to_owned(),
                Some(ports) => format!(
                    "named by source address; on other hosts by ports {} to {}",
                    ports.first,
                    ports.last()
                ),
            },
            Identity::Lookup(why) => format!("named by asking the kernel: {why}"),
        },
    );
    for fault in now.faults.iter().filter(|fault| node.faults.contains(&fault.name)) {
        sheet.row("fault", format!("{} ({})", fault.name, fault.summary));
    }
    let crash = status::crashes(&Status { nodes: vec![node.clone()], ..now.clone() });
    let mut text = sheet.done();
    if !crash.is_empty() {
        text.push_str(&format!("\n\n{crash}"));
    }
    text
}

fn role_state(node: &NodeStatus) -> String {
    let mut words: Vec<String> = node.role_state.clone().into_iter().collect();
    words.extend(node.term.map(|term| format!("term {term}")));
    words.extend(node.leads.map(|leads| format!("leads {leads}")));
    words.join(", ")
}

fn show_fault(fault: &FaultStatus) -> String {
    let (word, mood) = words::fault(fault);
    let (evidence, verdict) = words::evidence(fault);
    let mut sheet = Sheet::default();
    sheet.row("fault", tone(&fault.name, Tone::Strong));
    sheet.row("state", tone(word, mood));
    sheet.row("why", fault.why.as_deref().unwrap_or_default());
    sheet.row("effect", &fault.summary);
    sheet.row("acts on", diff::acts_on(&fault.resolved));
    if !fault.resolved.untouched.is_empty() {
        sheet.row("untouched", crate::cli::wait::list(&fault.resolved.untouched));
    }
    sheet.row("grade", grades(fault));
    sheet.row(
        "left",
        match (fault.state, fault.remaining_ms) {
            (_, Some(ms)) => words::age(ms),
            (FaultState::Pending, None) => "not begun".to_owned(),
            (FaultState::Active, None) => "until healed".to_owned(),
            (FaultState::Expired | FaultState::Healed, None) => String::new(),
        },
    );
    sheet.row("owner", &fault.owner);
    sheet.row("evidence", tone(evidence, verdict));
    show_links(fault, &mut sheet);
    sheet.done()
}

/// The weakest grade; where hosts differ, that of each.
fn grades(fault: &FaultStatus) -> String {
    let weakest = tables::grade(fault.grade);
    if fault.grades.values().all(|grade| *grade == fault.grade) {
        return weakest.to_owned();
    }
    let each: Vec<String> = fault
        .grades
        .iter()
        .map(|(host, grade)| format!("{host} {}", tables::grade(*grade)))
        .collect();
    format!("{weakest} ({})", each.join(", "))
}

/// Each link with what was done to it, and what its canary saw.
fn show_links(fault: &FaultStatus, sheet: &mut Sheet) {
    for (link, evidence) in &fault.evidence.links {
        sheet.row("link", format!("{link}: {}", proof::of_link(evidence)));
        let more = [proof::lateness(evidence), proof::hits(evidence, events::clock)];
        for line in more.into_iter().flatten() {
            sheet.row("", format!("  {line}"));
        }
    }
    let silent =
        fault.resolved.links.iter().filter(|link| !fault.evidence.links.contains_key(link));
    let silent: Vec<_> = silent.collect();
    if !silent.is_empty() {
        sheet.row("no traffic", crate::cli::wait::list(&silent));
    }
    for (link, canary) in &fault.evidence.canary {
        sheet.row("canary", format!("{link}: {}", proof::canary(canary)));
    }
    if fault.evidence.canary_skipped > 0 {
        let skipped = fault.evidence.canary_skipped;
        let links = proof::counted(skipped, "more link");
        sheet.row("canary", format!("too many: {links} not asked over"));
    }
}

fn show_host(host: &HostStatus, now: &Status) -> String {
    let part = part(now, |node| node.host == host.name);
    let mut text = tables::hosts(std::slice::from_ref(host));
    if !part.nodes.is_empty() || !part.leaving.is_empty() {
        text.push_str("\n\n");
        text.push_str(&tables::nodes(&part));
    }
    for warning in &host.warnings {
        text.push_str(&format!("\n\nwarning  {warning}"));
    }
    text
}

/// The status of these nodes alone.
fn part(now: &Status, has: impl Fn(&NodeStatus) -> bool) -> Status {
    let of = |nodes: &[NodeStatus]| nodes.iter().filter(|node| has(node)).cloned().collect();
    Status { nodes: of(&now.nodes), leaving: of(&now.leaving), ..now.clone() }
}

fn show_cluster(cluster: &ClusterStatus, now: &Status) -> String {
    let mut parts = vec![tables::clusters(std::slice::from_ref(cluster))];
    parts.push(tables::nodes(&part(now, |node| node.cluster == cluster.name)));
    let groups = endpoints::groups(now, &cluster.name);
    let lines: Vec<String> = groups
        .iter()
        .map(|((role, port), addresses)| format!("{role} {port}: {}", addresses.join(",")))
        .collect();
    parts.push(lines.join("\n"));
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::cli::testing;

    fn strip(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_crashed_node_shows_how_it_ended() {
        let mut status = testing::three_nodes();
        testing::crash_second(&mut status);
        let text = strip(&show_node(&status.nodes[1], &status));
        expect![[r"
            node         kv-2
            state        crashed (exit 2) for 12s
            wanted       running
            cluster      kv (role etcd)
            host         h2
            run          1 (0 crash restarts)
            role state   term 2
            endpoint     client http://127.77.1.2:2379 -> 127.128.128.2:2379
            endpoint     peer http://127.77.1.2:2380
            binary       /usr/bin/etcd
            sha256       9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
            version      etcd Version: 3.4.23
            connections  named by source address

            kv-2 crashed in run 1: exit 2
              faults in force then: split
              last failed probe: http 127.128.128.2:2379/health: connection refused
              | panic: index out of range
              | goroutine 1 [running]:"]]
        .assert_eq(&text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn a_fault_shows_what_it_resolved_to_and_what_it_did() {
        let text = strip(&show_fault(&testing::split()));
        expect![[r#"
            fault        split
            state        active
            effect       cut
            acts on      kv-1 | kv-2, kv-3 (2 links)
            grade        packet
            left         9m58s
            owner        ann
            evidence     confirmed: 12 dropped, 3 dials stopped
            no traffic   kv-1>kv-2 and kv-2>kv-1"#]]
        .assert_eq(&text);
    }
}
