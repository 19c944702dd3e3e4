//! Which program each node runs, where programs come from the machine of whoever asks.
//!
//! A host that is a machine of its own cannot read that file, so its content is chosen here: the
//! file that is at the path when a node is told to start. It stays chosen until the next such
//! word, whatever becomes of the file; a simulated host reads the file itself.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    edit::{Edit, EditRequest},
    host_spec::StopBy,
    lab::{Cluster, Placement},
    name::NodeName,
    program::{Content, Files, PROGRAM_BYTES_MAX, Pushed, Source, source},
};

use super::{Refusal, change::Change, invalid};

/// What a node is to run, as far as it comes from the asker.
struct Wish {
    node: NodeName,
    path: String,
    /// What was chosen before, for the same path.
    held: Option<Pushed>,
    /// It is told to start by this change, so it takes the file as it is now.
    starts: bool,
}

/// A file that is not what nodes took from its path.
#[derive(Default)]
struct Changed {
    before: BTreeSet<String>,
    after: String,
    nodes: Vec<String>,
}

/// Chooses what nodes run, or notes in `change.needs` what the asker must say first.
pub(super) fn settle(change: &mut Change<'_>, request: &EditRequest) -> Result<(), Refusal> {
    // Faults run no programs, and there is no look at nodes that would not copy their clusters.
    if let Edit::Inject { .. } | Edit::Heal { .. } | Edit::DeleteFault { .. } = request.edit {
        return Ok(());
    }
    let is_apply = matches!(request.edit, Edit::Apply(_));
    let mut changed = BTreeMap::new();
    for wish in wishes(change) {
        if wish.starts {
            choose(change, &wish, &request.files)?;
        } else if is_apply && let Some(held) = &wish.held {
            let held = (held.path.clone(), held.content.sha256.to_string());
            compare(change, &wish.node, held, &request.files, &mut changed);
        }
    }
    // A host of this machine reads the file when a node starts; only who looks first wants to know.
    if is_apply && request.plan {
        for (node, held) in run_from_here(change) {
            compare(change, &node, held, &request.files, &mut changed);
        }
    }
    for (path, Changed { before, after, nodes }) in changed {
        let before: Vec<&str> = before.iter().map(|sha256| short(sha256)).collect();
        change.note(format!(
            "{path} has changed since {} took it: {} -> {}; `faultbed restart {}` takes the new file",
            nodes.join(", "),
            before.join(", "),
            short(&after),
            nodes.join(",")
        ));
    }
    Ok(())
}

/// As [`settle`], for an edit by which no files can come.
pub(super) fn settle_without_files(change: &mut Change<'_>) -> Result<(), Refusal> {
    for wish in wishes(change) {
        if wish.starts {
            choose(change, &wish, &Files::default())?;
        }
    }
    Ok(())
}

/// Nodes on hosts that cannot read the asker's files. All others lose what was chosen before.
fn wishes(change: &mut Change<'_>) -> Vec<Wish> {
    let mut wishes = Vec::new();
    let (hosts, before) = (&change.lab.hosts, change.before);
    for cluster in change.lab.clusters.values_mut() {
        let spec = cluster.spec.clone();
        for (name, placement) in &mut cluster.nodes {
            let is_far = hosts.get(&placement.host).is_some_and(|host| !host.is_simulated());
            let path = match path(&spec, placement).map(source) {
                Some(Source::Asker(path)) if is_far => path,
                // The text says what it holds, and each host fetches it by itself.
                Some(Source::Web(url)) => {
                    placement.pushed = url.parse().ok().map(|web| Pushed::from_web(&web));
                    continue;
                }
                Some(Source::Asker(_) | Source::Host(_)) | None => {
                    placement.pushed = None;
                    continue;
                }
            };
            let held = placement.pushed.clone().filter(|held| held.path == path);
            let old = before.node(name).map(|node| node.placement);
            wishes.push(Wish {
                node: name.clone(),
                path: path.to_owned(),
                starts: held.is_none() || is_started(old, placement),
                held,
            });
        }
    }
    wishes
}

/// Whether a change tells a node to start. One that is killed comes back as what it was: a failure
/// brings up no other program.
fn is_started(before: Option<&Placement>, after: &Placement) -> bool {
    let is_newer = before.is_none_or(|before| before.incarnation < after.incarnation);
    is_newer && after.stop_by == StopBy::Grace
}

