//! Parses targets. Knows no lab: names are only checked for their form.

use super::{PARTS_MAX, TargetError, refuse};
use crate::name::{ClusterName, HostName, Name, RoleName};

/// What every error about form ends with.
const PATTERN: &str = "write NODE, CLUSTER, CLUSTER/ROLE, leader:CLUSTER, follower:CLUSTER, host:H, \
                       label:KEY=VALUE, clients or a glob such as 'kv-*'; `not:` before one excludes it";

/// One part of a list of targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// As written, for errors.
    pub text: String,
    /// Whether what it names is left out.
    pub exclude: bool,
    /// What it names.
    pub what: What,
}

/// What one part names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// Whoever is no node of the lab.
    Clients,
    /// A node or a cluster.
    Name(String),
    /// The nodes of one role of a cluster.
    Role(Group),
    /// The node that leads.
    Leader(Group),
    /// The nodes that follow the one that leads.
    Follower(Group),
    /// The nodes of a host.
    Host(HostName),
    /// The nodes of the hosts with this label.
    Label(String, String),
    /// The nodes whose name matches.
    Glob(String),
}

/// `CLUSTER` or `CLUSTER/ROLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub cluster: ClusterName,
    pub role: Option<RoleName>,
}

/// Parses a list of targets: at least one must not be excluded, else nothing could be left.
pub(super) fn parts(targets: &[String]) -> Result<Vec<Part>, TargetError> {
    let mut parts = Vec::new();
    for target in targets {
        parts.extend(syntax(target)?);
    }
    if parts.len() > PARTS_MAX {
        return Err(refuse(&parts[0].text, format!("more than {PARTS_MAX} targets are named")));
    }
    if parts.is_empty() {
        return Err(refuse("", format!("no target is named; {PATTERN}")));
    }
    if parts.iter().all(|part| part.exclude) {
        let why = "only excludes; name first what it is taken from, such as '*'".to_owned();
        return Err(refuse(&targets.join(","), why));
    }
    Ok(parts)
}

/// Parses one text, which may still hold several parts.
pub(super) fn syntax(target: &str) -> Result<Vec<Part>, TargetError> {
    target.split(',').map(part).collect()
}

fn part(text: &str) -> Result<Part, TargetError> {
    let text = text.trim();
    let (exclude, rest) = match text.strip_prefix("not:") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let what = what(rest).map_err(|why| refuse(text, why))?;
    Ok(Part { text: text.to_owned(), exclude, what })
}

fn what(text: &str) -> Result<What, String> {
    if text.is_empty() {
        return Err(format!("a target is empty; {PATTERN}"));
    }
    if let Some((word, rest)) = text.split_once(':') {
        return match word {
            "leader" => Ok(What::Leader(group(rest)?)),
            "follower" => Ok(What::Follower(group(rest)?)),
            "host" => Ok(What::Host(named(rest)?)),
            "label" => label(rest),
            "not" => Err("`not:` is written once".to_owned()),
            _ => Err(format!("{word:?} is no kind of target; {PATTERN}")),
        };
    }
    if text == "clients" {
        return Ok(What::Clients);
    }
    if text == "all" {
        return Err("every node is written '*', and every node of a cluster CLUSTER".to_owned());
    }
    if text.contains(['*', '?']) {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-*?".contains(c);
        if text.chars().all(allowed) {
            return Ok(What::Glob(text.to_owned()));
        }
        return Err("a glob holds node names, '*' and '?' only".to_owned());
    }
    if text.contains('/') {
        return Ok(What::Role(group(text)?));
    }
    // Cluster and node names have one form, so either kind checks it.
    named::<crate::name::kind::Node>(text).map(|name| What::Name(name.as_str().to_owned()))
}

fn group(text: &str) -> Result<Group, String> {
    Ok(match text.split_once('/') {
        Some((cluster, role)) => Group { cluster: named(cluster)?, role: Some(named(role)?) },
        None => Group { cluster: named(text)?, role: None },
    })
}

fn named<K: crate::name::Kind>(text: &str) -> Result<Name<K>, String> {
    Name::parse(text).map_err(|error| format!("{}; {PATTERN}", error.why))
}

fn label(text: &str) -> Result<What, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => {
            Ok(What::Label(key.to_owned(), value.to_owned()))
        }
        _ => Err("a label is written label:KEY=VALUE".to_owned()),
    }
}

/// Whether `name` matches `glob`, in which `*` stands for any letters and `?` for one.
pub(super) fn glob_matches(glob: &str, name: &str) -> bool {
    // The classic two-pointer match: on a mismatch the last star takes one letter more, so the
    // time is bounded by the product of the lengths.
    let (glob, name) = (glob.as_bytes(), name.as_bytes());
    let (mut g, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, n));
                g += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                g += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    g = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&c| c == b'*')
}
