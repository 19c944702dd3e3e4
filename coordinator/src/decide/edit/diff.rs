//! Says what a change does, from the lab before and after it: objects as TOML, nodes by their fate.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    edit::{NodeFate, ObjectChange},
    file::{to_toml_cluster, to_toml_fault},
    host_spec::{StopBy, Wanted},
    lab::{Cluster, Host, Lab, Placement, Resolved},
    name::{ClusterName, FaultName, HostName, NodeName},
    report::NodeState,
    shared::Shared,
};
use toml::Value;

/// Every object whose text differs. A fault that is over counts as gone, as in a file.
pub(super) fn objects(before: &Lab, after: &Lab) -> Vec<ObjectChange> {
    let mut changes = Vec::new();
    for (kind, texts) in [
        ("lab", settings as fn(&Lab, &Lab) -> Texts),
        ("host", hosts),
        ("cluster", clusters),
        ("fault", faults),
    ] {
        let (old, new) = (texts(before, after), texts(after, before));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let (before, after) = (old.get(name), new.get(name));
            if before != after {
                changes.push(ObjectChange {
                    kind: kind.to_owned(),
                    name: name.clone(),
                    before: before.cloned(),
                    after: after.cloned(),
                });
            }
        }
    }
    changes
}

type Texts = BTreeMap<String, String>;

/// Of hosts and clusters only those that the other lab has otherwise: there may be hundreds as they were.
fn hosts(lab: &Lab, other: &Lab) -> Texts {
    let text = |name: &HostName, host: &Host| {
        let pair = |(key, value): (&String, &String)| {
            let is_bare = key.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            let key = if is_bare { key.clone() } else { Value::from(key.as_str()).to_string() };
            format!("{key} = {}", Value::from(value.as_str()))
        };
        let pairs: Vec<String> = host.labels.iter().map(pair).collect();
        let mut text = format!("[host.{name}]\n");
        if !pairs.is_empty() {
            text.push_str(&format!("labels = {{ {} }}\n", pairs.join(", ")));
        }
        if host.drained {
            text.push_str("drained = true\n");
        }
        text
    };
    let differs = |(name, host): &(&HostName, &Host)| other.hosts.get(*name) != Some(*host);
    let hosts = lab.hosts.iter().filter(differs);
    hosts.map(|(name, host)| (name.to_string(), text(name, host))).collect()
}

fn settings(lab: &Lab, _other: &Lab) -> Texts {
    let dead_man = lab
        .settings
        .dead_man
        .map(|span| (lab.name.to_string(), format!("[lab]\ndead_man = \"{span}\"\n")));
    dead_man.into_iter().collect()
}

fn clusters(lab: &Lab, other: &Lab) -> Texts {
    let text = |(name, cluster): (&ClusterName, &Cluster)| {
        (name.to_string(), to_toml_cluster(name, &cluster.spec))
    };
    let differs = |(name, cluster): &(&ClusterName, &Shared<Cluster>)| {
        other.clusters.get(*name).is_none_or(|there| there.spec != cluster.spec)
    };
    lab.clusters.iter().filter(differs).map(|(name, cluster)| text((name, cluster))).collect()
}

fn faults(lab: &Lab, _other: &Lab) -> Texts {
    let there = lab.faults.iter().filter(|(_, fault)| !fault.is_ended());
    there.map(|(name, fault)| (name.to_string(), to_toml_fault(name, &fault.spec))).collect()
}

/// What becomes of nodes; those that stay as they are, are left out.
pub(super) fn fates(
    before: &Lab,
    after: &Lab,
    observed: impl Fn(&NodeName) -> Option<NodeState>,
) -> BTreeMap<NodeName, NodeFate> {
    let mut fates = BTreeMap::new();
    for node in before.nodes() {
        if after.node(node.name).is_none() {
            let wiped = after
                .removed_wiped
                .get(&node.placement.host)
                .is_some_and(|names| names.contains(node.name));
            let fate = if wiped { NodeFate::Wipe } else { NodeFate::Remove };
            fates.insert(node.name.clone(), fate);
        }
    }
    for (of, kept) in &after.kept {
        let known = before.kept.get(of);
        let was_forced = |name: &NodeName| {
            known.and_then(|known| known.leaving.get(name)).is_some_and(|node| node.forced)
        };
        let forced = kept.leaving.iter().filter(|(name, node)| node.forced && !was_forced(name));
        fates.extend(forced.map(|(name, _)| (name.clone(), NodeFate::Remove)));
    }
    // Of clusters that went some time ago and kept their data until now.
    for (host, names) in &after.removed_wiped {
        let known = before.removed_wiped.get(host);
        let new = names.iter().filter(|name| !known.is_some_and(|known| known.contains(*name)));
        fates.extend(new.map(|name| (name.clone(), NodeFate::Wipe)));
    }
    for node in after.nodes() {
        let old = before.node(node.name).map(|node| node.placement);
        let down = observed(node.name).is_some_and(NodeState::is_down);
        if let Some(fate) = fate(old, node.placement, down) {
            fates.insert(node.name.clone(), fate);
        }
    }
    fates
}

fn fate(before: Option<&Placement>, after: &Placement, is_down: bool) -> Option<NodeFate> {
    let is_killed = matches!(after.stop_by, StopBy::Signal(_));
    let Some(before) = before else {
        return (after.wanted == Wanted::Running).then_some(NodeFate::Start);
    };
    if after.wipes > before.wipes {
        return Some(NodeFate::Wipe);
    }
    match (before.wanted, after.wanted) {
        (Wanted::Running, Wanted::Stopped) if is_killed => Some(NodeFate::Kill),
        (Wanted::Running, Wanted::Stopped) => Some(NodeFate::Stop),
        (Wanted::Stopped, Wanted::Running) => Some(NodeFate::Start),
        (Wanted::Stopped, Wanted::Stopped) => {
            (is_killed && before.stop_by != after.stop_by).then_some(NodeFate::Kill)
        }
        (Wanted::Running, Wanted::Running) if after.incarnation > before.incarnation => {
            Some(if is_killed {
                NodeFate::Kill
            } else if is_down {
                NodeFate::Start
            } else {
                NodeFate::Restart
            })
        }
        (Wanted::Running, Wanted::Running) => None,
    }
}

/// What the targets of faults are that began, changed or moved.
pub(super) fn resolved(before: &Lab, after: &Lab) -> BTreeMap<FaultName, Resolved> {
    after
        .faults
        .iter()
        .filter(|(name, fault)| !fault.is_ended() && before.faults.get(*name) != Some(*fault))
        .map(|(name, fault)| (name.clone(), fault.resolved.clone()))
        .collect()
}
