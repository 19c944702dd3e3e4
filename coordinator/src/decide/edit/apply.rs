//! `apply`: makes the lab what a file says, replacing what the last `apply` made.

use faultbed_common::{
    fault::{Begin, FaultSpec},
    lab::{Means, Origin},
    name::{ClusterName, FaultName},
    spec::{ClusterSpec, LabFile},
};

use super::{
    Refusal,
    change::{Change, did_you_mean},
    cluster,
    fault::{self, When},
    invalid,
};

pub(super) fn apply(change: &mut Change<'_>, file: &LabFile) -> Result<(), Refusal> {
    let LabFile { lab, host: _, cluster, fault } = file;
    change.means = Means::Apply;
    hosts(change, file)?;
    if let Some(hosts) = lab.hosts
        && usize::try_from(hosts) != Ok(change.lab.hosts.len())
    {
        let there = change.lab.hosts.len();
        change.note(format!(
            "[lab] hosts = {hosts} is only read when a lab is made; this one has {there}"
        ));
    }
    change.lab.settings.dead_man = lab.dead_man;
    // Removal before addition: a new cluster may want the ports of one that leaves.
    remove_missing(change, file);
    for (name, spec) in cluster {
        put_cluster(change, name, spec)?;
    }
    for (name, spec) in fault {
        put_fault(change, name, spec)?;
    }
    Ok(())
}

/// The file replaces what the last one said of labels; what joins and verbs said stays.
fn hosts(change: &mut Change<'_>, file: &LabFile) -> Result<(), Refusal> {
    for name in file.host.keys() {
        if !change.lab.hosts.contains_key(name) {
            let near = did_you_mean(name.as_str(), change.lab.hosts.keys().map(|h| h.as_str()));
            return Err(invalid(format!("[host.{name}]: there is no host {name}{near}")));
        }
    }
    for (name, host) in &mut change.lab.hosts {
        let labels = file.host.get(name).map(|host| host.labels.clone()).unwrap_or_default();
        host.relabel(|said| said.file = labels);
    }
    Ok(())
}

/// Objects of an earlier file that left it go; those of verbs, of hands and of others stay.
fn remove_missing(change: &mut Change<'_>, file: &LabFile) {
    let faults: Vec<(FaultName, Origin, bool)> = change
        .lab
        .faults
        .iter()
        .filter(|(name, _)| !file.fault.contains_key(*name))
        .map(|(name, fault)| (name.clone(), fault.origin.clone(), fault.is_ended()))
        .collect();
    for (name, origin, is_ended) in faults {
        if is_kept(change, "fault", name.as_str(), &origin, is_ended) {
            continue;
        }
        change.lab.faults.remove(&name);
    }
    let clusters: Vec<(ClusterName, Origin)> = change
        .lab
        .clusters
        .iter()
        .filter(|(name, _)| !file.cluster.contains_key(*name))
        .map(|(name, cluster)| (name.clone(), cluster.origin.clone()))
        .collect();
    for (name, origin) in clusters {
        if !is_kept(change, "cluster", name.as_str(), &origin, false) {
            cluster::remove(change, &name, false);
        }
    }
}

fn is_kept(
    change: &mut Change<'_>,
    kind: &str,
    name: &str,
    origin: &Origin,
    is_silent: bool,
) -> bool {
    let why = match origin.by {
        Means::Verb => "a verb made it".to_owned(),
        Means::Hand => "it was made by hand in the store".to_owned(),
        Means::Apply if change.may_touch(origin) => return false,
        Means::Apply => format!("it belongs to {}; --everyone removes it too", origin.owner),
    };
    if !is_silent {
        change.note(format!("{kind} {name} is not in the file and is kept: {why}"));
    }
    true
}

fn put_cluster(
    change: &mut Change<'_>,
    name: &ClusterName,
    spec: &ClusterSpec,
) -> Result<(), Refusal> {
    let old = change.lab.clusters.get(name).map(|cluster| cluster.origin.clone());
    let origin = take_over(change, "cluster", name.as_str(), old)?;
    cluster::accept(change, name, spec, origin)
}

/// The origin of an object that a file names: the file's from now on, the owner's as ever.
fn take_over(
    change: &mut Change<'_>,
    kind: &str,
    name: &str,
    old: Option<Origin>,
) -> Result<Origin, Refusal> {
    let Some(old) = old else { return Ok(change.origin()) };
    change.own(&format!("{kind} {name}"), &old)?;
    if old.by != Means::Apply {
        change.note(format!("{kind} {name} belongs to the file from now on"));
    }
    Ok(Origin { by: Means::Apply, ..old })
}

fn put_fault(change: &mut Change<'_>, name: &FaultName, spec: &FaultSpec) -> Result<(), Refusal> {
    if spec.lasts.is_none() {
        return Err(fault::no_time(name));
    }
    let old = change.lab.faults.get(name).cloned();
    let origin = take_over(change, "fault", name.as_str(), old.as_ref().map(|f| f.origin.clone()))?;
    match old {
        Some(mut same) if same.spec == *spec => {
            // Also where it is over: an unchanged file does not inject it again.
            if same.is_ended() {
                change.note(format!(
                    "fault {name} is over and unchanged, so it does not begin again; \
                     `faultbed delete fault {name}` and apply again to repeat it"
                ));
            }
            same.origin = origin;
            change.lab.faults.insert(name.clone(), same);
            Ok(())
        }
        _ => fault::accept(change, name, spec, origin, when(spec)),
    }
}

/// When a fault of a file, or one put by hand, begins.
pub(super) fn when(spec: &FaultSpec) -> When {
    match spec.at.unwrap_or_default() {
        Begin::Start => When::Now,
        Begin::Ready => When::Ready,
    }
}