/// The `path` of a node's own or of its role. A blueprint's program is one of the host.
fn path<'a>(
    spec: &'a faultbed_common::spec::ClusterSpec,
    placement: &Placement,
) -> Option<&'a str> {
    let role = spec.roles.get(&placement.role)?;
    let own = role.node.get(&placement.index).and_then(|own| own.path.as_deref());
    own.or(role.path.as_deref())
}

fn choose(change: &mut Change<'_>, wish: &Wish, files: &Files) -> Result<(), Refusal> {
    let Wish { node, path, held, .. } = wish;
    let chosen = match files.found.get(path) {
        None if files.can_look => {
            change.needs.look.insert(path.clone());
            return Ok(());
        }
        Some(Some(content)) => {
            check(path, content)?;
            change.takes.insert(path.clone(), content.clone());
            Pushed { path: path.clone(), content: content.clone() }
        }
        Some(None) | None => kept(change, node, path, held.as_ref())?,
    };
    let of_node = change.lab.clusters.values_mut().find(|c| c.nodes.contains_key(node));
    if let Some(placement) = of_node.and_then(|cluster| cluster.nodes.get_mut(node)) {
        placement.pushed = Some(chosen);
    }
    Ok(())
}

fn check(path: &str, content: &Content) -> Result<(), Refusal> {
    let bytes = content.bytes;
    if bytes == 0 || bytes > PROGRAM_BYTES_MAX {
        return Err(invalid(format!(
            "{path} has {bytes} bytes; a program has 1 to {PROGRAM_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// What goes on to run where the asker has no such file: what the node ran, or another one of the
/// same path.
fn kept(
    change: &mut Change<'_>,
    node: &NodeName,
    path: &str,
    held: Option<&Pushed>,
) -> Result<Pushed, Refusal> {
    let of_others = || {
        let of_cluster = |cluster: &Cluster| {
            let mut pushed = cluster.nodes.values().filter_map(|other| other.pushed.clone());
            pushed.rfind(|pushed| pushed.path == path)
        };
        let cluster = change.lab.clusters.values().find(|c| c.nodes.contains_key(node))?;
        of_cluster(cluster)
    };
    match held.cloned().or_else(of_others) {
        Some(kept) => {
            let sha256 = kept.content.sha256.short().to_owned();
            change.note(format!(
                "{path} cannot be read here; {node} takes what was pushed before ({sha256})"
            ));
            Ok(kept)
        }
        None => Err(invalid(format!(
            "{node} runs on another machine, and {path} cannot be read here; run the command where \
             the file is, or write \"host:{path}\" for a file of the host"
        ))),
    }
}

/// Nodes of simulated hosts that run a file of this machine, with its path and hash.
fn run_from_here(change: &Change<'_>) -> Vec<(NodeName, (String, String))> {
    let nodes = change.lab.nodes().filter(|node| node.placement.pushed.is_none());
    nodes
        .filter_map(|node| {
            let path = path(&node.cluster.spec, node.placement)?;
            let Source::Asker(path) = source(path) else { return None };
            let is_same = change
                .before
                .node(node.name)
                .is_some_and(|before| before.placement.incarnation == node.placement.incarnation);
            let seen = change.seen(node.name)?.binary.as_ref()?;
            let is_known = is_same && seen.path == path && !seen.sha256.is_empty();
            is_known.then(|| (node.name.clone(), (seen.path.clone(), seen.sha256.clone())))
        })
        .collect()
}

/// Notes a node whose file is another one now.
fn compare(
    change: &mut Change<'_>,
    node: &NodeName,
    (path, held): (String, String),
    files: &Files,
    changed: &mut BTreeMap<String, Changed>,
) {
    match files.found.get(&path) {
        None if files.can_look => {
            change.needs.look.insert(path);
        }
        Some(Some(content)) if content.sha256.as_str() != held => {
            let entry = changed.entry(path).or_default();
            entry.before.insert(held);
            entry.after = content.sha256.to_string();
            entry.nodes.push(node.to_string());
        }
        // Who has no such file cannot tell, and an apply needs none for nodes that go on.
        Some(_) | None => {}
    }
}

/// Enough of a hash to tell programs apart by eye.
fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}
