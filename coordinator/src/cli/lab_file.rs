//! Loads a lab file for `up`, `apply` and `plan`: parsed, its blueprints read, its paths absolute and
//! checked. Every mistake is shown at its place, and nothing is changed.

mod names;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use faultbed_common::{
    blueprint::Blueprint,
    file::{self, Problem},
    name::{ClusterName, RoleName},
    spec::{ClusterSpec, LabFile, RoleSpec},
};
use toml::de::{DeTable, DeValue};

use crate::cli::{
    blueprints,
    failure::Failure,
    paths::{self, Hosts, PathProblem},
};

/// A lab file, ready to be applied.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Where it is, and its text.
    pub source: Source,
    /// What it says.
    pub file: LabFile,
    /// Blueprints of the user's own, by the path in the spec.
    pub blueprints: BTreeMap<String, Blueprint>,
}

/// The text of a lab file, for mistakes that are found when it has been read.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    text: String,
}

/// Loads a lab file.
///
/// # Errors
/// It cannot be read, or has mistakes, all of them shown.
pub fn load(path: &str, hosts: Hosts) -> Result<Loaded, Failure> {
    let path = paths::absolute(path, &paths::current_dir()?);
    let text = paths::read_text(&path).map_err(|e| {
        Failure::refused(e).next("faultbed blueprint show etcd   # and `faultbed up --help`")
    })?;
    load_text(path, &text, hosts)
}

fn load_text(path: PathBuf, text: &str, hosts: Hosts) -> Result<Loaded, Failure> {
    let mut file = file::parse_lab(text).map_err(|problems| unparsed(&path, text, problems))?;
    let base = path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut problems = Vec::new();
    let own = own_blueprints(&mut file, &base, text)?;
    let shipped = blueprints::shipped();
    let known: Vec<String> = shipped.keys().cloned().collect();
    let find = |name: &str| {
        let own_name = paths::absolute(name, &base).display().to_string();
        own.get(&own_name).or_else(|| shipped.get(name)).cloned()
    };
    if let Err(found) = file::check_roles(text, &find, &known) {
        problems.extend(found);
    }
    for (name, cluster) in &mut file.cluster {
        let blueprint = own.get(&cluster.blueprint).or_else(|| shipped.get(&cluster.blueprint));
        let place = Place { text, cluster: name, hosts };
        problems.extend(resolve_cluster(cluster, blueprint, &base, &place));
    }
    if problems.is_empty() {
        let source = Source { path, text: text.to_owned() };
        return Ok(Loaded { source, file, blueprints: own });
    }
    problems.sort_by_key(|problem| problem.span.start);
    Err(failure(&path, text, &problems))
}

/// All mistakes of a file that is no lab file: those against its blueprints too.
fn unparsed(path: &Path, text: &str, mut problems: Vec<Problem>) -> Failure {
    let base = path.parent().unwrap_or(Path::new("/"));
    let known: Vec<String> = blueprints::shipped().into_keys().collect();
    let find = |name: &str| blueprints::find(name, base).ok().map(|(_, blueprint)| blueprint);
    for problem in file::check_roles(text, &find, &known).err().unwrap_or_default() {
        if !problems.iter().any(|other| other.span == problem.span) {
            problems.push(problem);
        }
    }
    problems.sort_by_key(|problem| problem.span.start);
    failure(path, text, &problems)
}

/// Reads the blueprints that are named by path, and makes these paths absolute.
fn own_blueprints(
    file: &mut LabFile,
    base: &Path,
    _text: &str,
) -> Result<BTreeMap<String, Blueprint>, Failure> {
    let mut own = BTreeMap::new();
    for cluster in file.cluster.values_mut() {
        if blueprints::is_path(&cluster.blueprint) {
            let (name, blueprint) = blueprints::find(&cluster.blueprint, base)?;
            cluster.blueprint.clone_from(&name);
            own.insert(name, blueprint);
        }
    }
    Ok(own)
}

/// Where a cluster is written.
struct Place<'a> {
    text: &'a str,
    cluster: &'a ClusterName,
    hosts: Hosts,
}

impl Place<'_> {
    fn problem(&self, keys: &[&str], problem: PathProblem) -> Problem {
        let mut path = vec!["cluster", self.cluster.as_str()];
        path.extend(keys);
        Problem {
            span: span_of(self.text, &path),
            message: problem.message,
            help: Some(problem.help),
        }
    }
}

