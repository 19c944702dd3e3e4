//! What must be so before a node, or the first command for it, is started; each lack says what to do.

use std::{fs, path::Path, time::Duration};

use faultbed_common::{
    host_spec::{Launch, NodeSpec},
    name::{LabName, NodeName},
};
use regex::Regex;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use crate::{
    binaries,
    node::records::{read_record, write_record},
    search,
};

/// Whose data is in the directory beside it.
const OWNER_FILE: &str = "data-of.json";

/// CAP_SYS_RESOURCE, which may raise limits.
const SYS_RESOURCE: u32 = 24;

/// Whose a node's data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    lab: String,
    cluster: String,
    blueprint: String,
    role: String,
}

/// Everything but the program itself.
pub(super) fn surroundings(spec: &NodeSpec) -> Result<(), String> {
    needs(&spec.launch)?;
    files(spec, hard_limit())
}

/// The programs that its commands run.
fn needs(launch: &Launch) -> Result<(), String> {
    let path = search::path(&launch.search);
    let beside = Path::new(&launch.program).file_name().unwrap_or_default().to_string_lossy();
    for program in &launch.needs {
        binaries::find(program, &path).map_err(|error| {
            format!("{error}; it is needed beside {beside}: install it on this host")
        })?;
    }
    Ok(())
}

/// Open files: with fewer than it asks for a database fails later, where it is harder to see why.
fn files(spec: &NodeSpec, most: Option<u64>) -> Result<(), String> {
    match (spec.launch.limits.nofile_min, most) {
        (Some(wanted), Some(most)) if wanted > most => Err(format!(
            "it needs {wanted} open files, and this host's agent may give it {most}: raise the limit of the \
             agent (LimitNOFILE of its unit, or `ulimit -n {wanted}` before `faultbed up`)"
        )),
        _ => Ok(()),
    }
}

/// How many open files a node can be given; `None` is as many as it wants.
fn hard_limit() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let may_raise = capabilities.is_some_and(|all| all & (1 << SYS_RESOURCE) != 0);
    // Not even root may give more than the kernel's own bound.
    let bound = || fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok();
    if may_raise { bound() } else { getrlimit(Resource::Nofile).maximum }
}

/// Data of another database, cluster or lab must not be taken for the node's own. What has no mark was
/// there before there were any.
pub(super) fn data(lab: &LabName, node_dir: &Path, spec: &NodeSpec) -> Result<(), String> {
    let Some(blueprint) = &spec.blueprint else { return Ok(()) };
    let own = Owner {
        lab: lab.to_string(),
        cluster: spec.cluster.to_string(),
        blueprint: blueprint.to_string(),
        role: spec.role.to_string(),
    };
    let is_empty = fs::read_dir(&spec.data).map_or(true, |mut entries| entries.next().is_none());
    let marked: Option<Owner> = read_record(node_dir, OWNER_FILE).ok().flatten();
    match marked {
        Some(held) if held == own => Ok(()),
        Some(held) if !is_empty => Err(format!(
            "{} holds data of {} {} of cluster {} in lab {}, and this is {} {} of cluster {} in lab {}: delete \
             it with `faultbed wipe NODE`, or move it away",
            spec.data.display(),
            held.blueprint,
            held.role,
            held.cluster,
            held.lab,
            own.blueprint,
            own.role,
            own.cluster,
            own.lab
        )),
        // Before a node's first command or start there is no directory of its own yet.
        Some(_) | None => fs::create_dir_all(node_dir)
            .and_then(|()| write_record(node_dir, OWNER_FILE, &own))
            .map_err(|error| format!("write {OWNER_FILE}: {error}")),
    }
}

/// Whether the program is the one that the blueprint is for. `said` is the line of its version,
/// and `of` the one node whose program it is, where it is not its whole role's.
pub(super) fn version(
    of: Option<&NodeName>,
    spec: &NodeSpec,
    path: &Path,
    said: Option<&str>,
) -> Result<(), String> {
    let Some(rule) = &spec.launch.version_rule else { return Ok(()) };
    let system = spec.blueprint.as_ref().map_or("its blueprint", |name| name.as_str());
    let asked = question(spec, path);
    let whom = of.map_or_else(|| format!("{}/{}", spec.cluster, spec.role), NodeName::to_string);
    let instead = format!("`faultbed set {whom} path=FILE`");
    let Some(said) = said else {
        return Err(format!(
            "{asked} prints no version, so it is no program of {system}: {instead}"
        ));
    };
    let found = Regex::new(&rule.like).ok().and_then(|like| {
        let found = like.captures(said)?;
        Some(found.get(1).map_or("", |group| group.as_str()).to_owned())
    });
    let Some(found) = found else {
        return Err(format!("{asked} says {said:?}, so it is no program of {system}: {instead}"));
    };
    match &rule.min {
        Some(min) if numbers(&found) < numbers(min) => Err(format!(
            "{asked} says {found}, and blueprint {system} needs {min} or newer: {instead}"
        )),
        _ => Ok(()),
    }
}