fn resolve_cluster(
    cluster: &mut ClusterSpec,
    blueprint: Option<&Blueprint>,
    base: &Path,
    place: &Place<'_>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (role, spec) in &mut cluster.roles {
        problems.extend(resolve_role(role, spec, base, place));
    }
    let Some(blueprint) = blueprint else { return problems };
    for (role, problem) in missing_programs(cluster, blueprint, place.hosts) {
        problems.push(place.problem(&[role.as_str()], problem));
    }
    problems
}

/// Makes the paths of a role absolute, checks them, and reads its configuration files.
fn resolve_role(
    role: &RoleName,
    spec: &mut RoleSpec,
    base: &Path,
    place: &Place<'_>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut settle = |keys: &[&str],
                      field: &mut Option<String>,
                      read: &dyn Fn(&str) -> Result<String, PathProblem>| {
        let Some(text) = field else { return };
        match read(text) {
            Ok(found) => *text = found,
            Err(problem) => problems.push(place.problem(keys, problem)),
        }
    };
    let program = |text: &str| paths::program(text, base, place.hosts);
    let config = |text: &str| paths::config(text, base);
    settle(&[role.as_str(), "path"], &mut spec.path, &program);
    settle(&[role.as_str(), "config"], &mut spec.config, &config);
    for (number, node) in &mut spec.node {
        let number = number.to_string();
        settle(&[role.as_str(), "node", &number, "path"], &mut node.path, &program);
        settle(&[role.as_str(), "node", &number, "config"], &mut node.config, &config);
    }
    problems
}

/// Roles that name no path, and whose blueprint's program is neither in PATH nor where the blueprint says. What hosts elsewhere lack,
/// they say themselves.
#[must_use]
pub fn missing_programs(
    cluster: &ClusterSpec,
    blueprint: &Blueprint,
    hosts: Hosts,
) -> Vec<(RoleName, PathProblem)> {
    let mut missing = Vec::new();
    if hosts == Hosts::Elsewhere {
        return missing;
    }
    for (name, role) in &blueprint.roles {
        let spec = cluster.roles.get(name);
        let count = spec.and_then(|spec| spec.count).unwrap_or(role.count);
        let is_named = spec.is_some_and(|spec| spec.path.is_some());
        if count == 0 || is_named || role.program.contains('/') {
            continue;
        }
        let is_found = paths::in_path(&role.program).is_some()
            || paths::in_search(&role.program, &role.search).is_some();
        if !is_found {
            let places: String = role.search.iter().map(|dir| format!(" or in {dir}")).collect();
            let without = if role.may_be_none() {
                format!("; or do without: {name}.count = 0 (--{name}.count 0)")
            } else {
                String::new()
            };
            missing.push((
                name.clone(),
                PathProblem {
                    message: format!(
                        "role {name} runs `{}`, which is not in PATH{places}",
                        role.program
                    ),
                    help: format!(
                        "install it, or set {name}.path = \"bin/{}\" (on the command line: --{name}.path){without}",
                        role.program
                    ),
                },
            ));
        }
    }
    missing
}

/// The bytes of the value at `path`, or of the nearest table above it.
fn span_of(text: &str, path: &[&str]) -> Range<usize> {
    let Ok(table) = DeTable::parse(text) else { return 0..0 };
    let mut span = 0..0;
    let mut table = table.get_ref();
    for key in path {
        let Some((found, value)) = table.iter().find(|(name, _)| name.get_ref() == key) else {
            break;
        };
        match value.get_ref() {
            DeValue::Table(inner) => {
                span = found.span();
                table = inner;
            }
            _ => return value.span(),
        }
    }
    span
}

/// All mistakes of a file, each at its place.
#[must_use]
pub fn failure(path: &Path, text: &str, problems: &[Problem]) -> Failure {
    let shown = path.display();
    let rendered: Vec<String> = problems
        .iter()
        .map(|problem| problem.render(&shown.to_string(), text).trim_end().to_owned())
        .collect();
    let count = match problems.len() {
        1 => "a mistake".to_owned(),
        many => format!("{many} mistakes"),
    };
    Failure::refused(format!("{shown} has {count}\n\n{}\n", rendered.join("\n\n")))
        .next(format!("$EDITOR {shown}"))
}

#[cfg(test)]
mod tests;