/// What is said of a program that did not answer in time.
pub(super) fn late(spec: &NodeSpec, path: &Path, limit: Duration) -> String {
    format!(
        "{} did not end within {} s: its host is busy, or it is another program (`faultbed set {}/{} \
         path=FILE`)",
        question(spec, path),
        limit.as_secs(),
        spec.cluster,
        spec.role
    )
}

/// How a program is asked for its version.
fn question(spec: &NodeSpec, path: &Path) -> String {
    format!("`{} {}`", path.display(), spec.launch.version.join(" "))
}

/// `3.4.23` is newer than `3.4`, and `v10` than `v9.9`.
fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    parts.filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use faultbed_common::blueprint::VersionRule;

    use super::*;
    use crate::reconcile::testing::node_spec;

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let mut spec = node_spec();
        spec.blueprint = Some("etcd".parse().unwrap());
        spec.launch.version = vec!["--version".to_owned()];
        spec.launch.version_rule = Some(VersionRule {
            like: r"^etcd Version: ([0-9.]+)".to_owned(),
            min: Some("3.4".to_owned()),
        });
        let path = Path::new("/opt/etcd");
        let rows: [(&str, Option<&str>, &[&str]); 6] = [
            ("right", Some("etcd Version: 3.4.23"), &[]),
            ("newer", Some("etcd Version: 3.10.0"), &[]),
            (
                "old",
                Some("etcd Version: 3.3.25"),
                &["says 3.3.25", "needs 3.4 or newer", "path=FILE"],
            ),
            ("other", Some("Redis server v=7.0.15"), &["no program of etcd", "Redis server"]),
            ("dumb", None, &["prints no version", "/opt/etcd --version"]),
            ("odd", Some("etcd Version: next"), &["no program of etcd"]),
        ];
        for (name, said, words) in rows {
            let why = version(None, &spec, path, said).err().unwrap_or_default();
            assert_eq!(why.is_empty(), words.is_empty(), "{name}: {why}");
            words.iter().for_each(|word| assert!(why.contains(word), "{name}: {why}"));
        }
        let one = version(Some(&"kv-1".parse().unwrap()), &spec, path, None).unwrap_err();
        assert!(one.contains("`faultbed set kv-1 path=FILE`"), "not those that are right: {one}");
        let all = version(None, &spec, path, None).unwrap_err();
        assert!(all.contains("`faultbed set kv/kv path=FILE`"), "{all}");
        spec.launch.needs = vec!["sh".to_owned(), "no-such-helper".to_owned()];
        let why = needs(&spec.launch).unwrap_err();
        assert!(why.contains("no-such-helper") && why.contains("install it"), "{why}");
        spec.launch.limits.nofile_min = Some(65536);
        let why = files(&spec, Some(1024)).unwrap_err();
        assert!(
            why.contains("65536") && why.contains("1024") && why.contains("LimitNOFILE"),
            "{why}"
        );
        assert!(files(&spec, Some(65536)).is_ok() && files(&spec, None).is_ok());
    }

    #[test]
    fn data_of_another_cluster_is_not_taken_for_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        // A node that has never run has no directory.
        let node_dir = dir.path().join("kv-1");
        let mut spec = node_spec();
        spec.blueprint = Some("etcd".parse().unwrap());
        spec.data = node_dir.join("data");
        let (lab, other) = ("a".parse().unwrap(), "b".parse().unwrap());
        data(&lab, &node_dir, &spec).unwrap();
        fs::create_dir(&spec.data).unwrap();
        // It was moved here while it was empty: that harms nobody.
        data(&other, &node_dir, &spec).unwrap();
        fs::write(spec.data.join("wal"), "x").unwrap();
        data(&other, &node_dir, &spec).unwrap();
        let why = data(&lab, &node_dir, &spec).unwrap_err();
        assert!(why.contains("in lab b") && why.contains("faultbed wipe"), "{why}");
        spec.blueprint = Some("redis".parse().unwrap());
        let why = data(&other, &node_dir, &spec).unwrap_err();
        assert!(why.contains("holds data of etcd") && why.contains("this is redis"), "{why}");
    }
}
